"""A run's page, `index.html` in its folder: one file that opens from disk, asks for nothing, and hides nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from etcdops import rendering
from etcdops.report.counterexample import counterexamples
from etcdops.report.downsample import thin
from etcdops.report.embedding import content_policy, plotly_bundle, script_hash, script_json, script_packed
from etcdops.report.excerpts import read_logs
from etcdops.report.fates import Fates, find_fates
from etcdops.report.histogram import alike, histogram
from etcdops.report.lanes import lanes
from etcdops.report.loading import LoadedRun, load_run
from etcdops.report.page import not_checked
from etcdops.report.points import NotOk, counted, mark_lost, read_points
from etcdops.report.standing import reproduce, standings, surroundings
from etcdops.report.terminal import NO_SERVICE, figure_value, ms
from etcdops.report.timeline import dots, timeline
from etcdops.report.verdict import PAGE
from etcdops.state import replace_file

__all__ = ["page_of", "write_report"]

#: So many of the unknown writes are listed one by one; the timeline has all of them.
_LISTED = 200
_EVENTS = 400


def write_report(folder: Path) -> Path:
    """Write the page of a run into its folder, and give where it is.

    Raises SpecError for a folder that is no run's, StateError when it cannot be written, and EtcdopsError when what
    draws the timeline is not installed. Whatever is damaged or missing in the folder is said on the page.
    """
    page = page_of(folder)
    path = folder / PAGE
    replace_file(path, page.encode("utf-8", errors="replace"))
    return path


def page_of(folder: Path) -> str:
    """Give the page of a run, as text; raises as `write_report` does."""
    run = load_run(folder)
    problems = list(run.problems)
    points, not_ok = read_points([window for window, _ in run.windows], problems)
    fates = find_fates(run, not_ok, problems)
    points = mark_lost(points, {each.id for each in fates.gone})
    logs = read_logs(run, problems)
    pictures = counterexamples(run, problems)
    thinned = thin(points)
    drawn = timeline(run, thinned.points)
    began = run.info.began_ns
    start, end = (round(began + second * 1e9) for second in drawn.whole)
    found_lanes = lanes(run, start, end)
    same = alike(run)
    prediction = run.verdict.outage.prediction if run.verdict.outage else None
    picture = (
        histogram(
            list(same.outages.values()),
            prediction,
            run.info.timing,
            mark=same.outages.get(run.verdict.run),
        )
        if same
        else ""
    )
    marks = dots(thinned.points, began)
    bundle = plotly_bundle()
    script = rendering.source("report.js")
    data = {
        "figure": drawn.figure,
        "whole": drawn.whole,
        "focus": drawn.focus,
        "dots": {
            "count": marks.total,
            "streams": marks.streams,
            "members": marks.members,
            "notes": marks.notes,
        },
    }
    return rendering.render_html(
        "report.html.j2",
        filters=FILTERS,
        policy=content_policy(script_hash(script), bundle.sha256),
        style=rendering.source("report.css"),
        script=script,
        plotly=bundle,
        data=script_json(data),
        dots=script_packed(marks.data),
        v=run.verdict,
        run=run,
        info=run.info,
        summary=summary(run),
        problems=list(dict.fromkeys(problems)),
        checked=[check for check in run.verdict.checks if check.result != "inconclusive"],
        not_checked=not_checked(run.verdict),
        figures=outage_rows(run),
        restored=any(figure.name == NO_SERVICE for figure in run.verdict.figures),
        streams=stream_rows(run),
        counts=counted(points),
        thinned=thinned,
        total=int(points.weight.sum()),
        unknown=_unknown(not_ok, fates, began),
        gone=fates.gone,
        pictures=pictures,
        alike=same,
        histogram=picture,
        standings=standings(run, found_lanes, logs),
        logs=logs,
        events=_events(run),
        surroundings=surroundings(run, logs),
        reproduce=reproduce(run.info),
    )


class Summary(NamedTuple):
    """A run in a line, and what its page says at its head."""

    word: str
    mark: str
    sentence: str
    fault: str


_WORDS = {
    "passed": ("passed", "✓", ""),
    "deviated": ("deviated", "✗", "A check failed"),
    "inconclusive": ("inconclusive", "?", "Too little was seen to tell"),
    "aborted": ("aborted", "-", "Nothing was touched: the steady state was not met"),
    "stuck": ("stuck", "!", "Healing failed"),
}


def summary(run: LoadedRun) -> Summary:
    """Give what a run came to, in a sentence."""
    verdict = run.verdict
    word, mark, said = _WORDS.get(verdict.verdict, (verdict.verdict or "unknown", "?", "It is not known how it ended"))
    passed = sum(check.result == "passed" for check in verdict.checks)
    bad = [check.name for check in verdict.checks if check.result == "failed"]
    parts = [said] if said else []
    if not run.finished:
        parts = ["The run came to no end: it was killed, or goes on still"]
    if verdict.checks:
        open_ones = sum(check.result == "inconclusive" for check in verdict.checks)
        text = f"{passed} of {len(verdict.checks)} checks passed"
        if passed == len(verdict.checks):
            text = f"Every one of {passed} checks passed"
        if bad:
            text += f", {len(bad)} failed ({', '.join(bad[:4])}{', …' if len(bad) > 4 else ''})"
        parts.append(text + (f", {open_ones} could not tell" if open_ones else ""))
    faults = verdict.faults or ((verdict.fault,) if verdict.fault else ())
    fault = ", ".join(f"{each.kind} {each.member}".strip() for each in faults)
    if not fault:
        fault = ", ".join(dict.fromkeys(f"{each.kind} {each.member}".strip() for each in run.faults))
    return Summary(word, mark, "; ".join(parts) + ".", fault)


class Row(NamedTuple):
    """A figure of an outage: what it is, ms, and what there is to say of it."""

    what: str
    value: float | None
    note: str = ""


def outage_rows(run: LoadedRun) -> list[Row]:
    """Give the figures of a run's outage, the headline first; none where no outage was measured."""
    outage = run.verdict.outage
    if outage is None:
        return []
    stopped = outage.stopped
    least = "a lower bound: they did not come back while traffic was sent" if stopped and not stopped.ended else ""
    through = f" ({outage.worst_member})" if outage.worst_member else ""
    rows = [Row(f"writes stopped, worst surviving member{through}", outage.write_ms, least)]
    if outage.predicted_ms:
        low, high = outage.predicted_ms
        rows.append(Row("Raft predicts, at least", low))
        model = outage.prediction
        if model and model.mean_ms is not None:
            rows.append(
                Row("Raft predicts, mean", model.mean_ms, f"median {ms(model.median_ms)}, p90 {ms(model.p90_ms)}")
            )
        rows.append(Row("Raft predicts, at most", high, "without a split vote"))
    after = ms(outage.unavailable_after_ms)
    rows += [
        Row("until a member led at a higher term", outage.new_leader_ms),
        Row("writes, through a client that fails over", outage.failover_write_ms),
        Row("linearizable reads, through a client that fails over", outage.read_ms),
        Row(f"scheduled time not served within {after} ms", outage.unavailable_ms, "worst surviving member"),
        Row("writes, through the affected member itself", outage.affected_member_ms),
        Row("a watch delivered no change", outage.watch_ms, "worst surviving member"),
        Row("no keep-alive of a lease was acknowledged", outage.lease_ms),
        Row("99th percentile latency before the fault", outage.p99_before_ms),
        Row("until it was back within twice that", outage.p99_back_ms),
        Row("resolution of these figures", outage.resolution_ms, "a smaller difference means nothing"),
        Row(
            "noise: the largest gap without a fault",
            outage.noise_ms,
            "over less time than the fault lasted" if outage.noise_short else "",
        ),
    ]
    return rows


