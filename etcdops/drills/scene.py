"""What a drill is given to work with: the cluster, its leader, the traffic, and a way to say what it does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, WaitTimeout
from etcdops.faults.member import Injected, taken_away
from etcdops.verify import Check
from etcdops.verify.caught_up import MemberView, check_caught_up
from etcdops.workload.history import FAILOVER_WRITE, PINNED

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.drills.leadership import Leadership
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
    """A running drill: steady state met, traffic under way, everything written in the journal."""

    def __init__(
        self,
        cluster: Cluster,
        run: str,
        journal: Journal,
        traffic: Traffic,
        leadership: Leadership,
        *,
        steps: int,
        say: Callable[[str], None],
        pause: Callable[[], None] | None,
    ) -> None:
        self.cluster = cluster
        self.checks: list[Check] = []
        self.fault: tuple[str, str] | None = None
        self.inject_ns = 0
        self.heal_ns = 0
        self.say = say
        self._run = run
        self._journal = journal
        self._traffic = traffic
        self._leadership = leadership
        self._steps = steps
        self._step = 0
        self._pause = pause
        self._term = 0
        timing = cluster.record.spec.timing
        self._patience_s = _PATIENCE * timing.election_ms / 1000

    @contextmanager
    def step(self, label: str, by_hand: str = "") -> Iterator[None]:
        """Announce a step, with the plain command that a person would have typed; wait for a key first if asked to."""
        self._step += 1
        if self._pause and self._step > 1:
            self._pause()
        self._journal.note("step", detail=label)
        self.say(f"{self._step}/{self._steps} {label}" + (f"\n      $ {by_hand}" if by_hand else ""))
        yield

    def by_hand(self, action: str, member: Member) -> str:
        """Give the plain command for "start", "stop", "kill", "pause" or "resume"."""
        return self.cluster.runtime.by_hand(action, self.cluster.record, member.record)

    def term(self) -> int:
        """The highest term that a leader was found in so far."""
        return self._term

    def leader(self) -> Member:
        """Find the leader, by the highest term among all members' answers; raises NoLeader if there is none."""
        member = self.cluster.leader()
        self._term = max(self._term, self.cluster.status().term)
        return member

    @contextmanager
    def taken_away(self, member: Member, how: str) -> Iterator[Injected]:
        """Take a member away inside the block; it is brought back at its end, whatever happens there."""
        self.fault = (how, member.name)
        try:
            with taken_away(member, how, self._journal, self._run) as injected:
                self.inject_ns = injected.before_ns
                yield injected
        finally:
            self.heal_ns = time.monotonic_ns()

    def wait_new_leader(self) -> Member:
        """Wait until another member leads at a higher term than the one seen before; raise Deviation if none comes."""
        gone = self.fault[1] if self.fault else ""
        found = self._leadership.wait_leader(after_term=self._term, but=gone, timeout_s=self._patience_s)
        if found is None:
            detail = f"no other member led at a term above {self._term} within {self._patience_s:.0f} s"
            raise Deviation(Check("new leader", "failed", detail))
        name, term = found
        self.checks.append(
            Check(
                "new leader", "passed", f"{name} leads in term {term}; before, {gone or 'another'} led in {self._term}"
            )
        )
        self._term = term
        self._journal.note("new-leader", name, f"term {term}")
        return self.cluster.member(name)

    def wait_writes(self, *, without: Member) -> None:
        """Wait until a write that was called after the fault is acknowledged on every stream that should be served.

        Traffic then goes on for half a second. Raise Deviation when a stream stays silent.
        """
        streams = [PINNED + m.name for m in self.cluster.members if m.name != without.name]
        streams.append(FAILOVER_WRITE)
        try:
            self._traffic.wait_acknowledged(self.inject_ns, self._patience_s, streams)
        except WaitTimeout as error:
            raise Deviation(Check("writes resumed", "failed", str(error))) from error
        self._journal.note("writes-resumed")
        self.checks.append(Check("writes resumed", "passed", f"acknowledged again on {', '.join(streams)}"))
        time.sleep(_HOLD_S)

    def check_caught_up(self, member: Member) -> None:
        """Wait until a member that was away has reached what the leader had, and put the check in the verdict."""
        deadline = time.monotonic() + self._patience_s
        leader = _view(self._leader_now(member))
        while True:
            check = check_caught_up(_view(member), leader)
            if check.result == "passed" or time.monotonic() > deadline:
                break
            if check.result == "inconclusive":
                leader = _view(self._leader_now(member))
            time.sleep(0.02)
        self._journal.note("caught-up" if check.result == "passed" else "not-caught-up", member.name)
        self.checks.append(check)

    def _leader_now(self, otherwise: Member) -> Member:
        found = self._leadership.leader()
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
