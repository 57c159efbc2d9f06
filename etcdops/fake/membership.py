"""Who is a member of a cluster in memory, how that changes, and what etcd refuses about it.

The rules, the order in which they are looked at, and the texts are those of etcd 3.5.30: `mayAddMember`,
`mayRemoveMember` and `isLearnerReady` in server/etcdserver/server.go, `ValidateConfigurationChange` in
server/etcdserver/api/membership/cluster.go. `tests/suite` holds them against a real etcd.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from etcdops.wire import ServerError, hex_id

if TYPE_CHECKING:
    from etcdops.fake.cluster import FakeCluster
    from etcdops.fake.member import FakeMember

__all__ = ["Change", "Listed", "Membership", "add", "changed_urls", "misfit", "promote", "remove"]

#: etcd's `--max-learners` as it is by default.
_MOST_LEARNERS = 1

#: The part of the leader's log that a learner must have before it is promoted: etcd's readyPercent.
_READY = 0.9

_URL = re.compile(r"(https?://[^/:]+|https?://\[[0-9a-fA-F:]+\]):\d+")


class Listed(NamedTuple):
    """An entry of the member list. A member that never started has told nobody its name and its client URLs."""

    id: int
    name: str = ""
    peer_urls: tuple[str, ...] = ()
    client_urls: tuple[str, ...] = ()
    learner: bool = False

    @property
    def started(self) -> bool:
        """Whether it has ever said its name."""
        return bool(self.name)


class Change(NamedTuple):
    """A committed change of who is a member. A member that starts publishes its name and its client URLs."""

    kind: Literal["add", "remove", "promote", "update", "publish"]
    entry: Listed


class Membership:
    """A member list as it is after some changes. `removed` are the ids that can never be members again."""

    def __init__(self, entries: Iterable[Listed]) -> None:
        self._entries = {entry.id: entry for entry in entries}
        self.removed: set[int] = set()

    def copy(self) -> Membership:
        """Give an independent copy."""
        twin = Membership(self._entries.values())
        twin.removed = set(self.removed)
        return twin

    def __contains__(self, member_id: int) -> bool:
        return member_id in self._entries

    def get(self, member_id: int) -> Listed | None:
        """Give a member's entry, or None."""
        return self._entries.get(member_id)

    def listed(self) -> list[Listed]:
        """Give all entries, in the order in which etcd lists them."""
        return sorted(self._entries.values())

    def voters(self) -> list[Listed]:
        """Give the entries of all members that vote."""
        return [entry for entry in self.listed() if not entry.learner]

    @property
    def quorum(self) -> int:
        """How many voters must be there before anything is agreed."""
        return len(self.voters()) // 2 + 1

    def is_learner(self, member_id: int) -> bool:
        """Whether it is a member, and has no vote."""
        entry = self._entries.get(member_id)
        return entry is not None and entry.learner

    def check(self, change: Change) -> None:
        """Raise ServerError, as every member of etcd does when it applies such a change, if it cannot be made."""
        entry = change.entry
        if entry.id in self.removed or (change.kind != "add" and entry.id not in self._entries):
            raise ServerError("NOT_FOUND", "etcdserver: member not found")
        if change.kind == "promote" and not self._entries[entry.id].learner:
            raise ServerError("FAILED_PRECONDITION", "etcdserver: can only promote a learner member")
        if change.kind in ("add", "update"):
            taken = {url for other in self._entries.values() if other.id != entry.id for url in other.peer_urls}
            if taken & set(entry.peer_urls):
                raise ServerError("FAILED_PRECONDITION", "etcdserver: Peer URLs already exists")
        if change.kind == "add" and entry.learner and self._learners() >= _MOST_LEARNERS:
            raise ServerError("FAILED_PRECONDITION", "etcdserver: too many learner members in cluster")

    def _learners(self) -> int:
        return sum(entry.learner for entry in self._entries.values())

    def apply(self, change: Change) -> None:
        """Make a change that was checked when it was committed."""
        kind, entry = change
        if kind == "remove":
            self._entries.pop(entry.id, None)
            self.removed.add(entry.id)
            return
        known = self._entries.get(entry.id, entry)
        if kind == "promote":
            known = known._replace(learner=False)
        elif kind == "update":
            known = known._replace(peer_urls=entry.peer_urls)
        elif kind == "publish":
            known = known._replace(name=entry.name, client_urls=entry.client_urls)
        self._entries[entry.id] = known


