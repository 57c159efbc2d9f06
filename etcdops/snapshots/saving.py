"""Saving a snapshot from one member, under traffic, with or without a quorum: whole and verified, or not at all."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import EtcdError, Refused, SnapshotError, SpecError
from etcdops.hosts import LocalHost
from etcdops.interrupts import deferred
from etcdops.snapshots.bolt import Contents, NotBolt, read_contents
from etcdops.snapshots.manifest import (
    SCHEMA,
    Manifest,
    Snapshot,
    SnapshotMember,
    Verified,
    now,
    write_manifest,
)
from etcdops.snapshots.pace import EVERY_S, Pace
from etcdops.snapshots.places import PartFile, refuse_place, snapshots_dir, sync_dir, time_stamp
from etcdops.snapshots.sink import Sink
from etcdops.snapshots.source import Source, auth_refusal, choose_source
from etcdops.snapshots.trailer import TRAILER_BYTES, Trailer, fits
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["save_snapshot"]

_log = logging.getLogger(__name__)

#: How much more than the database's size must be free: it grows while it is sent.
_ROOM = 1.2


def _silent(message: str) -> None:
    _log.info(message)


def save_snapshot(
    cluster: Cluster,
    path: str | os.PathLike[str] = "",
    *,
    member: str = "",
    stall_s: float = 30.0,
    progress: Callable[[str], None] = _silent,
) -> Snapshot:
    """Save a snapshot of a cluster to a new file with its manifest beside it, and give both.

    Without `path`, the file is `snapshots/CLUSTER/TIME-rREVISION.db` in the state directory; a directory as `path` gets
    a file of such a name. It is taken from the voter that has applied most, or from `member`; traffic may run, and a
    quorum is not needed. Nothing that exists is overwritten, and there is no file of that name before it is whole, on
    the disk, and its hash right. An interruption leaves nothing. Memory is bounded, whatever the size.

    `progress` is called every two seconds or so, also from another thread.

    Raises Refused, before anything is asked for, when the place cannot be used, too little of its disk is free, or no
    member can be asked; SpecError for a `member` that there is not, or a `stall_s` below 1; SnapshotError when nothing
    comes for `stall_s` seconds, the disk fills up, or what came is not sound; EtcdError when the member fails.
    """
    if stall_s < 1:
        raise SpecError(f"a stall limit of {stall_s:g} s is not offered: 1 s or more is")
    given = _target(cluster, path)
    source = choose_source(cluster, member, progress)
    directory = given.parent
    _refuse_full(directory, source.status.db_size)
    if not path:
        cluster.store.make_dir(directory, mode=0o700)
    progress(f"saving a snapshot of {cluster.name} from {source.member.name} (revision {source.status.revision})")
    with PartFile(given) as part:
        trailer = _receive(cluster, source, part, stall_s, progress)
        contents = _check(source, part, trailer)
        manifest = _manifest(cluster, source, contents, trailer)
        # In between, a signal would leave the one without the other.
        with deferred():
            target = _publish(part, given, contents if _is_chosen(path) else None)
            manifest = _write_manifest(target, manifest)
            sync_dir(directory)
    progress(f"saved {size_text(trailer.size)} at revision {contents.revision}; its hash is right")
    return Snapshot(str(target), "ok", trailer.size, manifest.created, manifest=manifest)


def _is_chosen(path: str | os.PathLike[str]) -> bool:
    """Whether the file's name is for us to choose."""
    return not os.fspath(path) or os.path.isdir(path)


def _target(cluster: Cluster, path: str | os.PathLike[str]) -> Path:
    """Give the file to write, under a name for the time being where it is for us to choose; refuse a bad place."""
    if _is_chosen(path):
        directory = Path(os.path.abspath(path)) if os.fspath(path) else snapshots_dir(cluster.store, cluster.name)
        target = directory / f"{time_stamp()}-{os.getpid()}.db"
    else:
        target = Path(os.path.abspath(path))
    if os.fspath(path):
        refuse_place(cluster.store, target)
    return target


