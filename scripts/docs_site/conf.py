"""The site of the documents, for Sphinx: the very pages that are read in the repository, with navigation and search.

The pages hold nothing that is for Sphinx alone. What leads to each of them is added here: a new page is found by where
it lies.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any

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
# Quotation marks and dashes stay those that were written.
smartquotes = False
# What a console shows is no program: whatever the highlighter cannot make of it is shown as it is.
suppress_warnings = ["misc.highlighting_failure"]

html_theme = "furo"
html_title = "etcdops"
html_show_sourcelink = False
html_copy_source = False
# It would be fetched, and a page that was opened from disk may fetch nothing.
html_show_search_summary = False
templates_path: list[str] = []

#: Each heading of the navigation, and the pages below it: by name, or all in a folder that are not named elsewhere. A
#: name that no page has is an error, and so is a page that nothing here leads to.
_NAVIGATION = {
    "Start here": ("self", "docs/guide", "docs/troubleshooting"),
    "Drills": ("docs/game-day", "docs/drills/*"),
    "Operating a cluster": (
        "docs/status",
        "docs/members",
        "docs/scaling",
        "docs/replacing",
        "docs/snapshots",
        "docs/restore",
        "docs/recover",
        "docs/maintenance",
        "docs/attach",
    ),
    "Containers, hosts and TLS": ("docs/compose", "docs/hosts", "docs/lab-hosts", "docs/tls"),
    "Proof and report": ("docs/proof", "docs/check", "docs/report"),
    "Reference": ("docs/library", "docs/versions", "docs/*"),
    "Español": ("README.es", "docs/es/*", "docs/es/*/*"),
    "The project": ("CHANGELOG", "CONTRIBUTING"),
}

_LOG = logging.getLogger(__name__)


def _below(patterns: tuple[str, ...], there: set[str]) -> list[str]:
    """Give the pages of one heading, in order."""
    named = {name for each in _NAVIGATION.values() for name in each}
    pages: list[str] = []
    for pattern in patterns:
        found = sorted(page for page in there - named if PurePosixPath(page).match(pattern))
        pages += found if "*" in pattern else [pattern]
    return pages


def _navigate(app: Sphinx, page: str, source: list[str]) -> None:
    """Add the navigation to the first page, where no reader sees it."""
    if page != root_doc:
        return
    for caption, patterns in _NAVIGATION.items():
        pages = _below(patterns, set(app.env.found_docs))
        source[0] += "\n".join(["\n\n```{toctree}", ":hidden:", f":caption: {caption}", "", *pages, "```\n"])


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


def _anchor(app: Sphinx, doctree: nodes.document) -> None:
    """Give each heading GitHub's anchor as well where Sphinx makes another, as it does without accents."""
    known = {own: github for github, (_, own, _) in app.env.metadata[app.env.docname].get("myst_slugs", {}).items()}
    for section in doctree.findall(nodes.section):
        section["ids"] += [known[own] for own in section["ids"] if known.get(own, own) not in section["ids"]]


def _tell_language(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Have a page say that it is in Spanish: to browsers, and to programs that read it aloud."""
    if page.endswith(".es") or page.startswith("docs/es/"):
        context["language"] = "es"


def _first_page(app: Sphinx, error: Exception | None) -> None:
    """Have the first page where a browser, or a server, looks for it."""
    if error is None and app.builder.name == "html":
        shutil.copyfile(Path(app.outdir) / f"{root_doc}.html", Path(app.outdir) / "index.html")


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _navigate)
    # Before Sphinx copies pictures, and before it writes down the headings.
    app.connect("doctree-read", _judge, priority=100)
    app.connect("doctree-read", _anchor, priority=100)
    app.connect("html-page-context", _tell_language)
    app.connect("build-finished", _first_page)
