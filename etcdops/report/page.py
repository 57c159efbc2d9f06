"""A run's page for people, from its verdict and a template."""

from __future__ import annotations

from pathlib import Path

import jinja2

from etcdops.report.terminal import ms
from etcdops.report.verdict import Verdict

__all__ = ["render", "template_dir"]


def template_dir() -> Path:
    """Give the directory of the templates: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "templates"
    return installed if installed.is_dir() else package.parent / "templates"


def render(verdict: Verdict, *, failover_rule: str, rate: int) -> str:
    """Give the page of a run as Markdown."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_dir()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # Markdown; what comes from members passes through `cell`
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _cell
    environment.filters["ms"] = ms
    return environment.get_template("verdict.md.j2").render(v=verdict, failover_rule=failover_rule, rate=rate)


def _cell(text: str) -> str:
    """Make a text harmless in a cell of a Markdown table."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
    return " ".join(escaped.split())