def _refuse_full(directory: Path, db_size: int) -> None:
    free, needed = LocalHost().free_bytes(str(directory)), round(_ROOM * db_size)
    if free < needed:
        raise Refused(
            f"{directory} has {size_text(free)} of free space, and a snapshot of this database of"
            f" {size_text(db_size)} needs {size_text(needed)}",
            remedy="Free some space, or give a place with more: `snapshot.save FILE`.",
        )


def _receive(
    cluster: Cluster, source: Source, part: PartFile, stall_s: float, progress: Callable[[str], None]
) -> Trailer:
    """Write all that the member sends, and give what is known of its trailer."""
    from etcdops.snapshots.stream import SnapshotStream
    from etcdops.status import refused_by_auth

    pace = Pace(progress, f"saving from {source.member.name}", source.status.db_size)

    def look(received: int, silent_s: float) -> None:
        pace(received, note=f"; nothing for {silent_s:.0f} s" if silent_s > EVERY_S else "")

    url, tls = source.member.client_url, cluster.record.spec.tls
    try:
        with SnapshotStream(url, tls, stall_s=stall_s, on_look=look) as stream, Sink(part.write) as sink:
            for piece in stream:
                sink.put(piece)
            return sink.close()
    except EtcdError as error:
        if refused_by_auth(error):
            raise auth_refusal(cluster) from error
        raise


def _check(source: Source, part: PartFile, trailer: Trailer) -> Contents:
    """Give what the database in the partial file says, once the file is on the disk; raise SnapshotError if unsound."""
    name = source.member.name
    remedy = f"Save it again. If it happens again, look at the disk and the log of {name}: `logs --member {name}`."
    if not fits(trailer.size) or not trailer.right:
        raise SnapshotError(
            f"the snapshot that {name} sent is not sound: it is {trailer.size} bytes long, and the last"
            f" {TRAILER_BYTES} are not the SHA-256 of the others",
            remedy=remedy,
        )
    # The hash was taken of what came. To read the file back would show what is in memory, not on the disk.
    if (written := part.sync()) != trailer.size:
        raise SnapshotError(f"{part.path} has {written} bytes, and {trailer.size} were written", remedy=remedy)
    try:
        return read_contents(part.path)
    except NotBolt as error:
        raise SnapshotError(f"what {name} sent is no database of etcd's: {error}", remedy=remedy) from error


def _manifest(cluster: Cluster, source: Source, contents: Contents, trailer: Trailer) -> Manifest:
    from etcdops.answers import hex_id

    record, at = cluster.record, now()
    return Manifest(
        schema=SCHEMA,
        file="",
        cluster=record.spec.name,
        cluster_id=record.id,
        etcd_cluster_id=hex_id(source.status.cluster_id),
        etcd_version=source.status.version,
        members=tuple(
            SnapshotMember(each.name, hex_id(each.id), each.peer_urls, each.learner) for each in contents.members
        ),
        source=source.member.name,
        quorum=source.quorum,
        revision=contents.revision,
        compact_revision=contents.compact_revision,
        raft_term=contents.raft_term or source.status.raft_term,
        raft_index=contents.raft_index,
        auth=contents.auth,
        size=trailer.size,
        db_size=trailer.size - TRAILER_BYTES,
        sha256=trailer.sha256,
        created=at,
        verified=(Verified("hash", at),),
    )


def _write_manifest(target: Path, manifest: Manifest) -> Manifest:
    named = msgspec.structs.replace(manifest, file=target.name)
    try:
        write_manifest(target, named)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return named


def _publish(part: PartFile, given: Path, chosen: Contents | None) -> Path:
    """Give the partial file its name, with the revision in it where the name is for us to choose."""
    if chosen is None:
        part.publish(given)
        return given
    stem = f"{given.name.partition('-')[0]}-r{chosen.revision}"
    names = itertools.chain([f"{stem}.db"], (f"{stem}-{i}.db" for i in itertools.count(2)))
    target = next(each for each in map(given.with_name, names) if not os.path.lexists(each))
    part.publish(target)
    return target
