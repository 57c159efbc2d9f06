"""Changes of members in memory, beyond what is held against a real etcd in `tests/suite`: lies, faults, and ports."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from etcdops import calls, wire
from etcdops.answers import MemberInfo
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError, MemberFailed, Refused
from etcdops.logs import read_log
from etcdops.runtimes.fake import FakeRuntime
from etcdops.snapshots import bolt
from etcdops.spec import MemberSpec
from etcdops.state import ClusterRecord, DataRef, Retired, Store

Wait = Callable[..., None]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Three members in memory that need not know each other for long."""
    runtime = FakeRuntime(election_s=0.05, request_timeout_s=0.3, health_s=0.0)
    cluster = Cluster.create("x", runtime=runtime, store=Store(tmp_path))
    cluster.up()
    yield cluster
    runtime.destroy(cluster.record)


def _runtime(cluster: Cluster) -> FakeRuntime:
    assert isinstance(cluster.runtime, FakeRuntime)
    return cluster.runtime


def _ask(cluster: Cluster, call: Callable[[wire.Connection], object], member: str = "ironman") -> object:
    with wire.Connection(cluster.member(member).client_url) as etcd:
        return call(etcd)


def _add(cluster: Cluster, name: str = "hulk", *, learner: bool = True) -> MemberInfo:
    """Have a member added, and record it, without starting it."""
    spec = MemberSpec(name)
    alone = msgspec.structs.replace(cluster.record.spec, members=(spec,))
    [placed] = cluster.runtime.place(alone, cluster.record.id, "")
    with wire.Connection(cluster.endpoints[0]) as etcd:
        added = etcd.member_add([placed.peer_url], learner=learner, timeout_s=20)
    cluster.save(msgspec.structs.replace(cluster.record.joined(spec, placed), bootstrapped=True))
    return added


def _put(cluster: Cluster, member: str = "ironman", value: bytes = b"v") -> None:
    _ask(cluster, lambda etcd: etcd.put(b"k", value, timeout_s=20), member)


def _said(cluster: Cluster, record: ClusterRecord, name: str) -> str:
    return " ".join(line.text for line in read_log(cluster.runtime, record.member(name)))


def test_a_learner_that_lags_is_not_promoted(cluster: Cluster) -> None:
    """While it is told to lag it has nothing, and stays a learner; afterwards it has all, and becomes a voter."""
    _runtime(cluster).lies.learner_lags = True
    for _ in range(30):
        _put(cluster)
    added = _add(cluster)
    cluster.start_members(["hulk"])
    status = cluster.member("hulk").status()
    assert (status.is_learner, status.revision) == (True, 1)
    with pytest.raises(EtcdError, match="in sync with leader"):
        _ask(cluster, lambda etcd: etcd.member_promote(added.id, timeout_s=20))
    _runtime(cluster).lies.learner_lags = False
    _ask(cluster, lambda etcd: etcd.member_promote(added.id, timeout_s=20))
    status = cluster.member("hulk").status()
    assert not status.is_learner
    assert status.revision == cluster.member("ironman").status().revision > 30
    _put(cluster, "hulk")


def test_a_learner_counts_for_no_quorum(cluster: Cluster) -> None:
    """With a learner that runs and one voter of three, nothing is agreed; the learner never leads."""
    added = _add(cluster)
    cluster.start_members(["hulk"])
    _put(cluster)
    cluster.member("thor").kill()
    _put(cluster)
    cluster.member("deadpool").kill()
    with pytest.raises(EtcdError, match="request timed out"):
        _put(cluster)
    cluster.member("deadpool").start()
    cluster.member("ironman").kill()
    cluster.member("thor").start()
    assert cluster.leader().name in ("thor", "deadpool")
    cluster.member("ironman").start()
    _ask(cluster, lambda etcd: etcd.member_promote(added.id, timeout_s=20))
    # Of four, three are needed: the one that was a learner is one of them.
    cluster.member("hulk").kill()
    _put(cluster)
    cluster.member("thor").kill()
    with pytest.raises(EtcdError, match="request timed out"):
        _put(cluster)


def test_a_voter_that_does_not_start_takes_the_quorum_of_a_single_member(tmp_path: Path) -> None:
    """One member alone may be joined by a voter, and then needs it; what it is asked meanwhile happens later."""
    runtime = FakeRuntime(election_s=0.05, request_timeout_s=0.2, health_s=0.0)
    cluster = Cluster.create("x", size=1, runtime=runtime, store=Store(tmp_path))
    cluster.up()
    added = _add(cluster, learner=False)
    with wire.Connection(cluster.endpoints[0]) as etcd:
        with pytest.raises(EtcdError, match="request timed out"):
            etcd.put(b"k", b"v", timeout_s=20)
        # etcd sets no limit to a change of members: it waits for as long as there is no quorum.
        removal = etcd.start(calls.member_remove(added.id), timeout_s=20)
        cluster.start_members(["hulk"])
        assert [info.name for info in removal.result()] == ["ironman"]
        etcd.put(b"k", b"v", timeout_s=20)
    runtime.destroy(cluster.record)


def test_a_frozen_member_that_was_removed_ends_when_it_goes_on(cluster: Cluster, wait_until: Wait) -> None:
    """It cannot know before; its log says why it ended, and so does a start of it afterwards."""
    thor = cluster.member("thor")
    removed = thor.status().member_id
    thor.pause()
    left = _ask(cluster, lambda etcd: etcd.member_remove(removed, timeout_s=20))
    assert len(left) == 2  # type: ignore[arg-type]
    assert thor.state() == "paused"
    thor.resume()
    wait_until(lambda: thor.state() == "stopped")
    with pytest.raises(MemberFailed, match="permanently removed from the cluster"):
        thor.start()
    _put(cluster)


