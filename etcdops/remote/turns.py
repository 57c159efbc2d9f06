"""Taking turns on a cluster over several hosts: its lock there, what others have changed, and what is kept for them.

A command that changes the cluster takes the lock, takes up what another operator has written down since, does its work,
writes down what a second operator needs where that has changed, and lets go.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from etcdops import runtimes
from etcdops.errors import EtcdopsError, StateError
from etcdops.interrupts import deferred
from etcdops.remote import keeping, kept
from etcdops.remote.fan_out import fan_out
from etcdops.remote.inventory import HostSpec
from etcdops.remote.kept import Kept
from etcdops.remote.locking import HostsLock
from etcdops.runtimes.remote import RemoteRuntime
from etcdops.state import ClusterRecord, Store, replace_file
from etcdops.tls.layout import FILE_MODE, TLS_DIR_MODE, directory_of

if TYPE_CHECKING:
    from pathlib import Path

    from etcdops.cluster import Cluster
    from etcdops.docker.on_host import HostEngine
    from etcdops.remote.keeping import Version

__all__ = ["Turn", "as_known_here", "as_others_left_it", "note_version", "read_newest", "take_turn", "write_pem_files"]

_LIST_S, _LOOK_S, _KEEP_S = 30.0, 5.0, 60.0

Progress = Callable[[str], None]

#: The turns that this process has: of which cluster, in which state directory, by which thread.
_turns: set[tuple[str, str, int]] = set()


class _Noted(msgspec.Struct, frozen=True):
    """The version of what is kept on the hosts that agrees with the record here."""

    serial: int = 0
    digest: str = ""


@contextmanager
def take_turn(cluster: Cluster, doing: str, progress: Progress) -> Iterator[None]:
    """Hold the cluster's lock on its hosts while `doing` something to it; the caller holds the one here.

    A thread that has its turn already goes on at once. Raises Locked, naming the holder, where another operator has it.
    """
    runtime = cluster.runtime
    mine = (cluster.record.id, str(cluster.store.root), threading.get_ident())
    if mine in _turns or not isinstance(runtime, RemoteRuntime):
        yield
        return
    turn = _begin(cluster, doing, progress)
    _turns.add(mine)
    cluster.turn = turn
    try:
        yield
    finally:
        cluster.turn = None
        _turns.discard(mine)
        with deferred():
            turn.end()


def _begin(cluster: Cluster, doing: str, progress: Progress) -> Turn:
    """Take the lock, and what others have changed; where that is the hosts, the lock on those."""
    while True:
        runtime = cluster.runtime
        assert isinstance(runtime, RemoteRuntime)
        lock = HostsLock(runtime.engines, cluster.record, doing)
        lock.take(progress)
        try:
            turn = Turn(cluster, lock, progress)
            hosts = cluster.record.hosts
            turn.catch_up()
            if {each.name for each in cluster.record.hosts} == {each.name for each in hosts}:
                return turn
            cluster.runtime = runtimes.of(cluster.record)
        except BaseException:
            with deferred():
                lock.release()
            raise
        lock.release()


class Turn:
    """An operator's turn: what is kept on the hosts follows the record, for as long as the lock is held."""

    def __init__(self, cluster: Cluster, lock: HostsLock, progress: Progress) -> None:
        self._cluster = cluster
        self._lock = lock
        self._progress = progress
        self._noted = _noted(cluster.store, cluster.name)
        self._versions = self._list()
        #: Of what is kept, or of what could not be kept: it is not tried at each step.
        self._shape: tuple[object, ...] | None = kept.shape(cluster.record) if self._noted.serial else None

    def _list(self) -> dict[str, list[Version]]:
        engines = self._engines()
        ended = fan_out(
            [engines[name].ssh for name in self._lock.held],
            lambda host: keeping.versions_on(engines[host.name], self._cluster.record.id),
            timeout_s=_LIST_S,
        )
        return {name: outcome.checked() for name, outcome in ended.items() if outcome.error is None}

    def _engines(self) -> dict[str, HostEngine]:
        runtime = self._cluster.runtime
        assert isinstance(runtime, RemoteRuntime)
        return runtime.engines

    # -- what others have changed

    def catch_up(self) -> None:
        """Take up what another operator has written down since this one last did."""
        cluster = self._cluster
        listed = [each for versions in self._versions.values() for each in versions]
        newer = [each for each in listed if each.serial > self._noted.serial]
        if not newer:
            return
        try:
            found = read_newest(self._engines(), newer, self._progress)
            mine = self._files_here()
            if "ca.pem" in mine and mine["ca.pem"] != found.files.get("ca.pem"):
                # No command of ours changes it.
                raise StateError(
                    f"what {found.manifest.by} has kept on the hosts ({found.manifest.written}) has another authority"
                    f" than {cluster.name} here"
                )
        except StateError as error:
            self._progress(f"{error}; going on with what is known here, which is to take its place")
            self._noted = _Noted(self._noted.serial)
            return
        record, theirs = cluster.record, kept.digest(found.record, found.files)
        known = kept.digest(record, mine)
        directory = directory_of(cluster.store.cluster_dir(cluster.name))
        if known != theirs:
            if self._noted.serial and known != self._noted.digest:
                before = cluster.store.cluster_dir(cluster.name) / "cluster.json.before"
                replace_file(before, msgspec.json.encode(record), mode=FILE_MODE)
                self._progress(f"what was changed here, and could not be told to the hosts, is in {before}")
            self._progress(f"{found.manifest.by} has changed {cluster.name} ({found.manifest.written}): taken up")
            write_pem_files(directory, found.files)
            hosts = as_known_here(found, record.hosts)
            cluster.replace_record(kept.localised(found, record.state_dir, directory, hosts))
        self._note(found.manifest.serial, theirs)
        self._shape = kept.shape(cluster.record)

    def _files_here(self) -> dict[str, bytes]:
        """Give the PEM files that are here; none where one is lost that only the hosts have then."""
        try:
            return kept.files_of(self._cluster.record)
        except StateError:
            return {}

    # -- what is kept for others

    def check(self) -> None:
        """Raise Locked where the lock was lost to another."""
        self._lock.check()

    def saved(self, record: ClusterRecord) -> None:
        """Keep what was just written down, where others must know it should this be the last that they hear of us."""
        if kept.shape(record) != self._shape and any(member.ref for member in record.members):
            self._try_to_keep(record)

    def end(self) -> None:
        """Keep what has changed, and let go of the lock."""
        cluster = self._cluster
        try:
            # A cluster that has been deleted leaves nothing.
            if cluster.store.exists(cluster.name) and any(member.ref for member in cluster.record.members):
                self._try_to_keep(cluster.record)
        finally:
            self._lock.release()

    def _try_to_keep(self, record: ClusterRecord) -> None:
        """Keep it; where that cannot be done, nothing else is the worse for it."""
        try:
            self._keep(record)
        except EtcdopsError as error:
            self._progress(f"what a second operator needs could not be kept on the hosts: {error}")

    def _keep(self, record: ClusterRecord) -> None:
        """Write what has changed to every host; one where that fails is named, and has the older version."""
        self._shape = kept.shape(record)
        files = kept.files_of(record)
        digest = kept.digest(record, files)
        listed = {name: [(each.serial, each.digest) for each in found] for name, found in self._versions.items()}
        serial = self._noted.serial
        if digest != self._noted.digest:
            serial = max([serial, *(each for found in listed.values() for each, _ in found)]) + 1
        engines = self._engines()
        # Hosts that have come meanwhile are not locked: whoever comes by them meets the lock on the others.
        reached = [name for name in engines if name in self._lock.held or name not in self._lock.tried]
        behind = [name for name in reached if (serial, digest[:12]) not in listed.get(name, [])]
        if not behind:
            return
        self.check()
        packed = kept.pack(record, serial)
        with deferred():
            ended = fan_out(
                [engines[name].ssh for name in behind],
                lambda host: keeping.keep(engines[host.name], record, packed, serial, digest),
                timeout_s=_KEEP_S,
            )
            for name, outcome in ended.items():
                if outcome.error is None:
                    self._versions[name] = [outcome.checked()]
                else:
                    self._progress(f"{name} does not have what a second operator needs: {outcome.error}")
            if any(outcome.error is None for outcome in ended.values()):
                self._note(serial, digest)

    def _note(self, serial: int, digest: str) -> None:
        self._noted = _Noted(serial, digest)
        note_version(self._cluster.store, self._cluster.name, serial, digest)


