"""What a drill is given to work with: the cluster, its leader, the traffic, and a way to say what it does."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, NoLeader, QuorumLost, WaitTimeout
from etcdops.faults.member import Away, taken_away
from etcdops.faults.membership import ExtraMembers, extra_members, wiped
from etcdops.verify import Check
from etcdops.verify.caught_up import MemberView, check_caught_up
from etcdops.verify.recorded import Fault, Figure, Restored
from etcdops.workload.history import FAILOVER_WRITE, PINNED, Operation, read_history

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.drills.own import OwnClient
    from etcdops.drills.window import Window
    from etcdops.member import Member
    from etcdops.report.journal import Journal
    from etcdops.workload.traffic import Traffic

__all__ = ["Deviation", "Scene"]

#: Longer than any election that ends, in election timeouts.
_PATIENCE = 15

#: How long writes go on without the member, so that enough is seen of that time.
_HOLD_S = 0.5


class Deviation(Exception):  # no error of etcdops: the cluster did not do what was predicted
    """Ends a drill whose prediction did not come true; the fault is healed and the check is in the verdict."""

    def __init__(self, check: Check) -> None:
        super().__init__(check.detail)
        self.check = check


class Scene:
    """A running drill: steady state met, traffic under way, everything written in the journal.

    `patience_s` is how long the cluster is waited for when it should do something, `folder` where the run's files go,
    `random` what all of a drill's own choices come from.
    """

    def __init__(
        self,
        cluster: Cluster,
        run: str,
        folder: Path,
        journal: Journal,
        *,
        steps: int,
        seed: int,
        say: Callable[[str], None],
        pause: Callable[[], None] | None,
        open_window: Callable[[Restored | None, Mapping[str, object]], Window],
        window_closed: Callable[[], None],
        keep_log: Callable[[str], None],
    ) -> None:
        self.cluster = cluster
        self.run = run
        self.folder = folder
        self.random = random.Random(seed)
        self.say = say
        self.patience_s = _PATIENCE * cluster.record.spec.timing.election_ms / 1000
        self._journal = journal
        self._steps = steps
        self._step = 0
        #: The step that is under way, as it was announced; "" before the first.
        self.step_label = ""
        self._pause = pause
        self._term = 0
        self._away: list[Away] = []
        self._open = open_window
        self._closed = window_closed
        self._keep_log = keep_log
        self._window: Window | None = None

    # -- the window

    @property
    def window(self) -> Window:
        """The window that is open: its traffic, and what is noted for its verdict."""
        assert self._window is not None, "no window is open"
        return self._window

    @property
    def is_open(self) -> bool:
        """Whether a window is open."""
        return self._window is not None

    @property
    def traffic(self) -> Traffic:
        """The traffic that is under way."""
        return self.window.traffic

    @property
    def own(self) -> OwnClient:
        """What the drill asks by itself goes through this, and is recorded."""
        return self.window.own

    def open_window(self, restored: Restored | None = None, **traffic: object) -> None:
        """Read the whole state, and begin the traffic. After a restore, say which.

        `traffic` are fields of the TrafficPlan that this window alone has, such as `fencing`.
        """
        assert self._window is None, "close the window that is open first"
        self._window = self._open(restored, traffic)

    def close_window(self) -> None:
        """End the traffic and read everything back. A drill does so before it restores a snapshot; the engine, last."""
        window, self._window = self.window, None
        with window:
            window.close()
        self._closed()

    def abandon(self) -> None:
        """End the traffic at once, if there is any, without closing the window."""
        if self._window is not None:
            window, self._window = self._window, None
            window.__exit__(None, None, None)

    @property
    def away(self) -> tuple[Away, ...]:
        """The members that are taken away now."""
        return tuple(self._away)

    # -- saying and noting

    @contextmanager
    def step(self, label: str, by_hand: str = "") -> Iterator[None]:
        """Announce a step, with the plain command that a person would have typed; wait for a key first if asked to."""
        self._step += 1
        if self._pause and self._step > 1:
            self._pause()
        self._journal.note("step", detail=label)
        number = f"{self._step}/{self._steps}" if self._steps else f"{self._step}"
        self.step_label = f"{number} {label}"
        self.say(self.step_label + (f"\n      $ {by_hand}" if by_hand else ""))
        yield

    def by_hand(self, action: str, member: Member) -> str:
        """Give the plain command for an action, by the names that `Runtime.by_hand` knows."""
        return self.cluster.runtime.by_hand(action, self.cluster.record, member.record)

    def note(self, event: str, member: str = "", detail: str = "") -> int:
        """Write an event in the journal, and give its instant (monotonic ns)."""
        return self._journal.note(event, member, detail).t_ns

    def check(self, name: str, good: bool, detail: str) -> bool:
        """Put a check in the verdict, and give `good`. See `expect` for one without which the drill cannot go on."""
        self._add(self.window.checks, Check(name, "passed" if good else "failed", detail))
        return good

    @property
    def failed(self) -> bool:
        """Whether a check of this window has failed so far."""
        return any(check.result == "failed" for check in (*self.window.checks, *self.window.rejoined))

    @staticmethod
    def _add(checks: list[Check], check: Check) -> None:
        """Add a check; what is checked in each of several rounds gets a number."""
        before = sum(known.name.partition(" #")[0] == check.name for known in checks)
        checks.append(Check(f"{check.name} #{before + 1}", check.result, check.detail) if before else check)

    def expect(self, name: str, good: bool, detail: str) -> None:
        """Put a check in the verdict, and end the drill there unless it is `good`."""
        if not good:
            raise Deviation(Check(name, "failed", detail))
        self.check(name, good, detail)

    def figure(self, name: str, value: float | None, unit: str, detail: str = "") -> None:
        """Put a number in the verdict, None where it could not be measured; milliseconds get one decimal."""
        if value is not None and unit == "ms":
            value = round(value, 1)
        self.window.figures.append(Figure(name, value, unit, detail))
        self._journal.note("figure", detail=f"{name}: {'-' if value is None else f'{value:,.0f}'} {unit}")

    # -- faults, and other things done on purpose

    @contextmanager
    def taken_away(self, member: Member, how: str, *, leads: bool = False) -> Iterator[Away]:
        """Take a member away inside the block; it is brought back at its end, whatever happens there.

        Several may be away at once: nest the blocks. `Away.heal()` brings one back before its block ends. The outage is
        measured from the first that goes to the last that is back; `leads` says that it has Raft's prediction.
        """
        window = self.window
        with taken_away(member, how, self._journal, self.run, self._away) as away:
            try:
                yield away
            finally:
                away.heal()
                predicts = how if leads else ""
                window.faults.append(
                    Fault(how, member.name, away.inject_ns, away.injected_ns, away.healing_ns, away.heal_ns, predicts)
                )
                said = ""
                if away.fired:
                    said = f"{member.name} was brought back by a timer on its host, which heard of us no more"
                elif away.lost:
                    said = (
                        f"the host of {member.name} could not be reached to bring it back: the timer there has done so"
                        " by itself, and when is not known"
                    )
                if said:
                    self._add(window.checks, Check("fault held", "inconclusive", said))

    @contextmanager
    def acting(self, kind: str, member: str = "", *, predicts: str = "") -> Iterator[None]:
        """Note that something is done inside the block that users might feel; the outage is measured over it."""
        window = self.window
        self._journal.note("begin", member, kind)
        began = time.monotonic_ns()
        try:
            yield
        finally:
            ended = time.monotonic_ns()
            self._journal.note("end", member, kind)
            window.faults.append(Fault(kind, member, began, began, ended, ended, predicts))

    @contextmanager
    def extra_members(self) -> Iterator[ExtraMembers]:
        """Let members be added inside the block; those that are there at its end are removed, whatever happened."""
        with extra_members(self.cluster, self.run, progress=self.say) as extra:
            yield extra

    @contextmanager
    def wiped(self, member: Member, *, leads: bool = False) -> Iterator[None]:
        """Kill a member and remove its data; at the block's end it is replaced, if it was not inside the block.

        The outage is measured until then; `leads` says that it has Raft's prediction.
        """
        self.keep_log(member)
        acting = self.acting("disk lost", member.name, predicts="kill" if leads else "")
        with acting, wiped(self.cluster, member.name, self.run, progress=self.say):
            yield

    def keep_log(self, member: Member) -> None:
        """Keep what a member has logged, before that goes with its container."""
        self._keep_log(member.name)

    def hold(self, seconds: float = _HOLD_S) -> None:
        """Let the traffic go on for a while, so that enough is seen of this time."""
        time.sleep(seconds)

    # -- looking and waiting

    def recorded(self) -> list[Operation]:
        """Give the traffic's operations of this window that have ended, but for those of the last 100 ms or so."""
        return read_history(self.window.plan.output)

    def term(self) -> int:
        """The highest term that a leader was found in so far."""
        return self._term

    def leader(self) -> Member:
        """Find the leader, by the highest term among all members' answers.

        It may come `patience_s` seconds late, as after an election; then raises NoLeader, or QuorumLost.
        """
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                member = self.cluster.leader()
                break
            except (NoLeader, QuorumLost):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._term = max(self._term, self.cluster.status().term)
        return member

    def followers(self) -> list[Member]:
        """Give all members but the leader, in a random order that the seed sets."""
        leader = self.leader()
        others = [member for member in self.cluster.members if member.name != leader.name]
        self.random.shuffle(others)
        return others

    def wait_new_leader(self) -> Member:
        """Wait until another member leads at a higher term than the one seen before; raise Deviation if none comes."""
        gone = self._away[-1].member.name if self._away else ""
        found = self.window.leadership.wait_leader(after_term=self._term, but=gone, timeout_s=self.patience_s)
        if found is None:
            detail = f"no other member led at a term above {self._term} within {self.patience_s:.0f} s"
            raise Deviation(Check("new leader", "failed", detail))
        name, term = found
        said = f"{name} leads in term {term}; before, {gone or 'another'} led in {self._term}"
        self.check("new leader", True, said)
        self._term = term
        self._journal.note("new-leader", name, f"term {term}")
        return self.cluster.member(name)

    def wait_writes(self, *, without: Collection[str] = (), after_ns: int = 0, hold_s: float = _HOLD_S) -> None:
        """Wait until a write that was called after `after_ns` is acknowledged on every stream that should be served.

        That is those pinned to members not named in `without`, and the one that fails over; `after_ns` 0 stands for the
        newest fault. Traffic then goes on for `hold_s`. Raise Deviation when a stream stays silent.
        """
        after_ns = after_ns or max((away.inject_ns for away in self._away), default=time.monotonic_ns())
        pinned = [PINNED + name for name in self.window.plan.endpoints if name not in without]
        streams = [*pinned, FAILOVER_WRITE]
        try:
            self.traffic.wait_acknowledged(after_ns, self.patience_s, streams)
        except WaitTimeout as error:
            raise Deviation(Check("writes resumed", "failed", str(error))) from error
        self._journal.note("writes-resumed")
        self.check("writes resumed", True, f"acknowledged again on {', '.join(streams)}")
        self.hold(hold_s)

    def check_rejoined(self, member: Member, *, patience_s: float = 0.0) -> None:
        """Wait until a member that was away has reached what the leader had; then read, write and hash through it.

        Each of the two may take `patience_s` seconds, the scene's own if that is more.
        """
        patience_s = max(patience_s, self.patience_s)
        deadline = time.monotonic() + patience_s
        leader = _view(self._leader_now(member))
        while True:
            check = check_caught_up(_view(member), leader)
            if check.result == "passed" or time.monotonic() > deadline:
                break
            if check.result == "inconclusive":
                leader = _view(self._leader_now(member))
            time.sleep(0.02)
        self._journal.note("caught-up" if check.result == "passed" else "not-caught-up", member.name)
        self._add(self.window.checks, check)
        self._add(self.window.rejoined, self.window.wait_equal(member.name, patience_s))

    def _leader_now(self, otherwise: Member) -> Member:
        found = self.window.leadership.leader()
        return self.cluster.member(found[0]) if found else otherwise


def _view(member: Member) -> MemberView:
    try:
        status = member.status(timeout_s=0.5)
    except EtcdError as error:
        return MemberView(member.name, error=str(error))
    return MemberView(
        member.name,
        status.member_id,
        status.leader,
        status.raft_term,
        status.raft_applied_index,
        status.revision,
    )
