"""What a page holds for its scripts, so that it opens from disk without asking for anything, and runs nothing else.

A page's only scripts are named by their SHA-256 in its Content-Security-Policy: whatever text a page shows, and
however that came to be there, a browser runs nothing of it.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import re
from functools import cache
from typing import Any, NamedTuple

import msgspec

from etcdops.errors import EtcdopsError

__all__ = ["Bundle", "content_policy", "plotly_bundle", "script_hash", "script_json", "script_packed", "shown"]

_DANGEROUS = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_DANGER = re.compile("[<>&\u2028\u2029]")


class Bundle(NamedTuple):
    """The library that draws, packed as a page has it, and the hash by which the page's policy knows it."""

    version: str
    packed: str
    sha256: str


def script_json(document: object) -> str:
    """Give a document as JSON that can stand in a <script> element: no text in it can end that."""
    return _DANGER.sub(lambda found: _DANGEROUS[found[0]], msgspec.json.encode(document).decode())


def script_packed(data: bytes) -> str:
    """Give bytes compressed, as text of letters and digits alone."""
    return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()


def script_hash(script: str) -> str:
    """Give a script's hash as a Content-Security-Policy names it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def content_policy(*hashes: str) -> str:
    """Give a policy by which a page may run these scripts, and may ask for nothing at all."""
    scripts = " ".join(f"'{each}'" for each in hashes) or "'none'"
    rules = {
        "default-src": "'none'",
        "script-src": scripts,
        # Plotly sets styles of its own as it draws.
        "style-src": "'unsafe-inline'",
        "img-src": "data: blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def shown(text: object) -> str:
    """Give a text as Plotly shows it letter by letter: it takes some HTML for what it is."""
    return html.escape(str(text), quote=False)


@cache
def plotly_bundle() -> Bundle:
    """Give plotly.js as the Python package brings it. Raises EtcdopsError when that is not installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = distribution("plotly")
        # The package itself takes a while to import, and this one file of it is all that is needed.
        path: Any = found.locate_file("plotly/package_data/plotly.min.js")
        script = path.read_bytes()
    except (PackageNotFoundError, OSError) as error:
        raise EtcdopsError(
            f"plotly, which draws the timeline, is not installed: {error}", remedy="pip install plotly"
        ) from error
    return Bundle(found.version, script_packed(script), script_hash(script.decode()))
