"""Verifying a snapshot, which is only read: its trailer, its manifest, every page, and a member started from it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec

from etcdops.errors import EtcdopsError, SnapshotError, SpecError
from etcdops.snapshots.bolt import Contents, NotBolt, is_bolt, read_contents
from etcdops.snapshots.manifest import (
    LEVELS,
    Level,
    Manifest,
    Snapshot,
    manifest_path,
    now,
    read_manifest,
    write_manifest,
)
from etcdops.snapshots.pace import Pace
from etcdops.snapshots.trailer import TRAILER_BYTES, Trailer, fits
from etcdops.units import size_text

__all__ = ["SnapshotCheck", "SnapshotReport", "check_hash", "verify_snapshot"]

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 2**20


class SnapshotCheck(msgspec.Struct, frozen=True):
    """One thing that was looked at; `detail` says what was found. "skipped" says why it was not looked at."""

    name: Literal["size", "hash", "manifest", "database", "pages", "boot"]
    result: Literal["passed", "failed", "skipped"]
    detail: str


class SnapshotReport(msgspec.Struct, frozen=True):
    """What a verification found: what `snapshot.verify -o json` prints.

    `result` is "failed" when any check failed. `level` is how thoroughly it was looked at: "hash" (its trailer),
    "pages" (every page of the database as well) or "boot" (a member started from it as well); None when it failed.
    `revision` is None where the database could not be read, `keys` where no member was started from it. `sha256` is the
    whole file's.
    """

    schema: int
    path: str
    result: Literal["passed", "failed"]
    level: Level | None
    size: int
    revision: int | None
    keys: int | None
    checks: tuple[SnapshotCheck, ...]
    sha256: str = ""

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that it has passed, none if it failed."""
        passed = {check.name for check in self.checks if check.result == "passed"}
        return tuple(each for each in LEVELS if each in passed) if self.result == "passed" else ()

    @property
    def exit_code(self) -> int:
        """0 passed, 1 failed."""
        return 0 if self.result == "passed" else 1

    def check(self, name: str) -> SnapshotCheck:
        """Give the check called `name`; KeyError if there was none."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)


def _silent(message: str) -> None:
    _log.info(message)


def verify_snapshot(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    beside: str = "",
    progress: Callable[[str], None] = _silent,
) -> SnapshotReport:
    """Verify the snapshot at `path`, and give what was found; a failed check is no error.

    Its size and its last 32 bytes, the SHA-256 of the rest; what its manifest says, if it has one; and every page of
    the database, by etcdutl (etcdctl of 3.5 or older where there is no etcdutl): where neither is at hand, the report
    says so. With `deep`, a member is restored from it in a directory of its own (TMPDIR), started, read and removed.
    `beside` is a directory whose etcd and tools are preferred. The snapshot itself is only read; what was found is
    recorded in its manifest.

    `progress` is called every two seconds or so, also from another thread. Raises SpecError when there is no such file,
    SnapshotError when it cannot be read. With `deep`, raises BinaryError when no etcd here can start from it, and
    Refused when there is no room.
    """
    target = Path(os.path.abspath(path))
    size = _size(target)
    found = _Findings(target, size)
    sound = found.trailer(progress)
    contents = found.database() if sound or found.raw else None
    manifest = found.manifest(contents)
    version = manifest.etcd_version if manifest else contents.cluster_version if contents else ""
    if contents:
        found.pages(contents, version, beside, progress)
    if deep and contents and not found.failed:
        found.boot(contents, version, beside, manifest, progress)
    elif deep:
        found.add("boot", "skipped", "what was found before is reason enough not to restore from it")
    report = found.report(contents)
    if manifest:
        _record(target, manifest, report, progress)
    return report


def check_hash(snapshot: Snapshot, progress: Callable[[str], None]) -> str:
    """Give what is wrong with the bytes of a snapshot that has a manifest, "" when nothing is."""
    trailer = _hash(Path(snapshot.path), progress)
    if not trailer.right:
        return f"its last {TRAILER_BYTES} bytes are not the SHA-256 of the others"
    same = snapshot.manifest is not None and snapshot.manifest.sha256 == trailer.sha256
    return "" if same else "its SHA-256 is not the one in its manifest"


def _size(target: Path) -> int:
    try:
        if not target.is_file():
            kind = "is no file" if target.exists() else "does not exist"
            raise SpecError(f"{target} {kind}", remedy="See `snapshot.list` for the snapshots that there are.")
        return target.stat().st_size
    except OSError as error:
        raise SnapshotError(f"cannot read {target}: {error.strerror or error}") from error


def _record(target: Path, manifest: Manifest, report: SnapshotReport, progress: Callable[[str], None]) -> None:
    """Write into the manifest what was found. One that is of another file is left as it is."""
    if report.level:
        new = manifest.passed(report.levels, at=now(), keys=report.keys)
    else:
        failed = next(check for check in report.checks if check.result == "failed")
        new = manifest.failed(f"{failed.name}: {failed.detail}")
    try:
        write_manifest(target, new)
    except EtcdopsError as error:
        progress(f"what was found is not recorded: {error}")


class _Findings:
    """The checks of one file, as they are made."""

    def __init__(self, target: Path, size: int) -> None:
        self._target = target
        self._size = size
        self._sha256 = ""
        self._keys: int | None = None
        self._checks: list[SnapshotCheck] = []
        #: A copy of a member's own database, which has no trailer.
        self.raw = size > 0 and size % 512 == 0 and is_bolt(target)

    @property
    def failed(self) -> bool:
        return any(check.result == "failed" for check in self._checks)

    def add(
        self,
        name: Literal["size", "hash", "manifest", "database", "pages", "boot"],
        result: Literal["passed", "failed", "skipped"],
        detail: str,
    ) -> None:
        self._checks.append(SnapshotCheck(name, result, detail))

    def trailer(self, progress: Callable[[str], None]) -> bool:
        """Check the size and the hash; whether both are right."""
        size = self._size
        trailer = _hash(self._target, progress)
        self._sha256 = trailer.sha256
        if fits(size):
            self.add("size", "passed", f"{size} bytes: a database and its hash of {TRAILER_BYTES}")
        elif self.raw:
            self.add(
                "size",
                "failed",
                f"{size} bytes are a database without a hash: a raw copy of a member's own file (`member/snap/db`),"
                " and no snapshot. It may be torn, or lack what the member had only in its log",
            )
        else:
            self.add("size", "failed", f"{size} bytes cannot be a snapshot: it is cut off, or something else")
        if self.raw:
            self.add("hash", "skipped", "it has none")
        elif trailer.right:
            self.add("hash", "passed", f"its last {TRAILER_BYTES} bytes are the SHA-256 of the others")
        else:
            self.add(
                "hash", "failed", f"its last {TRAILER_BYTES} bytes are not the SHA-256 of the others: it is damaged"
            )
        return trailer.right and fits(size)

    def database(self) -> Contents | None:
        """Check that it is a database of etcd's, and give what it says of itself."""
        try:
            contents = read_contents(self._target)
        except (NotBolt, OSError) as error:
            self.add("database", "failed", f"it is no database of etcd's: {error}")
            return None
        auth = "; authentication is on" if contents.auth else ""
        of = f"of etcd {contents.cluster_version.rpartition('.')[0]}, " if contents.cluster_version else ""
        count = _count(len(contents.members), "member")
        self.add("database", "passed", f"{of}at revision {contents.revision}, of a cluster of {count}{auth}")
        return contents

    def manifest(self, contents: Contents | None) -> Manifest | None:
        """Check what the manifest says; give it if it can be read."""
        try:
            manifest = read_manifest(self._target)
        except SnapshotError as error:
            self.add("manifest", "failed", str(error))
            return None
        if manifest is None:
            self.add("manifest", "skipped", f"there is no {manifest_path(self._target).name} beside it")
            return None
        told = {
            "size": (manifest.size, self._size),
            "SHA-256": (manifest.sha256, self._sha256),
            **({"revision": (manifest.revision, contents.revision)} if contents else {}),
        }
        wrong = [f"its {what} should be {says}, and is {has}" for what, (says, has) in told.items() if says != has]
        self.add(
            "manifest",
            "failed" if wrong else "passed",
            "; ".join(wrong) or f"of cluster {manifest.cluster}, saved from {manifest.source} at {manifest.created}",
        )
        return manifest

    def pages(self, contents: Contents, version: str, beside: str, progress: Callable[[str], None]) -> None:
        """Have every page of the database checked."""
        from etcdops.snapshots.tools import status_tool

        tool = status_tool(version, beside)
        if tool is None:
            missing = "there is no etcdutl here, and no etcdctl older than 3.6: `etcd.fetch` gets one"
            self.add("pages", "skipped", missing)
            return
        told = tool.status(self._target, progress)
        if isinstance(told, str):
            self.add("pages", "failed", f"{tool.name}: {told}")
        elif told.revision != contents.last_revision:
            self.add(
                "pages",
                "failed",
                f"{tool.name} finds revision {told.revision}, and its keys end at {contents.last_revision}",
            )
        else:
            self.add("pages", "passed", f"{tool.name} finds no fault in {size_text(told.size)}, {told.keys} entries")

    def boot(
        self,
        contents: Contents,
        version: str,
        beside: str,
        manifest: Manifest | None,
        progress: Callable[[str], None],
    ) -> None:
        """Start a member from a copy, and see that it has what it should."""
        from etcdops.snapshots.trial import TrialFailed, start_and_read

        try:
            trial = start_and_read(self._target, contents, version, beside=beside, progress=progress)
        except TrialFailed as error:
            self.add("boot", "failed", str(error))
            return
        self._keys = trial.keys
        if trial.keys is None:
            self.add("boot", "passed", f"etcd {trial.version} starts from it; authentication is on, so no key was read")
        elif manifest and manifest.keys not in (None, trial.keys):
            self.add(
                "boot",
                "failed",
                f"etcd {trial.version} has {_count(trial.keys, 'key')}, and had {manifest.keys} before",
            )
        else:
            self.add(
                "boot",
                "passed",
                f"etcd {trial.version} starts from it, and reads {_count(trial.keys, 'key')} at revision"
                f" {contents.revision} (HashKV {trial.hash})",
            )

    def report(self, contents: Contents | None) -> SnapshotReport:
        passed = {check.name for check in self._checks if check.result == "passed"}
        level: Level | None = None
        if not self.failed:
            level = next(each for each in reversed(LEVELS) if each in passed)
        return SnapshotReport(
            schema=1,
            path=str(self._target),
            result="failed" if self.failed else "passed",
            level=level,
            size=self._size,
            revision=contents.revision if contents else None,
            keys=self._keys,
            checks=tuple(self._checks),
            sha256=self._sha256,
        )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _hash(target: Path, progress: Callable[[str], None]) -> Trailer:
    """Read all of a file, and give what is known of its trailer."""
    trailer = Trailer()
    try:
        with open(target, "rb", buffering=0) as file:
            pace = Pace(progress, f"reading {target.name}", os.fstat(file.fileno()).st_size)
            while piece := file.read(_BLOCK_BYTES):
                trailer.feed(piece)
                pace(trailer.size)
    except OSError as error:
        raise SnapshotError(f"cannot read {target}: {error.strerror or error}") from error
    return trailer
