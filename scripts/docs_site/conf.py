"""The site of the documents, for Sphinx: the very pages that are read in the repository, with navigation and search.

The pages hold nothing that is for Sphinx alone. What leads to each of them is added here: a new page is found by where
it lies.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from sphinx.application import Sphinx

project = "etcdops"
author = "The etcdops authors"
language = "en"

extensions = ["myst_parser"]
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/**/*.md"]
_ROOT = Path(os.environ["ETCDOPS_DOCS_ROOT"])
exclude_patterns = [path.name for path in _ROOT.iterdir() if path.is_dir() and path.name != "docs"]

# Anchors as GitHub makes them, so that one link serves both.
myst_heading_anchors = 6
nitpicky = True
# What a console shows is no program: whatever the highlighter cannot make of it is shown as it is.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = "etcdops"
html_show_sourcelink = False
html_copy_source = False
# It would be fetched, and a page that was opened from disk may fetch nothing.
html_show_search_summary = False
templates_path: list[str] = []

#: Each heading of the navigation, and the pages below it: by name, or all in a folder that are not named before.
_NAVIGATION = {
    "": ("docs/guide",),
    "Drills": ("docs/drills/*",),
    "How to": ("docs/*",),
    "Español": ("README.es", "docs/es/*"),
    "The project": ("CHANGELOG", "CONTRIBUTING"),
}


def _navigate(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the navigation to the first page, where no reader sees it."""
    if page != root_doc:
        return
    for caption, pages in _NAVIGATION.items():
        lines = [
            "```{toctree}",
            ":hidden:",
            ":glob:",
            *([f":caption: {caption}"] if caption else []),
            "",
            *pages,
            "```",
        ]
        source[0] += "\n\n" + "\n".join(lines) + "\n"


def _first_page(app: Sphinx, error: Exception | None) -> None:
    """Have the first page where a browser, or a server, looks for it."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _navigate)
    app.connect("build-finished", _first_page)
