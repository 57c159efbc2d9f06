"""A cluster of members in memory: one committed log, one leader, and an election when it is lost.

It shows what etcd shows, by far simpler means. There is one log for all, of entries that are committed; a member
applies them to a model and a member list of its own as soon as it can hear the leader. Elections and the ends of leases
are not driven by a thread: whoever looks first after they were due finds them done.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401  # its own hook must be registered before ours, which then runs first
import hashlib
import threading
import time
import weakref
from collections.abc import Mapping, Sequence

from etcdops.answers import Lease, RangeResult
from etcdops.errors import EtcdError
from etcdops.fake.lies import Lies
from etcdops.fake.member import FakeMember
from etcdops.fake.membership import Change, Listed, Membership, misfit
from etcdops.model import Answer
from etcdops.ops import Grant, Op, Put, Range, Revoke, Txn, check, served_locally
from etcdops.wire import ServerError, hex_id

__all__ = ["FakeCluster"]

#: Calls that may wait in one member for a leader or a quorum; etcd refuses more, too, as what it applies falls behind.
MOST_WAITING = 160

_HONEST = Lies()


class FakeCluster:
    """Members in memory that agree.

    `peer_urls` are those of its first members, by name. `election_s` is how long it takes to elect a leader when one is
    lost, or for a leader without a quorum to step down; `request_timeout_s` how long a call waits for what it needs
    before it is answered with "request timed out"; `health_s` how long members must have been connected before who is
    a member may be changed.
    All that is public here is called without the lock, `changed`, except where it says otherwise.
    """

    def __init__(
        self,
        cluster_id: str,
        peer_urls: Mapping[str, str],
        *,
        lies: Lies,
        election_s: float,
        request_timeout_s: float,
        health_s: float,
    ) -> None:
        self.id = stable_id(cluster_id)
        self._lies = lies
        #: The lock, which a thread that has it may take again, and the news that something has changed.
        self.changed = threading.Condition()
        #: The member list that is agreed. A member's own may be older: it has what that member has applied.
        self.membership = Membership(Listed(stable_id(cluster_id, name), "", (url,)) for name, url in peer_urls.items())
        #: Every process with data that there ever was, in order of creation; and the newest of each name.
        self.processes: list[FakeMember] = []
        self.members: dict[str, FakeMember] = {}
        #: What is committed; None is the entry with which a leader begins its term.
        self.log: list[Op | Change | None] = []
        self.term = 1
        self.leader: FakeMember | None = None
        self.alarms: set[tuple[int, int]] = set()
        self._election_s = election_s
        self._request_timeout_s = request_timeout_s
        self._health_s = health_s
        # When the vote is won, and when a leader that lost its quorum notices.
        self._election_due: float | None = None
        self._step_down_due: float | None = None
        self._lease_ends: dict[int, float] = {}
        self._granted = 0
        self._last_led: FakeMember | None = None
        self._puts = 0
        self._reads = 0
        self._faulted = False
        _clusters.add(self)
        for name in peer_urls:
            self.newcomer(name).id = stable_id(cluster_id, name)

    @property
    def lies(self) -> Lies:
        """What is lied about now."""
        return _HONEST if self._lies.after_fault and not self._faulted else self._lies

    def _there(self) -> list[FakeMember]:
        return [member for member in self.processes if member.there]

    def _voting(self) -> list[FakeMember]:
        """Give the voters that are there."""
        return [member for member in self._there() if not self.membership.is_learner(member.id)]

    # -- who is a member

    def newcomer(self, name: str) -> FakeMember:
        """Give a member without data."""
        with self.changed:
            member = FakeMember(self, name)
            self.processes.append(member)
            self.members[name] = member
            return member

    def admit(self, member: FakeMember, initial_cluster: Sequence[str]) -> str:
        """Let a member without data be the one of the list that has its peer URL; say why not, or "". Holds the lock.

        `initial_cluster` holds the peer URLs of all members, as it was told them.
        """
        if not self._there():
            return (
                "cannot fetch cluster info from peer urls: could not retrieve cluster information from the given URLs"
            )
        if reason := misfit(self.membership, initial_cluster):
            return reason
        entry = next(entry for entry in self.membership.listed() if member.peer_url in entry.peer_urls)
        if any(other.id == entry.id for other in self.processes):
            # What etcd does with an emptied disk: it forgets what it has acknowledged, and the leader notices.
            return out_of_range(len(self.log), 0)
        member.id = entry.id
        member.view, member.joined_at = self.membership.copy(), len(self.log)
        return ""

    def process(self, member_id: int) -> FakeMember | None:
        """Give the process of a member; None for one that never started. Holds the lock."""
        return next((member for member in self.processes if member.id == member_id), None)

    def is_told(self, member: FakeMember) -> bool:
        """Whether a member has been removed, and there is another to tell it. Holds the lock."""
        return member.id in self.membership.removed and bool(self._there())

    def connected(self, member: FakeMember, peer_id: int) -> bool:
        """Whether a member has been connected with another for long enough (etcd's HealthInterval). Holds the lock."""
        peer = self.process(peer_id)
        since = max(member.there_since, peer.there_since) if peer else 0.0
        return peer is not None and member.there and peer.there and time.monotonic() - since >= self._health_s

    def new_id(self) -> int:
        """Give an id that no member ever had. Holds the lock."""
        self._granted += 1
        return stable_id(hex_id(self.id), str(self._granted))

    def reconfigure(self, member: FakeMember, change: Change) -> None:
        """Have a change of members agreed, or raise ServerError as etcd refuses it. Holds the lock.

        It waits for a quorum for as long as there is none, even when the client has gone: etcd has no limit there, and
        what was proposed happens later.
        """
        self._wait(member, caught_up=False, patient=True)
        self.membership.check(change)
        self._commit(change)
        if self.leader is not None and change.kind == "remove" and self.leader.id == change.entry.id:
            self.leader = None
        self.presence_changed(fault=False)

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
        # Who lagged because of a lie may have been told the truth since.
        self._spread()

    def presence_changed(self, *, fault: bool) -> None:
        """Take note that a member came or went, or that who is a member was changed. Holds the lock."""
        self._faulted = self._faulted or (fault and self.term > 1)
        now, there = time.monotonic(), self._voting()
        if self.leader is not None and not self.leader.there:
            self.leader = None
        if len(there) < self.membership.quorum and not self.lies.ignores_quorum:
            self._election_due = None
            if self.leader is not None and self._step_down_due is None:
                self._step_down_due = now + self._election_s
        else:
            self._step_down_due = None
            if self.leader is None and self._election_due is None:
                self._election_due = now + self._election_s
        self._publish()
        self._spread()
        self.changed.notify_all()

    def _publish(self) -> None:
        """Have it agreed what the members that are there are called, and where clients reach them."""
        if self.leader is None or self._step_down_due is not None:
            return
        for member in self._there():
            entry = self.membership.get(member.id)
            told = entry and entry._replace(name=member.name, client_urls=(member.client_url,))
            if told and told != entry:
                self._commit(Change("publish", told))

    def hand_over(self, member: FakeMember) -> None:
        """Let another member lead at once if `member` does: what etcd does before it stops. Holds the lock."""
        others = [other for other in self._voting() if other is not member]
        if member is self.leader and others and self._step_down_due is None:
            self._lead(self._next_leader(but=member))

    def _next_leader(self, but: FakeMember | None = None) -> FakeMember:
        """Give the member after the last leader, in order of creation, among those that have applied most."""
        at = self.processes.index(self._last_led) + 1 if self._last_led else 0
        ring = self.processes[at:] + self.processes[:at]
        voting = self._voting()
        able = [member for member in ring if member in voting and member is not but]
        return max(able, key=lambda member: (not member.stuck, member.applied))

    def _lead(self, member: FakeMember) -> None:
        self._election_due = self._step_down_due = None
        self.term += 1
        self.leader = member
        self._last_led = member
        # Whoever leads has all that is committed, even where it lies about it.
        member.stuck = False
        for each in self._there():
            said = "became leader" if each is member else f"elected leader {hex_id(member.id)}"
            each.say("info", f"{hex_id(each.id)} {said} at term {self.term}", logger="raft")
        self._commit(None)
        # A new leader gives every lease its whole time again.
        now = time.monotonic()
        self._lease_ends = {lease: now + ttl_s for lease, ttl_s in member.model.leases.items()}
        self._publish()
        self.changed.notify_all()

    # -- what is agreed. These hold the lock, too.

    def _commit(self, op: Op | Change | None) -> None:
        self.log.append(op)
        if isinstance(op, Change):
            self.membership.apply(op)
        self._spread()
        self.changed.notify_all()

    def _spread(self) -> None:
        for member in self.processes:
            if member.state == "running" and self.is_told(member):
                member.leave()
        if self.leader is not None:
            for member in self._there():
                if not (member.stuck or (self.lies.learner_lags and self.membership.is_learner(member.id))):
                    member.catch_up(self.log)

    def _wait(self, member: FakeMember, *, caught_up: bool, patient: bool = False) -> None:
        """Wait until `member` can have something agreed.

        Raises ServerError when the member ends meanwhile, or, unless we are `patient`, that takes too long.
        """
        deadline = time.monotonic() + (threading.TIMEOUT_MAX / 2 if patient else self._request_timeout_s)
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
                self.changed.wait(max(0.0, min(due - now, 60.0)))
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
        every, key = self.lies.lose_every, self.lies.lose_key.encode()
        if isinstance(op, Put) and key and op.key.endswith(key):
            return True
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
            pretender = next((other for other in self._voting() if other is not self.leader), None)
            if member is pretender:
                return member
        return self.leader

    def transfer(self, member: FakeMember, target_id: int) -> None:
        """Let the member `target_id` lead, if `member` leads now."""
        with self.changed:
            self.advance()
            if member is not self.leader:
                raise ServerError("FAILED_PRECONDITION", "etcdserver: not leader")
            target = next((other for other in self._voting() if other.id == target_id), None)
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


def out_of_range(committed: int, last: int) -> str:
    """Give what Raft says, in a panic, to a member that has less than it has acknowledged."""
    return f"tocommit({committed}) is out of range [lastIndex({last})]. Was the raft log corrupted, truncated, or lost?"


def stable_id(*parts: str) -> int:
    """Give the 63 bits by which a cluster or a member is known: always the same, and never 0."""
    digest = hashlib.sha256("/".join(parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1 | 1


_clusters: weakref.WeakSet[FakeCluster] = weakref.WeakSet()


def _end_all() -> None:
    for cluster in list(_clusters):
        for member in list(cluster.processes):
            member.kill()


# Python ends by waiting for the threads that serve, and those may wait for a frozen member or on a watch for ever.
# `atexit` runs after that; only this hook, which concurrent.futures itself uses, runs before.
getattr(threading, "_register_atexit", lambda end: None)(_end_all)
