"""A cluster of members in memory: one committed log, one leader, and an election when it is lost.

It shows what etcd shows, by far simpler means. There is one log for all, of entries that are committed; a member
applies them to a model of its own as soon as it can hear the leader. Elections and the ends of leases are not driven by
a thread: whoever looks first after they were due finds them done.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # its own hook must be registered before ours, which then runs first
import hashlib
import threading
import time
import weakref
from collections.abc import Iterable

from etcdops.answers import Lease, RangeResult
from etcdops.errors import EtcdError
from etcdops.fake.lies import Lies
from etcdops.fake.member import FakeMember
from etcdops.model import Answer
from etcdops.ops import Grant, Op, Put, Range, Revoke, Txn, check, served_locally
from etcdops.wire import ServerError, hex_id

__all__ = ["FakeCluster"]

#: Calls that may wait in one member for a leader or a quorum; etcd refuses more, too, as what it applies falls behind.
MOST_WAITING = 160

_HONEST = Lies()


class FakeCluster:
    """Members in memory that agree.

    `election_s` is how long it takes to elect a leader when one is lost, or for a leader without a quorum to step
    down; `request_timeout_s` how long a call waits for what it needs before it is answered with "request timed out".
    All that is public here is called without the lock, `changed`, except where it says otherwise.
    """

    def __init__(
        self, cluster_id: str, names: Iterable[str], *, lies: Lies, election_s: float, request_timeout_s: float
    ) -> None:
        self.id = stable_id(cluster_id)
        self._lies = lies
        self.changed = threading.Condition()
        self.members = {name: FakeMember(self, name, stable_id(cluster_id, name)) for name in names}
        #: What is committed; None is the entry with which a leader begins its term.
        self.log: list[Op | None] = []
        self.term = 1
        self.leader: FakeMember | None = None
        self.alarms: set[tuple[int, int]] = set()
        self._election_s = election_s
        self._request_timeout_s = request_timeout_s
        # When the vote is won, and when a leader that lost its quorum notices.
        self._election_due: float | None = None
        self._step_down_due: float | None = None
        self._lease_ends: dict[int, float] = {}
        self._granted = 0
        self._last_led = -1
        self._puts = 0
        self._reads = 0
        self._faulted = False
        _clusters.add(self)

    @property
    def lies(self) -> Lies:
        """What is lied about now."""
        return _HONEST if self._lies.after_fault and not self._faulted else self._lies

    @property
    def quorum(self) -> int:
        """Members that must be there before anything is agreed."""
        return len(self.members) // 2 + 1

    def _there(self) -> list[FakeMember]:
        return [member for member in self.members.values() if member.there]

    # -- who leads. All of these hold the lock.

    def advance(self) -> None:
        """Let happen what was due by now. Holds the lock."""
        now = time.monotonic()
        if self._step_down_due is not None and now >= self._step_down_due:
            self._step_down_due = None
            if self.leader is not None:
                self.leader.say("warn", f"{hex_id(self.leader.id)} stepped down to follower since quorum is not active")
            self.leader = None
            self.changed.notify_all()
        if self._election_due is not None and now >= self._election_due:
            self._lead(self._next_leader())
        if self.leader is not None and self._step_down_due is None:
            for lease in [lease for lease, end in self._lease_ends.items() if now >= end]:
                del self._lease_ends[lease]
                self._commit(Revoke(lease))

    def membership_changed(self, *, fault: bool) -> None:
        """Take note that a member came or went. Holds the lock."""
        self._faulted = self._faulted or (fault and self.term > 1)
        now, there = time.monotonic(), self._there()
        if self.leader is not None and not self.leader.there:
            self.leader = None
        if len(there) < self.quorum:
            self._election_due = None
            if self.leader is not None and self._step_down_due is None:
                self._step_down_due = now + self._election_s
        else:
            self._step_down_due = None
            if self.leader is None and self._election_due is None:
                self._election_due = now + self._election_s
        self._spread()
        self.changed.notify_all()

    def hand_over(self, member: FakeMember) -> None:
        """Let another member lead at once if `member` does: what etcd does before it stops. Holds the lock."""
        others = [other for other in self._there() if other is not member]
        if member is self.leader and others and self._step_down_due is None:
            self._lead(self._next_leader(but=member))

    def _next_leader(self, but: FakeMember | None = None) -> FakeMember:
        """Give the member after the last leader, in order of creation, among those that have applied most."""
        names = list(self.members)
        at = (self._last_led + 1) % len(names)
        ring = [self.members[name] for name in names[at:] + names[:at]]
        able = [member for member in ring if member.there and member is not but]
        return max(able, key=lambda member: (not member.stuck, member.applied))

    def _lead(self, member: FakeMember) -> None:
        self._election_due = self._step_down_due = None
        self.term += 1
        self.leader = member
        self._last_led = list(self.members).index(member.name)
        # Whoever leads has all that is committed, even where it lies about it.
        member.stuck = False
        for each in self._there():
            said = "became leader" if each is member else f"elected leader {hex_id(member.id)}"
            each.say("info", f"{hex_id(each.id)} {said} at term {self.term}", logger="raft")
        self._commit(None)
        # A new leader gives every lease its whole time again.
        now = time.monotonic()
        self._lease_ends = {lease: now + ttl_s for lease, ttl_s in member.model.leases.items()}
        self.changed.notify_all()

    # -- what is agreed. These hold the lock, too.

    def _commit(self, op: Op | None) -> None:
        self.log.append(op)
        self._spread()
        self.changed.notify_all()

    def _spread(self) -> None:
        if self.leader is not None:
            for member in self._there():
                if not member.stuck:
                    member.catch_up(self.log)

    def _wait(self, member: FakeMember, *, caught_up: bool) -> None:
        """Wait until `member` can have something agreed; raise ServerError when it ends or that takes too long."""
        deadline = time.monotonic() + self._request_timeout_s
        start = member.starts
        if member.waiting >= MOST_WAITING:
            raise ServerError("RESOURCE_EXHAUSTED", "etcdserver: too many requests")
        member.waiting += 1
        try:
            while True:
                self.advance()
                member.check_alive(start)
                agreeing = self.leader is not None and self._step_down_due is None
                if member.there and agreeing and (not caught_up or self._up_to_date(member)):
                    return
                now = time.monotonic()
                if now >= deadline:
                    raise ServerError("UNAVAILABLE", "etcdserver: request timed out")
                due = min([deadline, *(t for t in (self._election_due, self._step_down_due) if t is not None)])
                self.changed.wait(max(0.0, due - now))
        finally:
            member.waiting -= 1

    def _up_to_date(self, member: FakeMember) -> bool:
        return member.applied == len(self.log) or self.lies.never_catches_up == "serves"

    def nap(self, longest_s: float) -> None:
        """Wait for a change, or until something is due. Holds the lock, and gives it up meanwhile."""
        now = time.monotonic()
        dues = [self._election_due, self._step_down_due, *self._lease_ends.values()]
        self.changed.wait(max(0.001, min([longest_s, *(due - now for due in dues if due is not None)])))

    # -- what members are asked

    def propose(self, member: FakeMember, op: Op) -> Answer:
        """Have `op` agreed and applied, and give what `member` answers."""
        check(op)
        with self.changed:
            self._wait(member, caught_up=False)
            assert self.leader is not None
            if self._is_lost(op):
                return self.leader.model.evaluate(op)[0]
            self._commit(op)
            self._note_lease(op)
            if member.stuck and self.lies.never_catches_up != "serves":
                self._wait(member, caught_up=True)
            answer = (self.leader if member.stuck else member).last_answer
        if isinstance(answer, EtcdError):
            raise answer
        return answer

    def _is_lost(self, op: Op) -> bool:
        every = self.lies.lose_every
        if not (every and isinstance(op, Put)):
            return False
        self._puts += 1
        return self._puts % every == 0

    def read(self, member: FakeMember, op: Range | Txn) -> Answer:
        """Answer a read: from the member's own state, which a linearizable one waits to be up to date."""
        check(op)
        with self.changed:
            if served_locally(op):
                return member.model.evaluate(op)[0]
            self._wait(member, caught_up=True)
            return self._read(member, op)

    def _read(self, member: FakeMember, op: Range | Txn) -> Answer:
        model, every = member.model, self.lies.stale_every
        earlier = model.revision - 1
        if every and isinstance(op, Range) and not op.revision and earlier >= max(1, model.compacted):
            self._reads += 1
            if self._reads % every == 0:
                answer, _ = model.evaluate(op._replace(revision=earlier))
                assert isinstance(answer, RangeResult)
                return answer._replace(revision=earlier)
        return model.evaluate(op)[0]

    def settle(self, member: FakeMember) -> None:
        """Wait until `member` knows all that is agreed, as before a linearizable read."""
        with self.changed:
            self._wait(member, caught_up=True)

    def leader_by(self, member: FakeMember) -> FakeMember | None:
        """Give the member that leads, if `member` is asked. Holds the lock."""
        self.advance()
        if self.leader is not None and self.lies.two_leaders:
            pretender = next((other for other in self._there() if other is not self.leader), None)
            if member is pretender:
                return member
        return self.leader

    def transfer(self, member: FakeMember, target_id: int) -> None:
        """Let the member `target_id` lead, if `member` leads now."""
        with self.changed:
            self.advance()
            if member is not self.leader:
                raise ServerError("FAILED_PRECONDITION", "etcdserver: not leader")
            target = next((other for other in self._there() if other.id == target_id), None)
            if target is None:
                raise ServerError("FAILED_PRECONDITION", "etcdserver: bad leader transferee")
            if self._step_down_due is not None:
                raise ServerError("UNAVAILABLE", "etcdserver: request timed out, leader transfer took too long")
            if target is not member:
                self._lead(target)

    # -- leases

    def new_lease(self) -> int:
        """Give an ID for a lease of a client that leaves the choice to the server."""
        with self.changed:
            self._granted += 1
            return 0x694D_0000_0000_0000 + self._granted

    def _note_lease(self, op: Op) -> None:
        assert self.leader is not None
        if isinstance(op, Grant) and isinstance(self.leader.last_answer, Lease):
            self._lease_ends[op.lease] = time.monotonic() + self.leader.last_answer.ttl_s
        elif isinstance(op, Revoke):
            self._lease_ends.pop(op.lease, None)

    def keep_alive(self, member: FakeMember, lease: int) -> int:
        """Renew a lease, and give its time to live in seconds; 0 if it has ended."""
        with self.changed:
            self._wait(member, caught_up=True)
            ttl_s = member.model.leases.get(lease, 0)
            if ttl_s:
                self._lease_ends[lease] = time.monotonic() + ttl_s
            return ttl_s

    def remaining_s(self, lease: int) -> float:
        """Give the time in seconds after which a lease will end."""
        with self.changed:
            return max(0.0, self._lease_ends.get(lease, 0.0) - time.monotonic())


def stable_id(*parts: str) -> int:
    """Give the 63 bits by which a cluster or a member is known: always the same, and never 0."""
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1 | 1


_clusters: weakref.WeakSet[FakeCluster] = weakref.WeakSet()


def _end_all() -> None:
    for cluster in list(_clusters):
        for member in cluster.members.values():
            member.kill()


# Python ends by waiting for the threads that serve, and those may wait for a frozen member or on a watch for ever.
# `atexit` runs after that; only this hook, which concurrent.futures itself uses, runs before.
getattr(threading, "_register_atexit", lambda end: None)(_end_all)
