"""A member started from a copy of a snapshot: the proof that a restore from it would work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from etcdops.errors import BinaryError, ClusterError, EtcdError, Refused
from etcdops.hosts import LocalHost
from etcdops.snapshots.bolt import Contents
from etcdops.snapshots.pace import heartbeat
from etcdops.snapshots.tools import Tool, restore_tool, run_tool, said
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["Trial", "TrialFailed", "start_and_read"]

#: The restored database, etcd's log segments, and some more for what it does as it starts.
_ROOM = 1.2
_ROOM_BESIDES = 200 * 2**20

_START_S = 300.0
_READ_S = 600.0


class TrialFailed(Exception):
    """The snapshot cannot be restored, or the member does not have what it should."""


class Trial(NamedTuple):
    """What the member has: `keys` is None, and `hash` (HashKV, hexadecimal) "", where authentication hides both."""

    version: str
    keys: int | None
    hash: str


def start_and_read(
    snapshot: Path, contents: Contents, version: str, *, beside: str, progress: Callable[[str], None]
) -> Trial:
    """Restore a snapshot into a temporary cluster of one member, start that, read what it has, and remove it.

    Raises TrialFailed for what is the snapshot's fault; BinaryError when no etcd here can start from it, Refused when
    there is no room.
    """
    from etcdops import binaries
    from etcdops.cluster import Cluster
    from etcdops.spec import ClusterSpec

    found = binaries.find_reader(version, beside=beside) if version else binaries.find(offline=True)
    tool = restore_tool(found)
    if tool is None:
        raise BinaryError(
            f"there is an etcd {found.version}, and no etcdutl for it to restore with",
            remedy=f"`etcd.fetch --version {found.version}` gets a whole release where there is a network.",
        )
    # A temporary cluster: if we are killed, `cluster.list` shows it, and `cluster.prune` removes it.
    cluster = Cluster.create(
        ClusterSpec.of_size("verify", 1, etcd_bin=found.etcd), runtime="process", temporary=True, offline=True
    )
    try:
        _refuse_full(cluster.store.root, snapshot.stat().st_size)
        progress(f"restoring {snapshot.name} into {cluster.store.root}, with {tool.name}")
        _restore(cluster, tool, snapshot, progress)
        with heartbeat(progress, f"starting etcd {found.version} from it"):
            cluster.member("ironman").start(wait_s=_START_S)
        return _read(cluster, contents, found.version, progress)
    except ClusterError as error:
        raise TrialFailed(str(error)) from error
    finally:
        cluster.purge()


def _refuse_full(directory: Path, size: int) -> None:
    free, needed = LocalHost().free_bytes(str(directory)), round(_ROOM * size) + _ROOM_BESIDES
    if free < needed:
        raise Refused(
            f"{directory} has {size_text(free)} of free space, and a member of this snapshot needs {size_text(needed)}",
            remedy="Name a place with more room with TMPDIR.",
        )


def _restore(cluster: Cluster, tool: Tool, snapshot: Path, progress: Callable[[str], None]) -> None:
    [member] = cluster.record.members
    argv = [
        *(tool.path, "snapshot", "restore", str(snapshot), f"--data-dir={member.data.place}", f"--name={member.name}"),
        f"--initial-cluster={member.name}={member.peer_url}",
        f"--initial-cluster-token={cluster.record.token}",
        f"--initial-advertise-peer-urls={member.peer_url}",
    ]
    done = run_tool(argv, snapshot.stat().st_size, progress, "restoring it")
    if done.exit_code != 0:
        raise TrialFailed(f"{tool.name} cannot restore it: {said(done)}")


def _read(cluster: Cluster, contents: Contents, version: str, progress: Callable[[str], None]) -> Trial:
    from etcdops import wire
    from etcdops.calls import TO_THE_END
    from etcdops.status import refused_by_auth

    # At the snapshot's own revision: leases that end meanwhile delete keys, and move the store on.
    at = contents.revision
    try:
        with wire.Connection(cluster.endpoints[0]) as connection, heartbeat(progress, "reading it"):
            counted = connection.range(b"\0", TO_THE_END, revision=at, count_only=True, timeout_s=_READ_S)
            # Reads every value there is. etcd 3.4 calls a revision compacted that is the compaction's own.
            hashed = connection.hash_kv(at if at > contents.compact_revision else 0, timeout_s=_READ_S)
    except EtcdError as error:
        if refused_by_auth(error):
            return Trial(version, None, "")
        raise TrialFailed(f"etcd {version} started from it does not have revision {at}: {error.text}") from error
    return Trial(version, counted.count, f"{hashed.hash:x}")
