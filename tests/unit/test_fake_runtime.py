"""FakeRuntime, honest: a cluster in memory that behaves as etcd does. Its lies are in `test_fake_lies.py`."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from etcdops import calls, wire
from etcdops.answers import PutResult
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError, MemberFailed, QuorumLost, Refused
from etcdops.logs import read_log
from etcdops.member import Member
from etcdops.runtimes import names
from etcdops.runtimes.base import CanKill, CanPause
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec, MemberSpec, Tls
from etcdops.state import Store
from tests.conftest import own_ports


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def cluster(runtime: FakeRuntime, tmp_path: Path) -> Iterator[Cluster]:
    """Three members that run, and nothing left of them afterwards."""
    cluster = Cluster.create("x", runtime=runtime, store=Store(tmp_path))
    cluster.up()
    yield cluster
    runtime.destroy(cluster.record)


def _followers(cluster: Cluster) -> list[Member]:
    leader = cluster.leader().name
    return [member for member in cluster.members if member.name != leader]


def _put(member: Member, key: bytes, value: bytes = b"1", timeout_s: float = 5.0) -> int:
    with wire.Connection(member.client_url) as etcd:
        return etcd.put(key, value, timeout_s=timeout_s).revision


def _get(member: Member, key: bytes, *, serializable: bool = False) -> bytes | None:
    with wire.Connection(member.client_url) as etcd:
        kvs = etcd.range(key, timeout_s=20, serializable=serializable).kvs
    return kvs[0].value if kvs else None


def _refuses(url: str) -> bool:
    host, _, port = url.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_whole_life_by_the_public_calls(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    """Create, up, status, leader, kill, start, pause, resume, down, up with the data kept, purge; nothing is left."""
    before = set(threading.enumerate())
    runtime = FakeRuntime()
    cluster = Cluster.create("x", runtime=runtime, store=Store(tmp_path))
    assert cluster.status().verdict == "down"
    assert cluster.up() == ["ironman", "thor", "deadpool"]
    assert cluster.up() == []
    status = cluster.status()
    assert (status.verdict, status.leader, status.runtime, status.warnings) == ("healthy", "ironman", "fake", ())
    _put(cluster.member("thor"), b"k", b"kept")

    leader = cluster.leader()
    leader.kill()
    assert leader.state() == "stopped"
    assert cluster.status().verdict == "degraded"
    _put(cluster.member("thor"), b"while-away")
    assert cluster.leader().name == "thor"
    leader.start()
    assert (leader.state(), cluster.status().verdict) == ("running", "healthy")
    assert _get(leader, b"while-away", serializable=True) == b"1"

    leader.pause()
    assert (leader.state(), cluster.status().member("ironman").health) == ("paused", "frozen")
    assert cluster.up() == ["ironman"]
    assert leader.state() == "running"

    assert cluster.down() == ["ironman", "thor", "deadpool"]
    assert all(_refuses(url) for url in cluster.endpoints)
    again = Cluster.attach("x", store=Store(tmp_path), runtime=runtime)
    again.up()
    assert again.client().get("k")[0] == b"kept"
    endpoints = again.endpoints
    again.purge()
    assert all(_refuses(url) for url in endpoints)
    assert not (tmp_path / "clusters" / "x").exists()
    wait_until(lambda: not _serving(before))


def _serving(before: set[threading.Thread]) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread not in before and "etcdops" in thread.name]


def test_it_is_public_and_not_on_the_command_line(runtime: FakeRuntime) -> None:
    """It can kill and pause, needs nothing, and is not offered where its memory would end with the command."""
    assert isinstance(runtime, CanKill)
    assert isinstance(runtime, CanPause)
    assert runtime.unavailable() is None
    assert "fake" not in names()


def test_a_fresh_runtime_has_no_members(cluster: Cluster, runtime: FakeRuntime) -> None:
    """Members belong to the object that runs them; another one sees them as stopped."""
    assert [leftover.member for leftover in runtime.leftovers()] == list(cluster.record.spec.names)
    other = FakeRuntime()
    assert {other.state(member) for member in cluster.record.members} == {"stopped"}
    assert list(other.leftovers()) == []
    for leftover in runtime.leftovers():
        runtime.end_leftover(leftover)
    assert cluster.status().verdict == "down"


def test_a_member_that_was_started_since_is_another(cluster: Cluster, runtime: FakeRuntime) -> None:
    """A record names one start of a member: after the next one it sees it as stopped, until it adopts it."""
    old = cluster.record
    thor = cluster.member("thor")
    thor.kill()
    thor.start()
    assert runtime.state(old.member("thor")) == "stopped"
    runtime.kill(old.member("thor"))
    assert thor.state() == "running"
    assert runtime.adopt(old) == cluster.record
    with pytest.raises(MemberFailed, match="runs already"):
        runtime.start(cluster.record, ["thor"])
    assert thor.state() == "running"


def test_two_clusters_live_side_by_side(cluster: Cluster, runtime: FakeRuntime, tmp_path: Path) -> None:
    """Clusters of one runtime share neither ports nor keys."""
    other = Cluster.create("y", size=1, runtime=runtime, store=Store(tmp_path))
    assert not {m.client_url for m in other.record.members} & set(cluster.endpoints)
    with other:
        _put(cluster.member("thor"), b"k")
        assert _get(other.member("ironman"), b"k") is None
    runtime.destroy(other.record)
    runtime.destroy(other.record)
    assert _get(cluster.member("thor"), b"k") == b"1"


def test_ports_that_are_taken_are_refused(runtime: FakeRuntime, tmp_path: Path) -> None:
    """A pinned port in use is refused when the cluster is created, one that is taken later when a member starts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Refused, match=f"port {port} on local is in use"):
            Cluster.create(
                ClusterSpec("x", (MemberSpec("thor", client_port=port),)), runtime=runtime, store=Store(tmp_path)
            )
    cluster = Cluster.create("x", runtime=runtime, store=Store(tmp_path))
    with socket.socket() as taken:
        # As a server does: a port whose connections are still closing can be taken over.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(cluster.endpoints[1].rpartition(":")[2])))
        taken.listen()
        with pytest.raises(Refused, match=r"something else listens on port \d+ of thor"):
            cluster.up()
        with pytest.raises(Refused, match="cannot listen"):
            runtime.start(cluster.record, cluster.record.spec.names)
        assert cluster.status().verdict == "down"
        assert list(runtime.leftovers()) == []


