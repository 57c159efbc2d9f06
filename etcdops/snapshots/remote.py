"""Snapshots away from here: put one into a directory, an S3 bucket or behind SFTP, get one back, see which there are.

The manifest goes last, so a snapshot with a manifest is whole, and was read back.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from etcdops.errors import EtcdopsError, Refused, SnapshotError, SpecError
from etcdops.hosts import LocalHost
from etcdops.interrupts import deferred
from etcdops.snapshots.addresses import Address, parse
from etcdops.snapshots.bolt import NotBolt, read_contents
from etcdops.snapshots.depot import PIECE_BYTES, Depot, Entry, open_depot
from etcdops.snapshots.manifest import (
    Manifest,
    Snapshot,
    decode_manifest,
    encode_manifest,
    manifest_path,
    now,
    read_manifest,
    write_manifest,
)
from etcdops.snapshots.places import PARTIAL, PartFile, refuse_place, snapshots_dir, sync_dir
from etcdops.snapshots.trailer import Trailer, fits
from etcdops.snapshots.transfer import Stopped, Work, watch
from etcdops.spec import valid_name
from etcdops.state import Store
from etcdops.units import size_text

__all__ = ["Pushed", "list_remote_snapshots", "pull_snapshot", "push_snapshot"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

#: More than any manifest has; what is there may be anything.
_MOST_MANIFEST_BYTES = 2**20

_MANIFEST = ".json"


class Pushed(msgspec.Struct, frozen=True):
    """A snapshot that is at `url` now, whole: what `snapshot.push -o json` prints.

    `already` is True when it was there before. `sha256` and `size` are of the whole file, as it was read back.
    """

    schema: int
    path: str
    url: str
    size: int
    sha256: str
    already: bool


def _silent(message: str) -> None:
    _log.info(message)


def push_snapshot(
    path: str | os.PathLike[str],
    url: str,
    *,
    endpoint_url: str = "",
    stall_s: float = 30.0,
    progress: Callable[[str], None] = _silent,
    store: Store | None = None,
) -> Pushed:
    """Put the snapshot at `path` under its own name into the directory `url`, and its manifest after it.

    `url` is a directory, or file:///DIR, s3://BUCKET/PREFIX or sftp://USER@HOST/DIR. The file is checked against its
    manifest as it is sent, and read back whole: what a store says of what it has got (an ETag, a size) is not the
    SHA-256 of it. It gets its name when it is right; in S3, where what has no name cannot be read, it is read
    afterwards, and removed if it is wrong. Nothing is overwritten; what is there already with the same content counts
    as done, and a push that was interrupted goes on from there.

    `endpoint_url` is for S3 that is not AWS. `progress` is called every two seconds or so.

    Raises SpecError for a URL that is none, or a `stall_s` below 1; Refused, before anything is sent, for a snapshot
    that has no manifest or is not sound, when something else has its name there, when there is no connection, or when
    packages are missing; SnapshotError when nothing moves for `stall_s` seconds, or what is there is not what was sent.
    """
    source = Path(os.path.abspath(path))
    manifest = _sound(source)
    with _depot(parse(url), store, endpoint_url, stall_s) as depot:

        def push(work: Work) -> bool:
            with _explained(depot, work, f"push {source.name} to"):
                return _push(depot, source, manifest, work)

        progress(f"pushing {source.name} ({size_text(manifest.size)}) to {depot.address.text}")
        already = _watched(depot, push, stall_s, progress)
        where = depot.where(source.name)
    said = "is there already" if already else "is there"
    progress(f"{where} {said}: read back, {size_text(manifest.size)} with the right SHA-256")
    return Pushed(1, str(source), where, manifest.size, manifest.sha256, already)


def pull_snapshot(
    url: str,
    path: str | os.PathLike[str] = "",
    *,
    newest: bool = False,
    cluster: str = "",
    endpoint_url: str = "",
    stall_s: float = 30.0,
    progress: Callable[[str], None] = _silent,
    store: Store | None = None,
) -> Snapshot:
    """Get the snapshot at `url` into a new file, with its manifest beside it, and give both.

    With `newest`, `url` is a directory, and the newest snapshot there that has a manifest is taken; of `cluster` alone
    if that is given. Without `path`, the file goes among the snapshots of its cluster in the state directory; a
    directory as `path` gets a file of the same name. There is no file of that name before it is whole, on the disk, and
    its hash right, by its trailer and by its manifest. Nothing is overwritten, and an interruption leaves nothing.

    Raises as push_snapshot does; SnapshotError when what came is not sound.
    """
    store = store or Store.find()
    address = parse(url)
    directory, name = (address, "") if newest else address.split()
    if not newest and (url.endswith("/") or not name):
        directory, name = address, ""
    with _depot(directory, store, endpoint_url, stall_s) as depot:

        def find(work: Work) -> _Found:
            with _explained(depot, work, "look for a snapshot in"):
                return _newest(depot, cluster, work) if newest else _named(depot, name)

        found = _watched(depot, find, stall_s, progress)
        if found.manifest is None:
            progress(f"{found.name} has no manifest there: nothing but its own hash vouches for it")
        target = _target(store, path, found, cluster)
        progress(f"pulling {depot.where(found.name)} ({size_text(found.size)})")
        with PartFile(target) as part:

            def fetch(work: Work) -> Trailer:
                work.changing = True
                with _explained(depot, work, f"pull {found.name} from"):
                    return _fetch(depot, found, part, work)

            trailer = _watched(depot, fetch, stall_s, progress)
            _check(depot.where(found.name), found, part, trailer)
            with deferred():
                part.publish(target)
                manifest = _keep_manifest(target, found.manifest)
    progress(f"pulled {size_text(trailer.size)}; its hash is right")
    if manifest is None:
        return Snapshot(str(target), "unknown", trailer.size, now(), "it has no manifest")
    return Snapshot(str(target), "ok", trailer.size, manifest.created, manifest=manifest)


def list_remote_snapshots(
    url: str,
    cluster: str = "",
    *,
    endpoint_url: str = "",
    stall_s: float = 30.0,
    progress: Callable[[str], None] = _silent,
    store: Store | None = None,
) -> list[Snapshot]:
    """Give the snapshots in the directory `url`, newest first; `path` is then the URL of each. Only manifests are read.

    Files without a manifest are given when their names end in `.db`. Raises as push_snapshot does.
    """
    with _depot(parse(url), store, endpoint_url, stall_s) as depot:

        def look(work: Work) -> list[Snapshot]:
            with _explained(depot, work, "list the snapshots in"):
                return _listed(depot, depot.entries(), work)

        found = _watched(depot, look, stall_s, progress)
    if cluster:
        found = [each for each in found if each.manifest is None or each.manifest.cluster == cluster]
    return found


# -- what all have in common


@contextmanager
def _depot(address: Address, store: Store | None, endpoint_url: str, stall_s: float) -> Iterator[Depot]:
    if stall_s < 1:
        raise SpecError(f"a stall limit of {stall_s:g} s is not offered: 1 s or more is")
    if endpoint_url and address.kind != "s3":
        raise SpecError(f"{address.text} has no endpoint URL: that is for s3:// alone", remedy="Leave it out.")
    depot = open_depot(address, store or Store.find(), endpoint_url=endpoint_url, stall_s=stall_s)
    try:
        yield depot
    finally:
        depot.close()


def _watched(depot: Depot, work: Callable[[Work], T], stall_s: float, progress: Callable[[str], None]) -> T:
    return watch(work, where=depot.address.text, stall_s=stall_s, progress=progress, abort=depot.abort)


@contextmanager
def _explained(depot: Depot, work: Work, doing: str) -> Iterator[None]:
    """Make whatever goes wrong there an error of ours: Refused as long as nothing was changed."""
    try:
        yield
    except (EtcdopsError, Stopped, ArithmeticError, AttributeError, LookupError, TypeError):
        raise
    except Exception as error:
        text, remedy = depot.explain(error)
        told = f"cannot {doing} {depot.address.text}, while {work.doing}: {text}"
        raise (SnapshotError if work.changing else Refused)(told, remedy=remedy) from error


def _small(depot: Depot, name: str) -> bytes:
    content = b""
    for piece in depot.pieces(name):
        content += piece
        if len(content) > _MOST_MANIFEST_BYTES:
            raise SnapshotError(f"{depot.where(name)} is no manifest: it is too large", remedy="Move it away.")
    return content


def _manifest_there(depot: Depot, name: str) -> Manifest:
    beside = f"{name}{_MANIFEST}"
    return decode_manifest(
        _small(depot, beside), depot.where(beside), remedy=f"`snapshot.pull` takes {name} alone once it is moved away."
    )


def _digest(depot: Depot, name: str, work: Work, doing: str, size: int) -> tuple[str, int]:
    """Read a file, and give its SHA-256 and size."""
    trailer = Trailer()
    work.begin(doing, size)
    for piece in depot.pieces(name):
        trailer.feed(piece)
        work.moved(len(piece))
    return trailer.sha256, trailer.size


# -- push


def _sound(source: Path) -> Manifest:
    """Give the manifest of a snapshot that may be pushed."""
    if not source.is_file():
        raise SpecError(f"there is no file {source}", remedy="See `snapshot.list` for the snapshots that there are.")
    manifest = read_manifest(source)
    verify = f"`snapshot.verify {source}` says more; save a new one with `snapshot.save`."
    if manifest is None:
        raise Refused(
            f"{source} has no manifest, so nothing says what is in it",
            remedy="`snapshot.save` makes both. What etcdctl has saved is copied with `aws s3 cp` or `scp`.",
        )
    if manifest.problem:
        raise Refused(f"{source} is not sound: {manifest.problem}", remedy=verify)
    if (size := source.stat().st_size) != manifest.size:
        raise Refused(f"{source} is not sound: its size should be {manifest.size}, and is {size}", remedy=verify)
    return manifest


def _push(depot: Depot, source: Path, manifest: Manifest, work: Work) -> bool:
    """Put it there, then its manifest; whether both were there before."""
    name = source.name
    beside = f"{name}{_MANIFEST}"
    work.begin("looking what is there")
    depot.check()
    size, described = depot.size(name), depot.size(beside) is not None
    if size is None and described:
        raise Refused(
            f"{depot.where(beside)} is there, and the snapshot that it describes is not",
            remedy="Move it away, or choose another place.",
        )
    if described and _manifest_there(depot, name).sha256 != manifest.sha256:
        raise _taken(depot, name)
    if size is None:
        _send(depot, source, manifest, work)
    elif (manifest.sha256, manifest.size) != _digest(depot, name, work, f"reading {name}, which is there", size):
        raise _taken(depot, name)
    if not described:
        work.begin("pushing its manifest")
        work.changing = True
        with depot.upload(beside) as upload:
            upload.write(encode_manifest(manifest))
            upload.finish()
            work.moved(0)
            upload.publish()
    return described


def _taken(depot: Depot, name: str) -> Refused:
    return Refused(
        f"{depot.where(name)} is there already with other content, and is not overwritten",
        remedy="Choose another place, such as one for each cluster.",
    )


def _send(depot: Depot, source: Path, manifest: Manifest, work: Work) -> None:
    name, trailer = source.name, Trailer()
    try:
        with depot.upload(name) as upload:
            work.begin(f"pushing {name}", manifest.size)
            work.changing = True
            for piece in _pieces_of(source):
                work.moved(0)
                trailer.feed(piece)
                upload.write(piece)
                work.moved(len(piece))
            if (trailer.sha256, trailer.size, trailer.right) != (manifest.sha256, manifest.size, True):
                raise SnapshotError(
                    f"{source} is not sound: its bytes are not those of which its manifest tells. It is not pushed",
                    remedy=f"`snapshot.verify {source}` says more.",
                )
            upload.finish()
            if upload.staged:
                _read_back(depot, name, upload.staged, manifest, work)
            work.moved(0)
            upload.publish()
    except FileExistsError as error:
        raise SnapshotError(
            f"{depot.where(name)} has appeared meanwhile, and is not overwritten",
            remedy="Push again: what has the same content counts as done.",
        ) from error
    if not upload.staged:
        try:
            _read_back(depot, name, name, manifest, work)
        except _Different:
            depot.remove(name)
            raise


class _Different(SnapshotError):
    """What is there is not what was sent."""


def _read_back(depot: Depot, name: str, staged: str, manifest: Manifest, work: Work) -> None:
    found, size = _digest(depot, staged, work, f"reading {name} back", manifest.size)
    if (found, size) != (manifest.sha256, manifest.size):
        raise _Different(
            f"{depot.where(name)} is not what was sent: {size} bytes of {manifest.size}, with SHA-256 {found}."
            " It was removed",
            remedy="Push it again. If it happens again, do not trust that store.",
        )


def _pieces_of(source: Path) -> Iterator[bytes]:
    try:
        with open(source, "rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece
    except OSError as error:
        raise SnapshotError(f"cannot read {source}: {error.strerror or error}") from error


# -- pull


class _Found(NamedTuple):
    name: str
    size: int
    manifest: Manifest | None


def _named(depot: Depot, name: str) -> _Found:
    size = depot.size(name) if name else None
    if size is None:
        text = depot.where(name).rstrip("/")
        raise Refused(
            f"there is no snapshot {text}" if name else f"{text} is a directory",
            remedy="`snapshot.list --dir URL` shows what is in a directory, and --newest takes the newest in it.",
        )
    described = depot.size(f"{name}{_MANIFEST}") is not None
    return _judged(depot, name, size, _manifest_there(depot, name) if described else None)


def _judged(depot: Depot, name: str, size: int, manifest: Manifest | None) -> _Found:
    problem = manifest.problem if manifest else ""
    if manifest and size != manifest.size:
        problem = f"its size should be {manifest.size}, and is {size}"
    if problem:
        raise SnapshotError(f"{depot.where(name)} is not sound: {problem}", remedy="Take another one.")
    return _Found(name, size, manifest)


def _newest(depot: Depot, cluster: str, work: Work) -> _Found:
    for each in _listed(depot, depot.entries(), work):
        if each.state == "ok" and each.manifest and cluster in ("", each.manifest.cluster):
            return _judged(depot, each.path.rpartition("/")[2], each.size, each.manifest)
    raise Refused(
        f"there is no snapshot{f' of {cluster}' if cluster else ''} with a manifest in {depot.address.text}",
        remedy=f"`snapshot.list --dir {depot.address.text}` shows what there is.",
    )


def _target(store: Store, path: str | os.PathLike[str], found: _Found, cluster: str) -> Path:
    """Give the file to write; raise Refused where none may be, or there is too little room."""
    if not os.fspath(path):
        owner = valid_name(found.manifest.cluster if found.manifest else cluster or "lab")
        target = snapshots_dir(store, owner) / found.name
        store.make_dir(target.parent, mode=0o700)
    elif os.path.isdir(path):
        target = Path(os.path.abspath(path)) / found.name
    else:
        target = Path(os.path.abspath(path))
    refuse_place(store, target)
    if (free := LocalHost().free_bytes(str(target.parent))) < found.size:
        raise Refused(
            f"{target.parent} has {size_text(free)} of free space, and {found.name} needs {size_text(found.size)}",
            remedy="Free some space, or give a place with more: `snapshot.pull URL FILE`.",
        )
    return target


def _fetch(depot: Depot, found: _Found, part: PartFile, work: Work) -> Trailer:
    trailer = Trailer()
    work.begin(f"pulling {found.name}", found.size)
    for piece in depot.pieces(found.name):
        work.moved(len(piece))
        trailer.feed(piece)
        part.write(piece)
        # A disk that is slow is no connection that stalls.
        work.moved(0)
        if trailer.size > found.size:
            break
    return trailer


def _check(where: str, found: _Found, part: PartFile, trailer: Trailer) -> None:
    """Raise SnapshotError unless what came is sound, and on the disk."""
    problem = ""
    if trailer.size != found.size:
        problem = f"{trailer.size} bytes came, of {found.size}"
    elif not fits(trailer.size) or not trailer.right:
        problem = "its last 32 bytes are not the SHA-256 of the others"
    elif found.manifest and found.manifest.sha256 != trailer.sha256:
        problem = "its SHA-256 is not the one in its manifest"
    if not problem:
        part.sync()
        try:
            read_contents(part.path)
        except NotBolt as error:
            problem = f"it is no database of etcd's: {error}"
    if problem:
        raise SnapshotError(f"{where} is not sound: {problem}. Nothing was kept", remedy="Take another one.")


def _keep_manifest(target: Path, manifest: Manifest | None) -> Manifest | None:
    """Write the manifest beside the snapshot; what its bytes have passed elsewhere, these have passed, too."""
    if manifest is None:
        return None
    kept = msgspec.structs.replace(manifest.passed(("hash",), at=now()), file=target.name)
    try:
        write_manifest(target, kept)
        sync_dir(target.parent)
    except BaseException:
        target.unlink(missing_ok=True)
        manifest_path(target).unlink(missing_ok=True)
        raise
    return kept


# -- list


def _listed(depot: Depot, entries: dict[str, Entry], work: Work) -> list[Snapshot]:
    found = []
    for name, entry in entries.items():
        work.moved(0)
        where = depot.where(name)
        if name.endswith(PARTIAL):
            if ".db." in name:
                left = "a push is writing it now, or one that was killed has left it"
                found.append(Snapshot(where, "partial", entry.size, entry.written, left))
        elif f"{name}{_MANIFEST}" in entries:
            found.append(_described(depot, name, entry))
        elif name.endswith(".db"):
            unknown = "it has no manifest: a push that was interrupted, or somebody else's"
            found.append(Snapshot(where, "unknown", entry.size, entry.written, unknown))
    return sorted(found, key=lambda each: (datetime.fromisoformat(each.created), each.path), reverse=True)


def _described(depot: Depot, name: str, entry: Entry) -> Snapshot:
    where = depot.where(name)
    try:
        manifest = _manifest_there(depot, name)
    except SnapshotError as error:
        return Snapshot(where, "damaged", entry.size, entry.written, str(error))
    problem = manifest.problem
    if not problem and entry.size != manifest.size:
        problem = f"its size should be {manifest.size}, and is {entry.size}"
    return Snapshot(where, "damaged" if problem else "ok", entry.size, manifest.created, problem, manifest)
