"""The steps by which members join and leave: each asks the leader, waits as etcd demands, and can be taken twice."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import msgspec

from etcdops import wire
from etcdops.answers import MemberInfo, hex_id
from etcdops.errors import (
    ClusterError,
    EtcdError,
    EtcdopsError,
    MemberFailed,
    NoLeader,
    QuorumLost,
    WaitTimeout,
)
from etcdops.hints import remedy_for
from etcdops.operations.gate import DOWN, settled
from etcdops.operations.membership import Joining
from etcdops.operations.pending import now
from etcdops.runtimes.base import NO_ANSWER
from etcdops.state import Retired
from etcdops.tls.layout import is_own
from etcdops.waiting import fail_if_dead

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.operations.plan import Step

__all__ = ["Reconfiguration"]

T = TypeVar("T")

#: How long a change of members may be refused because members have not been connected for 5 s (etcd's HealthInterval,
#: server/etcdserver/server.go), or because nobody leads.
_REFUSED_S = 60.0

#: How long one request may take: etcd's own limit is 5 s and two election timeouts.
_REQUEST_S = 10.0

#: How near a learner must come to the leader before it is promoted, in entries. etcd asks for 90 % of the leader's log
#: only (isLearnerReady), which may be far.
_NEAR = 1000

#: How long a learner may stand still while it catches up.
_STILL_S = 60.0

_HEARTBEAT_S = 2.0

#: What etcd says while it is not ready for a change, by parts of its texts.
_NOT_YET = (
    "unhealthy cluster",
    "not enough started members",
    "in sync with leader",
    "no leader",
    "not leader",
    "leader changed",
    "request timed out",
)

#: A new member's id is made of its URLs and of the second, so within that second it is another's, or a removed one's.
_TAKEN = ("member ID already exist", "member not found")


class Reconfiguration:
    """Takes the steps of a plan that changes who is a member of a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        progress: Callable[[str], None],
        *,
        run: str,
        joins: Joining | None = None,
        old_id: int = 0,
    ) -> None:
        self._cluster = cluster
        self._progress = progress
        self._run = run
        self._joins = joins
        self._old_id = old_id

    def acts(self) -> dict[str, Callable[[Step], None]]:
        """Give what does each kind of step."""
        from etcdops.operations.leader import hand_over

        return {
            "move-leader": lambda step: hand_over(self._cluster, step.member),
            "fence": self._fence,
            "add-learner": self._add,
            "start": self._start,
            "catch-up": self._catch_up,
            "promote": self._promote,
            "remove-member": self._remove,
            "retire": self._retire,
            "prove": self._prove,
        }

    # -- asking the leader

    def _ask(self, what: str, call: Callable[[wire.Connection], T], *, not_yet: tuple[str, ...] = ()) -> T:
        """Put a request to the leader until it is granted; what etcd refuses for now is asked again for a minute.

        `not_yet` are more texts by which it does so.
        """
        deadline = time.monotonic() + _REFUSED_S
        told = 0.0
        while True:
            try:
                leader = self._cluster.leader()
                with wire.Connection(leader.client_url, self._cluster.record.spec.tls) as connection:
                    return call(connection)
            except (EtcdError, NoLeader, QuorumLost) as error:
                text = error.text if isinstance(error, EtcdError) else str(error)
                if isinstance(error, EtcdError) and not (
                    any(part in text for part in (*_NOT_YET, *not_yet))
                    or error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
                ):
                    raise
                if time.monotonic() > deadline:
                    raise WaitTimeout(
                        f"{what}: etcd has refused it for {_REFUSED_S:.0f} s; last: {text}", remedy=remedy_for(text)
                    ) from error
                if time.monotonic() - told > _HEARTBEAT_S:
                    told = time.monotonic()
                    self._progress(f"{what}: not yet ({text})")
            time.sleep(0.1)

    def _listed(self) -> tuple[MemberInfo, ...]:
        return self._ask("list the members", lambda connection: connection.member_list(timeout_s=_REQUEST_S))

    def _entry(self, name: str) -> MemberInfo | None:
        """Give the member list's entry of a member, by its peer URL; not that of the one that it replaces."""
        joins = self._joins if self._joins and self._joins.spec.name == name else None
        url = joins.member.peer_url if joins else self._cluster.record.member(name).peer_url
        but = joins.old_id if joins else 0
        return next((info for info in self._listed() if url in info.peer_urls and info.id != but), None)

    # -- joining

    def _joining(self) -> Joining:
        if self._joins is None:
            raise EtcdopsError("no member is to join by this operation")
        return self._joins

    def _add(self, step: Step) -> None:
        joins = self._joining()

        def add(connection: wire.Connection) -> MemberInfo | None:
            # It may have been granted without our hearing of it.
            if any(
                joins.member.peer_url in info.peer_urls and info.id != joins.old_id
                for info in connection.member_list(timeout_s=_REQUEST_S)
            ):
                return None
            return connection.member_add([joins.member.peer_url], learner=True, timeout_s=_REQUEST_S)

        self._ask(f"add {step.member}", add, not_yet=_TAKEN)

    def _start(self, step: Step) -> None:
        joins, cluster = self._joining(), self._cluster
        if not joins.recorded_in(cluster.record):
            record = cluster.record
            if step.member in record.spec.names:
                retired = self._retired(step.member, "replaced")
                record = msgspec.structs.replace(record, retired=(*record.retired, retired))
            # What is created from now on joins what exists.
            cluster.save(msgspec.structs.replace(joins.added_to(record), bootstrapped=True))
        if is_own(cluster.record.spec) and cluster.member(step.member).state() == "stopped":
            from etcdops.tls import leaves

            # Of its own, also for a member that takes another's place: that one's key may be lost with its disk.
            leaves.issue(cluster.record, [step.member])
        if cluster.member(step.member).state() == "stopped":
            # Whatever it did before, it has nothing to lose yet.
            cluster.save(
                cluster.record.with_member(msgspec.structs.replace(cluster.record.member(step.member), ref=""))
            )
            cluster.start_members([step.member])
        elif cluster.member(step.member).state() == "paused":
            cluster.member(step.member).resume()

    def _catch_up(self, step: Step) -> None:
        """Wait until the learner has what the leader had when we began, and is near what it has then, twice."""
        cluster = self._cluster
        goal = near = 0
        best, moved, told = -1, time.monotonic(), time.monotonic()
        while True:
            fail_if_dead(cluster, [step.member])
            mine = theirs = None
            try:
                theirs = cluster.leader().status(timeout_s=1.0)
                mine = cluster.member(step.member).status(timeout_s=1.0)
                said = "it does not answer yet"
            except ClusterError as error:
                said = str(error)
            if mine and theirs:
                goal = goal or theirs.raft_index
                behind = theirs.raft_index - mine.raft_applied_index
                near = near + 1 if mine.raft_applied_index >= goal and behind < _NEAR else 0
                if near == 2 or not mine.is_learner:
                    return
                said = f"it has applied {mine.raft_applied_index:,} of {theirs.raft_index:,} entries"
                if mine.raft_applied_index > best:
                    best, moved = mine.raft_applied_index, time.monotonic()
            if time.monotonic() - moved > _STILL_S:
                raise WaitTimeout(
                    f"{step.member} has not come nearer to the leader for {_STILL_S:.0f} s: {said}",
                    remedy=f"See `logs --member {step.member}`: it may not reach its peers, or they not it.",
                )
            if time.monotonic() - told > _HEARTBEAT_S:
                told = time.monotonic()
                self._progress(f"waiting for {step.member}: {said}")
            time.sleep(0.05)

    def _promote(self, step: Step) -> None:
        def promote(connection: wire.Connection) -> None:
            entry = self._entry(step.member)
            if entry is None:
                raise MemberFailed(f"{step.member} is in no member list any more", remedy="Look at `status`.")
            if entry.is_learner:
                # Through the leader: with authentication, followers cannot before 3.5.28 and 3.6.6 (etcd#20874).
                connection.member_promote(entry.id, timeout_s=_REQUEST_S)

        self._ask(f"promote {step.member}", promote)

    # -- leaving

    def _fence(self, step: Step) -> None:
        self._cluster.member(step.member).kill()

    def _remove(self, step: Step) -> None:
        """Remove the old member, or, where an operation is taken back, the one that was to join."""

        def remove(connection: wire.Connection) -> None:
            listed = connection.member_list(timeout_s=_REQUEST_S)
            for info in listed:
                if self._old_id:
                    doomed = info.id == self._old_id
                else:
                    joins = self._joining()
                    doomed = joins.member.peer_url in info.peer_urls and info.id != joins.old_id
                if doomed:
                    self._progress(f"removing {hex_id(info.id)}")
                    connection.member_remove(info.id, timeout_s=_REQUEST_S)

        self._ask(f"remove {step.member}", remove)

    def _retire(self, step: Step) -> None:
        cluster, name = self._cluster, step.member
        member = cluster.member(name)
        deadline = time.monotonic() + 5.0
        # A member that hears of its removal ends by itself.
        while member.state() == "running" and time.monotonic() < deadline:
            time.sleep(0.05)
        if member.state() not in ("stopped", "unknown"):
            member.stop()
        undone = self._joins is not None and self._joins.recorded_in(cluster.record)
        why = "undone" if undone else "removed"
        before = cluster.record
        cluster.save(before.left(name, self._retired(name, why)))
        if is_own(before.spec):
            from etcdops.tls import leaves

            leaves.forget(before, name)

    def _retired(self, name: str, why: str) -> Retired:
        """Remove what a member that has left ran in, and give its data, which is kept, for the record.

        Where its host does not answer, that stays, and is on record for whoever heals or purges.
        """
        record = self._cluster.record
        member = record.member(name)
        left = ""
        try:
            self._cluster.runtime.forget(record, name)
        except NO_ANSWER as error:
            left = member.ref
            self._progress(
                f"what {name} ran in and its data are left on {member.host}, which does not answer ({error}); `heal`"
                " removes its container once that is back, and `data.remove` its data"
            )
        return Retired(name, member.data, why, self._run, now(), member.host, left)

    # -- proof

    def _prove(self, step: Step) -> None:
        from etcdops.operations.equality import hashes_agree

        cluster = self._cluster
        names = [name for name, state in cluster.runtime.states(cluster.record).items() if state == "running"]
        cluster.wait_serving(names)
        urls = {member.peer_url: member.name for member in cluster.record.members}
        listed = {
            next((urls[url] for url in info.peer_urls if url in urls), info.name or hex_id(info.id))
            for info in self._listed()
        }
        recorded = set(cluster.record.spec.names)
        if listed != recorded:
            raise EtcdopsError(
                f"the member list is {', '.join(sorted(listed))}, and recorded are {', '.join(sorted(recorded))}",
                remedy="Look at `status`.",
            )
        # Of the others, who was down before is so still: they need not be well, as long as there is a quorum.
        away = [f for f in cluster.status().blockers if f.code in DOWN and f.member not in (*names, step.member)]
        settled(cluster, away, about=step.member if step.member not in names else "")
        agreement = hashes_agree(cluster, names, timeout_s=60.0)
        if agreement.result == "different":
            raise EtcdopsError(
                f"members of {cluster.name} do not have the same data: {agreement.detail}",
                remedy="Save snapshots of all (`snapshot.save --member NAME`), and replace the minority.",
            )
        self._progress(agreement.detail)
