"""Whether a cluster can be restored from a file: looked at before anything of the cluster is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

from etcdops import versions
from etcdops.errors import Refused, SnapshotError, SpecError
from etcdops.runtimes.base import Restoration
from etcdops.snapshots.bolt import Contents, read_contents
from etcdops.snapshots.manifest import Manifest, read_manifest
from etcdops.snapshots.trailer import TRAILER_BYTES
from etcdops.snapshots.verifying import verify_snapshot

__all__ = ["Examined", "bump_for", "examine", "refuse_version"]

#: The least by which revisions move on. etcd's page on recovery reckons with a week of 1,500 writes a second.
LEAST_BUMP = 1_000_000_000

#: A cluster has this version until its members have agreed on one, a few seconds after its first start.
_UNDECIDED = (3, 4)


class Examined(NamedTuple):
    """A sound snapshot: what it holds, what is known of it, and which checks it did not have, in words."""

    path: str
    contents: Contents
    manifest: Manifest | None
    version: str
    size: int
    sha256: str
    trailer: str
    created: str
    unchecked: tuple[str, ...]

    @property
    def age_s(self) -> float:
        """How old it is, in seconds."""
        return (datetime.now(timezone.utc) - datetime.fromisoformat(self.created)).total_seconds()

    def restoration(self, bump: int) -> Restoration:
        """Give what members are restored from."""
        return Restoration(self.path, self.sha256, self.trailer, self.size, bump)


def examine(
    path: str | os.PathLike[str], etcd_version: str, *, beside: str = "", progress: Callable[[str], None]
) -> Examined:
    """Verify a snapshot, and give what it holds, if a cluster of `etcd_version` can be restored from it.

    Raises SpecError where there is no such file, and Refused for one that is not sound, or of another minor version
    than etcd can read.
    """
    target = Path(os.path.abspath(path))
    report = verify_snapshot(target, beside=beside, progress=progress)
    if report.result == "failed":
        wrong = next(check for check in report.checks if check.result == "failed")
        raise Refused(
            f"{target} is not sound, and nothing was restored from it: {wrong.name}: {wrong.detail}",
            remedy="Nothing was changed. See `snapshot.list` for others; `snapshot.verify` has every check.",
        )
    try:
        contents, manifest = read_contents(target), read_manifest(target)
        with open(target, "rb") as file:
            file.seek(-TRAILER_BYTES, os.SEEK_END)
            trailer = file.read().hex()
        written = datetime.fromtimestamp(target.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    except (OSError, ValueError, SnapshotError) as error:
        raise SnapshotError(f"cannot read {target}: {error}") from error
    if "CORRUPT" in contents.alarms:
        raise Refused(
            f"{target} was saved while the alarm CORRUPT was raised: its members had found that their data differs",
            remedy="Nothing was changed. Restore an older one: see `snapshot.list`.",
        )
    version = _version(contents, manifest)
    refuse_version(version, etcd_version, str(target))
    return Examined(
        str(target),
        contents,
        manifest,
        version,
        report.size,
        report.sha256,
        trailer,
        manifest.created if manifest else written,
        tuple(f"{check.name}: {check.detail}" for check in report.checks if check.result == "skipped"),
    )


def _version(contents: Contents, manifest: Manifest | None) -> str:
    """Give the newest version that is known to have written the snapshot, "" where none is."""
    told = [contents.cluster_version, manifest.etcd_version if manifest else ""]
    known = []
    for text in filter(None, told):
        try:
            known.append(versions.parse_version(text))
        except SpecError:
            continue
    newest = max(known, default=None)
    return str(newest) if newest and newest.series >= _UNDECIDED else ""


def refuse_version(version: str, etcd_version: str, path: str) -> None:
    """Raise Refused where etcd of `etcd_version` cannot be sure to read what etcd `version` wrote ("": not known).

    etcd refuses data of a newer minor version, and only the next minor is sure to read what its predecessor wrote.
    """
    if not version or not etcd_version:
        return
    of, mine = versions.parse_version(version), versions.parse_version(etcd_version)
    if of.series > mine.series:
        raise Refused(
            f"{path} is of etcd {of[0]}.{of[1]}, and the cluster runs {mine}: etcd does not start from data of a newer"
            " minor version",
            remedy=f"Nothing was changed. Restore it into a new cluster of that version: --cluster NEW --etcd-version"
            f" {versions.recommended(of)}.",
        )
    if (of[0], of[1] + 1) < mine.series:
        raise Refused(
            f"{path} is of etcd {of[0]}.{of[1]}, and the cluster runs {mine}: only the next minor version is sure to"
            " read it",
            remedy=f"Nothing was changed. Restore it into a new cluster of etcd {of[0]}.{of[1]} or {of[0]}.{of[1] + 1},"
            " and upgrade that.",
        )


def bump_for(raft_index: int, revision: int) -> int:
    """Give by how much revisions are to move on: further than any that clients can have seen.

    1.2 times the last known raft index or revision, 10^9 at least (the rule of OpenShift's cluster-etcd-operator;
    etcd's page on recovery advises 10^9).
    """
    return max(LEAST_BUMP, -(-12 * max(raft_index, revision) // 10))
