"""The documentation site: `make docs`."""

from importlib.metadata import version as installed

project = "losskernel"
author = "The losskernel authors"
version = release = installed("losskernel")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
# Executed when they have changed; a cell that fails fails the build.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 600

autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # the signatures have them
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "losskernel"
