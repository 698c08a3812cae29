"""The documentation site: `python -m sphinx -W -b html docs build/docs`."""

import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
sys.path.insert(0, str(_HERE))  # for `docstrings`

project = "ramda_jax"
author = "The ramda_jax authors"
release = metadata.version("ramda-jax")
html_title = f"ramda_jax {release}"

extensions = ["myst_nb", "sphinx.ext.autodoc", "docstrings"]
# The notebook is run when the site is built: an error in it is one of the build.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
myst_heading_anchors = 3
html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures tell names and defaults, docstrings shapes and ranges
# Text of no language: the mathematics and diagrams in indented blocks.
highlight_language = "text"
smartquotes = False  # primes of formulas stay primes

# Files of the repository that are pages of the site.
_PAGES = {
    "examples/RESULTS.md": "results",
    "examples/SEARCHES.md": "searches",
    "benchmarks/RESULTS.md": "benchmarks",
    "CONTRIBUTING.md": "contributing",
    "CHANGELOG.md": "changelog",
}


def _read(app: Any, name: str, source: list[str]) -> None:
    """Pages from outside docs/ take their place here, and links to them lead there."""
    root = _HERE.parent
    files = {page: file for file, page in _PAGES.items()}
    file = root / files[name] if name in files else Path(app.env.doc2path(name))
    text = (root / files[name]).read_text() if name in files else source[0]

    def moved(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = os.path.relpath(file.parent / target, root)
        here = os.path.dirname(name)
        if path in _PAGES:
            return f"]({os.path.relpath(_PAGES[path], here or '.')}.md{anchor})"
        return f"]({os.path.relpath(root / path, _HERE / here)}{anchor})"

    source[0] = re.sub(r"\]\((?![a-z]+://|#)([^)#\s]+)(#[^)\s]*)?\)", moved, text)


def setup(app: Any) -> None:
    app.connect("source-read", _read)
