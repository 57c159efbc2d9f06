"""What a person sees in a terminal of a cluster and of a run. Gives text; printing is the tasks' business."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

import msgspec

from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.report.verdict import Verdict
    from etcdops.status import ClusterStatus

__all__ = ["Distribution", "distribution", "ms", "status_text", "verdict_text"]

_MARKS = {"passed": "ok", "failed": "FAILED", "inconclusive": "?"}


class Distribution(msgspec.Struct, frozen=True):
    """The write outages of repeated runs, in milliseconds."""

    n: int
    min_ms: float
    median_ms: float
    p90_ms: float
    max_ms: float


def distribution(values: Sequence[float]) -> Distribution | None:
    """Give the distribution of some outages, or None of none."""
    if not values:
        return None
    ordered = sorted(values)
    return Distribution(
        len(ordered),
        ordered[0],
        float(median(ordered)),
        ordered[min(len(ordered) - 1, -(-9 * len(ordered) // 10) - 1)],
        ordered[-1],
    )


def ms(value: float | None) -> str:
    """Give milliseconds as people read them, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:,.0f}"


def verdict_text(verdict: Verdict) -> str:
    """Give a run's verdict in a few lines."""
    fault = f" ({verdict.fault.kind} {verdict.fault.member})" if verdict.fault else ""
    lines = [f"{verdict.drill}{fault}: {verdict.verdict.upper()}"]
    outage, writes = verdict.outage, verdict.writes
    if outage:
        predicted = ""
        if outage.predicted_ms:
            low, high = outage.predicted_ms
            predicted = f"; Raft predicts {ms(low)} to {ms(high)} ms"
        worst = f" through {outage.worst_member}, the worst surviving member" if outage.worst_member else ""
        short = " (over less time than the fault lasted)" if outage.noise_short else ""
        affected = verdict.fault.member if verdict.fault else ""
        lines += [
            f"  outage   writes stopped for {ms(outage.write_ms)} ms{worst}{predicted}",
            f"           resolution {ms(outage.resolution_ms)} ms, noise {ms(outage.noise_ms)} ms{short}",
            f"           failing over: writes {ms(outage.failover_write_ms)} ms, reads {ms(outage.read_ms)} ms",
            f"           unavailable {ms(outage.unavailable_ms)} ms; {affected}: {ms(outage.affected_member_ms)} ms",
        ]
    lines.append(
        f"  writes   {writes.acknowledged:,} acknowledged, {writes.lost:,} lost, {writes.failed:,} failed,"
        f" {writes.unknown:,} unknown ({writes.recovered:,} of them applied)"
    )
    for i, check in enumerate(verdict.checks):
        label = "  checks   " if i == 0 else "           "
        detail = f": {check.detail}" if check.result != "passed" else ""
        lines.append(f"{label}{_MARKS[check.result]:<6} {check.name}{detail}")
    if verdict.cluster.known_bad:
        version = verdict.cluster.etcd_version
        lines.append(f"  etcd     {version} is known-bad; a failed check may be its: {verdict.cluster.known_bad[0]}")
    lines.append(f"  report   {verdict.report}")
    return "\n".join(lines)


def status_text(status: ClusterStatus, *, width: int | None = None, colour: bool = False) -> str:
    """Give a cluster's status: a verdict line, a table of members, and warnings with codes."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    can_vote = [member for member in status.members if member.role != "learner"]
    healthy = sum(member.health == "healthy" for member in can_vote)
    spare = max(0, healthy - status.quorum)
    voters = len(can_vote)
    leader = f"{status.leader} leads in term {status.term}" if status.leader else "no leader"
    can = f"can lose {spare}" if healthy >= status.quorum else f"short of the quorum by {status.quorum - healthy}"
    version = f"etcd {status.etcd_version}, " if status.etcd_version else ""
    newest = max((member.revision for member in status.members), default=0)
    table = Table(box=None, pad_edge=False, header_style="bold" if colour else "")
    for column in ("NAME", "ID", "ROLE", "HEALTH", "TERM", "REVISION", "LAG", "DB SIZE", "ALARMS", "CLIENT URL"):
        right = column in ("TERM", "REVISION", "LAG", "DB SIZE")
        table.add_column(column, justify="right" if right else "left", no_wrap=True)
    for member in status.members:
        good = member.health == "healthy"
        seen = bool(member.id)
        table.add_row(
            member.name,
            member.id or "-",
            member.role or "-",
            Text(member.health, style=("green" if good else "bold red") if colour else ""),
            str(member.term) if seen else "-",
            str(member.revision) if seen else "-",
            str(newest - member.revision) if seen else "-",
            size_text(member.db_size) if seen else "-",
            ", ".join(member.alarms) or "-",
            member.client_url or "-",
        )
    console = Console(width=width or 160, no_color=not colour, force_terminal=colour, highlight=False, soft_wrap=True)
    with console.capture() as capture:
        console.print(
            f"{status.cluster}: {status.verdict}: {healthy}/{voters} voters healthy, quorum {status.quorum}, {can},"
            f" {leader} ({version}{status.runtime})",
            style="bold" if colour else None,
            markup=False,
        )
        console.print(table)
        for member in status.members:
            for error in member.errors:
                console.print(f"{member.name}: {error}", markup=False)
        for warning in status.warnings:
            style = "bold red" if colour and warning.severity == "error" else None
            console.print(str(warning), style=style, markup=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
