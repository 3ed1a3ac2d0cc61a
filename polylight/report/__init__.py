"""A run to look at: a site of static pages and a PDF."""
