"""etcd's own tools for snapshots: etcdutl, or etcdctl where there is none. They are told about no cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from etcdops import binaries, versions
from etcdops.errors import BinaryError, EtcdopsError
from etcdops.executables import version_of
from etcdops.hosts import Completed, LocalHost
from etcdops.snapshots.pace import heartbeat

__all__ = ["Told", "Tool", "restore_tool", "run_tool", "status_tool"]

#: How slow a disk may be, in bytes per second, and how long a tool may take besides.
_SLOWEST = 2_000_000
_BESIDES_S = 60.0

_MOST_SAID = 600


class Told(NamedTuple):
    """What `snapshot status` says. `keys` are entries of all buckets before etcd 3.6, so versions do not compare."""

    revision: int
    keys: int
    size: int


class Tool(NamedTuple):
    """A tool at `path` that knows `snapshot status` and `snapshot restore`; `name` is for a person."""

    path: str
    name: str

    def status(self, snapshot: Path, progress: Callable[[str], None]) -> Told | str:
        """Have every page of a snapshot checked, and give what is in it, or what is wrong."""
        size = snapshot.stat().st_size
        argv = [self.path, "snapshot", "status", str(snapshot), "-w", "json"]
        try:
            done = run_tool(argv, size, progress, f"checking the pages of {snapshot.name}")
        except EtcdopsError as error:
            return str(error)
        if done.exit_code != 0:
            return said(done)
        try:
            told = msgspec.json.decode(done.stdout, type=_Status)
        except msgspec.MsgspecError as error:
            return f"its answer is not understood: {error}"
        return Told(told.revision, told.totalKey, told.totalSize)


class _Status(msgspec.Struct):
    revision: int
    totalKey: int
    totalSize: int


def status_tool(version: str, beside: str = "") -> Tool | None:
    """Give a tool that checks snapshots of etcd `version` ("" for an unknown one), None where there is none."""
    path = binaries.etcdutl_for(version, beside=beside)
    if path:
        return Tool(path, f"etcdutl {version_of(path, 'etcdutl') or '?'}")
    try:
        path = binaries.etcdctl_for(version, beside=beside)
    except BinaryError:
        return None
    return _etcdctl(path)


def restore_tool(found: binaries.Binaries) -> Tool | None:
    """Give the tool that restores snapshots for this etcd, None where there is none."""
    if found.etcdutl:
        return Tool(found.etcdutl, f"etcdutl {version_of(found.etcdutl, 'etcdutl') or '?'}")
    return _etcdctl(found.etcdctl)


def _etcdctl(path: str) -> Tool | None:
    told = version_of(path, "etcdctl")
    if told is None or not versions.supports(told, "etcdctl_snapshot_restore"):
        return None
    return Tool(path, f"etcdctl {told}")


def run_tool(argv: Sequence[str], size: int, progress: Callable[[str], None], doing: str) -> Completed:
    """Run a tool on a snapshot of `size` bytes, and say every two seconds that it goes on; raises as Host.run does."""
    # With the caller's ETCDCTL_… some versions refuse what others ignore, or look for a cluster.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "ETCDCTL_", "ETCDUTL_"))}
    with heartbeat(progress, doing):
        return LocalHost().run(argv, timeout_s=_BESIDES_S + size / _SLOWEST, env={**env, "ETCDCTL_API": "3"})


def said(done: Completed) -> str:
    """Give what a tool that failed has said, in one line."""
    text = " ".join((done.stderr or done.stdout).decode(errors="replace").split())
    return f"{text[:_MOST_SAID] or 'it said nothing'} (exit code {done.exit_code})"
