"""Removing old snapshots, by count and age: never the last verified one, and nothing before a newer one is verified."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path

import msgspec

from etcdops.errors import SnapshotError, SpecError
from etcdops.snapshots.manifest import Snapshot, manifest_path, read_manifest
from etcdops.snapshots.places import sync_dir

__all__ = ["PrunePlan", "plan_prune", "prune_snapshots"]

_log = logging.getLogger(__name__)


class PrunePlan(msgspec.Struct, frozen=True):
    """What a prune would remove, and the verified snapshots because of which it may: one for each cluster."""

    remove: tuple[Snapshot, ...]
    relies_on: tuple[Snapshot, ...]


def plan_prune(
    found: Sequence[Snapshot],
    *,
    keep: int | None = None,
    older_than_s: float | None = None,
    at: datetime | None = None,
) -> PrunePlan:
    """Give what can go of these snapshots. Pure: nothing is looked at, and nothing done.

    One goes when it has a manifest of etcdops', `keep` newer ones of the same cluster are verified, or one where `keep`
    is None, and it is older than `older_than_s` seconds, if that is given. So the last verified one of a cluster always
    stays; and a cluster that was deleted and created anew under its name is another one. Raises SpecError without a
    rule, or for a `keep` below 1.
    """
    if keep is None and older_than_s is None:
        raise SpecError("what is to be removed is not said", remedy="Give --keep N, --older-than 30d, or both.")
    if keep is not None and keep < 1:
        raise SpecError(f"--keep {keep} is not offered: 1 or more are", remedy="The last verified one always stays.")
    at = at or datetime.now(timezone.utc)
    newest: dict[str, Snapshot] = {}
    verified: dict[str, int] = {}
    remove = []
    for each in sorted(found, key=lambda each: datetime.fromisoformat(each.created), reverse=True):
        if each.manifest is None:
            continue
        cluster = each.manifest.cluster_id
        if verified.get(cluster, 0) >= (keep or 1) and (older_than_s is None or each.age_s(at) > older_than_s):
            remove.append(each)
        if each.level:
            verified[cluster] = verified.get(cluster, 0) + 1
            newest.setdefault(cluster, each)
    clusters = {each.manifest.cluster_id for each in remove if each.manifest}
    return PrunePlan(tuple(remove), tuple(newest[cluster] for cluster in sorted(clusters)))


def prune_snapshots(plan: PrunePlan, *, progress: Callable[[str], None] = _log.info) -> list[str]:
    """Remove what a plan names, each with its manifest, and give the paths of the files that are gone.

    Before anything is removed, the hashes of the snapshots that the plan relies on are looked at again. Raises
    SnapshotError when one is no longer right, or something cannot be removed. What has changed since the plan was made
    is left alone.
    """
    from etcdops.snapshots.verifying import check_hash

    for each in plan.relies_on:
        if problem := check_hash(each, progress):
            raise SnapshotError(
                f"{each.path}, the newest that is verified, is not sound ({problem}): nothing was removed",
                remedy=f"`snapshot.verify {each.path}` says more; save a new one with `snapshot.save` first.",
            )
    gone = []
    for each in plan.remove:
        path = Path(each.path)
        if read_manifest(path) != each.manifest or path.is_symlink():
            progress(f"{path} has changed meanwhile: it is left alone")
            continue
        try:
            # In this order: a manifest whose snapshot is gone is seen, and goes with the next prune.
            path.unlink(missing_ok=True)
            os.unlink(manifest_path(path))
            sync_dir(path.parent)
        except OSError as error:
            raise SnapshotError(f"cannot remove {path}: {error.strerror or error}") from error
        gone.append(each.path)
    return gone
