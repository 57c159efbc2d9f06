"""Two runs side by side: what was different about them, and whether what came of it differs by more than chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from etcdops import rendering
from etcdops.report.disks import systems_text
from etcdops.report.embedding import content_policy
from etcdops.report.loading import LoadedRun, load_run
from etcdops.report.terminal import ms
from etcdops.state import replace_file

__all__ = ["Comparison", "Pair", "compare", "comparison_text", "write_comparison"]


class Pair(msgspec.Struct, frozen=True):
    """One thing of both runs, as text, and whether it is different. `difference` is that of B from A, for figures.

    `telling` is None where it cannot be said whether a difference means anything, else whether it is more than both
    runs' resolution and noise.
    """

    what: str
    a: str
    b: str
    differs: bool
    difference: float | None = None
    telling: bool | None = None


class Comparison(msgspec.Struct, frozen=True):
    """Two runs: how they were made, what was measured (ms), what became of writes, and how each check ended."""

    schema: int
    a: str
    b: str
    made: tuple[Pair, ...]
    outage: tuple[Pair, ...]
    writes: tuple[Pair, ...]
    checks: tuple[Pair, ...]
    problems: tuple[str, ...] = ()


_FIGURES = {
    "write_ms": "writes stopped, worst surviving member",
    "new_leader_ms": "until a member led at a higher term",
    "failover_write_ms": "writes, failing over",
    "read_ms": "linearizable reads, failing over",
    "unavailable_ms": "not served in time",
    "affected_member_ms": "writes, through the affected member",
    "watch_ms": "a watch delivered no change",
    "lease_ms": "no keep-alive was acknowledged",
    "p99_before_ms": "99th percentile latency before the fault",
    "p99_back_ms": "until it was back within twice that",
    "resolution_ms": "resolution",
    "noise_ms": "noise",
}
#: What these say of how exact the others are.
_ERRORS = ("resolution_ms", "noise_ms", "p99_before_ms")


def compare(a: Path, b: Path) -> Comparison:
    """Give two runs side by side, from their folders. Raises SpecError for a folder that is no run's."""
    first, second = load_run(a), load_run(b)
    return Comparison(
        1,
        first.verdict.run,
        second.verdict.run,
        tuple(_made_pairs(_made(first), _made(second))),
        tuple(_outage(first, second)),
        tuple(_counts(first, second)),
        tuple(_pair(what, one, other) for what, (one, other) in _both(_checks(first), _checks(second)).items()),
        tuple(f"{each.verdict.run}: {problem}" for each in (first, second) for problem in each.problems),
    )


def _made_pairs(a: dict[str, str], b: dict[str, str]) -> list[Pair]:
    """Give how both were made, the drills' own options together."""
    pairs = [_pair(what, one, other) for what, (one, other) in _both(a, b).items()]
    options = [pair for pair in pairs if pair.what.startswith("--")]
    rest = [pair for pair in pairs if pair not in options]
    return [*rest[:3], *options, *rest[3:]]


def _pair(what: str, a: str, b: str) -> Pair:
    return Pair(what, a, b, a != b)


def _both(a: dict[str, str], b: dict[str, str]) -> dict[str, tuple[str, str]]:
    return {what: (a.get(what, "-"), b.get(what, "-")) for what in dict.fromkeys([*a, *b])}


def _made(run: LoadedRun) -> dict[str, str]:
    info, verdict = run.info, run.verdict
    made = {
        "drill": verdict.drill,
        "verdict": verdict.verdict,
        "fault": ", ".join(f"{fault.kind} {fault.member}".strip() for fault in run.faults) or "-",
        **{f"--{name}": value for name, value in info.options.items()},
        "etcd": verdict.cluster.etcd_version or info.etcd_version,
        "runtime": verdict.cluster.runtime or info.runtime,
        "members": str(len(verdict.cluster.members)),
        "heartbeat, election timeout": f"{info.timing.heartbeat_ms} ms, {info.timing.election_ms} ms",
        "traffic": f"{info.profile}, {info.rate}/s a stream, {info.clients} clients of {info.client_rate}/s",
        "kernel": info.kernel,
        "processors": str(info.cpus),
        "file system": systems_text(run.disks),
        "seed": str(verdict.seed),
        "began": info.began,
    }
    return {what: value or "-" for what, value in made.items()}


def _checks(run: LoadedRun) -> dict[str, str]:
    return {check.name: check.result for check in run.verdict.checks}


def _outage(first: LoadedRun, second: LoadedRun) -> list[Pair]:
    a, b = first.verdict.outage, second.verdict.outage
    if a is None and b is None:
        return []
    slack = sum(value or 0.0 for each in (a, b) if each for value in (each.resolution_ms, each.noise_ms))
    pairs = []
    for name, what in _FIGURES.items():
        one: float | None = getattr(a, name, None)
        other: float | None = getattr(b, name, None)
        difference = other - one if one is not None and other is not None else None
        telling = None if difference is None or name in _ERRORS else abs(difference) > slack
        pairs.append(Pair(what, ms(one), ms(other), ms(one) != ms(other), difference, telling))
    return pairs


def _counts(first: LoadedRun, second: LoadedRun) -> list[Pair]:
    pairs = []
    for name in ("acknowledged", "lost", "failed", "unknown", "recovered"):
        one, other = getattr(first.verdict.writes, name), getattr(second.verdict.writes, name)
        pairs.append(Pair(name, f"{one:,}", f"{other:,}", one != other, other - one))
    return pairs


def comparison_text(found: Comparison) -> str:
    """Give a comparison as lines of text: what is the same in both is told in one column."""
    rows: list[tuple[str, str, str, str]] = [("", "A", "B", ""), ("run", found.a, found.b, "")]
    for pairs in (found.made, found.outage, found.writes, found.checks):
        rows.append(("", "", "", ""))
        rows += [(pair.what, pair.a, pair.b if pair.differs else "same", _remark(pair)) for pair in pairs]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _remark(pair: Pair) -> str:
    if pair.difference is None or not pair.differs:
        return ""
    remark = f"{pair.difference:+,.0f}"
    return remark + ("" if pair.telling is not False else ", within resolution and noise")


def write_comparison(found: Comparison, path: Path) -> Path:
    """Write a comparison as a page, and give where it is. Raises StateError."""
    parts: list[tuple[str, Any]] = [
        ("How they were made", found.made),
        ("Outage, ms", found.outage),
        ("Writes", found.writes),
        ("Checks", found.checks),
    ]
    page = rendering.render_html(
        "compare.html.j2",
        filters={"remark": _remark},
        policy=content_policy(),
        style=rendering.source("report.css"),
        found=found,
        parts=[(name, pairs) for name, pairs in parts if pairs],
    )
    replace_file(path, page.encode("utf-8", errors="replace"))
    return path
