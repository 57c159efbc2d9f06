"""No member failed in a way that only its log tells: panic, fatal error, data race, corruption, inconsistency.

A member that is killed writes nothing, and one that is stopped says good-bye at level "info": what is found here is
the server's own failure. Lines are judged by the level that etcd gave them, never by a word that may be part of
somebody's key ("apply request took too long" quotes requests).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from etcdops.verify import Check

__all__ = ["ALLOWED", "NAME", "Allowed", "Finding", "check_logs", "scan"]

NAME = "logs"
_SHOWN = 3
_CUT = 300

#: Levels of etcd's JSON log (zap) that end the process, or would in a development build.
_ENDING_LEVELS = frozenset({"panic", "fatal", "dpanic"})

#: Messages, at whatever level, by which etcd (3.4 to 3.6) says that data differ between members or are damaged.
_CORRUPTION = re.compile(
    r"found data inconsistency with peers"
    r"|found different hash values from remote peer"
    r"|found hash mismatch"
    r"|same compact revision then hashes must match"
    r"|revision from follower must be less than or equal to leader's"
    r"|[Dd]etected compaction hash mismatch"
    r"|checkInitialHashKV failed"
    r"|(wal|walpb|snap): crc mismatch"
)
_CORRUPT_ALARM = re.compile(r"alarm raised|activated alarm|raised alarm")

#: The Go run time's own words (a data race is told by builds with Go's race detector), and the fatal level of etcd
#: 3.4's plain log ("2021-01-01 00:00:00.000 C | raft: ...").
_PLAIN = re.compile(
    r"^(panic: |fatal error: |unexpected fault address|SIG(SEGV|BUS|ABRT|ILL|FPE): |WARNING: DATA RACE)"
    r"|^\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}\.\d+ C \| "
)


class Allowed(msgspec.Struct, frozen=True):
    """A line that does not count, and why. `pattern` is searched in the whole line; `member` "" means any."""

    pattern: str
    reason: str
    member: str = ""


#: What never counts: nothing yet. A drill gives what its own fault makes a member say (a disk that it filled).
ALLOWED: tuple[Allowed, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """A line that tells of a failure: its member, its number from 1, the line, and the reason if it is allowed."""

    member: str
    number: int
    line: str
    allowed: str = ""


def check_logs(logs: Mapping[str, Iterable[str] | None], allowed: Sequence[Allowed] = ALLOWED) -> Check:
    """Give the check over the members' logs since the run's start: {member: its lines}.

    None for a member whose log could not be read, which makes a check without other findings inconclusive, as does
    having no logs at all. An empty log is fine: a member may have had nothing to say.
    """
    findings = [
        finding for member, lines in logs.items() if lines is not None for finding in scan(member, lines, allowed)
    ]
    real = [finding for finding in findings if not finding.allowed]
    if real:
        shown = "; ".join(f"{f.member}, line {f.number}: {f.line[:_CUT]}" for f in real[:_SHOWN])
        more = f"; and {len(real) - _SHOWN} more" if len(real) > _SHOWN else ""
        return Check(NAME, "failed", shown + more)
    unread = sorted(member for member, lines in logs.items() if lines is None)
    if unread or not logs:
        return Check(NAME, "inconclusive", f"no log could be read of {', '.join(unread) or 'any member'}")
    detail = f"no panic, fatal error or sign of corruption in the logs of {', '.join(logs)}"
    if findings:
        reasons = ", ".join(sorted({finding.allowed for finding in findings}))
        detail += f"; {len(findings)} lines do not count: {reasons}"
    return Check(NAME, "passed", detail)


def scan(member: str, lines: Iterable[str], allowed: Sequence[Allowed] = ALLOWED) -> list[Finding]:
    """Give the lines of one member's log that tell of a failure, allowed or not, in order."""
    findings: list[Finding] = []
    for number, raw in enumerate(lines, start=1):
        line = raw.rstrip("\r\n")
        if _tells_of_failure(line):
            reason = next((a.reason for a in allowed if a.member in ("", member) and re.search(a.pattern, line)), "")
            findings.append(Finding(member, number, line, reason))
    return findings


def _tells_of_failure(line: str) -> bool:
    if not line.startswith("{"):
        return bool(_PLAIN.search(line) or _CORRUPTION.search(line))
    try:
        record = json.loads(line)
    except ValueError:
        # A torn line: the member died while it wrote. Its beginning still holds the level.
        return bool(re.match(r'\{"level":"(panic|fatal|dpanic)"', line))
    if not isinstance(record, dict):
        return False
    message = str(record.get("msg", ""))
    return bool(
        record.get("level") in _ENDING_LEVELS
        or _CORRUPTION.search(message)
        or _CORRUPTION.search(str(record.get("error", "")))
        or (_CORRUPT_ALARM.search(message) and "CORRUPT" in str(record.get("alarm", "")))
    )
