"""Every cluster and leftover of this user on this machine, wherever its state directory is, or was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from etcdops import runtimes
from etcdops.errors import ClusterNotFound, RuntimeUnavailable, SpecError, StateError
from etcdops.hosts import identify
from etcdops.paths import index_file
from etcdops.runtimes.base import Leftover
from etcdops.state import ClusterRecord, Store, remove_tree, replace_file

__all__ = ["Found", "find_clusters", "remove", "select"]


class Found(msgspec.Struct, frozen=True):
    """A cluster on this machine.

    `state` is "up" (every member runs), "partly up", "down", "unknown" (its Docker engine does not answer,
    or none of its members does, which somebody else runs), "damaged" (its record cannot be read, `problem` says why) or
    "leftover": members or data whose record is gone, or a temporary cluster whose maker is dead. `deletes` names,
    for a person, all that `remove` would take away. `id` is "" where it cannot be known.
    """

    name: str
    id: str
    state: str
    runtime: str
    members: tuple[str, ...]
    state_dir: str
    deletes: tuple[str, ...]
    problem: str = ""

    @property
    def directory(self) -> str:
        """Where its record is, or was; "" when that is not known."""
        return os.path.join(self.state_dir, "clusters", self.name) if self.state_dir else ""


class _Running(NamedTuple):
    runtime: str
    leftover: Leftover


def find_clusters(*stores: Store) -> list[Found]:
    """Give every cluster in `stores`, in the state directories that this user has used before, and all that runs."""
    running = _all_running()
    found: list[Found] = []
    for store in _stores(stores, running):
        for name in _names(store):
            found.append(_look(store, name, running))
    seen = {each.id for each in found if each.id}
    orphans: dict[str, list[_Running]] = {}
    for each in running:
        # What runs beside a record that cannot be read, or beside data without a record, belongs to that.
        if each.leftover.cluster_id not in seen and not any(_beside(each, f) for f in found if not f.id):
            orphans.setdefault(each.leftover.cluster_id, []).append(each)
    found += [_orphan(group) for group in orphans.values()]
    return sorted(found, key=lambda each: (each.name, each.state_dir))


def remove(found: Found) -> None:
    """Remove a cluster with all that `found.deletes` names. There is no way back.

    What has changed since `found` was looked at is left alone. Raises EtcdopsError when something of it cannot be
    removed.
    """
    from etcdops.cluster import TEMPORARY_PREFIX, Cluster

    store = Store(found.state_dir) if found.state_dir else None
    record = _record(store, found.name) if store else None
    if store and record and record.id == found.id:
        Cluster.attach(found.name, store=store).purge()
        # Its directory was made for it alone. No other is ever removed as a whole.
        if record.owner and store.root.name.startswith(TEMPORARY_PREFIX) and not _names(store):
            remove_tree(store.root)
    else:
        for each in _all_running():
            if each.leftover.cluster_id == found.id or (not found.id and _beside(each, found)):
                runtimes.get(each.runtime).end_leftover(each.leftover)
        if store and os.path.isdir(found.directory):
            with store.lock(found.name, f"prune {found.name}"):
                if _record(store, found.name) is None:
                    remove_tree(Path(found.directory))
    _forget_missing()


def select(found: list[Found], names: list[str]) -> list[Found]:
    """Give those that `names` name: by name, by id, or by their directory.

    Raises SpecError for one that is unknown or names several.
    """
    chosen = []
    for name in names:
        hits = [each for each in found if name and name in (each.name, each.id, each.directory)]
        if not hits:
            raise SpecError(f"there is no cluster {name!r} on this machine", remedy="See `cluster.list`.")
        if len(hits) > 1:
            several = ", ".join(f"{each.id or 'no id'} in {each.directory}" for each in hits)
            raise SpecError(
                f"{name!r} names several clusters: {several}", remedy="Give the id or the directory instead."
            )
        chosen += [hit for hit in hits if hit not in chosen]
    return chosen


def _all_running() -> list[_Running]:
    return [_Running(name, leftover) for name in runtimes.names() for leftover in runtimes.get(name).leftovers()]


def _stores(given: tuple[Store, ...], running: list[_Running]) -> Iterator[Store]:
    roots = [str(store.root) for store in given]
    try:
        roots += Path(index_file()).read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        pass
    roots += [each.leftover.state_dir for each in running if each.leftover.state_dir]
    for root in dict.fromkeys(roots):
        if os.path.isdir(root):
            yield Store(root)


def _names(store: Store) -> list[str]:
    """Names of all clusters in a state directory, also of those whose record is gone."""
    names = []
    try:
        entries = sorted(os.listdir(store.root / "clusters"))
    except OSError:
        return []
    for entry in entries:
        try:
            if store.cluster_dir(entry).is_dir():
                names.append(entry)
        except SpecError:
            continue
    return names


def _record(store: Store, name: str) -> ClusterRecord | None:
    try:
        return store.load(name)
    except (ClusterNotFound, StateError):
        return None


def _look(store: Store, name: str, running: list[_Running]) -> Found:
    try:
        record = store.load(name)
        mine = [each.leftover for each in running if each.leftover.cluster_id == record.id]
        # It may be gone or damaged when it is read again, too.
        return _recorded(store, record, {leftover.member for leftover in mine if leftover.runs})
    except ClusterNotFound:
        return _unreadable(store, name, running, "leftover", "its record is gone")
    except StateError as error:
        return _unreadable(store, name, running, "damaged", str(error))


def _unreadable(store: Store, name: str, running: list[_Running], state: str, problem: str) -> Found:
    directory = store.cluster_dir(name)
    bare = Found(name, "", state, "", (), str(store.root), (), problem)
    beside = [each for each in running if _beside(each, bare)]
    return msgspec.structs.replace(
        bare,
        runtime=beside[0].runtime if beside else "",
        members=_members(beside),
        deletes=(*_described(beside), f"the data, record and logs in {directory}"),
    )


def _beside(running: _Running, found: Found) -> bool:
    return (running.leftover.state_dir, running.leftover.cluster) == (found.state_dir, found.name)


def _recorded(store: Store, record: ClusterRecord, running: set[str]) -> Found:
    from etcdops.cluster import Cluster

    try:
        cluster = Cluster.attach(record.spec.name, store=store)
    except SpecError:
        # A runtime that lives in the memory of the process which made it.
        return _found(record, store, "down", (f"the record in {store.cluster_dir(record.spec.name)}",))
    try:
        states = cluster.runtime.states(record)
    except RuntimeUnavailable as error:
        place = f"the record and logs in {store.cluster_dir(record.spec.name)}"
        return msgspec.structs.replace(_found(record, store, "unknown", (place,)), problem=str(error))
    up = [name in running or state not in ("stopped", "unknown") for name, state in states.items()]
    gone = "unknown" if "unknown" in states.values() else "down"
    state = "up" if all(up) else "partly up" if any(up) else gone
    pid = record.owner.partition(":")[0]
    if record.owner and (not pid.isdecimal() or identify(int(pid)) != record.owner):
        state = "leftover"
    return _found(record, store, state, tuple(cluster.contents()))


def _found(record: ClusterRecord, store: Store, state: str, deletes: tuple[str, ...]) -> Found:
    return Found(record.spec.name, record.id, state, record.runtime, record.spec.names, str(store.root), deletes)


def _orphan(group: list[_Running]) -> Found:
    first = group[0].leftover
    return Found(
        first.cluster,
        first.cluster_id,
        "leftover",
        group[0].runtime,
        _members(group),
        first.state_dir,
        _described(group),
        "its record is gone",
    )


def _described(running: list[_Running]) -> tuple[str, ...]:
    return tuple(each.leftover.described for each in sorted(running, key=lambda each: each.leftover.member))


def _members(running: list[_Running]) -> tuple[str, ...]:
    return tuple(sorted({each.leftover.member for each in running if each.leftover.member}))


def _forget_missing() -> None:
    """Drop state directories that are gone from the list of them. Best effort: those are passed over anyway."""
    path = Path(index_file())
    try:
        roots = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        kept = [root for root in roots if os.path.isdir(root)]
        if kept != roots:
            replace_file(path, "".join(f"{root}\n" for root in kept).encode(errors="surrogateescape"))
    except (OSError, StateError):
        return
