"""A cluster: create it, bring it up, look at it, take it down.

>>> with Cluster.create() as cluster:          # three members on free ports, gone at the end
...     client = cluster.client()
...     _ = client.put("greeting", "hello")
...     print(client.get("greeting")[0].decode())
hello
"""

from __future__ import annotations

import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops import runtimes
from etcdops.errors import (
    ClusterNotFound,
    EtcdopsError,
    NoLeader,
    PartlyChanged,
    QuorumLost,
    Refused,
    SpecError,
)
from etcdops.foreign import FORGET, bring_back, is_foreign, refuse_foreign
from etcdops.hosts import identify
from etcdops.interrupts import deferred
from etcdops.member import Member
from etcdops.operations.methods import Operations
from etcdops.placement import check_same, place, remember, with_tls_files
from etcdops.runtimes.base import CanMovePorts, CanSpread, MemberState, looked
from etcdops.spec import ClusterSpec, Tls
from etcdops.state import SCHEMA, ClusterRecord, Store, remove_tree
from etcdops.tls.layout import directory_of, is_own, with_own_files
from etcdops.waiting import wait_first_write, wait_serving

if TYPE_CHECKING:
    from etcdops.client import Client
    from etcdops.remote.inventory import Inventory
    from etcdops.remote.turns import Turn
    from etcdops.runtimes.base import Runtime
    from etcdops.status import ClusterStatus

__all__ = ["Cluster", "Progress", "Started"]

_log = logging.getLogger(__name__)

#: Called with one line of prose about what is going on; the library itself never prints.
Progress = Callable[[str], None]

#: How long a leader may take to notice that its followers' connections have closed.
_NOTICE_S = 0.1

#: What the directories of temporary clusters are called.
TEMPORARY_PREFIX = "etcdops-"


def _silent(message: str) -> None:
    _log.info(message)


class Started(NamedTuple):
    """A cluster that is up: whether this call created it, and which members it started or resumed."""

    cluster: Cluster
    created: bool
    started: list[str]


