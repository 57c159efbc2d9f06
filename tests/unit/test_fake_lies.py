"""Each lie of FakeRuntime, as a client sees it. That checks notice is shown where the checks are tested."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etcdops import calls, wire
from etcdops.answers import HashKV, Status
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError, MemberFailed, WaitTimeout
from etcdops.logs import LogLine, matter, read_log
from etcdops.runtimes.fake import FakeRuntime, Lies
from etcdops.state import Store

Start = Callable[..., Cluster]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start three members that tell the given lies."""
    clusters: list[Cluster] = []

    def start(**lies: object) -> Cluster:
        runtime = FakeRuntime(lies=Lies(**lies), request_timeout_s=0.3)  # type: ignore[arg-type]
        clusters.append(Cluster.create("x", runtime=runtime, store=Store(tmp_path)))
        clusters[-1].up()
        return clusters[-1]

    yield start
    for cluster in clusters:
        cluster.runtime.destroy(cluster.record)


def _lies(cluster: Cluster) -> Lies:
    assert isinstance(cluster.runtime, FakeRuntime)
    return cluster.runtime.lies


def _put(cluster: Cluster, key: bytes, value: bytes = b"1", member: str = "thor") -> int:
    with wire.Connection(cluster.member(member).client_url) as etcd:
        return etcd.put(key, value, timeout_s=20).revision


def _read(cluster: Cluster, key: bytes, member: str = "thor", *, serializable: bool = False) -> tuple[int, list[bytes]]:
    with wire.Connection(cluster.member(member).client_url) as etcd:
        answer = etcd.range(key, timeout_s=20, serializable=serializable)
    return answer.revision, [kv.value for kv in answer.kvs]


def _statuses(cluster: Cluster) -> list[Status]:
    return [member.status(timeout_s=20) for member in cluster.members]


def _hashes(cluster: Cluster) -> dict[str, HashKV]:
    found = {}
    for member in cluster.members:
        with wire.Connection(member.client_url) as etcd:
            found[member.name] = etcd.hash_kv(timeout_s=20)
    return found


def _log(cluster: Cluster, member: str) -> list[LogLine]:
    return list(read_log(cluster.runtime, cluster.record.member(member)))


def test_without_lies_none_of_this_is_seen(start: Start) -> None:
    """The control: an honest cluster through a kill, a stop and a pause shows nothing of what follows below."""
    cluster = start()
    first = _put(cluster, b"k")
    for leave, come_back in (("kill", "start"), ("stop", "start"), ("pause", "resume")):
        getattr(cluster.member("deadpool"), leave)()
        for _ in range(3):
            _put(cluster, b"k")
        getattr(cluster.member("deadpool"), come_back)()
    assert _read(cluster, b"k", "deadpool") == (first + 9, [b"1"])
    assert len({status.leader for status in _statuses(cluster)}) == 1
    assert len(set(_hashes(cluster).values())) == 1
    assert {line.level for line in _log(cluster, "deadpool")} == {"info"}
    assert cluster.status().warnings == ()


def test_lose_every(start: Start) -> None:
    """An acknowledged put is not there, and its revision is given to the next write, too."""
    cluster = start()
    _lies(cluster).lose_every = 3
    revisions = [_put(cluster, b"k%d" % i) for i in range(1, 5)]
    assert revisions[3] == revisions[2]
    assert [_read(cluster, b"k%d" % i)[1] for i in range(1, 5)] == [[b"1"], [b"1"], [], [b"1"]]
    assert len(set(_hashes(cluster).values())) == 1


def test_after_fault(start: Start) -> None:
    """With it, nothing is a lie until a member has been taken away."""
    cluster = start(lose_every=1, two_leaders=True, after_fault=True)
    _put(cluster, b"before")
    assert cluster.status().warnings == ()
    cluster.member("deadpool").kill()
    _put(cluster, b"after")
    assert (_read(cluster, b"before")[1], _read(cluster, b"after")[1]) == ([b"1"], [])
    assert [finding.code for finding in cluster.status().warnings] == ["member-stopped", "two-leaders"]


def test_two_leaders(start: Start) -> None:
    """Two members say that they lead in one term."""
    cluster = start(two_leaders=True)
    leading = [status for status in _statuses(cluster) if status.leader == status.member_id]
    assert len(leading) == 2
    assert len({status.raft_term for status in leading}) == 1
    assert [finding.code for finding in cluster.status().warnings] == ["two-leaders"]


def test_never_back_dead(start: Start) -> None:
    """A killed member that is started again is not there, and its log says why; one that was stopped comes back."""
    cluster = start(never_back="dead")
    thor = cluster.member("thor")
    thor.stop()
    thor.start()
    thor.kill()
    for _ in range(2):
        with pytest.raises(MemberFailed, match="never comes back"):
            thor.start()
        assert thor.state() == "stopped"