def as_others_left_it(cluster: Cluster) -> tuple[ClusterRecord, RemoteRuntime, str] | None:
    """Give the record that another operator has kept on the hosts since it was last taken up here, for looking alone.

    With a runtime for it, and what to say of it. None where nothing newer is there, or can be read. Nothing is changed.
    """
    runtime = cluster.runtime
    if not isinstance(runtime, RemoteRuntime):
        return None
    engines, mine = runtime.engines, cluster.record
    noted = _noted(cluster.store, cluster.name)
    ended = fan_out(
        [engine.ssh for engine in engines.values()],
        lambda host: keeping.versions_on(engines[host.name], mine.id),
        timeout_s=_LOOK_S,
    )
    listed = [each for outcome in ended.values() if outcome.error is None for each in outcome.checked()]
    newer = [each for each in listed if each.serial > noted.serial]
    if not newer:
        return None
    try:
        found = read_newest(engines, newer, lambda said: None)
        if kept.files_of(mine).get("ca.pem") != found.files.get("ca.pem"):
            return None
    except StateError:
        return None
    directory = directory_of(cluster.store.cluster_dir(cluster.name))
    record = kept.localised(found, mine.state_dir, directory, as_known_here(found, mine.hosts))
    said = f"{found.manifest.by} has changed {cluster.name} ({found.manifest.written}), and it is shown so"
    return record, RemoteRuntime(record.hosts), said


