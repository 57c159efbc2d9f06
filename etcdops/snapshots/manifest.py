"""A snapshot's manifest, `FILE.json` beside it: of which cluster it is, how far it goes, and what was verified when."""

from __future__ import annotations

import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

import msgspec

from etcdops.errors import SnapshotError
from etcdops.state import replace_file

__all__ = [
    "LEVELS",
    "SCHEMA",
    "Level",
    "Manifest",
    "Snapshot",
    "SnapshotMember",
    "Verified",
    "decode_manifest",
    "encode_manifest",
    "manifest_path",
    "now",
    "read_manifest",
    "write_manifest",
]

#: The schema of a manifest that this release writes, and the newest it reads.
SCHEMA = 1

#: How thoroughly a snapshot was looked at: its SHA-256 trailer; each page of the database; a member started from it.
Level = Literal["hash", "pages", "boot"]

#: The levels, each saying more than the one before.
LEVELS: tuple[Level, ...] = ("hash", "pages", "boot")


class SnapshotMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member as the snapshot's database has it; `id` is hexadecimal, as etcdctl prints it."""

    name: str
    id: str
    peer_urls: tuple[str, ...]
    learner: bool = False


class Verified(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """That a level was passed, and when (RFC 3339, UTC)."""

    level: Level
    time: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is known about a snapshot. Sizes are in bytes, times RFC 3339 in UTC.

    `cluster` and `cluster_id` are etcdops' name and id of the cluster, `etcd_cluster_id` is etcd's own. `revision`,
    `compact_revision`, `raft_index` and `raft_term` are what the snapshot's database holds. `sha256` and `size` are the
    whole file's, `db_size` is without its trailer. `source` is the member that it was taken from, and `quorum` whether
    there was one: without, the newest writes may be missing. `keys` is how many keys a member that was started from it
    has, None before that was done. `verified` has an entry for each level that was passed, and `problem` what the last
    verification found wrong.
    """

    schema: int
    file: str
    cluster: str
    cluster_id: str
    etcd_cluster_id: str
    etcd_version: str
    members: tuple[SnapshotMember, ...]
    source: str
    quorum: bool
    revision: int
    compact_revision: int
    raft_term: int
    raft_index: int
    auth: bool
    size: int
    db_size: int
    sha256: str
    created: str
    verified: tuple[Verified, ...] = ()
    problem: str = ""
    keys: int | None = None

    @property
    def best(self) -> Verified | None:
        """The strongest level that was passed, None if none was, or the last verification found a problem."""
        if self.problem:
            return None
        return max(self.verified, key=lambda each: LEVELS.index(each.level), default=None)

    def passed(self, levels: tuple[Level, ...], *, at: str, keys: int | None = None) -> Manifest:
        """Give the manifest of a snapshot that passed these levels at that time."""
        kept = tuple(each for each in self.verified if each.level not in levels and not self.problem)
        return msgspec.structs.replace(
            self,
            verified=(*kept, *(Verified(level, at) for level in levels)),
            problem="",
            keys=self.keys if keys is None else keys,
        )

    def failed(self, problem: str) -> Manifest:
        """Give the manifest of a snapshot in which a verification found a problem."""
        return msgspec.structs.replace(self, verified=(), problem=problem)


class Snapshot(msgspec.Struct, frozen=True):
    """A snapshot of a cluster in a file, as it is found on disk.

    `state` is "ok" (its manifest is here and agrees), "unknown" (a file without a manifest), "damaged" (`problem` says
    how: a manifest that cannot be read, a file that is gone, a verification that failed), "partial" (what a save that
    was killed has left) or "saving" (a save is writing it now). `size` is in bytes; `created` is the manifest's, or
    when the file was last written.
    """

    path: str
    state: Literal["ok", "unknown", "damaged", "partial", "saving"]
    size: int
    created: str
    problem: str = ""
    manifest: Manifest | None = None

    @property
    def level(self) -> Level | None:
        """The strongest level of verification that it has passed, None if none, or if something is wrong with it."""
        best = self.manifest.best if self.manifest and self.state == "ok" else None
        return best.level if best else None

    def age_s(self, at: datetime | None = None) -> float:
        """Give its age in seconds, now or at another instant."""
        return ((at or datetime.now(timezone.utc)) - datetime.fromisoformat(self.created)).total_seconds()


def now() -> str:
    """Give the time as manifests have it: of two snapshots in one second, it says which is the newer."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def manifest_path(path: str | os.PathLike[str]) -> Path:
    """Give where the manifest of the snapshot at `path` is."""
    return Path(f"{os.fspath(path)}.json")


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """Give the manifest of the snapshot at `path`, None if there is none.

    Raises SnapshotError for one that cannot be read, is damaged, or was written by a newer release.
    """
    beside = manifest_path(path)
    remedy = f"`snapshot.verify {path}` looks at the snapshot alone once {beside} is moved away."
    try:
        content = beside.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SnapshotError(f"cannot read the manifest {beside}: {error.strerror or error}") from error
    return decode_manifest(content, str(beside), remedy=remedy)


def decode_manifest(content: bytes, where: str, *, remedy: str = "") -> Manifest:
    """Give the manifest that was read from `where`.

    Raises SnapshotError for one that is damaged, with `remedy`, or that was written by a newer release.
    """
    try:
        schema = msgspec.json.decode(content, type=_Schema).schema
        if schema > SCHEMA:
            raise SnapshotError(
                f"the manifest {where} has schema {schema}, and this release of etcdops reads up to {SCHEMA}",
                remedy="Use the newer release of etcdops that wrote it.",
            )
        manifest = msgspec.json.decode(content, type=Manifest)
        for time in (manifest.created, *(each.time for each in manifest.verified)):
            if datetime.fromisoformat(time).tzinfo is None:
                raise ValueError(f"{time!r} has no time zone")
    except (msgspec.MsgspecError, ValueError) as error:
        raise SnapshotError(f"the manifest {where} is damaged: {error}", remedy=remedy) from error
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """Give a manifest as its file has it."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def write_manifest(path: str | os.PathLike[str], manifest: Manifest) -> None:
    """Write the manifest of the snapshot at `path`, as a whole or not at all; raise StateError if that fails."""
    replace_file(manifest_path(path), encode_manifest(manifest), mode=0o600)


class _Schema(msgspec.Struct):
    schema: int
