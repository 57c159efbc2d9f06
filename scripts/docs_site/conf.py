"""The site of the documents, for Sphinx: the very pages that are read in the repository, with navigation and search.

The pages hold nothing that is for Sphinx alone. What leads to each of them is added here: a new page is found by where
it lies.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

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
# What MyST reads otherwise than GitHub: a line that begins with % would be gone, for one.
myst_disable_syntax = ["myst_line_comment", "myst_block_break", "myst_target", "myst_role"]
# A picture that is set in HTML, to have a width, is one like the others.
myst_enable_extensions = ["html_image"]
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

_LOG = logging.getLogger(__name__)


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


def _judge(app: Sphinx, doctree: nodes.document) -> None:
    """Warn of what Sphinx lets pass: links elsewhere that are not https, pictures from elsewhere, links set in HTML."""
    for link in doctree.findall(nodes.reference):
        target = link.get("refuri", "")
        if re.match(r"[a-z][a-z0-9+.-]*:", target, re.I) and not re.match(r"https://[^/?#\s]+\.[^/?#\s]", target):
            _LOG.warning("no https://HOST/ address: %s", target, location=link)
    for picture in doctree.findall(nodes.image):
        if "://" in picture["uri"]:
            _LOG.warning("a picture has to be a file of ours: %s", picture["uri"], location=picture)
    for html in doctree.findall(nodes.raw):
        if re.search(r"\b(?:href|src|srcset)\s*=", html.astext()):
            _LOG.warning("in HTML, it is not seen where this leads: %s", html.astext().strip(), location=html)


def _first_page(app: Sphinx, error: Exception | None) -> None:
    """Have the first page where a browser, or a server, looks for it."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _navigate)
    # Before Sphinx copies pictures.
    app.connect("doctree-read", _judge, priority=100)
    app.connect("build-finished", _first_page)
