"""A snapshot out of the database file of a member that does not run: `member/snap/db`, with its hash appended.

Such a file has no hash of its own, and etcd's tools restore it only with --skip-hash-check. Here the hash is taken as
it is copied, so that every later reader can see that it has these bytes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from hashlib import sha256
from typing import TYPE_CHECKING

from etcdops.answers import hex_id
from etcdops.errors import SnapshotError
from etcdops.snapshots.bolt import NotBolt, read_contents
from etcdops.snapshots.manifest import SCHEMA, Manifest, SnapshotMember, Verified, now, write_manifest
from etcdops.snapshots.places import snapshots_dir, time_stamp

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["copy_raw"]

_BLOCK_BYTES = 2**20


def copy_raw(cluster: Cluster, name: str, progress: Callable[[str], None]) -> str:
    """Copy the database of a stopped member to a new snapshot with a manifest, and give its path.

    What the member had only in its write-ahead log is not in it. Raises SnapshotError when it cannot be read.
    """
    from etcdops.operations.exchange import restorer

    record = cluster.record
    directory = cluster.store.make_dir(snapshots_dir(cluster.store, cluster.name), mode=0o700)
    target = directory / f"{time_stamp()}-{name}-{os.getpid()}.db"
    part = target.with_name(f"{target.name}.part")
    progress(f"copying the database of {name}, which does not run")
    try:
        part.touch(mode=0o600)
        restorer(cluster).copy_database(record, name, str(part))
        os.chmod(part, 0o600)
        body, whole = sha256(), sha256()
        with open(part, "r+b") as file:
            while piece := file.read(_BLOCK_BYTES):
                body.update(piece)
            whole = body.copy()
            whole.update(body.digest())
            file.write(body.digest())
            file.flush()
            os.fsync(file.fileno())
        contents, size = read_contents(part), part.stat().st_size
        at = now()
        manifest = Manifest(
            schema=SCHEMA,
            file=target.name,
            cluster=record.spec.name,
            cluster_id=record.id,
            etcd_cluster_id="",
            etcd_version=record.etcd_version,
            members=tuple(SnapshotMember(m.name, hex_id(m.id), m.peer_urls, m.learner) for m in contents.members),
            source=f"{name} (its database file)",
            quorum=False,
            revision=contents.revision,
            compact_revision=contents.compact_revision,
            raft_term=contents.raft_term,
            raft_index=contents.raft_index,
            auth=contents.auth,
            size=size,
            db_size=size - len(body.digest()),
            sha256=whole.hexdigest(),
            created=at,
            verified=(Verified("hash", at),),
        )
        os.rename(part, target)
        write_manifest(target, manifest)
    except (OSError, NotBolt) as error:
        raise SnapshotError(f"the database of {name} cannot be copied: {error}") from error
    finally:
        part.unlink(missing_ok=True)
    return str(target)
