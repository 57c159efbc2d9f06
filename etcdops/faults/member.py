"""Faults of a member: stopped, killed, frozen, cut off from its peers.

They differ in what the other members learn. `stop` (SIGTERM) lets a leader hand its leadership over before it goes, so
it is no failure. `kill` (SIGKILL) is a crash: its connections close, and the followers elect a new leader once their
election timeout has passed. `freeze` (SIGSTOP) is a machine that hangs: its connections stay open and nothing answers.
`isolate` is a network partition with the member alone on one side, and its clients able to reach it: it answers, but
can have nothing acknowledged, and stops leading after an election timeout (Raft's CheckQuorum). `unplug` is a cable
that is pulled: the member loses its clients as well as its peers, and runs on by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from etcdops.errors import EtcdopsError, HealFailed
from etcdops.faults.heal import NO_FAULT, mark, put_right
from etcdops.interrupts import deferred
from etcdops.runtimes.base import CanArm, CanIsolate, CanKill, CanPause, CanUnplug

if TYPE_CHECKING:
    from etcdops.member import Member
    from etcdops.report.journal import Journal
    from etcdops.runtimes.base import Runtime, Timer

__all__ = ["HOWS", "Away", "How", "lacks", "taken_away"]


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
    "unplug": How("unplug", "replug", "off all networks"),
}


def lacks(runtime: Runtime, how: str) -> str | None:
    """Give the reason why a runtime cannot take a member away in that way, or None when it can."""
    needed: dict[str, type] = {"kill": CanKill, "freeze": CanPause, "isolate": CanIsolate, "unplug": CanUnplug}
    if how in needed and not isinstance(runtime, needed[how]):
        return f"the runtime {runtime.name} cannot {how} a member (see --how for other ways)"
    return None


class Away:
    """A member that is taken away. Instants are of this machine's monotonic clock, 0 before they have come.

    `inject_ns` is stamped before the act and `injected_ns` after it, when the member was seen to be gone; `healing_ns`
    before it is brought back, `heal_ns` when it is.
    """

    def __init__(self, member: Member, how: str, journal: Journal, run: str, others: list[Away]) -> None:
        self.member = member
        self.how = how
        self.inject_ns = self.injected_ns = self.healing_ns = self.heal_ns = 0
        self._journal = journal
        self._run = run
        self._others = others
        self._timer: Timer | None = None
        #: Whether it was brought back by a timer where it is, as nobody was heard of for so long.
        self.fired = False
        #: Whether its host could not be reached in the end, so that nobody else can have brought it back.
        self.lost = False

    def inject(self) -> None:
        """Take it away. The fault is on record before it is applied."""
        member, way = self.member, HOWS[self.how]
        with deferred():
            self._others.append(self)
            self._mark()
            if isinstance(member.cluster.runtime, CanArm):
                self._timer = member.cluster.runtime.arm(member.cluster.record, member.record, self.how)
                self._journal.note("armed", member.name, "a timer there undoes it by itself", sync=True)
            self._journal.note("inject", member.name, f"{self.how} ({way.by})", sync=True)
            self.inject_ns = time.monotonic_ns()
            _act(member, self.how)
            self.injected_ns = time.monotonic_ns()
            self._journal.note("injected", member.name, f"seen to be {member.state()}")

    def start(self) -> None:
        """Start it, if it was killed or stopped, and wait for nothing; it stays on record as taken away."""
        with deferred():
            self._journal.note("start", self.member.name)
            self.member.cluster.start_members([self.member.name])

    def kill(self) -> None:
        """Kill it once more, whatever it is doing, after `start`."""
        with deferred():
            self._journal.note("kill-again", self.member.name, sync=True)
            _act(self.member, "kill")

    def heal(self) -> None:
        """Bring it back, if it is away; the last one of several to be healed waits until all members serve.

        Raises HealFailed when it cannot be brought back.
        """
        if self not in self._others:
            return
        member = self.member
        with deferred():
            self._journal.note("heal", member.name, HOWS[self.how].undo, sync=True)
            self.healing_ns = time.monotonic_ns()
            if len(self._others) > 1:
                self._undo_alone()
            else:
                put_right(member.cluster)
            self.heal_ns = time.monotonic_ns()
            self._disarm()
            self._others.remove(self)
            self._journal.note("healed", member.name)
            self._mark()

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.disarm()
            self.fired, self.lost = self.fired or timer.fired, timer.lost
        if self.lost:
            self._journal.note("host-not-reached", self.member.name, "the timer there undoes it by itself")
        if self.fired:
            self._journal.note("healed-by-itself", self.member.name, "the timer there has gone off before")

    def _undo_alone(self) -> None:
        """Bring this one back while others stay away, so that nobody can be waited for."""
        member = self.member
        cluster = member.cluster
        state = member.state()
        try:
            if state == "paused":
                member.resume()
            elif state == "stopped":
                cluster.start_members([member.name])
            elif state == "unknown":
                # Its host is out of reach, and the timer there does it: whoever waits for the member sees it.
                self._journal.note("host-not-reached", member.name)
            elif isinstance(cluster.runtime, CanIsolate):
                cluster.runtime.rejoin(cluster.record, member.record)
        except EtcdopsError as error:
            raise HealFailed(
                f"member {member.name} could not be brought back: {error}",
                remedy=f"{error.remedy} Then type `heal`.".strip(),
            ) from error

    def _mark(self) -> None:
        others = self._others
        how = ", ".join(dict.fromkeys(each.how for each in others)) or NO_FAULT
        mark(self.member.cluster, self._run, how, ", ".join(each.member.name for each in others))


@contextmanager
def taken_away(member: Member, how: str, journal: Journal, run: str, others: list[Away]) -> Iterator[Away]:
    """Take a member away inside the block, and bring it back at its end, whatever happens there.

    `others` are those that are away already; it is kept up to date. Raises HealFailed when the member cannot be brought
    back.
    """
    away = Away(member, how, journal, run, others)
    try:
        away.inject()
        yield away
    finally:
        away.heal()


def _act(member: Member, how: str) -> None:
    runtime, record = member.cluster.runtime, member.cluster.record
    act: dict[str, Callable[[], None]] = {
        "stop": lambda: runtime.stop(record, [member.name], timeout_s=30.0),
        "kill": lambda: runtime.kill(member.record) if isinstance(runtime, CanKill) else None,
        "freeze": lambda: runtime.pause(member.record) if isinstance(runtime, CanPause) else None,
        "isolate": lambda: runtime.isolate(record, member.record) if isinstance(runtime, CanIsolate) else None,
        "unplug": lambda: runtime.unplug(record, member.record) if isinstance(runtime, CanUnplug) else None,
    }
    act[how]()
