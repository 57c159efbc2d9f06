"""Every cluster and leftover of this user on this machine, wherever its state directory is, or was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from etcdops import runtimes
from etcdops.errors import EtcdopsError, SpecError, StateError
from etcdops.hosts import identify
from etcdops.paths import index_file
from etcdops.runtimes.base import Leftover
from etcdops.state import ClusterRecord, Store, replace_file

__all__ = ["Found", "find_clusters", "remove", "select"]


class Found(msgspec.Struct, frozen=True):
    """A cluster on this machine.

    `state` is "up" (every member runs), "partly up", "down", "damaged" (its record cannot be read) or "leftover":
    members that run although their record is gone, or a temporary cluster whose maker is dead. `deletes` names, for a
    person, all that `remove` would take away.
    """

    name: str
    id: str
    state: str
    runtime: str
    members: tuple[str, ...]
    state_dir: str
    deletes: tuple[str, ...]


def find_clusters(*stores: Store) -> list[Found]:
    """Give every cluster in `stores`, in the state directories that this user has used before, and all that runs."""
    running = {name: list(runtimes.get(name).leftovers()) for name in runtimes.names()}
    found, known = [], set()
    for store in _stores(stores, [leftover for each in running.values() for leftover in each]):
        for name in store.names():
            try:
                record = store.load(name)
            except StateError as error:
                found.append(Found(name, "", "damaged", "", (), str(store.root), (str(error),)))
                continue
            known.add(record.id)
            found.append(_recorded(store, record))
    for runtime, leftovers in running.items():
        orphans: dict[str, list[Leftover]] = {}
        for leftover in leftovers:
            if leftover.cluster_id not in known:
                orphans.setdefault(leftover.cluster_id, []).append(leftover)
        found += [_orphan(runtime, group) for group in orphans.values()]
    return sorted(found, key=lambda each: (each.name, each.state_dir))


def remove(found: Found) -> None:
    """Remove a cluster with all that `found.deletes` names. There is no way back.

    Raises EtcdopsError when something of it cannot be removed.
    """
    from etcdops.cluster import Cluster

    store = Store(found.state_dir) if found.state_dir else None
    if found.state == "damaged" and store:
        _remove_tree(store.cluster_dir(found.name))
    elif store and store.exists(found.name) and store.load(found.name).id == found.id:
        Cluster.attach(found.name, store=store).purge()
    else:
        runtime = runtimes.get(found.runtime)
        for leftover in runtime.leftovers():
            if leftover.cluster_id == found.id:
                runtime.end_leftover(leftover)
    if store and _is_temporary(store.root):
        _remove_tree(store.root)
    _forget_missing()


def select(found: list[Found], names: list[str]) -> list[Found]:
    """Give those that `names` name, by name or by id; raise SpecError for one that is unknown or names several."""
    chosen = []
    for name in names:
        hits = [each for each in found if name in (each.name, each.id)]
        if not hits:
            raise SpecError(f"there is no cluster {name!r} on this machine", remedy="See `cluster.list`.")
        if len(hits) > 1:
            ids = ", ".join(f"{each.id} in {each.state_dir}" for each in hits)
            raise SpecError(f"{name!r} names several clusters: {ids}", remedy="Give the id instead.")
        chosen += hits
    return chosen


def _stores(given: tuple[Store, ...], leftovers: list[Leftover]) -> Iterator[Store]:
    roots = [str(store.root) for store in given]
    try:
        roots += Path(index_file()).read_text(encoding="utf-8").splitlines()
    except OSError:
        pass
    roots += [leftover.state_dir for leftover in leftovers if leftover.state_dir]
    for root in dict.fromkeys(roots):
        if os.path.isdir(root):
            yield Store(root)


def _recorded(store: Store, record: ClusterRecord) -> Found:
    from etcdops.cluster import Cluster

    try:
        cluster = Cluster.attach(record.spec.name, store=store)
    except SpecError:
        # A runtime that lives in the memory of the process which made it.
        return _found(record, store, "down", (f"the record in {store.cluster_dir(record.spec.name)}",))
    up = [member.state() != "stopped" for member in cluster.members]
    state = "up" if all(up) else "partly up" if any(up) else "down"
    if record.owner and identify(int(record.owner.partition(":")[0])) != record.owner:
        state = "leftover"
    return _found(record, store, state, tuple(cluster.contents()))


def _found(record: ClusterRecord, store: Store, state: str, deletes: tuple[str, ...]) -> Found:
    return Found(record.spec.name, record.id, state, record.runtime, record.spec.names, str(store.root), deletes)


def _orphan(runtime: str, group: list[Leftover]) -> Found:
    first = group[0]
    return Found(
        first.cluster,
        first.cluster_id,
        "leftover",
        runtime,
        tuple(sorted(leftover.member for leftover in group)),
        first.state_dir,
        tuple(f"the running member {leftover.member} ({leftover.ref.partition(':')[0]})" for leftover in group),
    )


def _is_temporary(root: Path) -> bool:
    import tempfile

    return root.name.startswith("etcdops-") and root.parent == Path(tempfile.gettempdir())


def _forget_missing() -> None:
    path = Path(index_file())
    try:
        roots = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    kept = [root for root in roots if os.path.isdir(root)]
    if kept != roots:
        replace_file(path, "".join(f"{root}\n" for root in kept).encode())


def _remove_tree(path: Path) -> None:
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise EtcdopsError(f"cannot remove {path}: {error.strerror or error}") from error