class Cluster(Operations):
    """A cluster that etcdops made, and all that can be done with it.

    Get one from `Cluster.create` or `Cluster.attach`. As a context manager it is up inside the block; afterwards a
    temporary one is gone, and any other is stopped with its data kept.
    """

    def __init__(self, store: Store, record: ClusterRecord, runtime: Runtime) -> None:
        self.store = store
        self.runtime = runtime
        self._record = record
        # None until the record is first used: it may have changed since it was read.
        self._stamp: tuple[int, int] | None = None
        #: How many lines each member had logged before it was started: what an earlier start said is no news.
        self.logged: dict[str, int] = {}
        #: For a cluster on several hosts, while its lock there is held.
        self.turn: Turn | None = None
        self._temporary = False
        self._directory: tempfile.TemporaryDirectory[str] | None = None

    def __repr__(self) -> str:
        return f"<Cluster {self.name}: {', '.join(self._record.spec.names)} by {self.runtime.name}>"

    # -- getting one

    @classmethod
    def create(
        cls,
        spec: ClusterSpec | str | None = None,
        *,
        size: int = 3,
        runtime: Runtime | str = "process",
        store: Store | None = None,
        tls: bool = False,
        temporary: bool = False,
        offline: bool = False,
        progress: Progress = _silent,
    ) -> Cluster:
        """Record a new cluster: its members, ports and places for data. Nothing runs before `up`.

        `spec` is a ClusterSpec, a name (for `size` members at etcd's default timing), or None for a temporary cluster
        with a name of its own. A temporary cluster is gone when its `with` block ends or it is purged, and a leftover
        once this process is dead; it has a state directory of its own unless `store` gives one. `offline` keeps
        etcdops from fetching a binary. With `tls`, members and clients speak mutual TLS, by certificates of an
        authority that is made for this cluster; a `spec` with files of its own has TLS without.

        Raises SpecError for what is not valid; Refused when the name is taken, a pinned port in use or the disk full;
        BinaryError without a usable etcd. Nothing of the cluster is left behind then.
        """
        temporary = temporary or spec is None
        if spec is None:
            spec = f"tmp-{secrets.token_hex(3)}"
        if isinstance(spec, str):
            spec = ClusterSpec.of_size(spec, size)
        runner = runtimes.get(runtime) if isinstance(runtime, str) else runtime
        directory = None
        if temporary and store is None:
            directory = tempfile.TemporaryDirectory(prefix=TEMPORARY_PREFIX, ignore_cleanup_errors=True)
            store = Store(directory.name)
        store = store or Store.find()
        try:
            with store.lock(spec.name, f"create {spec.name}", on_wait=progress):
                owner = identify(os.getpid()) if temporary else ""
                cluster = cls._create(spec, runner, store, offline, progress, tls=tls, owner=owner)
        except BaseException:
            if directory:
                directory.cleanup()
            raise
        cluster._temporary, cluster._directory = temporary, directory
        return cluster

    @classmethod
    def _create(
        cls,
        spec: ClusterSpec,
        runner: Runtime,
        store: Store,
        offline: bool,
        progress: Progress,
        *,
        tls: bool = False,
        owner: str = "",
    ) -> Cluster:
        if store.exists(spec.name):
            raise Refused(
                f"there already is a cluster {spec.name!r} in {store.root}",
                remedy=f"Cluster.attach({spec.name!r}) takes it up.",
            )
        if problem := runner.unavailable():
            raise problem
        own = tls and spec.tls is None
        spec = with_own_files(spec, directory_of(store.cluster_dir(spec.name))) if own else with_tls_files(spec)
        prepared = runner.prepare(spec, offline=offline, progress=progress)
        cluster_id = secrets.token_hex(8)
        record = ClusterRecord(
            schema=SCHEMA,
            id=cluster_id,
            spec=spec,
            runtime=runner.name,
            # etcd's guide asks for a token of its own for each creation, so that members of an earlier cluster on
            # the same ports cannot join this one (https://etcd.io/docs/v3.5/op-guide/clustering/).
            token=f"etcdops-{cluster_id}",
            state_dir=str(store.root),
            members=place(runner, spec, cluster_id, store),
            **prepared._asdict(),
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            owner=owner,
        )
        if own:
            from etcdops.tls import leaves

            leaves.create(record)
        try:
            store.save(record)
        except BaseException:
            if own:
                leaves.remove(record)
            raise
        remember(store)
        return cls(store, record, runner)

    @classmethod
    def attach(cls, name: str = "lab", *, store: Store | None = None, runtime: Runtime | None = None) -> Cluster:
        """Take up a cluster that was created before.

        Raises ClusterNotFound, StateError for a record that cannot be used, SpecError for a runtime that is not known.
        """
        store = store or Store.find()
        record = store.load(name)
        return cls(store, record, runtime or runtimes.of(record))

    @classmethod
    def attach_endpoints(
        cls,
        endpoints: str | Iterable[str] = (),
        name: str = "lab",
        *,
        tls: Tls | None = None,
        purpose: str = "",
        store: Store | None = None,
        progress: Progress = _silent,
    ) -> Cluster:
        """Record a cluster that somebody else runs, by client URLs of its members, and take it up.

        It is marked as production unless `purpose` is "lab". Again on the same cluster, what is recorded of its members
        is refreshed. Raises as `etcdops.foreign.attaching.attach` does.
        """
        from etcdops.foreign.attaching import attach

        return attach(endpoints, name, tls=tls, purpose=purpose, store=store, progress=progress).cluster

    @classmethod
    def attach_hosts(
        cls, inventory: Inventory, name: str = "", *, store: Store | None = None, progress: Progress = _silent
    ) -> Cluster:
        """Take up a cluster that another operator, or this one elsewhere, has made on these hosts, from those alone.

        Raises as `etcdops.remote.attaching.attach_hosts` does.
        """
        from etcdops.remote.attaching import attach_hosts

        return attach_hosts(inventory, name, store=store, progress=progress).cluster

    @classmethod
    def ensure_up(
        cls,
        spec: ClusterSpec,
        *,
        runtime: Runtime | str = "",
        size: int = 0,
        tls: bool = False,
        store: Store | None = None,
        offline: bool = False,
        timeout_s: float = 60.0,
        progress: Progress = _silent,
    ) -> Started:
        """Bring the cluster of that name up, creating it as `spec` says if there is none.

        What an existing cluster has is fixed: Refused when `runtime`, its hosts, `size` or the spec's etcd version
        differ from it ("" and 0 mean no wish), or it has no TLS and `tls` asks for it. When a cluster that this call
        created does not start, nothing of it is left.
        Otherwise raises as `create` and `up` do.
        """
        store = store or Store.find()
        with store.lock(spec.name, f"up-env {spec.name}", on_wait=progress):
            created = not store.exists(spec.name)
            if created:
                runner = runtimes.get(runtime) if isinstance(runtime, str) else runtime
                cluster = cls._create(spec, runner, store, offline, progress, tls=tls)
            else:
                cluster = cls.attach(spec.name, store=store, runtime=None if isinstance(runtime, str) else runtime)
                name = runtime if isinstance(runtime, str) else runtime.name
                hosts = getattr(runtime, "hosts", ())
                check_same(cluster.record, runtime=name, size=size, spec=spec, tls=tls, hosts=hosts)
            try:
                with cluster.in_turn(f"up-env {spec.name}", progress):
                    started = cluster.up_locked(timeout_s=timeout_s, progress=progress)
            except BaseException:
                if created:
                    cluster.purge_locked()
                raise
            return Started(cluster, created, started)

    # -- what it is

    @property
    def name(self) -> str:
        """Its name."""
        return self._record.spec.name

    @property
    def record(self) -> ClusterRecord:
        """Its record as it is now: another command may have changed it since we last looked.

        Once the cluster has been deleted, the last that was known. Raises ClusterNotFound when another has taken its
        name since, StateError when the record is damaged.
        """
        stamp = self.store.stamp(self.name)
        if stamp not in ((0, 0), self._stamp):
            record = self.store.load(self.name)
            if record.id != self._record.id:
                raise ClusterNotFound(
                    f"cluster {self.name!r} ({self._record.id}) was deleted, and another has its name ({record.id})",
                    remedy=f"Cluster.attach({self.name!r}) takes up the other.",
                )
            self._record, self._stamp = record, stamp
        return self._record

    @property
    def members(self) -> tuple[Member, ...]:
        """Its members, in order of creation."""
        return tuple(Member(self, member.name) for member in self.record.members)

    @property
    def endpoints(self) -> list[str]:
        """The client URLs of all its members; of one that somebody else runs, if it is reached from here."""
        return [member.client_url for member in self.record.members if member.client_url]

    def member(self, name: str) -> Member:
        """Give the member called `name`; raise SpecError if there is none."""
        return Member(self, self.record.member(name).name)

    def save(self, record: ClusterRecord) -> None:
        """Write the record, if it differs, and use it from now on; the caller holds the cluster's lock.

        Raises Locked, for a cluster on several hosts, when the lock was lost meanwhile.
        """
        if record != self.record:
            if self.turn:
                self.turn.check()
            self.replace_record(record)
            if self.turn:
                self.turn.saved(record)

    def replace_record(self, record: ClusterRecord) -> None:
        """Write the record, and use it from now on."""
        self.store.save(record)
        self._record, self._stamp = record, self.store.stamp(self.name)

    @contextmanager
    def locked(self, doing: str, *, progress: Progress = _silent) -> Iterator[None]:
        """Hold the cluster's lock while `doing` something to it; see `Store.lock`.

        Raises ClusterNotFound if it was deleted, or replaced by another of its name, also while we waited.
        """
        # Looked at before the lock is taken too, which would make a directory for it where all is gone.
        self._check_there()
        with self.store.lock(self.name, doing, on_wait=progress):
            self._check_there()
            with self.in_turn(doing, progress):
                yield

    @contextmanager
    def in_turn(self, doing: str, progress: Progress) -> Iterator[None]:
        """Hold the lock on its hosts as well, where it has several: for a caller who holds the one here.

        Raises Locked, naming the holder, where another operator works on it.
        """
        if not self._record.hosts:
            yield
            return
        from etcdops.remote.turns import take_turn

        with take_turn(self, doing, progress):
            yield

    def _check_there(self) -> None:
        if not self.store.exists(self.name):
            raise ClusterNotFound(
                f"cluster {self.name!r} in {self.store.root} has been deleted",
                remedy="Create it anew: its data are gone.",
            )
        self._stamp = None
        _ = self.record

    # -- up and down

    def up(self, *, timeout_s: float = 60.0, progress: Progress = _silent) -> list[str]:
        """Start every member that does not run, let frozen ones go on, and wait until a write is acknowledged.

        Members that are cut off are connected again. Gives the names of all that were brought back: none when all ran
        already, and then nothing was changed and nothing written. What a dead run of a drill left is healed on the way.

        Raises Refused, before anything is started, when something else listens on a stopped member's port and the
        member cannot have another;
        MemberFailed, with the log lines that matter, when a member dies; WaitTimeout when none acknowledges a write
        within `timeout_s` seconds. Members that this call started are stopped again then.
        """
        with self.locked(f"up {self.name}", progress=progress):
            return self.up_locked(timeout_s=timeout_s, progress=progress)

    def up_locked(self, *, timeout_s: float = 60.0, progress: Progress = _silent) -> list[str]:
        """Do what `up` does, for a caller who holds the cluster's lock."""
        deadline = time.monotonic() + timeout_s
        refuse_foreign(self.record, f"up-env of {self.name}")
        runtime = looked(self.runtime, self.record)
        record = runtime.adopt(self.record)
        states = runtime.states(record)
        changing = self._changing(progress)
        states = {name: state for name, state in states.items() if name != changing}
        self._leave_unreached(states, progress)
        stopped = [name for name, state in states.items() if state == "stopped"]
        for name in self._without_data(record, stopped):
            progress(f"{name} stays stopped: its data is gone; `member.replace {name}` puts a new member in its place")
            stopped.remove(name)
            states.pop(name)
        if not states:
            fault = self.store.unhealed(self.name)
            way = "`snapshot.restore FILE` makes the cluster anew from a snapshot"
            if fault is not None and fault.snapshot:
                way = f"`heal` makes the cluster anew from {fault.snapshot}, which the drill has saved"
            raise Refused(
                f"the data of all members of {self.name} is gone, so none can start",
                remedy=f"{way}; nothing was started.",
            )
        frozen = [name for name, state in states.items() if state == "paused"]
        self.save(record)
        self._check_certificates(list(states))
        if stopped:
            self._clear_ports(stopped, progress)
        for name in frozen:
            progress(f"{name} is frozen: letting it go on")
            self.member(name).resume()
        if stopped:
            progress(f"starting {', '.join(stopped)}")
            try:
                self._launch(stopped)
                mended = self._mend(progress)
                if alarm := wait_first_write(self, stopped, timeout_s):
                    progress(f"writes are refused ({alarm}): `status` names the alarm, and what to do")
                self.wait_serving(stopped, timeout_s=max(deadline - time.monotonic(), 1.0))
            except BaseException:
                progress(f"the start failed: stopping {', '.join(stopped)} again")
                self._undo_start(record, stopped)
                raise
        else:
            mended = self._mend(progress)
        self._want(states, "running")
        others = [name for name in states if name not in stopped]
        self.wait_serving(others, timeout_s=max(deadline - time.monotonic(), 1.0))
        if not self.record.bootstrapped:
            self.save(msgspec.structs.replace(self.record, bootstrapped=True))
        fault = self.store.unhealed(self.name)
        if fault is not None:
            from etcdops.faults.heal import forget_keys
            from etcdops.faults.membership import put_members_right

            put_members_right(self, progress=progress)
            progress(f"healed what run {fault.run} left")
            forget_keys(self, fault.run)
            self.store.clear_unhealed(self.name)
        back = {*stopped, *frozen, *mended}
        return [name for name in dict.fromkeys((*self.record.spec.names, *mended)) if name in back]

    def _changing(self, progress: Progress) -> str:
        """Give the member that an unfinished operation is about, which is left to that operation, or ""."""
        from etcdops.operations import pending

        begun = pending.load(self)
        # One that exchanges the whole record is about no one member, and starts them all itself.
        if begun is None or begun.record is not None:
            return ""
        progress(f"`{begun}` has not come to its end: {begun.ways}")
        return begun.target

    def _leave_unreached(self, states: dict[str, MemberState], progress: Progress) -> None:
        """Take out of `states` the members of hosts that do not answer, and say so; raises Refused if that is all."""
        unreached = [name for name, state in states.items() if state == "unknown"]
        if unreached and len(unreached) == len(states):
            raise Refused(
                f"none of the hosts of {self.name} answers: {'; '.join(self.runtime.amiss(self.record))}",
                remedy="`hosts.check` looks at them. Nothing was started.",
            )
        for name in unreached:
            way = f"if it is lost, `member.replace {name}` puts a new member on another"
            progress(f"{self._with_hosts([name])} stays as it is: that host does not answer; {way}")
            states.pop(name)

    def _with_hosts(self, names: Iterable[str]) -> str:
        """Name members with their hosts, for a person: "thor (on h2)"."""
        return " and ".join(f"{name} (on {self.record.member(name).host})" for name in names)

    @property
    def _named(self) -> str:
        return "" if self.name == "lab" else f" --cluster {self.name}"

    def want_running(self) -> None:
        """Record that every member should run; the caller holds the cluster's lock."""
        self._want(self.record.spec.names, "running")

    def start_members(self, names: Sequence[str]) -> None:
        """Start the named members and record it, for a caller who holds the lock; does not wait for them to serve.

        Raises Refused, before anything is started, when something else listens on a port of theirs, or the data of one
        that has run before is gone.
        """
        if lost := self._without_data(self.record, names):
            from etcdops.operations.gate import without_data

            raise without_data(lost)
        self._clear_ports(names)
        self._launch(names)

    def _without_data(self, record: ClusterRecord, names: Sequence[str]) -> tuple[str, ...]:
        """Give those of these members that must not start, as their data is gone."""
        return self.runtime.lost_data(record, names) if names and record.bootstrapped else ()

    def _launch(self, names: Sequence[str]) -> None:
        self._check_certificates(names)
        for name in names:
            self.logged[name] = len(self.runtime.log_bytes(self.record.member(name)).splitlines())
        # A signal in between would leave members whose references nobody has.
        with deferred():
            self.save(self.runtime.start(self.record, names))

    def _check_certificates(self, names: Sequence[str]) -> None:
        """See that these members can speak TLS with what there is, and that nobody else can in their name."""
        if self.record.spec.tls:
            from etcdops.tls import leaves

            leaves.issue_missing(self.record, names)
            leaves.check_files(self.record, names)

    def _undo_start(self, before: ClusterRecord, names: Sequence[str]) -> None:
        """Stop the named members again, whether or not their start was recorded, and want of them what was wanted."""
        with deferred():
            self.runtime.stop(self.runtime.adopt(self.record), names, timeout_s=5.0)
            for name in names:
                self._want([name], before.member(name).wanted)

    def _mend(self, progress: Progress) -> dict[str, str]:
        with deferred():
            mended = self.runtime.mend(self.record)
        for name, done in mended.items():
            progress(f"{name} {done}")
        return mended

    def _clear_ports(self, names: Sequence[str], progress: Progress = _silent) -> None:
        """See that nothing else listens where these members will: give them other ports, or else refuse."""
        occupied = self.runtime.occupied_ports(self.record, names)
        if not occupied:
            return
        said = ", ".join(f"{port} of {name}" for name, port in occupied.items())
        if not isinstance(self.runtime, CanMovePorts):
            raise Refused(
                f"cannot start: something else listens on port {said}",
                remedy="Find it with `ss -ltnp` and end it; nothing was started.",
            )
        with deferred():
            self.save(self.runtime.move_ports(self.record, list(occupied)))
        for name, port in occupied.items():
            progress(f"something else listens on port {port} of {name}: it is at {self.member(name).client_url} now")

    def down(self, *, timeout_s: float = 30.0, progress: Progress = _silent) -> list[str]:
        """Stop every member that runs, and keep the data. Gives the names of those that were stopped."""
        with self.locked(f"down {self.name}", progress=progress):
            return self.down_locked(timeout_s=timeout_s)

    def down_locked(self, *, timeout_s: float = 30.0) -> list[str]:
        """Do what `down` does, for a caller who holds the cluster's lock."""
        refuse_foreign(self.record, f"down-env of {self.name}", remedy=FORGET)
        runtime = looked(self.runtime, self.record)
        self.save(runtime.adopt(self.record))
        states = runtime.states(self.record)
        unreached = [name for name, state in states.items() if state == "unknown"]
        running = [name for name, state in states.items() if state not in ("stopped", "unknown")]
        self._want(self.record.spec.names, "stopped")
        for name in running:
            # A frozen one, which may lead, cannot say so.
            if states[name] == "paused":
                self.member(name).resume()
        # The leader last: asked together with the rest, it would try to hand over to a member that is going too, and
        # wait for that until its request timeout of 7 s.
        leader = self.status().leader if len(running) > 1 else None
        self.runtime.stop(self.record, [name for name in running if name != leader], timeout_s=timeout_s)
        if leader in running:
            time.sleep(_NOTICE_S)
            self.runtime.stop(self.record, [leader], timeout_s=timeout_s)
        if unreached:
            raise PartlyChanged(
                f"whether {self._with_hosts(unreached)} goes on is not known: that host does not answer",
                remedy=f"The others are stopped. Type `down-env{self._named}` again once it is back.",
            )
        return running

    def purge(self, *, lost: Sequence[str] = (), progress: Progress = _silent) -> None:
        """End every member and delete the cluster with all its data. There is no way back; see `contents`.

        A cluster that somebody else runs is forgotten, and not touched. Where a host of several does not answer, all
        goes but what is there, and the record; PartlyChanged says so. Of hosts that are `lost`, that is given up.
        """
        with self.locked(f"purge {self.name}", progress=progress):
            if lost:
                if not isinstance(self.runtime, CanSpread):
                    raise SpecError(f"the members of {self.name} are not on other hosts, of which one could be lost")
                self.runtime.give_up(lost)
            self.purge_locked()
        if self._directory:
            self._directory.cleanup()

    def purge_locked(self) -> None:
        """Do what `purge` does, for a caller who holds the cluster's lock."""
        self.save(self.runtime.adopt(self.record))
        if not is_foreign(self.record):
            self._want(self.record.spec.names, "stopped")
        self.runtime.destroy(self.record)
        remove_tree(self.store.cluster_dir(self.name))

    def contents(self) -> list[str]:
        """Name, for a person, everything that `purge` deletes."""
        what = "record, certificates and logs" if is_own(self.record.spec) else "record and logs"
        return [*self.runtime.belongings(self.record), f"the {what} in {self.store.cluster_dir(self.name)}"]

    def _want(self, names: Iterable[str], wanted: str) -> None:
        record = self.record
        for name in names:
            record = record.with_member(msgspec.structs.replace(record.member(name), wanted=wanted))
        self.save(record)

    # -- waiting

    def wait_serving(self, names: Sequence[str], *, timeout_s: float = 30.0) -> None:
        """Wait until a linearizable read succeeds through each of the named members.

        Raises MemberFailed when one of them dies meanwhile, WaitTimeout when one does not serve in time.
        """
        wait_serving(self, names, timeout_s=timeout_s)

    def wait_healthy(self, *, timeout_s: float = 30.0) -> None:
        """Wait until every member serves linearizable reads; raises as `wait_serving` does."""
        self.wait_serving(self.record.spec.names, timeout_s=timeout_s)

    # -- looking

    def status(self, *, timeout_s: float = 1.0, gate: bool = False, hosts: bool = False) -> ClusterStatus:
        """Ask every member at once and give what they say; takes `timeout_s` seconds at the longest. Never writes.

        `warnings` holds what the gate finds. With `gate` it is the whole gate, and takes a second longer: members are
        asked twice, which shows who does not catch up. With `hosts`, or `gate`, hosts try to reach each other where
        not all is well; that may take some seconds. Where all is not well with a cluster over several hosts as it is
        known here, and another operator has changed it since, it is shown as they left it.
        """
        from etcdops.overview import overview

        return overview(self, timeout_s=timeout_s, gate=gate, hosts=hosts)

    def leader(self, *, timeout_s: float = 1.0) -> Member:
        """Give the leader, by the highest term among all members' answers; raises NoLeader, or QuorumLost.

        A leader is only given while a quorum of voters answers: one that was cut off goes on believing in itself.
        """
        status = self.status(timeout_s=timeout_s)
        answered = sum(bool(member.id) and member.role != "learner" for member in status.members)
        if status.verdict in ("healthy", "degraded") and any(finding.code == "auth" for finding in status.warnings):
            raise NoLeader(
                f"the members of {self.name} do not say who leads: authentication is on, and etcdops has no user",
                remedy="`ctl -- --user NAME endpoint status --cluster` shows it.",
            )
        if answered < status.quorum:
            voters = sum(member.role != "learner" for member in status.members)
            raise QuorumLost(healthy=answered, voters=voters, remedy=self._bring_back())
        if status.leader is None:
            raise NoLeader(
                f"no member of {self.name} leads: {answered} answered, and the highest term is {status.term}",
                remedy="An election takes one to two election timeouts. Look at `status`.",
            )
        return self.member(status.leader)

    def client(self, member: str | None = None, *, timeout_s: float = 5.0) -> Client:
        """Give an etcd3 client, connected to a member (the first that runs if none is named).

        Every call has a deadline, `timeout_s` seconds unless `client.deadline` says otherwise, and fails with
        EtcdError.
        """
        from etcdops import client

        if member is None:
            running = [name for name, state in self.runtime.states(self.record).items() if state == "running"]
            if not running:
                raise QuorumLost(healthy=0, voters=len(self.record.members), remedy=self._bring_back())
            member = running[0]
        return client.connect(self.record.member(member).client_url, self.record.spec.tls, timeout_s=timeout_s)

    def _bring_back(self) -> str:
        return bring_back(is_foreign(self.record), "Start the stopped members: `up-env`.")

    # -- as a context manager

    def __enter__(self) -> Cluster:
        try:
            self.up()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _leave(self) -> None:
        try:
            if not self._temporary:
                self.down()
                return
            try:
                self.purge()
            except EtcdopsError as error:
                _log.debug("cannot purge %s in the ordinary way: %s", self.name, error)
                self._remove_what_is_left()
        except ClusterNotFound:
            pass
        finally:
            if self._directory:
                self._directory.cleanup()

    def _remove_what_is_left(self) -> None:
        """End and remove all of a temporary cluster, by its mark: its record is damaged, gone, or another's."""
        for leftover in self.runtime.leftovers():
            if leftover.cluster_id == self._record.id:
                self.runtime.end_leftover(leftover)
        try:
            if self.store.load(self.name).id != self._record.id:
                return
        except EtcdopsError as error:
            _log.debug("removing cluster %s without its record: %s", self.name, error)
        self.runtime.destroy(self._record)
        directory = self.store.cluster_dir(self.name)
        if directory.exists():
            remove_tree(directory)