# -- what a member that is asked for a change answers


def add(cluster: FakeCluster, asked: FakeMember, peer_urls: Sequence[str], *, learner: bool) -> Listed:
    """Have a member added, and give its entry; its id is new, even where its URLs were another's before."""
    if not peer_urls or not all(_URL.fullmatch(url) for url in peer_urls):
        raise ServerError("INVALID_ARGUMENT", "etcdserver: given member URLs are invalid")
    with cluster.changed:
        cluster.advance()
        voters = cluster.membership.voters()
        started = sum(entry.started for entry in voters)
        # One member alone may always be joined by a second, although both must be there from then on.
        if not learner and started < (len(voters) + 1) // 2 + 1 and len(voters) > 1:
            raise _not_enough_started()
        if len(voters) > 1 and _connected(cluster, asked, voters) < (len(voters) + 1) // 2 + 1:
            raise _unhealthy()
        entry = Listed(cluster.new_id(), peer_urls=tuple(sorted(peer_urls)), learner=learner)
        cluster.reconfigure(asked, Change("add", entry))
        return entry


def remove(cluster: FakeCluster, asked: FakeMember, member_id: int) -> None:
    """Have a member removed for ever."""
    with cluster.changed:
        cluster.advance()
        if not cluster.membership.is_learner(member_id):
            _refuse_removal(cluster, asked, member_id)
        cluster.reconfigure(asked, Change("remove", Listed(member_id)))


def _refuse_removal(cluster: FakeCluster, asked: FakeMember, member_id: int) -> None:
    voters = cluster.membership.voters()
    others = [entry for entry in voters if entry.id != member_id]
    if sum(entry.started for entry in others) < len(others) // 2 + 1:
        raise _not_enough_started()
    target = cluster.process(member_id)
    # Who is down is no part of the quorum that there is.
    if member_id != asked.id and not (target and target.there):
        return
    if _connected(cluster, asked, voters) - 1 < 1 + (len(voters) - 1) // 2:
        raise _unhealthy()


def promote(cluster: FakeCluster, asked: FakeMember, member_id: int) -> None:
    """Have a learner made a voter. Any voter takes the request, and the leader decides."""
    with cluster.changed:
        cluster.settle(asked)
        entry, target = cluster.membership.get(member_id), cluster.process(member_id)
        if entry is None:
            raise ServerError("NOT_FOUND", "etcdserver: member not found")
        if (target.applied if target else 0) < _READY * len(cluster.log):
            raise ServerError(
                "FAILED_PRECONDITION", "etcdserver: can only promote a learner member which is in sync with leader"
            )
        cluster.reconfigure(asked, Change("promote", entry))


def changed_urls(cluster: FakeCluster, asked: FakeMember, member_id: int, peer_urls: Sequence[str]) -> None:
    """Have a member's peer URLs changed. etcd looks at nothing but that no other has them."""
    with cluster.changed:
        cluster.advance()
        cluster.reconfigure(asked, Change("update", Listed(member_id, peer_urls=tuple(peer_urls))))


def _connected(cluster: FakeCluster, asked: FakeMember, voters: Iterable[Listed]) -> int:
    """Count the voters that a member has been connected with for long enough, itself among them."""
    return sum(entry.id == asked.id or cluster.connected(asked, entry.id) for entry in voters)


def _unhealthy() -> ServerError:
    return ServerError("UNAVAILABLE", "etcdserver: unhealthy cluster")


def _not_enough_started() -> ServerError:
    # etcd 3.5 maps this one to the client's error, which has no code of its own.
    return ServerError("UNKNOWN", "etcdserver: re-configuration failed due to not enough started members")


# -- what a member without data that joins is told


def misfit(membership: Membership, initial_cluster: Sequence[str]) -> str:
    """Say why members at these peer URLs are not those of the list, as etcd's ValidateClusterAndAssignIDs; "" if so."""
    entries = membership.listed()
    urls = ",".join(url for entry in entries for url in entry.peer_urls)
    if len(entries) != len(initial_cluster):
        return f"error validating peerURLs {urls}: member count is unequal"
    for entry in entries:
        if not set(entry.peer_urls) & set(initial_cluster):
            return (
                f"error validating peerURLs {urls}: PeerURLs: no match found for existing member"
                f" ({hex_id(entry.id)}, [{' '.join(entry.peer_urls)}]), last resolver error (<nil>)"
            )
    return ""
