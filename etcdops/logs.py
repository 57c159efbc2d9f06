"""Members' logs, line by line: read, merged by time, followed, and searched for what matters."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from heapq import merge
from typing import NamedTuple

from etcdops.errors import SpecError
from etcdops.runtimes.base import Runtime
from etcdops.state import MemberRecord

__all__ = ["LogLine", "follow", "matter", "merged", "parse_since", "parse_time", "read_log"]

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_STACK = re.compile(r',"stacktrace":"(?:[^"\\]|\\.)*"')
_LONG_AGO = datetime.fromtimestamp(0, timezone.utc)


class LogLine(NamedTuple):
    """One line of a member's log. A line without a time of its own has that of the line before."""

    time: datetime
    member: str
    level: str
    text: str


def parse_since(text: str) -> datetime:
    """Give the instant that "90s", "10m", "2h" (ago), or an RFC 3339 time, stands for; raise SpecError otherwise."""
    spans = _SPAN.findall(text)
    try:
        if spans and "".join(number + unit for number, unit in spans) == text:
            ago = sum(float(number) * _SECONDS[unit] for number, unit in spans)
            return datetime.now(timezone.utc) - timedelta(seconds=ago)
        instant = parse_time(text)
        return instant if instant.tzinfo else instant.astimezone()
    except (ValueError, OverflowError):
        raise SpecError(
            f"--since {text!r} is neither a span of time nor a time",
            remedy="Give 90s, 10m, 2h, or 2026-01-31T12:00:00Z.",
        ) from None


def read_log(runtime: Runtime, member: MemberRecord) -> Iterator[LogLine]:
    """Give all that a member has logged, oldest first."""
    yield from _Reader(runtime, member).more(final=True)


def merged(runtime: Runtime, members: Sequence[MemberRecord], *, since: datetime | None = None) -> Iterator[LogLine]:
    """Give the lines of several members in order of time."""
    for line in merge(*(read_log(runtime, member) for member in members), key=lambda line: line.time):
        if since is None or line.time >= since:
            yield line


def follow(
    runtime: Runtime, members: Sequence[MemberRecord], *, since: datetime | None = None, poll_s: float = 0.1
) -> Iterator[LogLine]:
    """Give the lines of several members, and go on giving new ones for as long as the caller asks."""
    readers = [_Reader(runtime, member) for member in members]
    while True:
        fresh = sorted((line for reader in readers for line in reader.more()), key=lambda line: line.time)
        yield from (line for line in fresh if since is None or line.time >= since)
        time.sleep(poll_s)


def matter(lines: Sequence[LogLine], *, most: int = 6) -> list[LogLine]:
    """Give the lines that tell why a member died: its last panics and errors, or else its last lines.

    Without the stack traces of etcd's that make such a line unreadable.
    """
    bad = [line for line in lines if line.level in ("error", "dpanic", "panic", "fatal")]
    return [line._replace(text=_STACK.sub("", line.text)) for line in (bad or list(lines))[-most:]]


class _Reader:
    """Reads a member's log from where it stopped last time, whole lines only."""

    def __init__(self, runtime: Runtime, member: MemberRecord) -> None:
        self._runtime = runtime
        self._member = member
        self._offset = 0
        self._last = _LONG_AGO

    def more(self, *, final: bool = False) -> Iterator[LogLine]:
        content = self._runtime.log_bytes(self._member, self._offset)
        whole = content if final else content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        for raw in whole.splitlines():
            yield self._line(raw.decode(errors="replace"))

    def _line(self, text: str) -> LogLine:
        level = ""
        if text.startswith("{"):
            try:
                entry = json.loads(text)
                level = str(entry.get("level", ""))
                self._last = parse_time(entry["ts"])
            except (ValueError, KeyError, TypeError, AttributeError):
                pass
        elif text.startswith(("panic:", "fatal error:")):
            level = "panic"
        return LogLine(self._last, self._member.name, level, text)


def parse_time(text: str) -> datetime:
    """Give the instant of a log line of etcd's; raises ValueError for what is none.

    etcd writes 2026-01-31T12:00:00.123Z or, elsewhere than in UTC, …+0100, which Python 3.10 does not read.
    """
    text = re.sub(r"([+-]\d\d)(\d\d)$", r"\1:\2", text.replace("Z", "+00:00"))
    head, dot, tail = text.partition(".")
    if dot:
        digits = re.match(r"\d+", tail)
        count = len(digits.group()) if digits else 0
        text = f"{head}.{tail[:count][:6]:0<6}{tail[count:]}"
    return datetime.fromisoformat(text)
