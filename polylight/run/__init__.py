"""A run on disk: rows, parts, manifest."""
