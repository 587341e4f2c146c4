"""Sphinx's settings for `make docs`: the pages of this folder, strict, without a request to another host.

Sphinx because it checks links, anchors and references itself and its pages work, search included, from a disk
(docs/decisions/0018-the-face-compared.md says what else was looked at).
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_extension"), str(HERE.parent)]
os.environ["PYTHONPATH"] = str(HERE.parent)

from paser import __version__  # noqa: E402

project = "PASER"
author = "the authors of PASER"
copyright = "the authors of PASER, Apache-2.0"
release = __version__

extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "paser_pages"]
source_suffix = {".md": "markdown", ".rst": "restructuredtext"}
default_role = "code"
# A name that several modules have, such as Selection, is shown in signatures without a link to one of them.
suppress_warnings = ["ref.python"]
smartquotes = False

apidoc_modules = [
    {
        "path": "../paser",
        "destination": "reference/modules",
        "exclude_patterns": ["../paser/cli*.py", "../paser/__main__.py"],
        "module_first": True,
        "separate_modules": False,
        "no_headings": False,
        "automodule_options": {"members"},
    }
]

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "PASER"
html_static_path: list[str] = []
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which browsers forbid from a disk
highlight_language = "none"
pygments_style = "tango"
pygments_dark_style = "monokai"