def test_a_removed_leader_is_replaced_by_another(cluster: Cluster, wait_until: Wait) -> None:
    """It answers, ends, and another leads at the next term."""
    before = cluster.status()
    assert before.leader
    leader = cluster.member(before.leader)
    number = leader.status().member_id
    _ask(cluster, lambda etcd: etcd.member_remove(number, timeout_s=20), leader.name)
    wait_until(lambda: leader.state() == "stopped")
    other = next(name for name in cluster.record.spec.names if name != leader.name)
    _put(cluster, other)
    status = cluster.member(other).status()
    assert status.leader not in (0, number)
    assert status.raft_term == before.term + 1


def test_a_replaced_member_is_another_with_no_data(cluster: Cluster, wait_until: Wait) -> None:
    """The next generation of its data has a new id, is empty, and gets all; it joins only where it was added."""
    _put(cluster, value=b"before")
    old = cluster.member("thor").status().member_id
    cluster.member("thor").kill()
    record = cluster.record
    emptied = record.with_member(
        msgspec.structs.replace(record.member("thor"), data=DataRef(f"memory:{record.id}/thor-g2", 2), ref="")
    )
    cluster.save(msgspec.structs.replace(emptied, bootstrapped=True))
    # With the id of the old one, it would have forgotten what that has acknowledged.
    with pytest.raises(MemberFailed, match="tocommit"):
        cluster.member("thor").start()
    _ask(cluster, lambda etcd: etcd.member_remove(old, timeout_s=20))
    with pytest.raises(MemberFailed, match="member count is unequal"):
        cluster.member("thor").start()
    _ask(cluster, lambda etcd: etcd.member_add([record.member("thor").peer_url], learner=True, timeout_s=20))
    cluster.start_members(["thor"])
    status = cluster.member("thor").status()
    assert status.is_learner
    assert status.member_id != old
    with wire.Connection(cluster.member("thor").client_url) as etcd:
        assert etcd.range(b"k", timeout_s=20, serializable=True).kvs[0].value == b"before"
        with pytest.raises(EtcdError, match="rpc not supported for learner"):
            etcd.range(b"k", timeout_s=20)
        with pytest.raises(EtcdError, match="rpc not supported for learner"):
            etcd.watch(b"k", timeout_s=20)
    # The old data is what it was: it can never join again.
    with pytest.raises(MemberFailed, match="runs already"):
        cluster.runtime.start(cluster.record, ["thor"])
    cluster.member("thor").stop()
    stale = cluster.runtime.start(record, ["thor"])
    assert cluster.runtime.states(stale)["thor"] == "stopped"
    assert "permanently removed" in _said(cluster, record, "thor")


def test_a_member_joins_only_while_another_is_there(cluster: Cluster) -> None:
    """It asks the others who is a member: with nobody there it ends, and says so."""
    _add(cluster)
    for name in ("ironman", "thor", "deadpool"):
        cluster.member(name).kill()
    with pytest.raises(MemberFailed, match="cannot fetch cluster info from peer urls"):
        cluster.member("hulk").start(wait_s=1)


def test_ports_of_the_others_stay_reserved(cluster: Cluster) -> None:
    """A member that is placed alone gets none of the ports of those that are stopped, and may not be given one."""
    cluster.down()
    taken = {int(url.rpartition(":")[2]) for m in cluster.record.members for url in (m.client_url, m.peer_url)}
    spec = cluster.record.spec
    for port in taken:
        alone = msgspec.structs.replace(spec, members=(MemberSpec("hulk", client_port=port),))
        with pytest.raises(Refused, match=f"port {port} is in use by another member"):
            cluster.runtime.place(alone, cluster.record.id, "")
    other = Cluster.create("y", size=1, runtime=cluster.runtime, store=cluster.store)
    assert not taken & {int(url.rpartition(":")[2]) for url in other.endpoints}
    _runtime(cluster).destroy(other.record)


def test_a_snapshot_has_the_members_as_they_are(cluster: Cluster, tmp_path: Path) -> None:
    """Learners are marked, and those that were removed are named as such."""
    added = _add(cluster)
    removed = cluster.member("thor").status().member_id
    _ask(cluster, lambda etcd: etcd.member_remove(removed, timeout_s=20))
    with wire.Connection(cluster.endpoints[0]) as etcd:
        data = b"".join(etcd.snapshot(timeout_s=20))
    file = tmp_path / "file"
    file.write_bytes(data[:-32])
    found = bolt.read_contents(file).members
    assert {member.name for member in found} == {"ironman", "deadpool", ""}
    assert [member.id for member in found if member.learner] == [added.id]
    assert f"{removed:016x}removed".encode() in data


def test_leftovers_and_destruction_know_members_that_joined(cluster: Cluster) -> None:
    """A member that joined later runs like the others, is found like them, and is ended with them."""
    _add(cluster)
    cluster.start_members(["hulk"])
    runtime = _runtime(cluster)
    assert [leftover.member for leftover in runtime.leftovers()] == ["ironman", "thor", "deadpool", "hulk"]
    data = cluster.record.member("hulk").data
    record = cluster.record.left("hulk", Retired("hulk", data, "removed", "run", ""))
    runtime.destroy(record)
    assert list(runtime.leftovers()) == []
    assert {runtime.state(member) for member in cluster.record.members} == {"stopped"}
