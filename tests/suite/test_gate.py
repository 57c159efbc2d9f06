"""The gate on clusters that run: what `status` finds in one look, and `status --gate` in two."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from etcdops import quorum, wire
from etcdops.answers import MemberInfo
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError
from etcdops.facts import GAP_S, collect
from etcdops.runtimes.fake import FakeRuntime
from etcdops.snapshots.proving import auth_is_on
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from etcdops.status import ClusterStatus
from tests.conftest import CommandLine
from tests.suite.shared import RUNTIMES, cluster_by, with_certificates

Wait = Callable[..., None]


@pytest.fixture(scope="module", params=RUNTIMES)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three for all tests of a runtime."""
    with cluster_by(request, tmp_path_factory.mktemp("gate")) as cluster:
        yield cluster


@pytest.fixture
def lab(shared: Cluster) -> Iterator[Cluster]:
    """The shared cluster, healthy at first, and again afterwards."""
    yield shared
    shared.up()


def _errors(status: ClusterStatus) -> dict[str, str]:
    return {finding.code: finding.member for finding in status.blockers}


def _stamps(cluster: Cluster) -> list[tuple[int, int]]:
    said = [member.status() for member in cluster.members]
    return [(each.revision, each.raft_applied_index) for each in said]


def test_a_healthy_cluster_passes_and_is_not_written_to(lab: Cluster) -> None:
    """Two looks, a second and more apart, find no error, and leave neither a key nor an entry in Raft's log."""
    with wire.Connection(lab.endpoints[0]) as etcd:
        etcd.put(b"k", b"v", timeout_s=20)
    lab.wait_healthy()
    before = _stamps(lab)
    began = time.monotonic()
    status = lab.status(gate=True)
    assert time.monotonic() - began >= GAP_S
    assert (status.verdict, status.blockers) == ("healthy", ())
    assert _stamps(lab) == before


def test_facts_are_of_every_member(lab: Cluster) -> None:
    """Each member tells its status twice, lists the same three, and serves; who is down is told apart."""
    lab.member("deadpool").kill()
    lab.wait_serving(["ironman", "thor"])
    facts = collect(lab.record, lab.runtime, gap_s=0.05)
    by_name = {member.name: member for member in facts.members}
    for name in ("ironman", "thor"):
        member = by_name[name]
        assert [status is not None for status in member.statuses] == [True, True]
        assert member.serves
        assert member.serves_locally
        assert member.listed is not None
        assert {info.name for info in member.listed} == {"ironman", "thor", "deadpool"}
    assert (by_name["deadpool"].state, by_name["deadpool"].statuses) == ("stopped", (None, None))
    assert not by_name["deadpool"].serves
    assert set(quorum.voters(facts)) == set(by_name)
    assert set(quorum.up(facts)) == {"ironman", "thor"}
    assert facts.auth is False
    assert quorum.excluded(facts) == {"auth", "tls", "single-member", "unstarted-learner"}


def test_traffic_is_no_lag(lab: Cluster) -> None:
    """While writes come in, members are never at the same index; that is no error."""
    end = threading.Event()

    def write() -> None:
        with wire.Connection(lab.endpoints[0]) as etcd:
            while not end.is_set():
                etcd.put(b"k", b"v", timeout_s=20)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        assert lab.status(gate=True).blockers == ()
    finally:
        end.set()
        writer.join(10)
    assert not writer.is_alive()


def test_each_way_of_being_away_is_found(lab: Cluster, wait_until: Wait) -> None:
    """Stopped, stopped on purpose, and frozen members are told apart; each finding says what brings it back."""
    thor = lab.member("thor")
    thor.kill()
    wait_until(lambda: _errors(lab.status()) == {"member-stopped": "thor"}, what="the others' agreement")
    [finding] = lab.status().blockers
    assert (finding.message, finding.severity) == ("thor is stopped", "error")
    assert "`member.start thor`" in finding.remedy
    thor.stop()
    assert lab.status().blockers[0].message == "thor is stopped, as was asked for"
    thor.start()
    thor.pause()
    wait_until(lambda: _errors(lab.status()) == {"member-frozen": "thor"}, what="the others' agreement")
    assert "`member.thaw thor`" in lab.status().blockers[0].remedy
    thor.resume()
    wait_until(lambda: not lab.status().blockers, what="health")


def test_a_lost_quorum_is_found_and_the_look_ends(lab: Cluster) -> None:
    """Without a quorum a member list is never given; the look ends all the same, and says who is missing."""
    for name in ("thor", "deadpool"):
        lab.member(name).kill()
    began = time.monotonic()
    status = lab.status()
    # What is promised is two seconds; this is a bound for a slow machine.
    assert time.monotonic() - began < 30
    finding = status.blockers[0]
    assert (finding.code, finding.member) == ("no-quorum", "")
    assert finding.message.startswith("1 of 3 voters answer, and the quorum is 2: ")
    assert "thor is stopped and deadpool is stopped" in finding.message
    assert "`member.start thor`, `member.start deadpool`" in finding.remedy
    assert [f.code for f in status.blockers[1:]] == ["member-stopped", "member-stopped"]
    alone = collect(lab.record, lab.runtime).members[0]
    assert (alone.serves, alone.serves_locally, alone.listed) == (False, True, None)


