"""Sphinx: the reference, from the docstrings. Built by ``docs/build.py`` into ``site/api``."""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent)]

import ncfd  # noqa: E402 - after the path is set

project = "ncfd"
author = "The ncfd developers"
copyright = "2026 The ncfd developers"  # noqa: A001 - Sphinx's name for it
version = release = ncfd.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "extensions.sphinx_mathml",
]

html_theme = "furo"
html_title = f"ncfd {version}"
html_logo = "../guide/assets/logo.svg"
html_favicon = "../guide/assets/logo.svg"
html_math_renderer = "mathml"
html_static_path = ["static"]
html_css_files = ["reference.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {
        "color-brand-primary": "#4051b5",
        "color-brand-content": "#4051b5",
        "font-stack": "-apple-system, BlinkMacSystemFont, Helvetica, Arial, sans-serif",
    },
    "dark_css_variables": {
        "color-brand-primary": "#9fa8ff",
        "color-brand-content": "#9fa8ff",
    },
    "announcement": '<a href="../index.html">← Guide: quick starts, pictures, how to choose</a>',
}

# The reader of a docstring in an editor sees `N`; here it becomes code.
default_role = "code"
nitpicky = True
nitpick_ignore = [
    ("py:class", "optional"),
    ("py:class", "Self"),
    # Names of type variables and private aliases in signatures.
    ("py:class", "ncfd.distributions.RuleT"),
    ("py:class", "ncfd._arrays.SupportsArray"),
]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_rtype = False

doctest_global_setup = """
import torch
import ncfd
from ncfd import *
from ncfd.functional import *
from ncfd.distributions import *
from ncfd.metrics import NCFDMetric
"""


def _local_inventory(name: str) -> str:
    """Pack ``inventories/NAME.txt`` into the format of intersphinx; the build needs no network."""
    text = (HERE / "inventories" / f"{name}.txt").read_text(encoding="utf-8")
    body = "".join(f"{line}\n" for line in text.splitlines() if line and not line.startswith("#"))
    head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n"
    head += "# The remainder of this file is compressed using zlib.\n"
    folder = Path(os.environ.get("NCFD_BUILD_DIR", HERE.parents[1] / "build" / "docs"))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.inv"
    target.write_bytes(head.encode() + zlib.compress(body.encode()))
    return str(target)


intersphinx_mapping = {
    "python": ("https://docs.python.org/3", _local_inventory("python")),
    "numpy": ("https://numpy.org/doc/stable", _local_inventory("numpy")),
    "torch": ("https://docs.pytorch.org/docs/stable", _local_inventory("torch")),
}


def _point_to_guide(
    _app: Sphinx, page: str, _template: str, context: dict[str, Any], _doctree: object
) -> None:
    """The link to the guide is relative, so it depends on how deep a page lies (``_modules/``)."""
    link = context["theme_announcement"]
    context["theme_announcement"] = link.replace('"../', '"../' + "../" * page.count("/"))


def setup(app: Sphinx) -> None:
    """Entry point of Sphinx."""
    app.connect("html-page-context", _point_to_guide)
