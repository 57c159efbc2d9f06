"""The snapshots that there are, newest first: whole ones, and what is not as it should be."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path

from etcdops.errors import SnapshotError, SpecError
from etcdops.snapshots.manifest import Manifest, Snapshot, manifest_path, read_manifest
from etcdops.snapshots.places import PARTIAL, is_being_written, snapshots_dir
from etcdops.spec import valid_name
from etcdops.state import Store

__all__ = ["find_snapshot", "list_snapshots"]

_MANIFEST = ".json"


def list_snapshots(
    store: Store | None = None, cluster: str = "", *, directory: str | os.PathLike[str] = ""
) -> list[Snapshot]:
    """Give the snapshots in a state directory, newest first: of one cluster, or of all, whether or not it still exists.

    `directory` is a place of your own to look in instead; there, files without a manifest are only given when their
    names end in `.db`. What is not as it should be is given as well: see `Snapshot.state`. Nothing is read but
    manifests. Raises SnapshotError when a directory cannot be read.
    """
    store = store or Store.find()
    if directory:
        places = [Path(os.path.abspath(directory))]
        if not places[0].is_dir():
            raise SpecError(
                f"there is no directory {places[0]}", remedy="Leave --dir out for the state directory's own."
            )
    elif cluster:
        places = [snapshots_dir(store, valid_name(cluster))]
    else:
        places = [Path(entry.path) for entry in _entries(snapshots_dir(store)) if entry.is_dir()]
    found = [each for place in places for each in _in(place, strangers=not directory)]
    if cluster:
        found = [each for each in found if each.manifest is None or each.manifest.cluster == cluster]
    return sorted(found, key=lambda each: (datetime.fromisoformat(each.created), each.path), reverse=True)


def find_snapshot(name: str, store: Store | None = None) -> str:
    """Give the path of the snapshot that `name` stands for: a path, or the name of one that `snapshot.list` shows.

    Raises SpecError when several have that name.
    """
    if os.path.lexists(name) or os.sep in name:
        return os.path.abspath(name)
    store = store or Store.find()
    found = [str(path) for path in snapshots_dir(store).glob(f"*/{name}")] if name else []
    if len(found) > 1:
        raise SpecError(f"several snapshots are called {name}: {', '.join(found)}", remedy="Give the path of one.")
    return found[0] if found else os.path.abspath(name)


def _entries(place: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(place) as entries:
            return list(entries)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SnapshotError(f"cannot read {place}: {error.strerror or error}") from error


def _in(place: Path, *, strangers: bool) -> list[Snapshot]:
    """Give what is in one directory; with `strangers`, files that nobody vouches for, whatever their names, too."""
    files = {entry.name: entry for entry in _entries(place) if entry.is_file(follow_symlinks=False)}
    found = []
    for name in files:
        path = place / name
        of = name.removesuffix(_MANIFEST)
        if name.startswith("."):
            continue
        if name.endswith(PARTIAL):
            if strangers or name.endswith(f".db{PARTIAL}"):
                found.append(_partial(path))
        elif f"{name}{_MANIFEST}" in files:
            whole = _whole(path)
            if strangers or whole.manifest or name.endswith(".db"):
                found.append(whole)
        elif name != of:
            # Not every JSON file is a manifest; one that can be read as such, and whose snapshot is gone, is.
            if of not in files and (lost := _lost(place / of)):
                found.append(lost)
        elif strangers or name.endswith(".db"):
            found.append(_whole(path))
    return found


def _partial(path: Path) -> Snapshot:
    size, written = _stat(path)
    if is_being_written(path):
        return Snapshot(str(path), "saving", size, written, "a save is writing it now")
    return Snapshot(str(path), "partial", size, written, "a save that was killed left it; it can be deleted")


def _whole(path: Path) -> Snapshot:
    size, written = _stat(path)
    try:
        manifest = read_manifest(path)
    except SnapshotError as error:
        return Snapshot(str(path), "damaged", size, written, str(error))
    if manifest is None:
        return Snapshot(str(path), "unknown", size, written, "it has no manifest")
    problem = manifest.problem
    if not problem and size != manifest.size:
        problem = f"its size should be {manifest.size}, and is {size}"
    return Snapshot(str(path), "damaged" if problem else "ok", size, manifest.created, problem, manifest)


def _lost(path: Path) -> Snapshot | None:
    try:
        manifest: Manifest | None = read_manifest(path)
    except SnapshotError:
        return None
    if manifest is None:
        return None
    gone = f"{path.name} is gone, and {manifest_path(path).name} is still here"
    return Snapshot(str(path), "damaged", 0, manifest.created, gone, manifest)


def _stat(path: Path) -> tuple[int, str]:
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        # A save that has just ended has renamed it.
        return 0, datetime.now(timezone.utc).isoformat(timespec="seconds")
    written = datetime.fromtimestamp(status.st_mtime, timezone.utc)
    return status.st_size, written.isoformat(timespec="seconds")
