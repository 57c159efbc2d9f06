"""Clusters that really break a promise: the checks see it in what is recorded of them.

Each run is recorded call by call (tests/recording.py), and the same run on an honest cluster passes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from etcdops.cluster import Cluster
from etcdops.ops import Compare, Put, Range, Txn
from etcdops.runtimes.fake import FakeRuntime, Lies
from etcdops.state import Store
from etcdops.verify.acknowledged import SET, check_acknowledged
from etcdops.verify.members_agree import check_members_agree
from etcdops.verify.recorded import Recorded
from etcdops.verify.watch import check_watch
from etcdops.verify.witness import witness
from etcdops.workload.history import Operation, key_prefix
from tests.recording import Recording

Start = Callable[..., Cluster]


def _failed(recorded: Recorded) -> dict[str, str]:
    """Give the checks that fail, with what they say."""
    found = witness(recorded)
    checks = (
        found.check,
        check_watch(recorded, found),
        check_acknowledged(recorded, found)[0],
        check_members_agree(recorded.observed.hashes),
    )
    return {check.name: check.detail for check in checks if check.result == "failed"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start three members in memory that tell the given lies."""
    clusters: list[Cluster] = []

    def start(**lies: object) -> Cluster:
        runtime = FakeRuntime(lies=Lies(**lies), request_timeout_s=1.0)  # type: ignore[arg-type]
        clusters.append(Cluster.create("x", runtime=runtime, store=Store(tmp_path / "state")))
        clusters[-1].up()
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.runtime.destroy(cluster.record)


def _use(cluster: Cluster, folder: Path, rounds: int = 12) -> Recorded:
    """Put, read, swap and read again, each through the next member."""
    recording = Recording(cluster, folder)
    names = [member.name for member in cluster.members]
    ask = recording.ask
    for number in range(rounds):
        one, other = names[number % len(names)], names[(number + 1) % len(names)]
        key = ask.key(f"k/{number % 4}")
        put = ask.put(key, through=one)
        ask.get(key, through=other)
        if put.outcome == "ok":
            swap = Txn(
                (Compare(key, "mod_revision", "=", put.revision),),
                (Put(ask.key("swapped"), b"run1/%d" % (put.id + 2)), Range(key)),
                (Range(key),),
            )
            ask.ask(swap, through=other)
        ask.get(ask.key(""), ask.key("z"), through=one)
    return recording.finish()


def test_an_honest_cluster_passes(start: Start, tmp_path: Path) -> None:
    """The control: nothing fails where nobody lies."""
    recorded = _use(start(), tmp_path)
    assert witness(recorded).check.result == "passed", witness(recorded).check.detail
    assert _failed(recorded) == {}


@pytest.mark.parametrize(
    ("lies", "check"),
    [
        ({"lose_every": 5}, "revision witness"),
        ({"stale_every": 5}, "revision witness"),
        ({"wrong_hash": "ironman"}, "members agree"),
        ({"diverges": "ironman"}, "revision witness"),
        ({"diverges": "ironman"}, "members agree"),
    ],
)
def test_a_cluster_that_lies_is_found_out(start: Start, tmp_path: Path, lies: dict[str, object], check: str) -> None:
    """A write that is acknowledged and lost, a stale read, a wrong hash, a member that stores something else."""
    assert check in _failed(_use(start(**lies), tmp_path))


@pytest.mark.runtime("process")
def test_serializable_reads_shown_as_linearizable_are_found_out(etcd_cluster: Cluster, tmp_path: Path) -> None:
    """A follower answers such a read from its own state, which at times lacks what the leader has acknowledged.

    No fault is needed. As what they are, serializable reads, all of them are right.
    """
    leader = etcd_cluster.leader().name
    follower = next(member.name for member in etcd_cluster.members if member.name != leader)
    recording = Recording(etcd_cluster, tmp_path)
    ask, stale = recording.ask, 0
    deadline = time.monotonic() + 30
    while stale < 3 and time.monotonic() < deadline:
        key = ask.key("k")
        put = ask.put(key, through=leader)
        read = ask.get(key, through=follower, serializable=True)
        stale += read.outcome == "ok" and read.revision < put.revision
    assert stale, "no read was stale in 30 s"
    recorded = recording.finish()
    assert _failed(recorded) == {}

    def pretend(op: Operation) -> Operation:
        if isinstance(op.request, Range):
            return replace(op, request=op.request._replace(serializable=False))
        return op

    assert "W3" in _failed(recorded._replace(history=[*map(pretend, recorded.history)]))["revision witness"]


@pytest.mark.runtime("process")
@pytest.mark.parametrize("further", [0, 30], ids=["fewer writes after it", "more writes after it"])
def test_a_majority_rolled_back_to_old_data_is_found_out(etcd_cluster: Cluster, tmp_path: Path, further: int) -> None:
    """Two of three members get the data back that they had before: what was acknowledged since is gone.

    The member that still has it cannot join them: it stays stopped.
    """
    names = [member.name for member in etcd_cluster.members]
    old = names[:2]
    recording = Recording(etcd_cluster, tmp_path)
    ask = recording.ask
    for number in range(5):
        assert ask.put(ask.key(f"before/{number}"), through=names[0], timeout_s=5).outcome == "ok"
    places = {name: Path(etcd_cluster.record.member(name).data.place) for name in old}
    _stop(etcd_cluster, names)
    for name, place in places.items():
        shutil.copytree(place, tmp_path / name)
    _start(etcd_cluster, names)
    acknowledged = [ask.put(_element(number), through=names[0], timeout_s=5) for number in range(20)]
    assert all(op.outcome == "ok" for op in acknowledged)
    _stop(etcd_cluster, names)
    for name, place in places.items():
        shutil.rmtree(place)
        shutil.copytree(tmp_path / name, place)
    _start(etcd_cluster, old)
    for number in range(further):
        ask.put(ask.key(f"after/{number}"), through=old[0], timeout_s=5)
    recorded = recording.finish(old)
    failed = _failed(recorded)
    assert "revision witness" in failed
    assert failed["acknowledged writes"].startswith("20 of ")


def _element(number: int) -> bytes:
    """Give a key of the set, of which nothing is ever deleted."""
    return f"{key_prefix('run1')}{SET}/{number}".encode()


def _stop(cluster: Cluster, names: list[str]) -> None:
    for name in names:
        cluster.member(name).stop()


def _start(cluster: Cluster, names: list[str]) -> None:
    for name in names:
        cluster.member(name).start(wait_s=0)
    cluster.wait_serving(names, timeout_s=30)