def test_an_added_member_that_never_started_is_found(lab: Cluster) -> None:
    """A learner that was added by hand is named with its id, and does not count for the quorum; a voter does."""
    leader = lab.leader()
    with wire.Connection(leader.client_url) as etcd:
        added = _add_learner(etcd)
        try:
            status = lab.status(gate=True)
            [finding] = status.blockers
            assert finding.code == "member-unstarted"
            assert finding.member == wire.hex_id(added.id)
            assert f"`ctl -- member remove {wire.hex_id(added.id)}`" in finding.remedy
            assert status.quorum == 2
            assert "unstarted-learner" not in quorum.excluded(collect(lab.record, lab.runtime))
        finally:
            etcd.member_remove(added.id, timeout_s=20)
    assert lab.status().blockers == ()


def _add_learner(etcd: wire.Connection) -> MemberInfo:
    """Add a learner that will never start; etcd wants every voter connected for 5 s first, and says so."""
    deadline = time.monotonic() + 20
    while True:
        try:
            return etcd.member_add(["http://127.0.0.1:1"], learner=True, timeout_s=20)
        except EtcdError as error:
            if "try again" not in error.remedy or time.monotonic() > deadline:
                raise
        time.sleep(0.2)


# -- what only some clusters show


def test_a_member_that_never_catches_up_is_found(tmp_path: Path) -> None:
    """A member that serves and applies nothing is found by two looks, and by no single one."""
    runtime = FakeRuntime()
    with Cluster.create("lab", runtime=runtime, store=Store(tmp_path)) as cluster:
        follower = next(member for member in cluster.members if member.name != cluster.leader().name)
        follower.kill()
        runtime.lies.never_catches_up = "serves"
        with wire.Connection(cluster.leader().client_url) as etcd:
            for _ in range(10):
                etcd.put(b"k", b"v", timeout_s=20)
        follower.start()
        assert cluster.status().blockers == ()
        assert _errors(cluster.status(gate=True)) == {"behind": follower.name}


def test_with_certificates(tmp_path: Path) -> None:
    """Over mutual TLS all is asked and found as without; whether authentication is on cannot be told there."""
    spec = with_certificates(tmp_path)
    with Cluster.create(spec, store=Store(tmp_path / "state"), temporary=True) as cluster:
        assert cluster.status(gate=True).warnings == ()
        facts = collect(cluster.record, cluster.runtime)
        assert facts.auth is None
        assert auth_is_on(cluster) is False
        assert quorum.excluded(facts) == {"single-member", "voter-down", "unstarted-learner"}
        cluster.move_leader(cluster.members[1].name)
        assert cluster.leader().name == cluster.members[1].name


def test_with_authentication(tmp_path: Path) -> None:
    """With etcd's authentication on, the gate says what it cannot see, and takes no refusal for a breakdown."""
    with Cluster.create(ClusterSpec.of_size("lab", 1), store=Store(tmp_path), temporary=True) as cluster:
        assert auth_is_on(cluster) is False
        ctl = [f"{cluster.record.binary}/etcdctl", "--endpoints", cluster.endpoints[0]]
        for words in (["user", "add", "root:pw"], ["user", "grant-role", "root", "root"], ["auth", "enable"]):
            subprocess.run([*ctl, *words], check=True, capture_output=True, timeout=30)
        status = cluster.status(gate=True)
        assert (status.verdict, status.blockers) == ("healthy", ())
        assert "auth" in [finding.code for finding in status.warnings]
        facts = collect(cluster.record, cluster.runtime)
        assert facts.auth is True
        assert auth_is_on(cluster) is True
        assert "auth" not in quorum.excluded(facts)


# -- the command line


@pytest.mark.runtime("process")  # what the gate finds is tested on each runtime above; this is about the command
def test_the_command(cli: CommandLine, wait_until: Wait) -> None:
    """`status --gate` exits 0 when nothing forbids a change, 3 when something does, 5 without a quorum."""
    assert cli("up-env", "--runtime", "process").code == 0
    opened = cli("status", "--gate")
    assert (opened.code, opened.out.splitlines()[-1]) == (0, "gate: open")
    cluster = Cluster.attach("lab", store=cli.store)
    cluster.member("thor").kill()
    wait_until(lambda: len(cluster.status().blockers) == 1, what="the others' agreement")
    # Serving, so `status` exits 4; but with one away nothing should be changed.
    assert cli("status").code == 4
    closed = cli("status", "--gate")
    assert closed.code == 3
    assert closed.out.splitlines()[-2:] == [
        "error member-stopped: thor is stopped -> `member.start thor` starts it; `up-env` starts all.",
        "gate: closed: 1 error",
    ]
    document = json.loads(cli("status", "--gate", "-o", "json").out)
    assert document["schema"] == 1
    assert document["warnings"][0] == {
        "code": "member-stopped",
        "message": "thor is stopped",
        "severity": "error",
        "member": "thor",
        "remedy": "`member.start thor` starts it; `up-env` starts all.",
    }
    cluster.member("deadpool").kill()
    assert cli("status", "--gate").code == 5
    both = cli("status", "--gate", "--watch", "1")
    assert (both.code, both.out) == (2, "")
