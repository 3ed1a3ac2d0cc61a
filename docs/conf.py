"""How Sphinx builds these pages: ``make docs``."""

project = "polylight"
extensions = ["myst_nb"]
# Notebooks are shown as they are stored; a test runs them.
nb_execution_mode = "off"
# So that pages may link to each other's headings, as they do on GitHub.
myst_heading_anchors = 3
html_theme = "furo"
html_title = "polylight"
html_show_copyright = False
html_copy_source = False
