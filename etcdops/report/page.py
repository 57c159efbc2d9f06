"""A run's page for people, from its verdict and a template."""

from __future__ import annotations

from collections.abc import Callable

from etcdops import rendering
from etcdops.report.terminal import ms
from etcdops.report.verdict import Verdict

__all__ = ["render"]


def render(verdict: Verdict, *, failover_rule: str, rate: int) -> str:
    """Give the page of a run as Markdown."""
    # What comes from members passes through `cell`.
    filters: dict[str, Callable[..., str]] = {"cell": _cell, "ms": ms}
    return rendering.render("verdict.md.j2", filters=filters, v=verdict, failover_rule=failover_rule, rate=rate)


def _cell(text: str) -> str:
    """Make a text harmless in a cell of a Markdown table."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
    return " ".join(escaped.split())
