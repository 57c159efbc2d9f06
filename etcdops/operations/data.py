"""The data of a cluster's members: what they use now, and what was kept of those that were removed or replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import SpecError
from etcdops.operations import pending

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import Retired

__all__ = ["Generation", "generations", "remove", "to_remove"]


class Generation(msgspec.Struct, frozen=True):
    """One generation of a member's data: its name ("thor-g1"), where it is, and its state.

    `host` is "local" for this machine. `state` is "in use", or why it is kept: "removed", "replaced", "restored",
    "rolled back" or "undone"; `run` is the operation that retired it, and `since` when.
    """

    name: str
    member: str
    place: str
    state: str
    run: str = ""
    since: str = ""
    host: str = ""


def generations(cluster: Cluster) -> tuple[Generation, ...]:
    """Give all generations of data that a cluster has, those in use first. Changes nothing."""
    record = cluster.record
    used = [
        Generation(_name(m.name, m.data.generation), m.name, m.data.place, "in use", host=m.host)
        for m in record.members
        if m.data.place
    ]
    kept = [
        Generation(
            _name(each.member, each.data.generation),
            each.member,
            each.data.place,
            each.why,
            each.run,
            each.since,
            each.host,
        )
        for each in record.retired
    ]
    return (*used, *kept)


def to_remove(cluster: Cluster, names: Sequence[str]) -> tuple[Retired, ...]:
    """Give the kept generations that are named; raise SpecError for one that is in use, or that there is not."""
    kept = {_name(each.member, each.data.generation): each for each in cluster.record.retired}
    used = {_name(member.name, member.data.generation) for member in cluster.record.members}
    for name in names:
        if name in used:
            raise SpecError(
                f"{name} is in use by a member of {cluster.name}",
                remedy=f"`member.remove {name.rpartition('-g')[0]}` removes the member.",
            )
        if name not in kept:
            raise SpecError(
                f"{cluster.name} keeps no data {name!r}",
                remedy=f"It keeps {', '.join(kept)}." if kept else "`data.list` shows what there is: nothing is kept.",
            )
    return tuple(kept[name] for name in dict.fromkeys(names))


def remove(cluster: Cluster, names: Sequence[str]) -> tuple[Retired, ...]:
    """Delete kept generations of data, by name, and give them. There is no way back.

    Raises SpecError as `to_remove` does, Refused while an operation is unfinished.
    """
    with cluster.locked(f"data.remove {' '.join(names)}"):
        pending.refuse_unfinished(cluster)
        doomed = to_remove(cluster, names)
        cluster.runtime.remove_data(cluster.record, [each.data for each in doomed])
        left = tuple(each for each in cluster.record.retired if each not in doomed)
        cluster.save(msgspec.structs.replace(cluster.record, retired=left))
        return doomed


def _name(member: str, generation: int) -> str:
    return f"{member}-g{generation}"
