"""Faults of the members' data: all of it is exchanged for that of a snapshot, or is gone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from etcdops.errors import EtcdopsError, HealFailed

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["erase", "lost", "put_data_right"]


def lost(cluster: Cluster) -> tuple[str, ...]:
    """Give the members that have run before, do not run now, and whose data is gone."""
    states = cluster.runtime.states(cluster.record)
    stopped = [name for name, state in states.items() if state == "stopped"]
    return cluster.runtime.lost_data(cluster.record, stopped) if stopped and cluster.record.bootstrapped else ()


def erase(cluster: Cluster) -> None:
    """Remove the data of every member, none of which may run. There is no way back but a snapshot."""
    from etcdops.operations.exchange import restorer

    record = cluster.record
    restorer(cluster).let_go(record)
    cluster.runtime.remove_data(record, [member.data for member in record.members])


def put_data_right(cluster: Cluster, snapshot: str, *, progress: Callable[[str], None]) -> list[str]:
    """Undo what was begun with the members' data, and give what was done; an empty list if nothing is amiss with it.

    A restore of `snapshot` that has not come to its end is taken back if the data of before is there, and ended if it
    is not. Where the data of so many is gone that no quorum is left, all are made anew from `snapshot`. Raises
    HealFailed when that cannot be done.
    """
    from etcdops.operations.exchange import before_of, restorer
    from etcdops.operations.pending import load
    from etcdops.snapshots.restoring import OPERATION, go_on, restore_snapshot
    from etcdops.snapshots.taking_back import rollback

    named = "" if cluster.name == "lab" else f" --cluster {cluster.name}"
    again = f"`snapshot.restore {snapshot}{named}` makes it anew from what the drill has saved."
    try:
        begun = load(cluster)
        if begun is not None and begun.operation == OPERATION and begun.target == snapshot:
            before = [member.data for member in before_of(cluster, begun).record.members]
            if len(restorer(cluster).present_data(cluster.record, before)) == len(before):
                return [rollback(cluster, progress=progress)]
            go_on(cluster, snapshot, progress)
            return [f"the restore of {snapshot} has come to its end"]
        gone = lost(cluster)
        if len(cluster.record.members) - len(gone) >= cluster.record.spec.quorum:
            return []
        progress(f"the data of {', '.join(gone)} is gone: restoring {snapshot}")
        cluster.down_locked()
        restore_snapshot(cluster, snapshot, progress=progress)
    except EtcdopsError as error:
        raise HealFailed(
            f"the data of {cluster.name} could not be put right: {error}",
            remedy=f"{error.remedy} {again}".strip(),
        ) from error
    return [f"the data of {', '.join(gone)} was gone, and all members were made anew from {snapshot}"]
