"""What drills share that lose data and restore it: a known data set, a snapshot of it, the restore and its proof."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

from etcdops import wire
from etcdops.answers import DeleteResult, RangeResult, Status
from etcdops.calls import prefix_end
from etcdops.drills.own import FIRST_ID, OwnClient
from etcdops.errors import ClusterError, EtcdError, Refused
from etcdops.faults.data import lost
from etcdops.faults.heal import NO_FAULT, mark
from etcdops.ops import Put
from etcdops.report.journal import read_journal
from etcdops.report.judged import BETWEEN
from etcdops.runtimes.base import CanRestore
from etcdops.verify import Check
from etcdops.verify.recorded import Restored

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.drills.scene import Scene
    from etcdops.operations.plan import Plan
    from etcdops.runtimes.base import Runtime
    from etcdops.snapshots.restoring import Restored as Proved
    from etcdops.workload.history import Operation

__all__ = ["DataSet", "Restore", "lacks_restore", "prove_back", "tidy"]

#: How long one call of the drill's own may take, on a machine that does much else, seconds.
_ANSWER_S = 10.0

#: How often a member that does not answer is asked again, and how long an answer may take, seconds.
_AGAIN_S = 0.02
_PATIENT_S = 1.0

#: Ids of what is written between two windows: beyond those of any window.
_BETWEEN_ID = 3 * FIRST_ID
_IDS = 1_000_000

#: How long traffic goes on after a restore, so that enough is seen, seconds.
_AFTER_S = 1.0

#: From here on a restore would be too close to the last revision that there is: it moves them on by 1.2 times the last.
_REVISION_MAX = 10**18

#: Keys that begin so are ours.
OURS = b"etcdops/"


def lacks_restore(runtime: Runtime) -> str | None:
    """Give the reason why a runtime cannot restore members, or None when it can."""
    if isinstance(runtime, CanRestore):
        return None
    return f"the runtime {runtime.name} cannot make members' data from a snapshot"


class DataSet:
    """Keys that the drill itself writes, and knows the values of."""

    def __init__(self, scene: Scene, count: int) -> None:
        self._scene = scene
        self.start = scene.own.key("data/")
        self.end = prefix_end(self.start)
        self.values: dict[bytes, bytes] = {}
        self.revision = 0
        members = scene.cluster.members
        bad: list[str] = []
        for number in range(count):
            key = self.start + f"{number:06}".encode()
            put = scene.own.put(key, through=members[number % len(members)].name, timeout_s=_ANSWER_S)
            if put.outcome != "ok":
                bad.append(f"{key.decode()}: {put.code} {put.error}")
                continue
            assert isinstance(put.request, Put)
            self.values[key] = put.request.value
            self.revision = max(self.revision, put.revision)
        said = f"{len(self.values)} keys were acknowledged, the last at revision {self.revision}"
        scene.expect("data set written", not bad, "; ".join(bad[:3]) or said)

    def delete(self, through: str) -> None:
        """Delete all of it by one request, as a slip of the hand would."""
        deleted = self._scene.own.delete(self.start, self.end, through=through, timeout_s=_ANSWER_S)
        count = deleted.answer.deleted if isinstance(deleted.answer, DeleteResult) else 0
        said = (
            f"one request deleted {count} keys, at revision {deleted.revision} {deleted.code} {deleted.error}".strip()
        )
        self._scene.expect("deleted", count == len(self.values), said)

    def check_gone(self) -> None:
        """See that no member has any of it, by linearizable and by serializable reads."""
        told, good = [], True
        for member in self._scene.cluster.members:
            for serializable in (False, True):
                read = self._read(member.name, serializable)
                left = len(read.answer.kvs) if isinstance(read.answer, RangeResult) else -1
                good &= left == 0
                told.append(f"{member.name} {'serializably' if serializable else 'linearizably'}: {_found(read, left)}")
        self._scene.expect("loss on every member", good, f"of {len(self.values)} keys: {'; '.join(told)}")

    def check_back(self) -> None:
        """See that every member has each of its keys, with its value."""
        told, bad = [], []
        for member in self._scene.cluster.members:
            read = self._read(member.name, serializable=False)
            if not isinstance(read.answer, RangeResult):
                bad.append(f"{member.name} did not answer: {read.code} {read.error}")
                continue
            there = {kv.key: kv.value for kv in read.answer.kvs}
            right = sum(there.get(key) == value for key, value in self.values.items())
            told.append(f"{member.name} {right}")
            if there != self.values:
                bad.append(f"{member.name} has {right} of {len(self.values)} with their values, of {len(there)} keys")
        said = f"all {len(self.values)} keys have their values, through {', '.join(told)}"
        self._scene.check("data set is back", not bad, "; ".join(bad) or said)

    def _read(self, member: str, serializable: bool) -> Operation:
        own = self._scene.own
        return own.get(self.start, self.end, through=member, timeout_s=_ANSWER_S, serializable=serializable)


def _found(read: Operation, left: int) -> str:
    return f"{read.code} {read.error}" if left < 0 else f"{left} left"


class Restore:
    """A snapshot of the cluster as it is, and all that is done with it.

    Made by saving and verifying it; raises as these do, and Refused where the cluster could not be restored from it:
    then nothing has been destroyed yet.
    """

    def __init__(self, scene: Scene, data: DataSet) -> None:
        from etcdops.snapshots.restoring import prepare
        from etcdops.snapshots.saving import save_snapshot
        from etcdops.snapshots.verifying import verify_snapshot

        self._scene = scene
        cluster = scene.cluster
        # A save only reads what one member has: that users feel nothing of it is measured.
        label = "save a snapshot, outside of the members' data, while writes go on"
        by_hand = f"etcdctl snapshot save {scene.folder / 'snapshot.db'}"
        with scene.step(label, by_hand), scene.acting("snapshot.save"):
            saved = save_snapshot(cluster, scene.folder / "snapshot.db", progress=scene.say)
            scene.hold()
        assert saved.manifest
        self.path = saved.path
        self.revision = saved.manifest.revision
        with scene.step("verify it, every page", f"etcdutl snapshot status {self.path} -w table"):
            report = verify_snapshot(self.path, beside=cluster.record.binary, progress=scene.say)
            bad = "; ".join(f"{each.name}: {each.detail}" for each in report.checks if each.result == "failed")
            has = f"{self.path}, of revision {self.revision}, has passed {', '.join(report.levels)}"
            scene.expect("snapshot is sound", not bad, bad or has)
            scene.expect(
                "snapshot has the data set",
                self.revision >= data.revision,
                f"it is of revision {self.revision}, and the data set's last key of {data.revision}",
            )
            prepare(cluster, self.path, progress=scene.say)
        if self.revision > _REVISION_MAX:
            raise Refused(
                f"{cluster.name} is at revision {self.revision}, which each restore more than doubles, of 63 bits",
                remedy=f"Nothing was destroyed. Begin anew: `down-env --purge --cluster {cluster.name}`, `up-env`.",
            )
        self.run = ""
        self.foreign = _count_foreign(scene)
        self._cluster_ids = {status.cluster_id for status in _statuses(cluster)}

    def mark(self, fault: str) -> None:
        """Have healing use this snapshot from now on, should the data be gone or a restore not come to its end."""
        mark(self._scene.cluster, self._scene.run, fault, "", snapshot=self.path)

    def carry_out(self, *, since_ns: int = 0) -> None:
        """Restore every member, and open the next window; `since_ns` is when service ended, if it had ended before.

        A restore that fails has been taken back, and raises Deviation, unless there is nothing to go back to.
        """
        from etcdops.drills.scene import Deviation
        from etcdops.snapshots.restoring import restore_snapshot

        scene, cluster = self._scene, self._scene.cluster
        self.mark("snapshot.restore")
        planned: list[int] = []

        def confirm(plan: Plan) -> None:
            planned.append(time.monotonic_ns())

        began_ns = scene.note("restore", detail=self.path)
        with _FirstWrite(scene, self._cluster_ids) as first:
            try:
                proved = restore_snapshot(cluster, self.path, confirm=confirm, progress=scene.say)
            except ClusterError as error:
                if lost(cluster):
                    raise
                raise Deviation(Check("restored", "failed", error.in_full)) from error
        self.run = proved.run
        scene.note("restored", detail=f"run {proved.run}")
        mark(cluster, scene.run, NO_FAULT, "")
        scene.open_window(Restored(self.revision, self.path))
        for check in proved.checks:
            scene.window.checks.append(Check(f"restore: {check.name}", check.result, check.detail))
        self._measure(began_ns, planned[0], proved, first, since_ns)

    def _measure(self, began_ns: int, planned_ns: int, proved: Proved, first: _FirstWrite, since_ns: int) -> None:
        """Tell how long each phase of the restore took, up to the first acknowledged write."""
        scene = self._scene
        entries = read_journal(scene.cluster.store.runs / proved.run / "journal.jsonl")
        begun = {entry.detail.partition(" ")[2]: entry.t_ns for entry in entries if entry.event == "step"}
        done = {entry.detail.partition(" ")[2]: entry.t_ns for entry in entries if entry.event == "done"}

        def phase(name: str, from_ns: int, until_ns: int, what: str) -> None:
            known = from_ns > 0 and until_ns > 0
            scene.figure(f"RTO{name}", max(0, until_ns - from_ns) / 1e6 if known else None, "ms", what)

        phase("", began_ns, first.acknowledged_ns, "from the restore's begin to the first acknowledged write; of that:")
        phase(
            ", verify", began_ns, planned_ns, "the file, every page, and whether this cluster can be restored from it"
        )
        phase(", scratch restore", planned_ns, done.get("make", 0), "every member's next data, made and looked into")
        if "stop" in begun:
            phase(", stop", begun["stop"], done.get("stop", 0), "all members, the leader last")
        started_ns = begun.get("start", 0)
        phase(", swap", begun.get("exchange", 0), started_ns, "one write of the record")
        phase(", start", started_ns, first.answered_ns, "until the first member of the restored cluster answered")
        phase(", first write", first.answered_ns, first.acknowledged_ns, "until it acknowledged one")
        down_ns = since_ns or begun.get("stop", 0)
        phase(" without service", down_ns, first.acknowledged_ns, "from when the first member ended to that write")
        phase(", all serve", started_ns, done.get("start", 0), "from the start until every member served")
        scene.check(
            "first write after the restore",
            first.acknowledged_ns > 0,
            first.told or "no write was acknowledged before the restore had come to its end",
        )


def _statuses(cluster: Cluster) -> list[Status]:
    found = []
    for member in cluster.members:
        try:
            found.append(member.status(timeout_s=_PATIENT_S))
        except EtcdError:
            continue
    return found


class _FirstWrite:
    """Asks every member, from a thread each, until one that is restored acknowledges a write; inside the block.

    What it writes is recorded, in the run's folder.
    """

    def __init__(self, scene: Scene, not_of: set[int]) -> None:
        self._scene = scene
        self._not_of = not_of
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._threads: list[threading.Thread] = []
        self.answered_ns = 0
        self.acknowledged_ns = 0
        self.told = ""

    def __enter__(self) -> _FirstWrite:
        scene = self._scene
        folder = scene.cluster.store.make_dir(scene.folder / BETWEEN)
        for number, member in enumerate(scene.cluster.members):
            first = _BETWEEN_ID + number * _IDS
            own = self._stack.enter_context(
                OwnClient(scene.cluster, scene.run, folder / f"{member.name}.jsonl", first=first)
            )
            name = f"first-write-{member.name}"
            self._threads.append(threading.Thread(target=self._ask, args=(member.name, own), daemon=True, name=name))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=10.0)
        self._stack.close()

    def _ask(self, member: str, own: OwnClient) -> None:
        record = self._scene.cluster.record
        url, tls = record.member(member).client_url, record.spec.tls
        while not self._end.wait(_AGAIN_S):
            # A connection of its own each time: one that has failed waits before it tries again.
            with wire.Connection(url, tls) as connection:
                try:
                    status = connection.status(timeout_s=_PATIENT_S)
                except EtcdError:
                    continue
            if status.cluster_id in self._not_of:
                continue
            with self._lock:
                self.answered_ns = self.answered_ns or time.monotonic_ns()
            put = own.put(own.key(f"first-write/{member}"), through=member, timeout_s=_PATIENT_S)
            if put.outcome == "ok":
                with self._lock:
                    if not self.acknowledged_ns:
                        self.acknowledged_ns = put.return_ns
                        self.told = f"acknowledged by {member} at revision {put.revision}"
                self._end.set()


def prove_back(scene: Scene, data: DataSet) -> None:
    """See that what the snapshot had is there through every member, and that all of them serve."""
    with scene.step(
        "read the data set back through every member", f"etcdctl get --prefix {data.start.decode()} --count-only"
    ):
        data.check_back()
    with scene.step("wait for acknowledged writes through every member", "etcdctl put k v"):
        scene.wait_writes(after_ns=time.monotonic_ns(), hold_s=_AFTER_S)


def tidy(scene: Scene, restore: Restore, *, gone: bool = False) -> None:
    """Delete the data that members had before the restore, unless keys of others were in it and it is not `gone`.

    Otherwise, repeated runs would fill the disk.
    """
    from etcdops.operations.data import remove

    cluster = scene.cluster
    kept = [each for each in cluster.record.retired if each.run == restore.run]
    if restore.foreign and not gone:
        said = f"{restore.foreign} keys of others were in it: `data.list`, and `snapshot.rollback` as the way back"
        scene.say(f"what the members had before the restore is kept, as {said}")
        return
    if kept and (gone or not scene.failed):
        remove(cluster, [f"{each.member}-g{each.data.generation}" for each in kept])
        scene.note("old-data-removed", detail=", ".join(each.data.place for each in kept))


def _count_foreign(scene: Scene) -> int:
    """Count the keys that are not ours."""
    connection = scene.own.connection(scene.leader().name)
    spans = ((b"\0", OURS), (prefix_end(OURS), b"\0"))
    return sum(connection.range(*span, timeout_s=_ANSWER_S, count_only=True).count for span in spans)
