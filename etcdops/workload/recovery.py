"""How a cluster came back: when another leader led, when answers were quick again, and what clients were told.

Pure functions over the record of a run; instants are nanoseconds of one host's CLOCK_MONOTONIC.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from etcdops.workload.calls import OK, Calls, Ints, calls_of
from etcdops.workload.history import Operation

if TYPE_CHECKING:
    from etcdops.verify.recorded import Claim

__all__ = [
    "BACK_WITHIN",
    "Quickness",
    "classify",
    "count_errors",
    "nearest_rank",
    "new_leader_ms",
    "quick_again",
]

_MS = 1_000_000
_SECOND = 1_000_000_000

#: Answers are quick again when their 99th percentile is at most so many times what it was before the fault.
BACK_WITHIN = 2.0

#: The sliding window's length, unless so few operations fall into it that a percentile of them would mean little.
_WINDOW_NS = 500 * _MS
_WINDOW_LEAST = 20


def new_leader_ms(claims: Iterable[Claim], ids: Mapping[str, int], *, inject_ns: int) -> float | None:
    """Give how long after the injection a member first said of itself that it leads, at a higher term than any before.

    `ids` are the members' IDs. At most one poll of the members (20 ms) and one answer late. None when no member ever
    did, as when the fault hit a follower, and when nothing was heard before the injection, so that no term can be
    higher. A leader that is elected again counts as a new one: in between, none led.
    """
    ordered = sorted(claims)
    before = max((claim.term for claim in ordered if claim.t_ns < inject_ns), default=None)
    if before is None:
        return None
    for claim in ordered:
        own = ids.get(claim.member, 0)
        if claim.t_ns >= inject_ns and claim.term > before and own and claim.leader == own:
            return (claim.t_ns - inject_ns) / _MS
    return None


class Quickness(NamedTuple):
    """The 99th percentile latency before the fault, and when after the injection it was back; None where unknown."""

    baseline_ms: float | None
    back_ms: float | None


def quick_again(operations: Sequence[Operation] | Calls, *, inject_ns: int, after_ns: int) -> Quickness:
    """Give when the 99th percentile latency was again within BACK_WITHIN times what it was before the injection.

    A latency is from the scheduled instant to the answer, so that waiting to be sent counts. From `after_ns` (the end
    of the outage) on, a window slides over the schedule; the first in which the percentile is
    within that limit begins at the instant that is given, counted from the injection. An operation that was not
    acknowledged is slower than any that was. The window lasts half a second, or longer where that would hold fewer
    than 20 operations, and lies within the record: `back_ms` is None where no window is good or none fits.
    """
    calls = operations if isinstance(operations, Calls) else calls_of(operations)
    slowness = calls.back - calls.scheduled
    ok = calls.outcome == OK
    base = np.sort(slowness[ok & (calls.scheduled < inject_ns) & (calls.back < inject_ns)])
    if len(base) < _WINDOW_LEAST:
        return Quickness(None, None)
    baseline_ns = nearest_rank(base)
    limit_ns = BACK_WITHIN * baseline_ns
    # Attempts of one operation share its stream and instant: it is as slow as its best one.
    names = np.argsort(np.argsort(calls.streams))[calls.stream]
    order = np.lexsort((names, calls.scheduled))
    slow_now = (~ok | (slowness > limit_ns))[order]
    first_of = np.flatnonzero(
        (np.diff(calls.scheduled[order], prepend=-1) != 0) | (np.diff(names[order], prepend=-1) != 0)
    )
    instants = calls.scheduled[order][first_of]
    slow = np.append(0, np.cumsum(np.logical_and.reduceat(slow_now, first_of)))
    span_ns = max(1, int(instants[-1] - instants[0]))
    window_ns = max(_WINDOW_NS, math.ceil(_WINDOW_LEAST * span_ns / len(instants)))
    begin = np.arange(int(np.searchsorted(instants, after_ns)), len(instants))
    begin = begin[instants[begin] + window_ns <= instants[-1]]
    until = np.searchsorted(instants, instants[begin] + window_ns)
    count = until - begin
    good = (count >= _WINDOW_LEAST // 2) & (slow[until] - slow[begin] <= count - np.ceil(0.99 * count))
    if not good.any():
        return Quickness(baseline_ns / _MS, None)
    back_ns = int(instants[begin[good.argmax()]])
    return Quickness(baseline_ns / _MS, max(0.0, (back_ns - inject_ns) / _MS))


def nearest_rank(ordered: Sequence[int] | Ints) -> int:
    """Give the 99th percentile of sorted values, at least one: the smallest that 99 in 100 do not exceed."""
    return int(ordered[math.ceil(0.99 * len(ordered)) - 1])


#: What a client may say in as many ways as there are moments at which its own deadline can end a call.
_BY_CODE_ALONE = ("DEADLINE_EXCEEDED", "CANCELLED")

#: gRPC's way to say that there was no connection: the reason comes after it.
_UNCONNECTED = re.compile(r"^failed to connect to all addresses; last error: [A-Z_]+: (?=.)")

_CHANGING = re.compile(r"(?:ipv[46]|unix):\S+\s*|\d+")


def classify(code: str, text: str) -> str:
    """Give the kind of an error: its code and text, without what differs from call to call.

    >>> classify("UNAVAILABLE", "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:2379: Refused")
    'UNAVAILABLE: Refused'
    >>> classify("UNAVAILABLE", "etcdserver: request timed out")
    'UNAVAILABLE: etcdserver: request timed out'
    >>> classify("DEADLINE_EXCEEDED", "Stream removed (Deadline Exceeded)")
    'DEADLINE_EXCEEDED'
    """
    if code in _BY_CODE_ALONE or not text:
        return code
    told = _UNCONNECTED.sub("", text)
    return f"{code}: {_CHANGING.sub(lambda found: 'N' if found[0].isdigit() else '', told)}"


def count_errors(operations: Iterable[Operation]) -> dict[str, dict[str, int]]:
    """Give for each outcome but ok how many operations ended in it by which kind of error, most frequent first."""
    counts = {"failed": Counter[str](), "unknown": Counter[str]()}
    for operation in operations:
        if operation.outcome != "ok":
            counts[operation.outcome][classify(operation.code, operation.error)] += 1
    return {
        outcome: dict(sorted(kinds.items(), key=lambda kind: (-kind[1], kind[0])))
        for outcome, kinds in counts.items()
        if kinds
    }
