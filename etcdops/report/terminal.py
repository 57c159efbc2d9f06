"""What a person sees in a terminal of a cluster and of a run. Gives text; printing is the tasks' business."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.report.verdict import Verdict
    from etcdops.status import ClusterStatus
    from etcdops.verify.recorded import Figure
    from etcdops.workload.gaps import Gap
    from etcdops.workload.outage import Outage

__all__ = ["NO_SERVICE", "figure_value", "ms", "status_text", "verdict_text"]

_MARKS = {"passed": "ok", "failed": "FAILED", "inconclusive": "?"}

#: A resolution that is coarser is said to be.
_COARSE_MS = 10.0

#: The figure of a restore that says for how long nothing was served.
NO_SERVICE = "RTO without service"

#: How many kinds of errors are shown; `verdict.json` has all.
_KINDS = 4


def ms(value: float | None) -> str:
    """Give milliseconds as people read them, or a dash where nothing was measured."""
    return "-" if value is None else f"{value:,.0f}"


def figure_value(figure: Figure) -> str:
    """Give what a drill measured with its unit, or a dash where it could not."""
    if figure.value is None:
        return "-"
    # Whole numbers whole; of others as many places as say something.
    value = figure.value
    places = 0 if float(value).is_integer() or abs(value) >= 1000 else 1 if abs(value) >= 10 else 3
    text = f"{value:,.{places}f}"
    return f"{text.rstrip('0').rstrip('.') if places else text} {figure.unit}".strip()


def verdict_text(verdict: Verdict) -> str:
    """Give a run's verdict in a few lines."""
    from etcdops.report.verdict import PAGE

    faults = verdict.faults or ((verdict.fault,) if verdict.fault else ())
    what = ", ".join(f"{fault.kind} {fault.member}".strip() for fault in faults)
    # One that was all that was done is the drill itself.
    shown = f" ({what})" if what not in ("", verdict.drill) else ""
    lines = [f"{verdict.drill}{shown}: {verdict.verdict.upper()}"]
    outage, writes = verdict.outage, verdict.writes
    if outage:
        found = _outage_lines(outage, ", ".join(dict.fromkeys(fault.member for fault in faults if fault.member)))
        if any(figure.name == NO_SERVICE for figure in verdict.figures):
            # What a restore costs has figures of its own, and the outage is none of that.
            found[0] = found[0].replace("writes stopped", "before the restore, writes stopped")
        lines += found
    for i, figure in enumerate(verdict.figures):
        detail = f" ({figure.detail})" if figure.detail else ""
        lines.append(f"{'  figures  ' if i == 0 else '           '}{figure.name}: {figure_value(figure)}{detail}")
    lines.append(
        f"  writes   {writes.acknowledged:,} acknowledged, {_lost(verdict)}, {writes.failed:,} failed,"
        f" {writes.unknown:,} unknown ({writes.recovered:,} of them applied)"
    )
    for i, check in enumerate(verdict.checks):
        label = "  checks   " if i == 0 else "           "
        detail = f": {check.detail}" if check.result != "passed" else ""
        lines.append(f"{label}{_MARKS[check.result]:<6} {check.name}{detail}")
    known_bad, version = verdict.cluster.known_bad, verdict.cluster.etcd_version
    # Which one it was, if any, is for the reader to tell.
    failed = any(check.result == "failed" for check in verdict.checks)
    for effect in known_bad if failed else known_bad[:1]:
        lines.append(f"  etcd     {version} is known-bad; a failed check may be its: {effect}")
    # The page for a browser, or the few lines of Markdown where it was not made; a run that died has neither yet.
    short = Path(verdict.report)
    page = next((each for each in (short.with_name(PAGE), short) if each.is_file()), None)
    lines.append(f"  report   {page}" if page else f"  records  {short.parent}")
    return "\n".join(lines)


def _lost(verdict: Verdict) -> str:
    """Say how many writes were lost, which nobody knows of a run that ended before they were read back."""
    from etcdops.verify.acknowledged import NAME

    read_back = any(check.name == NAME and check.result != "inconclusive" for check in verdict.checks)
    known = read_back or verdict.writes.lost or not verdict.writes.acknowledged
    return f"{verdict.writes.lost:,} lost" if known else "not read back"