def test_ports_are_those_that_are_chosen_for_members(
    runtime: FakeRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ETCDOPS_PORTS names the ports of members in memory as well; where it leaves too few, the cluster is refused."""
    some = own_ports()[:100]
    monkeypatch.setenv("ETCDOPS_PORTS", f"{some[0]}-{some[-1]}")
    record = Cluster.create("x", runtime=runtime, store=Store(tmp_path)).record
    ports = {int(url.rpartition(":")[2]) for m in record.members for url in (m.client_url, m.peer_url)}
    assert len(ports) == 6
    assert ports <= set(some)
    monkeypatch.setenv("ETCDOPS_PORTS", f"{some[0]}-{some[4]}")
    with pytest.raises(Refused, match="fewer than 6 ports"):
        Cluster.create("y", runtime=runtime, store=Store(tmp_path))


def test_a_cluster_may_be_placed_again(runtime: FakeRuntime) -> None:
    """Placing changes nothing for the cluster itself, and keeps its ports from others."""
    spec = ClusterSpec.of_size("x", 1, base_port=_free_port_pair())
    assert runtime.place(spec, "first", "") == runtime.place(spec, "first", "")
    with pytest.raises(Refused, match="in use"):
        runtime.place(spec, "second", "")


def _free_port_pair() -> int:
    for port in own_ports()[::2]:
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two ports beside each other are free")


def test_tls_is_refused(runtime: FakeRuntime) -> None:
    """It speaks plaintext, and says so before anything is made."""
    spec = ClusterSpec("x", (MemberSpec("thor", cert="c", key="k"),), tls=Tls("a", "c", "k"))
    with pytest.raises(Refused, match="do not speak TLS"):
        runtime.place(spec, "id", "")


def test_a_killed_member_refuses_connections_and_comes_back_on_its_port(cluster: Cluster) -> None:
    """The port is closed when `kill` returns, and the same one serves again after a start."""
    thor = cluster.member("thor")
    for _ in range(3):
        thor.kill()
        assert _refuses(thor.client_url)
        with pytest.raises(EtcdError) as caught:
            _put(thor, b"k")
        assert (caught.value.code, caught.value.definite) == ("UNAVAILABLE", True)
        thor.start()
        _put(thor, b"k")


def test_writes_wait_for_the_new_leader(cluster: Cluster) -> None:
    """When the leader is killed, a write through a follower is answered once another leads, at the next term."""
    leader, follower = cluster.leader(), _followers(cluster)[0]
    term = cluster.status().term
    leader.kill()
    _put(follower, b"k")
    status = cluster.status()
    assert (status.term, status.leader) == (term + 1, follower.name)


def test_a_stopped_leader_hands_over_at_once(tmp_path: Path) -> None:
    """Nobody waits for an election after SIGTERM; after SIGKILL everybody does."""
    runtime = FakeRuntime(election_s=2.0, request_timeout_s=0.5)
    cluster = Cluster.create("x", runtime=runtime, store=Store(tmp_path))
    cluster.up()
    cluster.leader().stop()
    leader = cluster.leader()
    _put(leader, b"k")
    cluster.up()
    leader.kill()
    with pytest.raises(EtcdError, match="request timed out"):
        _put(cluster.member("ironman"), b"k")
    runtime.destroy(cluster.record)


def test_a_frozen_member_answers_nothing_until_it_goes_on(cluster: Cluster) -> None:
    """Calls to it are accepted, time out by the caller's clock, and go on where the caller still waits."""
    leader, follower = cluster.leader(), _followers(cluster)[0]
    with wire.Connection(leader.client_url) as etcd, etcd.watch(b"k", timeout_s=30) as watch:
        leader.pause()
        assert not _refuses(leader.client_url)
        with pytest.raises(EtcdError) as caught:
            etcd.status(timeout_s=0.2)
        assert (caught.value.code, caught.value.definite) == ("DEADLINE_EXCEEDED", False)
        pending = etcd.start(calls.put(b"k", b"late"), timeout_s=20)
        revision = _put(follower, b"k", b"early")
        assert cluster.leader().name == follower.name
        leader.resume()
        assert pending.result().revision == revision + 1
        assert [next(watch).events[0].kv.value for _ in range(2)] == [b"early", b"late"]
        leader.kill()
        with pytest.raises(MemberFailed):
            leader.pause()


def test_without_a_quorum_nothing_is_agreed(cluster: Cluster) -> None:
    """Writes and linearizable reads time out, unknown; serializable reads and the status are answered."""
    _put(cluster.member("thor"), b"k")
    survivor = cluster.leader()
    for member in _followers(cluster):
        member.kill()
    with pytest.raises(EtcdError) as caught:
        _put(survivor, b"k", b"2")
    assert (caught.value.code, caught.value.text) == ("UNAVAILABLE", "etcdserver: request timed out")
    assert not caught.value.definite
    assert _get(survivor, b"k", serializable=True) == b"1"
    status = cluster.status()
    assert (status.verdict, status.leader) == ("no-quorum", None)
    assert "etcdserver: no leader" in status.member(survivor.name).errors
    with pytest.raises(QuorumLost):
        cluster.leader()
    cluster.up()
    assert _get(survivor, b"k") == b"1"


def test_a_call_that_a_freeze_overtakes_is_not_answered_either(
    cluster: Cluster, runtime: FakeRuntime, wait_until: Callable[..., None]
) -> None:
    """A member that is frozen while a call waits in it says nothing, not even that the request timed out."""
    survivor = cluster.leader()
    for member in _followers(cluster):
        member.kill()
    inside = runtime._clusters[cluster.record.id].members[survivor.name]
    with wire.Connection(survivor.client_url) as etcd:
        impatient = etcd.start(calls.put(b"k", b"1"), timeout_s=1.5)
        patient = etcd.start(calls.put(b"k", b"1"), timeout_s=20)
        wait_until(lambda: inside.waiting == 2)
        survivor.pause()
        assert "Deadline Exceeded" in _text(impatient)
        survivor.resume()
        assert _text(patient) == "etcdserver: request timed out"


def test_many_waiting_calls_leave_the_status_answered(cluster: Cluster) -> None:
    """Beyond a number of waiting calls a member refuses more, as etcd does, and still says how it is."""
    survivor = cluster.leader()
    for member in _followers(cluster):
        member.kill()
    with wire.Connection(survivor.client_url) as etcd:
        waiting = [etcd.start(calls.put(b"k", b"%d" % i), timeout_s=20) for i in range(300)]
        assert etcd.status(timeout_s=10).raft_term > 1
        texts = {_text(pending) for pending in waiting}
    assert texts == {"etcdserver: request timed out", "etcdserver: too many requests"}


def _text(pending: wire.Pending[PutResult]) -> str:
    with pytest.raises(EtcdError) as caught:
        pending.result()
    return caught.value.text


def test_a_member_that_was_away_catches_up(cluster: Cluster) -> None:
    """A stopped and a frozen member have nothing of what is written meanwhile, and all of it when they return."""
    away, asleep = cluster.member("thor"), cluster.member("deadpool")
    for leave, come_back, member in ((away.stop, away.start, away), (asleep.pause, asleep.resume, asleep)):
        leave()
        revision = _put(cluster.member("ironman"), b"k", member.name.encode())
        come_back()
        assert member.status().revision == revision
        assert _get(member, b"k", serializable=True) == member.name.encode()
    hashes = set()
    for member in cluster.members:
        with wire.Connection(member.client_url) as etcd:
            hashes.add(etcd.hash_kv(revision, timeout_s=20))
    assert len(hashes) == 1


def test_the_leader_can_be_moved(cluster: Cluster) -> None:
    """MoveLeader is taken by the leader alone, and only for a member that is there."""
    leader, follower = cluster.leader(), _followers(cluster)[0]
    with wire.Connection(leader.client_url) as first, wire.Connection(follower.client_url) as second:
        target = second.status(timeout_s=20).member_id
        with pytest.raises(EtcdError, match="not leader"):
            second.move_leader(target, timeout_s=20)
        with pytest.raises(EtcdError, match="bad leader transferee"):
            first.move_leader(12345, timeout_s=20)
        first.move_leader(target, timeout_s=20)
        ids = {info.name: info.id for info in first.member_list(timeout_s=20)}
        assert ids[follower.name] == target
        assert first.alarms(timeout_s=20) == ()
        first.defragment(timeout_s=20)
    assert cluster.leader().name == follower.name


def test_watches_and_leases(cluster: Cluster) -> None:
    """A watch on one member shows what is written through another; a lease that ends takes its keys with it."""
    leader, follower = cluster.leader(), _followers(cluster)[0]
    with wire.Connection(leader.client_url) as writer, wire.Connection(follower.client_url) as watcher:
        lease = writer.lease_grant(60, timeout_s=20)
        assert watcher.lease_keep_alive(lease.lease_id, timeout_s=20).ttl_s == 60
        with watcher.watch(b"a", b"c", timeout_s=30, prev_kv=True) as watch:
            first = writer.put(b"b", b"1", lease=lease.lease_id, timeout_s=20).revision
            assert watcher.call(calls.lease_info(lease.lease_id), timeout_s=20).keys == (b"b",)
            for outside in (b"0", b"c"):
                writer.put(outside, b"1", timeout_s=20)
            # What has to happen before it ends is done at once.
            brief = writer.lease_grant(1, timeout_s=20)
            writer.put(b"a", b"1", lease=brief.lease_id, timeout_s=20)
            assert brief.ttl_s == 2
            kinds = [
                (batch.revision, [(e.kind, e.kv.key) for e in batch.events]) for batch in (next(watch), next(watch))
            ]
            assert kinds == [(first, [("put", b"b")]), (first + 3, [("put", b"a")])]
            (event,) = next(watch).events
            assert (event.kind, event.kv.key) == ("delete", b"a")
            assert event.prev_kv is not None
            assert event.prev_kv.value == b"1"
        assert watcher.lease_keep_alive(brief.lease_id, timeout_s=20).ttl_s == 0
        writer.compact(first + 4, timeout_s=20)
        with (
            watcher.watch(b"a", timeout_s=20, start_revision=first) as watch,
            pytest.raises(wire.Compacted) as caught,
        ):
            next(watch)
        assert caught.value.compact_revision == first + 4


def test_a_new_leader_gives_leases_their_whole_time_again(cluster: Cluster) -> None:
    """Leases have IDs of their own, and none ends because the leader was lost."""
    follower = _followers(cluster)[0]
    with wire.Connection(follower.client_url) as etcd:
        first, second = (etcd.lease_grant(ttl_s, timeout_s=20) for ttl_s in (100, 200))
        assert first.lease_id != second.lease_id
        etcd.put(b"k", b"v", lease=first.lease_id, timeout_s=20)
        cluster.leader().kill()
        etcd.put(b"elected", b"v", timeout_s=20)
        info = etcd.call(calls.lease_info(first.lease_id), timeout_s=20)
        assert (info.granted_ttl_s, info.keys) == (100, (b"k",))
        assert 90 < info.ttl_s <= 100
        assert etcd.lease_revoke(first.lease_id, timeout_s=20) == etcd.range(b"k", timeout_s=20).revision
        assert etcd.range(b"k", timeout_s=20).kvs == ()


def test_asyncio_and_etcd3_clients(cluster: Cluster) -> None:
    """Traffic's client and the one that users get work on it unchanged."""

    async def ask() -> int:
        async with wire.AsyncConnection(cluster.endpoints[1]) as etcd:
            puts = await asyncio.gather(*(etcd.put(b"k%d" % i, b"v", timeout_s=10) for i in range(50)))
            return max(put.revision for put in puts)

    revision = asyncio.run(ask())
    client = cluster.client("deadpool")
    assert len(list(client.get_prefix("k"))) == 50
    succeeded, _ = client.transaction(
        compare=[client.transactions.version("new") == 0], success=[client.transactions.put("new", "1")], failure=[]
    )
    assert succeeded
    assert cluster.member("thor").status().revision == revision + 1


def test_logs_read_like_those_of_etcd(cluster: Cluster) -> None:
    """JSON lines with level, time and message tell of starts, elections and ends; they outlive a restart."""
    cluster.leader().stop()
    cluster.up()
    lines = [line for member in cluster.record.members for line in read_log(cluster.runtime, member)]
    said = " ".join(line.text for line in lines)
    assert {line.level for line in lines} == {"info"}
    assert all(line.time.year >= 2026 for line in lines)
    assert "became leader at term 2" in said
    assert "elected leader" in said
    assert "received signal; shutting down" in said


def _leads_no_more(cluster: Cluster, name: str) -> bool:
    return cluster.status().leader not in (None, name)


def test_every_acknowledged_write_is_kept_through_faults(cluster: Cluster, wait_until: Callable[..., None]) -> None:
    """While all members are written to, the leader is killed and the next one frozen: nothing acknowledged is lost."""
    stop = threading.Event()

    def write(number: int) -> list[bytes]:
        acknowledged = []
        with wire.Connection(cluster.endpoints[number]) as etcd:
            for i in range(2000):
                key = b"w/%d/%d" % (number, i)
                try:
                    etcd.put(key, b"1", timeout_s=0.5)
                    acknowledged.append(key)
                except EtcdError:
                    stop.wait(0.01)
                if stop.is_set():
                    break
        return acknowledged

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(write, number) for number in range(3)]
        try:
            for leave, come_back in ((Member.kill, Member.start), (Member.pause, Member.resume)):
                leader = cluster.leader()
                leave(leader)
                wait_until(partial(_leads_no_more, cluster, leader.name))
                come_back(leader)
                cluster.wait_healthy()
        finally:
            stop.set()
        acknowledged = {key for writer in writers for key in writer.result(30)}
    assert len(acknowledged) > 50
    for member in cluster.members:
        with wire.Connection(member.client_url) as etcd:
            found = {kv.key for kv in etcd.range(b"w/", b"w0", timeout_s=20).kvs}
        assert acknowledged <= found


def test_the_interpreter_ends_although_a_member_is_frozen(tmp_path: Path) -> None:
    """Threads that serve a frozen member, or a watch, do not keep a program alive that forgot to stop them."""
    script = """if True:
        from etcdops import Cluster, FakeRuntime, calls, wire
        cluster = Cluster.create("x", runtime=FakeRuntime())
        cluster.up()
        ironman = wire.Connection(cluster.endpoints[0])
        watch = wire.Connection(cluster.endpoints[1]).watch(b"k", timeout_s=100)
        cluster.member("ironman").pause()
        pending = ironman.start(calls.put(b"k", b"v"), timeout_s=100)
        cluster.wait_serving(["thor"])
        print("end")
    """
    environment = {**os.environ, "ETCDOPS_STATE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"end\n", b"")