def stream_rows(run: LoadedRun) -> list[dict[str, Any]]:
    """Give what each stream met, and each watch, as rows of a table."""
    outage = run.verdict.outage
    if outage is None:
        return []
    rows: list[dict[str, Any]] = [
        {
            "name": each.stream,
            "gap": each.gap_ms,
            "ended": each.ended,
            "unavailable": each.unavailable_ms,
            "noise": each.noise_ms,
            "counts": (each.acknowledged, each.failed, each.unknown),
        }
        for each in outage.streams.values()
    ]
    silent = [(f"watch through {member}", gap) for member, gap in outage.watches.items()]
    silent += [("keep-alives of all clients", outage.lease)] if outage.lease else []
    rows += [
        {
            "name": name,
            "gap": gap.gap_ms,
            "ended": gap.ended,
            "unavailable": None,
            "noise": gap.noise_ms,
            "counts": ("", "", ""),
        }
        for name, gap in silent
    ]
    return rows


class Unknown(NamedTuple):
    """The writes of unknown outcome: some of them one by one, and how many of them ended how.

    `others` are requests of unknown outcome that make no revision, such as the grant of a lease.
    """

    total: int
    others: int
    fates: dict[str, int]
    listed: list[tuple[NotOk, float, str]]


def _unknown(not_ok: list[NotOk], fates: Fates, began: int) -> Unknown:
    unknown = sorted((op for op in not_ok if op.outcome == "unknown"), key=lambda op: op.at_ns)
    found = [op for op in unknown if op.writes]
    told: dict[str, int] = {}
    for op in found:
        fate = fates.of(op.id)
        told[fate] = told.get(fate, 0) + 1
    listed = [(op, (op.at_ns - began) / 1e9, fates.of(op.id)) for op in found[:_LISTED]]
    return Unknown(len(found), len(unknown) - len(found), told, listed)


class Events(NamedTuple):
    """What happened, from the journal: when (s), what, to whom, and how many more there are."""

    listed: list[tuple[float, str, str, str]]
    left_out: int


def _events(run: LoadedRun) -> Events:
    began = run.info.began_ns
    rows = [((entry.t_ns - began) / 1e9, entry.event, entry.member, entry.detail) for entry in run.entries]
    if not rows:
        rows = [(each.t_ms / 1e3, each.event, each.member, each.detail) for each in run.verdict.timeline]
    rows.sort(key=lambda row: row[0])
    return Events(rows[:_EVENTS], max(0, len(rows) - _EVENTS))


def thousands(number: float) -> str:
    """Give a whole number as people read it."""
    return f"{number:,.0f}"


FILTERS: dict[str, Callable[..., object]] = {"ms": ms, "value": figure_value, "thousands": thousands}
