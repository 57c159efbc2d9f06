"""Who votes, who of them is up, who leads, and what a change would leave: pure functions over collected facts."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from etcdops.answers import hex_id

if TYPE_CHECKING:
    from etcdops.answers import Alarm, MemberInfo, Status
    from etcdops.facts import Facts, MemberFacts

__all__ = [
    "DOWN",
    "IS_UP",
    "NO_READ",
    "Quorum",
    "answering",
    "excluded",
    "highest_term",
    "leader_of_facts",
    "member_list",
    "name_of",
    "newest_alarms",
    "quorum_after",
    "up",
    "voters",
    "why_not_up",
]

#: How a member is that serves.
IS_UP = "is up"

#: How a member is that answers, and serves no linearizable read.
NO_READ = "serves no linearizable read"

#: How a member is that is not there, by what the runtime sees of it.
DOWN = {
    "stopped": "is stopped",
    "paused": "is frozen",
    "isolated": "is cut off from a network",
    "unknown": "is not reached from here",
}


class Quorum(NamedTuple):
    """The voters that there are after a change, and which of them are up."""

    voters: tuple[str, ...]
    up: tuple[str, ...]

    @property
    def needed(self) -> int:
        """How many must be up."""
        return len(self.voters) // 2 + 1

    @property
    def holds(self) -> bool:
        """Whether so many are."""
        return len(self.up) >= self.needed

    @property
    def down(self) -> tuple[str, ...]:
        """Those that are not up."""
        return tuple(name for name in self.voters if name not in self.up)


def quorum_after(
    voters: Collection[str], up: Collection[str], *, stopping: str = "", removing: str = "", adding: str = ""
) -> Quorum:
    """Give what is left after one change, the member that it is about counted as down.

    A member that is added counts at once, as a voter that is not up yet. `up` may name others than voters, which count
    for nothing. Without a change it is what there is.
    """
    gone = removing or stopping
    after = tuple(name for name in voters if not removing or name != removing)
    if adding and adding not in after:
        after = (*after, adding)
    return Quorum(after, tuple(name for name in after if name in up and name not in (gone, adding)))


def voters(facts: Facts) -> tuple[str, ...]:
    """Give the names of all voters, as the cluster itself lists them; as recorded, where no member gave its list.

    They are in the order of creation, and those that are not recorded come last.
    """
    listed = member_list(facts)
    if listed is None:
        return tuple(m.name for m in facts.members if not (m.status and m.status.is_learner))
    order = [member.name for member in facts.members]
    names = [name_of(info, facts) for info in listed if not info.is_learner]
    return tuple(sorted(names, key=lambda name: order.index(name) if name in order else len(order)))


def up(facts: Facts) -> tuple[str, ...]:
    """Give the names of the voters that serve linearizable reads."""
    known = {member.name: member for member in facts.members}
    return tuple(name for name in voters(facts) if name in known and _serves(known[name]))


def answering(facts: Facts) -> tuple[str, ...]:
    """Give the names of the voters that answer at all: without a quorum none serves, and these are what is left."""
    return tuple(name for name in voters(facts) if why_not_up(facts, name) in (IS_UP, NO_READ))


def why_not_up(facts: Facts, name: str) -> str:
    """Say, after a member's name, why it does not serve: "is stopped"."""
    member = next((member for member in facts.members if member.name == name), None)
    if member is None:
        return "is unknown to etcdops"
    if member.state in DOWN:
        return DOWN[member.state]
    if not any(member.statuses) and not member.serves:
        return "does not answer"
    return IS_UP if _serves(member) else NO_READ


def excluded(facts: Facts) -> frozenset[str]:
    """Give the conditions that certainly do not hold, by the names of `KnownBad.needs`."""
    listed, everyone = member_list(facts), voters(facts)
    ruled_out = {
        "auth": facts.auth is False,
        "tls": all(member.client_url.startswith("http://") for member in facts.members),
        "single-member": len(everyone) > 1,
        "voter-down": listed is not None and len(up(facts)) == len(everyone),
        "unstarted-learner": listed is not None and all(info.name or not info.is_learner for info in listed),
    }
    return frozenset(name for name, is_out in ruled_out.items() if is_out)


def leader_of_facts(facts: Facts) -> tuple[str | None, int]:
    """Give the leader's name, or None, and the highest term that any member told."""
    known = {member.name: member.status for member in facts.members if member.status}
    return highest_term(known, {status.member_id: name for name, status in known.items()})


def highest_term(statuses: dict[str, Status], names: dict[int, str]) -> tuple[str | None, int]:
    """Give the leader by the answers with the highest term, or None, and that term; `names` maps ids to names."""
    term = max((status.raft_term for status in statuses.values()), default=0)
    for status in statuses.values():
        if status.raft_term == term and status.leader in names:
            return names[status.leader], term
    return None, term


def newest_alarms(facts: Facts) -> tuple[Alarm, ...]:
    """Give the alarms of all members, as told by the one that has applied most: they are replicated as keys are."""
    known = [(member.status.raft_applied_index, member.alarms) for member in facts.members if member.status]
    return max(known, default=(0, ()), key=lambda each: each[0])[1]


def member_list(facts: Facts) -> tuple[MemberInfo, ...] | None:
    """Give the member list as told by the member that has applied most of those that gave one."""
    known = [
        (member.status.raft_applied_index if member.status else 0, member.listed)
        for member in facts.members
        if member.listed is not None
    ]
    return max(known, key=lambda each: each[0])[1] if known else None


def name_of(info: MemberInfo, facts: Facts) -> str:
    """Give a listed member's name: that of the record with its peer URL, its own, or its id.

    The record comes first: names that etcd knows need not differ, and one that somebody else chose may be another here.
    """
    recorded = (member.name for member in facts.members if member.peer_url in info.peer_urls)
    return next(recorded, info.name or hex_id(info.id))


def _serves(member: MemberFacts) -> bool:
    return member.serves and member.state == "running"
