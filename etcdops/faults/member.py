"""Faults of a member: stopped, killed, frozen, cut off from its peers.

They differ in what the other members learn. `stop` (SIGTERM) lets a leader hand its leadership over before it goes, so
it is no failure. `kill` (SIGKILL) is a crash: its connections close, and the followers elect a new leader once their
election timeout has passed. `freeze` (SIGSTOP) is a machine that hangs: its connections stay open and nothing answers.
`isolate` is a network partition with the member alone on one side, and its clients able to reach it: it answers, but
can have nothing acknowledged, and stops leading after an election timeout (Raft's CheckQuorum).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from etcdops.faults.heal import NO_FAULT, mark, put_right
from etcdops.interrupts import deferred
from etcdops.runtimes.base import CanIsolate, CanKill, CanPause

if TYPE_CHECKING:
    from etcdops.member import Member
    from etcdops.report.journal import Journal
    from etcdops.runtimes.base import Runtime

__all__ = ["HOWS", "How", "Injected", "lacks", "taken_away"]


class How(NamedTuple):
    """A way of taking a member away."""

    fault: str
    undo: str
    by: str


#: Ways of taking a member away, by the name that `--how` takes.
HOWS = {
    "kill": How("kill", "start", "SIGKILL"),
    "freeze": How("pause", "resume", "SIGSTOP"),
    "stop": How("stop", "start", "SIGTERM"),
    "isolate": How("isolate", "rejoin", "off the peers' network"),
}


class Injected(NamedTuple):
    """When a fault was applied, on this machine's monotonic clock: before and after the act, confirmed by looking."""

    before_ns: int
    after_ns: int


def lacks(runtime: Runtime, how: str) -> str | None:
    """Give the reason why a runtime cannot take a member away in that way, or None when it can."""
    needed: dict[str, type] = {"kill": CanKill, "freeze": CanPause, "isolate": CanIsolate}
    if how in needed and not isinstance(runtime, needed[how]):
        return f"the runtime {runtime.name} cannot {how} a member (see --how for other ways)"
    return None


@contextmanager
def taken_away(member: Member, how: str, journal: Journal, run: str) -> Iterator[Injected]:
    """Take a member away inside the block, and bring it back at its end, whatever happens there.

    The fault is on record before it is applied. Raises HealFailed when the member cannot be brought back.
    """
    cluster, way = member.cluster, HOWS[how]
    try:
        with deferred():
            mark(cluster, run, how, member.name)
            journal.note("inject", member.name, f"{how} ({way.by})", sync=True)
            before = time.monotonic_ns()
            _act(member, how)
            injected = Injected(before, time.monotonic_ns())
            journal.note("injected", member.name, f"seen to be {member.state()}")
        yield injected
    finally:
        with deferred():
            journal.note("heal", member.name, way.undo, sync=True)
            put_right(cluster)
            journal.note("healed", member.name)
            mark(cluster, run, NO_FAULT, "")


def _act(member: Member, how: str) -> None:
    runtime, record = member.cluster.runtime, member.cluster.record
    act: dict[str, Callable[[], None]] = {
        "stop": lambda: runtime.stop(record, [member.name], timeout_s=30.0),
        "kill": lambda: runtime.kill(member.record) if isinstance(runtime, CanKill) else None,
        "freeze": lambda: runtime.pause(member.record) if isinstance(runtime, CanPause) else None,
        "isolate": lambda: runtime.isolate(record, member.record) if isinstance(runtime, CanIsolate) else None,
    }
    act[how]()