def test_never_back_mute(start: Start) -> None:
    """A killed member that is started again runs, and nobody can reach it, not even the other members."""
    cluster = start(never_back="mute")
    thor = cluster.member("thor")
    thor.kill()
    with pytest.raises(WaitTimeout):
        thor.start(wait_s=0.3)
    assert thor.state() == "running"
    assert cluster.status().member("thor").health == "unreachable"
    cluster.member("deadpool").kill()
    with pytest.raises(EtcdError, match="request timed out"):
        _put(cluster, b"k", member="ironman")


def test_never_catches_up_and_waits(start: Start) -> None:
    """A member that comes back stays where it was: serializable reads are old, linearizable calls time out."""
    cluster = start(never_catches_up="waits")
    old = _put(cluster, b"k", b"old")
    cluster.member("deadpool").pause()
    new = _put(cluster, b"k", b"new")
    cluster.member("deadpool").resume()
    assert _read(cluster, b"k", "deadpool", serializable=True) == (old, [b"old"])
    assert [status.revision for status in _statuses(cluster)] == [new, new, old]
    for call in (lambda: _read(cluster, b"k", "deadpool"), lambda: _put(cluster, b"late", member="deadpool")):
        with pytest.raises(EtcdError, match="request timed out"):
            call()
    assert _read(cluster, b"late")[1] == [b"1"]


def test_never_catches_up_and_serves(start: Start) -> None:
    """Or it answers linearizable reads from where it was, as if nothing had happened since."""
    cluster = start(never_catches_up="serves")
    old = _put(cluster, b"k", b"old")
    cluster.member("deadpool").kill()
    new = _put(cluster, b"k", b"new")
    cluster.member("deadpool").start()
    assert _read(cluster, b"k", "deadpool") == (old, [b"old"])
    assert _put(cluster, b"k", b"newer", "deadpool") == new + 1
    assert [status.revision for status in _statuses(cluster)] == [new + 1, new + 1, old]


def test_wrong_hash(start: Start) -> None:
    """One member's hash differs, though all hold the same."""
    cluster = start(wrong_hash="thor")
    _put(cluster, b"k")
    hashes = _hashes(cluster)
    assert hashes["ironman"] == hashes["deadpool"]
    assert hashes["thor"] == hashes["ironman"]._replace(hash=hashes["thor"].hash) != hashes["ironman"]
    assert {tuple(_read(cluster, b"k", name, serializable=True)[1]) for name in hashes} == {(b"1",)}


def test_diverges(start: Start) -> None:
    """One member holds other values at the same revision, and so another hash."""
    cluster = start()
    _put(cluster, b"before")
    _lies(cluster).diverges = "thor"
    revision = _put(cluster, b"k", member="ironman")
    with wire.Connection(cluster.endpoints[0]) as etcd:
        etcd.txn([], [calls.op_put(b"t", b"2")], [], timeout_s=20)
    seen = {name: _read(cluster, b"k", name, serializable=True) for name in ("ironman", "thor", "deadpool")}
    assert seen["ironman"] == seen["deadpool"] == (revision + 1, [b"1"])
    assert seen["thor"] == (revision + 1, [b"1?"])
    assert _read(cluster, b"t")[1] == [b"2?"]
    assert _read(cluster, b"before")[1] == [b"1"]
    hashes = _hashes(cluster)
    assert hashes["thor"].hash != hashes["ironman"].hash == hashes["deadpool"].hash


def test_panics(start: Start) -> None:
    """The log of a member that returns from a kill has the panic of a member whose data is too old."""
    cluster = start(panics=True)
    thor = cluster.member("thor")
    thor.kill()
    thor.start()
    (first, *_) = matter(_log(cluster, "thor"))
    assert first.level == "panic"
    assert "Was the raft log corrupted, truncated, or lost?" in first.text
    assert any(line.text.startswith("panic: tocommit(") for line in _log(cluster, "thor"))
    assert {line.level for line in _log(cluster, "ironman")} == {"info"}


def test_stale_every(start: Start) -> None:
    """A linearizable read shows the state before a write that was acknowledged before the read began."""
    cluster = start()
    old = _put(cluster, b"k", b"old")
    new = _put(cluster, b"k", b"new")
    _lies(cluster).stale_every = 2
    assert [_read(cluster, b"k") for _ in range(4)] == [(new, [b"new"]), (old, [b"old"])] * 2


def test_drop_every(start: Start) -> None:
    """A watch on some keys misses events, and says that there were none; one over all keys has them."""
    cluster = start(drop_every=2)
    revisions = [_put(cluster, b"k%d" % number) for number in range(4)]

    def delivered(*span: bytes) -> list[int]:
        with (
            wire.Connection(cluster.member("thor").client_url) as etcd,
            etcd.watch(*span, start_revision=revisions[0], timeout_s=20) as watch,
        ):
            watch.request_progress()
            return [event.kv.mod_revision for batch in iter(lambda: next(watch).events, ()) for event in batch]

    assert delivered(b"k", b"l") == revisions[::2]
    assert delivered(b"\0", b"\0") == revisions


def test_unknown_lies_are_refused() -> None:
    """A lie that is misspelt would be one that is not told."""
    with pytest.raises(TypeError):
        Lies(loose_every=3)  # type: ignore[call-arg]