def _outage_lines(outage: Outage, affected: str) -> list[str]:
    worst = outage.worst_member
    stopped = outage.stopped
    least = "at least " if stopped and not stopped.ended else ""
    predicted = ""
    if outage.predicted_ms:
        low, high = outage.predicted_ms
        predicted = f"; Raft predicts {ms(low)} to {ms(high)} ms"
    through = f" through {worst}, the worst surviving member" if worst else ""
    coarse = " (over 10 ms)" if (outage.resolution_ms or 0.0) > _COARSE_MS else ""
    short = " (over less time than the fault lasted)" if outage.noise_short else ""
    limit = ms(outage.unavailable_after_ms)
    # A member that joined or left meanwhile has had no stream of its own.
    measured = affected and outage.affected_member_ms is not None
    affected_too = f"; {affected}: {ms(outage.affected_member_ms)} ms" if measured else ""
    lines = [f"writes stopped for {least}{ms(outage.write_ms)} ms{through}{predicted}"]
    if outage.outlier:
        lines.append(f"OUTLIER  {outage.outlier}")
    if outage.prediction and outage.prediction.mean_ms is not None:
        model = outage.prediction
        lines.append(
            f"predicted mean {ms(model.mean_ms)} ms, median {ms(model.median_ms)} ms, p90 {ms(model.p90_ms)} ms;"
            f" split vote {100 * model.split_risk:.0f} %"
        )
    lines.append(f"resolution {ms(outage.resolution_ms)} ms{coarse}, noise {ms(outage.noise_ms)} ms{short}")
    lines.append(f"failing over: writes {ms(outage.failover_write_ms)} ms, reads {ms(outage.read_ms)} ms")
    lines.append(f"unavailable {ms(outage.unavailable_ms)} ms (not answered within {limit} ms){affected_too}")
    if outage.new_leader_ms is not None:
        lines.append(f"a new leader after {ms(outage.new_leader_ms)} ms")
    silent = []
    if outage.watch_ms is not None:
        # The worst one's own noise: another member's says nothing of it.
        worst_watch = max(outage.watches.values(), key=lambda gap: gap.gap_ms == outage.watch_ms, default=None)
        silent.append(f"watches silent for {_least(worst_watch)}{ms(outage.watch_ms)} ms{_noise(worst_watch)}")
    if outage.lease_ms is not None:
        silent.append(f"no keep-alive for {_least(outage.lease)}{ms(outage.lease_ms)} ms{_noise(outage.lease)}")
    if silent:
        lines.append(", ".join(silent))
    if outage.p99_before_ms is not None:
        back = f"after {ms(outage.p99_back_ms)} ms" if outage.p99_back_ms is not None else "not seen"
        lines.append(f"p99 back within twice {outage.p99_before_ms:,.1f} ms: {back}")
    kinds = [(count, outcome, kind) for outcome, found in outage.errors.items() for kind, count in found.items()]
    kinds.sort(key=lambda each: -each[0])
    for i, (count, outcome, kind) in enumerate(kinds[:_KINDS]):
        lines.append(f"{'errors:' if i == 0 else '       '} {count:,} {outcome}, {kind}")
    if len(kinds) > _KINDS:
        lines.append(f"        and {sum(count for count, _, _ in kinds[_KINDS:]):,} of other kinds")
    return [("  outage   " if i == 0 else "           ") + line for i, line in enumerate(lines)]


def _least(gap: Gap | None) -> str:
    """What stands before a gap that had not ended when nothing more could come: it is a lower bound."""
    return "" if gap is None or gap.ended else "at least "


def _noise(gap: Gap | None) -> str:
    return "" if gap is None or gap.noise_ms is None else f" (noise {ms(gap.noise_ms)})"


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
    ends = f", certificates {status.certificate.days_left:.0f} d" if status.certificate else ""
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
            f" {leader}{ends} ({version}{status.runtime})",
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