def read_newest(engines: Mapping[str, HostEngine], versions: list[Version], progress: Progress) -> Kept:
    """Give the newest of these versions of one cluster, from whichever host has it whole.

    One that cannot be used is named, and the next one tried; raises StateError where there is no other.
    """
    rest = sorted(versions, key=lambda each: each.serial, reverse=True)
    problem: EtcdopsError | None = None
    while rest:
        # Two who could not reach each other's hosts may both have written one of this number.
        same = [each for each in rest if each.serial == rest[0].serial]
        rest = rest[len(same) :]
        found: dict[str, Kept] = {}
        for each in same:
            if each.digest in found:
                continue
            try:
                files = keeping.read(engines[each.host], each)
                found[each.digest] = kept.unpack(files, f"the volume {each.volume} on {each.host}", each.cluster_id)
            except EtcdopsError as error:
                problem = problem or error
                progress(str(error))
        if found:
            newest = max(found.values(), key=lambda one: one.manifest.written)
            if len(found) > 1:
                said = ", ".join(f"{one.manifest.by} at {one.manifest.written}" for one in found.values())
                progress(f"the hosts differ, by {said}: the last one counts")
            return newest
    assert problem
    raise StateError(str(problem), remedy=problem.remedy)


def as_known_here(found: Kept, known: tuple[HostSpec, ...]) -> tuple[HostSpec, ...]:
    """Give the hosts of what was kept, each as it is reached from here where that is known."""
    here = {each.name: each for each in known}
    return tuple(
        msgspec.structs.replace(here[each.name], peer_address=each.peer_address) if each.name in here else each
        for each in found.record.hosts
    )


def write_pem_files(directory: Path, files: dict[str, bytes]) -> None:
    """Write PEM files for their owner's eyes alone."""
    if files:
        directory.mkdir(mode=TLS_DIR_MODE, parents=True, exist_ok=True)
    for name, content in files.items():
        replace_file(directory / name, content, mode=FILE_MODE)


def note_version(store: Store, name: str, serial: int, digest: str) -> None:
    """Write down which version of what is kept on the hosts the record here agrees with."""
    replace_file(store.cluster_dir(name) / "kept.json", msgspec.json.encode(_Noted(serial, digest)) + b"\n")


def _noted(store: Store, name: str) -> _Noted:
    try:
        return msgspec.json.decode((store.cluster_dir(name) / "kept.json").read_bytes(), type=_Noted)
    except (OSError, msgspec.MsgspecError):
        return _Noted()
