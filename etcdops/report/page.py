"""A run's page for people, from its verdict and a template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from etcdops import rendering
from etcdops.report.runinfo import RunInfo
from etcdops.report.terminal import figure_value, ms
from etcdops.report.verdict import Verdict
from etcdops.state import replace_file

__all__ = ["cell", "not_checked", "render", "write_page"]


def write_page(verdict: Verdict, info: RunInfo) -> None:
    """Write the run's page to where the verdict says it is. Raises StateError."""
    page = render(verdict, failover_rule=info.failover_rule, rate=info.rate)
    replace_file(Path(verdict.report), page.encode())


def render(verdict: Verdict, *, failover_rule: str, rate: int) -> str:
    """Give the page of a run as Markdown."""
    return rendering.render(
        "verdict.md.j2",
        filters=FILTERS,
        v=verdict,
        failover_rule=failover_rule,
        rate=rate,
        looked=[check.name for check in verdict.checks if check.result != "inconclusive"],
        not_checked=not_checked(verdict),
    )


def not_checked(verdict: Verdict) -> list[str]:
    """Give what the run does not show, in words, as far as its verdict tells."""
    listed = [str(each) for each in getattr(verdict, "not_checked", ())]
    listed += [f"{check.name}: {check.detail}" for check in verdict.checks if check.result == "inconclusive"]
    outage = verdict.outage
    if outage is None:
        return [*listed, "how long the cluster did not serve: no outage was measured"]
    missing = {
        "writes through surviving members": outage.write_ms,
        "linearizable reads": outage.read_ms,
        "when a member led at a higher term": outage.new_leader_ms,
        "what watches delivered": outage.watch_ms,
        "keep-alives of leases": outage.lease_ms,
        "when the 99th percentile latency was back": outage.p99_back_ms,
    }
    figures = [what for what, value in missing.items() if value is None]
    if figures:
        listed.append(f"without a figure: {', '.join(figures)}")
    if outage.predicted_ms is None:
        listed.append("whether the outage is as long as Raft predicts: nothing is predicted for such a fault")
    else:
        low_ms, high_ms = outage.predicted_ms
        slack_ms = (outage.resolution_ms or 0.0) + (outage.noise_ms or 0.0)
        if slack_ms > high_ms - low_ms:
            listed.append(
                f"whether the outage is as long as Raft predicts: resolution and noise, {ms(slack_ms)} ms together, are"
                " more than the prediction spans"
            )
    return listed


def cell(text: str) -> str:
    """Make a text harmless in a cell of a Markdown table."""
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("`", "'")
    return " ".join(escaped.split())


#: What comes from members passes through `cell`.
FILTERS: dict[str, Callable[..., object]] = {"cell": cell, "ms": ms, "value": figure_value}
