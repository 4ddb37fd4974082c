"""How Sphinx makes the site: `make docs`.

Sources are the pages of the whole tree, where they lie: so links between them are the ones that
readers of the files have, and are checked as such; nothing is copied.
"""

import os
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from pygments.lexers.sql import PostgresLexer
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import pybq
from pybq.errors import EXTRAS

ROOT = Path(__file__).parents[1]

project = "bq"
author = "The bq authors"
project_copyright = author
release = re.search(r"default_version = '(.+)'", (ROOT / "extension/bq.control").read_text())[1]
html_title = f"bq {release}"

root_doc = "docs/index"
include_patterns = [
    "docs/**/*.md",
    "docs/**/*.ipynb",
    "docs/*.md",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "benchmarks/**README.md",
    "extension/README.md",
    "pybq/README.md",
]
exclude_patterns = [".venv", ".git", "build", "dist", "**/.ipynb_checkpoints"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

# -- pages ----------------------------------------------------------------------------------

myst_enable_extensions = ["attrs_block", "deflist"]
myst_heading_anchors = 4  # as on GitHub: #the-index
# What is not a language of a page's examples is output, or a form.
highlight_language = "none"

# -- notebooks: executed for the site, and again only when they have changed ------------------

nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "build" / "docs" / "notebooks")
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True

# -- reference of Python --------------------------------------------------------------------

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say more: shapes, units
autodoc_inherit_docstrings = False  # those of other packages refer to their own pages
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
# Of frameworks that are not there names are enough.
autodoc_mock_imports = [
    name for name in {name.partition(".")[0] for name in EXTRAS} if find_spec(name) is None
]
default_role = "py:obj"  # single backticks, as docstrings have them
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
toc_object_entries_show_parents = "hide"

# -- links to other sites, by `make docs-links` ---------------------------------------------

linkcheck_timeout = 30
linkcheck_workers = 4
linkcheck_anchors = False
linkcheck_ignore = [r"http://localhost", r"https?://10\."]

# -- looks ----------------------------------------------------------------------------------

html_theme = "furo"
pygments_dark_style = "github-dark"  # the theme's own underlines names of modules
templates_path = ["_templates"]
html_static_path = ["_static"]
html_additional_pages = {"index": "redirect.html"}  # pages lie in folders, as their sources do
html_css_files = ["bq.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_last_updated_fmt = None
copybutton_exclude = ".linenos, .gp, .go"


def leave_words(app: Sphinx, doctree: nodes.document) -> None:
    """Make no links of words in types of parameters, as `dim` in "shape (n, dim)".

    Else each is one to whatever attribute has that name.
    """
    found: Iterable[Any] = list(doctree.findall(pending_xref))
    for link in found:
        name = link["reftarget"]
        if link.get("refdomain") == "py" and name.islower() and not hasattr(pybq, name):
            link.replace_self(link.children)


def split_names(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Give each of the attributes ``a, b : int`` an entry of its own.

    numpydoc has them in one; Sphinx takes the first name for the type of the second.
    """
    text = "\n".join(lines)
    before, heading, rest = text.partition("\nAttributes\n----------\n")
    section, gap, after = rest.partition("\n\n")
    entries = []
    for entry in re.split(r"\n(?=\S)", section):
        head, _, body = entry.partition("\n")
        names, colon, kind = head.partition(" : ")
        entries += ["\n".join([each + colon + kind, body]) for each in names.split(", ")]
    lines[:] = (before + heading + "\n".join(entries) + gap + after).split("\n")


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", split_names, priority=400)  # before napoleon
    app.add_lexer("sql", PostgresLexer)  # of parameters, $1, too
    app.connect("doctree-read", leave_words)


os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # of kernels of notebooks
