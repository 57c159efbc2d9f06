"""What members logged around the fault: the lines that matter, on the run's own clock, like ones put together."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from etcdops.report.loading import LoadedRun

__all__ = ["Excerpt", "LogFacts", "read_logs"]

#: How long before the first fault, and after the last healing, a line still belongs to it.
_BEFORE_S, _AFTER_S = 0.5, 1.5
#: So many lines of a member are shown, at most.
_MOST = 40
_SECOND = 1_000_000_000

_BAD = ("warn", "error", "dpanic", "panic", "fatal")
#: What is said of elections and of members that come and go, at whatever level.
_MATTERS = re.compile(
    r"leader|elect|campaign|candidate|vote|pre-candidate|term|inactive|became active|lost the tcp|"
    r"starting an etcd server|ready to serve|published|signal|shutdown|stopped|restarting|snapshot|panic|corrupt",
    re.IGNORECASE,
)
#: What is said of each slow request: how many there were is told instead.
_SLOW = re.compile(
    r"apply request took too long|^trace\[|waiting for ReadIndex|failed to send|took too long|^request stats"
)
_FSYNC = re.compile(r"slow fdatasync")
_RESTS = ("level", "ts", "caller", "msg", "stacktrace", "logger")


class Excerpt(NamedTuple):
    """A line of a member's log: when (s since the run began), how bad it is, and how many like it were put together."""

    t_s: float
    member: str
    level: str
    text: str
    detail: str
    times: int


class LogFacts(NamedTuple):
    """What logs tell: the lines around the fault, those left out, and per member how many lines were bad.

    `started` holds what a member said of itself as it started: its version, flags and so on. `slow_fsyncs` counts
    etcd's warnings of a slow disk.
    """

    excerpts: tuple[Excerpt, ...]
    left_out: int
    bad: dict[str, dict[str, int]]
    started: dict[str, dict[str, str]]
    slow_fsyncs: int
    slow_requests: int


class _Found:
    def __init__(self) -> None:
        self.lines: list[Excerpt] = []
        self.bad: dict[str, dict[str, int]] = {}
        self.started: dict[str, dict[str, str]] = {}
        self.fsyncs = 0
        self.slow = 0
        self.left_out = 0


def read_logs(run: LoadedRun, problems: list[str]) -> LogFacts:
    """Give what a run's kept logs tell; what cannot be read is added to `problems`."""
    offset_s = _offset_s(run)
    since, until = _around(run)
    found = _Found()
    for window, _ in run.windows:
        for path in sorted(window.glob("*.log")):
            if path.stem != "traffic":
                try:
                    _read(path, run, offset_s, since, until, found)
                except OSError as error:
                    problems.append(f"{path.name} cannot be read: {error.strerror}")
    shown = sorted(found.lines, key=lambda line: line.t_s)
    return LogFacts(tuple(shown), found.left_out, found.bad, found.started, found.fsyncs, found.slow)


def _offset_s(run: LoadedRun) -> float | None:
    """Give what the wall clock showed when the run began, as a Unix time.

    A note is stamped by the wall clock no earlier than by the other; the smallest difference is the best.
    """
    found = []
    for entry in run.entries:
        try:
            wall = datetime.fromisoformat(entry.wall).timestamp()
        except ValueError:
            continue
        found.append(wall - (entry.t_ns - run.info.began_ns) / _SECOND)
    return min(found, default=None)


def _around(run: LoadedRun) -> tuple[float, float]:
    faults = run.faults
    if not faults:
        return float("-inf"), float("inf")
    began = run.info.began_ns
    first, last = min(f.inject_ns for f in faults), max(f.heal_ns for f in faults)
    return (first - began) / _SECOND - _BEFORE_S, (last - began) / _SECOND + _AFTER_S


def _read(path: Path, run: LoadedRun, offset_s: float | None, since: float, until: float, found: _Found) -> None:
    member = path.stem
    own: list[Excerpt] = []
    bad = found.bad.setdefault(member, {})
    last_s = 0.0
    for raw in path.read_text(errors="replace").splitlines():
        entry = _entry(raw)
        level, text = str(entry.get("level", "")), str(entry.get("msg", raw))
        if level in _BAD:
            bad[level] = bad.get(level, 0) + 1
        if "etcd-version" in entry:
            found.started[member] = {**found.started.get(member, {}), **_texts(entry)}
        if text.strip() == "Running:" and isinstance(entry.get("args"), list):
            flags = " ".join(str(each) for each in entry["args"][1:])
            found.started.setdefault(member, {})["flags"] = flags
        if _FSYNC.search(text):
            found.fsyncs += 1
        if _SLOW.search(text):
            found.slow += 1
            continue
        last_s = _time(entry, offset_s, last_s)
        panicked = raw.startswith(("panic:", "fatal error:"))
        if not since <= last_s <= until or not (panicked or level in _BAD or _MATTERS.search(text)):
            continue
        line = Excerpt(last_s, member, "panic" if panicked else level or "-", text, _detail(entry), 1)
        if own and (own[-1].level, own[-1].text) == (line.level, line.text):
            own[-1] = own[-1]._replace(times=own[-1].times + 1)
        else:
            own.append(line)
    # Where there are too many, the bad ones stay, and the earliest of the others.
    chosen = sorted(sorted(range(len(own)), key=lambda i: (own[i].level not in _BAD[1:], i))[:_MOST])
    found.left_out += len(own) - len(chosen)
    found.lines += [own[i] for i in chosen]


def _entry(raw: str) -> dict[str, Any]:
    if not raw.startswith("{"):
        return {}
    try:
        entry = json.loads(raw)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _texts(entry: dict[str, Any]) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entry.items()}


def _time(entry: dict[str, Any], offset_s: float | None, last_s: float) -> float:
    from etcdops.logs import parse_time

    try:
        return parse_time(str(entry["ts"])).timestamp() - (offset_s or 0.0)
    except (KeyError, ValueError):
        return last_s


def _detail(entry: dict[str, Any]) -> str:
    rest = {key: value for key, value in _texts(entry).items() if key not in _RESTS}
    text = ", ".join(f"{key}: {value}" for key, value in rest.items())
    return text if len(text) <= 300 else f"{text[:299]}…"
