"""Look at a run: table, SQL, export, contact sheet."""
