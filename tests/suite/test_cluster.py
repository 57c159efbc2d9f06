"""What a cluster and its members do for a program, on every runtime."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec
import pytest
import trustme

from etcdops import wire
from etcdops.cluster import Cluster
from etcdops.errors import (
    ClusterNotFound,
    EtcdError,
    MemberFailed,
    NoLeader,
    QuorumLost,
    Refused,
    SpecError,
    StateError,
)
from etcdops.spec import ClusterSpec, MemberSpec, Timing, Tls
from etcdops.state import Store, Unhealed
from tests.suite.members import etcdctl, has_data, left, life

Wait = Callable[..., None]

#: For what is said over the wire, or is a matter of the record, its lock or its wishes, whatever members run as.
on_processes = pytest.mark.runtime("process")


def _spec() -> ClusterSpec:
    """Three members that elect twice as fast as by default."""
    return ClusterSpec.of_size("test", timing=Timing(50, 500))


@pytest.fixture(scope="module")
def shared(etcd_cluster_runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster that these tests share."""
    store = Store(tmp_path_factory.mktemp("shared"))
    with Cluster.create(_spec(), runtime=etcd_cluster_runtime, store=store, temporary=True) as cluster:
        yield cluster


@pytest.fixture
def etcd_cluster(shared: Cluster) -> Cluster:
    """The shared cluster, up and without keys whatever became of it before."""
    shared.up()
    shared.client().delete_prefix("")
    return shared


@pytest.fixture
def own_cluster(etcd_cluster_runtime: str, store: Store) -> Iterator[Cluster]:
    """A cluster of the test's own, for what `up` does not put right."""
    with Cluster.create(_spec(), runtime=etcd_cluster_runtime, store=store, temporary=True) as cluster:
        yield cluster


def _stamps(cluster: Cluster) -> tuple[float, int]:
    """What changes when the record is written, and when anything is written to etcd."""
    status = cluster.members[0].status()
    # A container's own health check asks for alarms, which is an entry in the log, but no revision.
    written = status.raft_applied_index if cluster.runtime.name == "process" else status.revision
    return (cluster.store.cluster_dir(cluster.name) / "cluster.json").stat().st_mtime, written


def _first_leader(cluster: Cluster, wait_until: Wait) -> str:
    """Wait until there is a leader; nothing but NoLeader may be said before."""
    found: list[str] = []

    def look() -> bool:
        try:
            found.append(cluster.leader().name)
        except NoLeader:
            return False
        return True

    wait_until(look, what="a leader")
    return found[0]


# -- healthy


def test_a_cluster_that_is_up(etcd_cluster: Cluster) -> None:
    """It has three healthy members of which one leads, serves through each, and shows where."""
    status = etcd_cluster.status()
    assert (status.verdict, status.runtime, status.quorum) == ("healthy", etcd_cluster.runtime.name, 2)
    assert [m.name for m in status.members] == ["ironman", "thor", "deadpool"]
    assert sorted(m.role for m in status.members) == ["follower", "follower", "leader"]
    assert status.leader == etcd_cluster.leader().name
    assert etcd_cluster.endpoints == [m.client_url for m in etcd_cluster.members]
    for member in etcd_cluster.members:
        etcd_cluster.client(member.name).put("k", member.name)
        assert {etcd_cluster.client(m.name).get("k")[0] for m in etcd_cluster.members} == {member.name.encode()}
        assert member.state() == "running"
        assert member.status().member_id == int(status.member(member.name).id, 16)
    assert "ironman, thor, deadpool" in repr(etcd_cluster)
    assert repr(etcd_cluster.member("thor")) == "<Member thor of test>"
    etcd_cluster.wait_healthy()


def test_up_again_changes_nothing(etcd_cluster: Cluster) -> None:
    """On a running cluster up starts nobody, and writes neither the record nor to etcd."""
    before = _stamps(etcd_cluster)
    assert etcd_cluster.up() == []
    assert etcd_cluster.status().verdict == "healthy"
    assert _stamps(etcd_cluster) == before


def test_data_is_kept_between_down_and_up(etcd_cluster: Cluster) -> None:
    """Down stops all, a frozen member too, and says whom; up starts them, and finds the same keys."""
    etcd_cluster.client().put("k", "kept")
    etcd_cluster.member("thor").pause()
    assert sorted(etcd_cluster.down()) == ["deadpool", "ironman", "thor"]
    assert {m.state() for m in etcd_cluster.members} == {"stopped"}
    assert etcd_cluster.status().verdict == "down"
    assert etcd_cluster.down() == []
    assert etcd_cluster.up() == ["ironman", "thor", "deadpool"]
    assert etcd_cluster.client().get("k")[0] == b"kept"
    assert list(etcd_cluster.client().get_prefix("etcdops/")) == []


def test_up_brings_back_what_is_stopped_and_what_is_frozen(etcd_cluster: Cluster) -> None:
    """Only the members that are away are started or let go on, and they are named in the order of creation."""
    thor = life(etcd_cluster.record, "thor")
    etcd_cluster.member("deadpool").kill()
    etcd_cluster.member("ironman").pause()
    said: list[str] = []
    assert etcd_cluster.up(progress=said.append) == ["ironman", "deadpool"]
    assert etcd_cluster.status().verdict == "healthy"
    assert life(etcd_cluster.record, "thor") == thor
    assert "ironman is frozen: letting it go on" in said


# -- looking at what is broken


def test_status_with_a_member_stopped_and_one_frozen(etcd_cluster: Cluster) -> None:
    """With one away the others serve; with two away nothing does, and looking comes to its end."""
    leader = etcd_cluster.leader()
    others = [m for m in etcd_cluster.members if m.name != leader.name]
    others[0].kill()
    status = etcd_cluster.status()
    assert (status.verdict, status.leader) == ("degraded", leader.name)
    assert status.member(others[0].name).health == "stopped"
    others[1].pause()
    status = etcd_cluster.status(timeout_s=1.0)
    assert status.verdict == "no-quorum"
    assert status.member(others[1].name).health == "frozen"
    alone = status.member(leader.name)
    assert (alone.health, alone.id != "") == ("unhealthy", True)
    # Cut off, it leads in name until it steps down after an election timeout.
    assert any(e.startswith("DEADLINE_EXCEEDED") or "leader" in e or "timed out" in e for e in alone.errors), alone
    with pytest.raises(QuorumLost, match="1 of 3 voters answer, and the quorum is 2") as caught:
        etcd_cluster.leader()
    assert caught.value.exit_code == 5
    with pytest.raises(EtcdError) as timed_out:
        etcd_cluster.client(leader.name, timeout_s=0.5).put("k", "v")
    # By the client's clock or the server's; either way the write may be applied later.
    assert timed_out.value.definite is False
    assert timed_out.value.endpoint.endswith(leader.client_url.rpartition("//")[2])


def test_nothing_is_written_by_looking(etcd_cluster: Cluster) -> None:
    """However often a cluster is looked at, neither its record nor its data changes."""
    before = _stamps(etcd_cluster)
    for _ in range(3):
        etcd_cluster.status()
        etcd_cluster.leader()
        list(etcd_cluster.members[0].logs())
        etcd_cluster.wait_healthy()
    assert _stamps(etcd_cluster) == before


@on_processes
def test_nobody_leads_until_another_is_elected(etcd_cluster_runtime: str, store: Store, wait_until: Wait) -> None:
    """A killed leader, whom the others still name for a while, is not given; then another is, at a higher term."""
    # Elections that take long enough to be looked at, however slow the machine is.
    spec = ClusterSpec.of_size("slow", timing=Timing(500, 5000))
    with Cluster.create(spec, runtime=etcd_cluster_runtime, store=store, temporary=True) as cluster:
        first = cluster.leader()
        term = cluster.status().term
        first.kill()
        with pytest.raises(NoLeader, match="no member of slow leads: 2 answered") as caught:
            cluster.leader()
        assert caught.value.exit_code == 5
        assert _first_leader(cluster, wait_until) != first.name
        assert cluster.status().term > term
        first.start()
        assert cluster.status().verdict == "healthy"


@on_processes
def test_a_leader_that_woke_up_does_not_count(etcd_cluster: Cluster, wait_until: Wait) -> None:
    """A leader that was frozen while another was elected goes on believing in itself; the higher term decides."""
    first = etcd_cluster.leader()
    first.pause()
    second = _first_leader(etcd_cluster, wait_until)
    assert second != first.name
    first.resume()
    assert etcd_cluster.leader().name == second
    wait_until(lambda: etcd_cluster.status().member(first.name).role == "follower", what="the end of its belief")


@on_processes
def test_an_unhealed_run_is_a_warning(etcd_cluster: Cluster) -> None:
    """What a dead run left is said by status, and put right by up."""
    etcd_cluster.client().put("etcdops/run-1/k", "v")
    etcd_cluster.member("thor").pause()
    etcd_cluster.store.mark_unhealed(
        etcd_cluster.name, Unhealed("run-1", "freeze", "thor", "1:1:1", "2026-01-31T12:00:00+00:00")
    )
    [warning] = [w for w in etcd_cluster.status().warnings if w.code == "unhealed-run"]
    assert "run run-1 (freeze of thor" in warning.message
    assert "died without healing" in warning.message
    assert etcd_cluster.up() == ["thor"]
    assert [w for w in etcd_cluster.status().warnings if w.code == "unhealed-run"] == []
    assert list(etcd_cluster.client().get_prefix("etcdops/")) == []


@on_processes
def test_alarms_are_seen(own_cluster: Cluster) -> None:
    """An alarm is shown with the member that raised it, with a warning of what it means, until it is disarmed."""
    thor = int(own_cluster.status().member("thor").id, 16)
    client = own_cluster.client()
    client.create_alarm(thor)
    status = own_cluster.status()
    assert {m.name: m.alarms for m in status.members} == {"ironman": (), "thor": ("NOSPACE",), "deadpool": ()}
    assert {m.errors for m in status.members} == {()}
    [finding] = [w for w in status.warnings if w.code.startswith("alarm")]
    assert finding.code == "alarm-nospace"
    assert finding.message.startswith("thor has raised NOSPACE: no write is accepted")
    client.disarm(thor, "NOSPACE")
    assert own_cluster.status().member("thor").alarms == ()
    client.create_alarm()  # of no member
    assert {m.alarms for m in own_cluster.status().members} == {("NOSPACE",)}


@on_processes
def test_authentication_is_no_breakdown(own_cluster: Cluster) -> None:
    """With etcd's authentication on, members that serve are healthy, and up and down work; without quorum they do not.

    etcd refuses calls of nobody only after it has reached a quorum for them, so even its refusal shows that it serves.
    """
    ctl = [etcdctl(own_cluster.record), "--endpoints", own_cluster.endpoints[0]]
    for words in (["user", "add", "root:pw"], ["user", "grant-role", "root", "root"], ["auth", "enable"]):
        subprocess.run([*ctl, *words], check=True, capture_output=True, timeout=30)
    status = own_cluster.status()
    assert status.verdict == "healthy"
    assert [w.code for w in status.warnings if w.code == "auth"] == ["auth"]
    own_cluster.down()
    assert len(own_cluster.up(timeout_s=20)) == 3
    for name in ("ironman", "thor"):
        own_cluster.member(name).kill()
    assert own_cluster.status().verdict == "no-quorum"


# -- the client


def test_clients_say_what_is_wrong(etcd_cluster: Cluster) -> None:
    """Errors are typed, with the endpoint; a member that is not there is named before anything is tried."""
    with pytest.raises(SpecError, match="has no member 'hulk'"):
        etcd_cluster.client("hulk")
    with pytest.raises(SpecError, match="has no member 'hulk'"):
        etcd_cluster.member("hulk")
    client = etcd_cluster.client("thor")
    client.put("k", "v")
    etcd_cluster.member("thor").kill()
    with pytest.raises(EtcdError) as caught:
        client.get("k")
    assert caught.value.code == "UNAVAILABLE"
    assert etcd_cluster.record.member("thor").client_url in str(caught.value)
    # Without a name, one that runs is chosen.
    etcd_cluster.member("ironman").kill()
    etcd_cluster.member("thor").start(wait_s=0)
    assert etcd_cluster.client().endpoint == etcd_cluster.record.member("thor").client_url
    for member in etcd_cluster.members:
        member.kill()
    with pytest.raises(QuorumLost, match="0 of 3 voters answer"):
        etcd_cluster.client()
    with pytest.raises(EtcdError, match="UNAVAILABLE"):
        etcd_cluster.member("thor").status()


@on_processes
def test_proxies_are_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, etcd_cluster_runtime: str, tmp_path: Path, store: Store
) -> None:
    """With proxies in the environment that lead nowhere, everything works: members are on this machine."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    spec = ClusterSpec.of_size("proxied", 1)
    with Cluster.create(spec, runtime=etcd_cluster_runtime, store=store, temporary=True) as cluster:
        cluster.client().put("k", "v")
        assert cluster.client().get("k")[0] == b"v"
        assert cluster.status().verdict == "healthy"


# -- members


def test_a_stopped_leader_hands_over(etcd_cluster: Cluster) -> None:
    """SIGTERM lets a leader hand over first: there is another at once, and no election timeout passes."""
    leader = etcd_cluster.leader()
    leader.stop()
    assert leader.state() == "stopped"
    assert etcd_cluster.leader().name != leader.name
    assert leader.record.wanted == "stopped"
    leader.stop()
    leader.kill()


def test_start_does_what_is_needed(etcd_cluster: Cluster) -> None:
    """A running member is left alone, a frozen one goes on, a stopped one is started; each serves afterwards."""
    thor = etcd_cluster.member("thor")
    first = life(etcd_cluster.record, "thor")
    thor.start()
    assert life(etcd_cluster.record, "thor") == first
    thor.pause()
    thor.start()
    assert (life(etcd_cluster.record, "thor"), thor.state()) == (first, "running")
    thor.kill()
    thor.start()
    assert life(etcd_cluster.record, "thor") != first
    assert thor.record.wanted == "running"
    with wire.Connection(thor.client_url) as connection:
        connection.range(b"k", timeout_s=5)
    thor.kill()
    with pytest.raises(MemberFailed, match="member thor does not run"):
        thor.pause()


def test_without_a_quorum_start_need_not_wait(etcd_cluster: Cluster) -> None:
    """The first of several members to come back can be started without waiting for what it cannot do alone."""
    for member in etcd_cluster.members:
        member.kill()
    etcd_cluster.member("thor").start(wait_s=0)
    assert etcd_cluster.status().verdict == "no-quorum"
    assert sorted(etcd_cluster.up()) == ["deadpool", "ironman"]


def test_logs(etcd_cluster: Cluster) -> None:
    """All lines, those since an instant, and the last few of those; a `since` without a zone is this machine's time."""
    thor = etcd_cluster.member("thor")
    lines = list(thor.logs())
    assert len(lines) > 10
    assert {line.member for line in lines} == {"thor"}
    # In the order in which they were written: etcd's threads stamp a line some time before they write it.
    assert lines[0].time < lines[-1].time
    middle = lines[len(lines) // 2].time
    later = [line for line in lines if line.time >= middle]
    assert list(thor.logs(since=middle))[: len(later)] == later
    assert list(thor.logs(since=middle.astimezone(None).replace(tzinfo=None)))[: len(later)] == later
    thor.kill()
    lines = list(thor.logs())
    assert list(thor.logs(last=3)) == lines[-3:]
    assert list(thor.logs(last=0)) == []
    assert list(thor.logs(last=10**6)) == lines
    assert list(thor.logs(since=datetime.now(timezone.utc) + timedelta(hours=1), last=5)) == []
    with pytest.raises(SpecError, match="-1 lines"):
        thor.logs(last=-1)


# -- several at work on one cluster


def _elsewhere(cluster: Cluster, code: str) -> subprocess.Popen[str]:
    """Work on the cluster in another process."""
    prelude = (
        "import sys\nfrom etcdops.cluster import Cluster\nfrom etcdops.state import Store\n"
        "cluster = Cluster.attach(sys.argv[2], store=Store(sys.argv[1]))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", prelude + code, str(cluster.store.root), cluster.name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _ended(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


@on_processes
def test_what_another_process_changed_is_seen(etcd_cluster: Cluster) -> None:
    """An object that was made before sees what another process did since, and works on that."""
    before = life(etcd_cluster.record, "thor")
    thor = etcd_cluster.member("thor")
    _ended(_elsewhere(etcd_cluster, "m = cluster.member('thor'); m.kill(); m.start()"))
    assert thor.state() == "running"
    assert life(etcd_cluster.record, "thor") != before
    assert etcd_cluster.status().verdict == "healthy"
    _ended(_elsewhere(etcd_cluster, "cluster.down()"))
    assert {m.state() for m in etcd_cluster.members} == {"stopped"}
    assert etcd_cluster.status().verdict == "down"


@on_processes
def test_a_record_that_changed_while_it_was_taken_up_is_seen(etcd_cluster: Cluster) -> None:
    """What is written between reading the record and its first use is not missed."""
    store, name = etcd_cluster.store, etcd_cluster.name
    stale = store.load(name)
    etcd_cluster.member("thor").stop()
    taken = Cluster(store, stale, etcd_cluster.runtime)
    assert taken.record.member("thor").wanted == "stopped"


@on_processes
def test_two_at_once_start_each_member_once(etcd_cluster: Cluster) -> None:
    """The second of two that bring a cluster up at the same moment waits for the first, and finds nothing to do."""
    etcd_cluster.down()
    code = "print(len(cluster.up(progress=lambda line: print(line, file=sys.stderr))))"
    processes = [_elsewhere(etcd_cluster, code) for _ in range(2)]
    assert sorted(_ended(process) for process in processes) == ["0", "3"]
    assert etcd_cluster.status().verdict == "healthy"


@on_processes
def test_members_are_changed_under_the_lock(etcd_cluster: Cluster, wait_until: Wait) -> None:
    """Starting, stopping and killing a member wait for whoever works on the cluster; looking does not."""
    thor = etcd_cluster.member("thor")
    killer = threading.Thread(target=thor.kill)
    with etcd_cluster.store.lock(etcd_cluster.name, "test"):
        killer.start()
        etcd_cluster.status()
        etcd_cluster.leader()
        killer.join(0.3)
        assert thor.state() == "running"
        # Whoever holds it may do it all the same.
        etcd_cluster.member("deadpool").kill()
        etcd_cluster.member("deadpool").start()
    killer.join(20)
    assert thor.state() == "stopped"


# -- the end


def test_purge_removes_what_it_names(own_cluster: Cluster) -> None:
    """What is deleted is named first; afterwards nothing is left, and the name is free for another."""
    store, name, old = own_cluster.store, own_cluster.name, own_cluster.record
    contents = own_cluster.contents()
    for member in old.members:
        assert has_data(old, member.name)
        assert any(line.startswith(f"{member.name}: ") and member.data.place in line for line in contents)
    assert str(store.cluster_dir(name)) in contents[-1]
    own_cluster.purge()
    assert store.names() == []
    assert not store.cluster_dir(name).exists()
    assert set(own_cluster.runtime.states(old).values()) == {"stopped"}
    assert left(old.runtime, store.root) == []
    assert not any(has_data(old, member.name) for member in old.members)
    thor = own_cluster.member("thor")
    for act in (own_cluster.purge, own_cluster.up, own_cluster.down, thor.start, thor.stop, thor.kill):
        with pytest.raises(ClusterNotFound, match=f"{name}.* has been deleted"):
            act()
    assert not store.cluster_dir(name).exists()
    assert name in repr(own_cluster)
    other = Cluster.create(ClusterSpec.of_size(name, 1), runtime=own_cluster.runtime, store=store)
    for act in (own_cluster.purge, own_cluster.up):
        with pytest.raises(ClusterNotFound, match=f"was deleted, and another has its name \\({other.record.id}\\)"):
            act()
    with pytest.raises(ClusterNotFound, match="another has its name"):
        _ = own_cluster.record
    assert store.load(name) == other.record
    other.purge()


def test_a_named_cluster_is_kept(etcd_cluster_runtime: str, store: Store) -> None:
    """After its block a named cluster is stopped, and its data are found again."""
    with Cluster.create("kept", size=1, runtime=etcd_cluster_runtime, store=store) as cluster:
        cluster.client().put("k", "v")
    again = Cluster.attach("kept", store=store)
    assert again.status().verdict == "down"
    with again:
        assert again.client().get("k")[0] == b"v"
        again.purge()
    with pytest.raises(ClusterNotFound, match="no cluster 'kept'"):
        Cluster.attach("kept", store=store)


# -- creating, or taking up


def test_ensure_up_creates_once(etcd_cluster_runtime: str, store: Store) -> None:
    """The first call creates and starts, the second does nothing, and each says which it was."""
    spec = ClusterSpec.of_size("lab", 1)
    first = Cluster.ensure_up(spec, runtime=etcd_cluster_runtime, store=store)
    try:
        assert (first.created, first.started) == (True, ["ironman"])
        second = Cluster.ensure_up(ClusterSpec.of_size("lab", 3), store=store)
        assert (second.created, second.started) == (False, [])
        assert second.cluster.record == first.cluster.record
        first.cluster.down()
        third = Cluster.ensure_up(spec, runtime="auto", size=1, store=store)
        assert (third.created, third.started) == (False, ["ironman"])
    finally:
        first.cluster.purge()


def _bad_thor(directory: Path) -> ClusterSpec:
    """A cluster with mutual TLS in which one member cannot start, as its certificate is garbage."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1", "localhost", "ironman.peer", "thor.peer")
    issued.private_key_pem.write_to_path(str(directory / "pair.key"))
    issued.cert_chain_pems[0].write_to_path(str(directory / "pair.pem"))
    (directory / "garbage").write_text("garbage")
    ca, cert, key, garbage = (str(directory / name) for name in ("ca.pem", "pair.pem", "pair.key", "garbage"))
    members = (MemberSpec("ironman", cert=cert, key=key), MemberSpec("thor", cert=garbage, key=garbage))
    return ClusterSpec("lab", members, timing=Timing(10, 100), tls=Tls(ca, cert, key))


def test_of_a_new_cluster_that_does_not_start_nothing_is_left(
    etcd_cluster_runtime: str, store: Store, tmp_path: Path
) -> None:
    """A new cluster of which one member dies at its start is wholly gone, and the member's own words are shown."""
    said: list[str] = []
    with pytest.raises(MemberFailed, match="failed to find any PEM data") as caught:
        Cluster.ensure_up(_bad_thor(tmp_path), runtime=etcd_cluster_runtime, store=store, progress=said.append)
    assert "member thor died" in str(caught.value)
    assert any("the start failed: stopping ironman, thor again" in line for line in said)
    assert store.names() == []
    assert not store.cluster_dir("lab").exists()
    assert left(etcd_cluster_runtime, store.root) == []


def test_of_a_temporary_cluster_that_does_not_start_nothing_is_left(etcd_cluster_runtime: str, tmp_path: Path) -> None:
    """When the start of a temporary cluster fails, the error is that of the start, and nothing of it is left."""
    cluster = Cluster.create(_bad_thor(tmp_path), runtime=etcd_cluster_runtime, temporary=True)
    with pytest.raises(MemberFailed, match="member thor died"), cluster:
        pytest.fail("it started")
    assert left(etcd_cluster_runtime, cluster.store.root) == []
    assert not cluster.store.root.exists()


class _Boom(Exception):
    pass


@pytest.mark.parametrize(
    "ends",
    [
        *("well", "record lost", "frozen"),
        *(pytest.param(way, marks=on_processes) for way in ("error", "interrupt", "purged", "record damaged")),
    ],
)
def test_a_temporary_cluster_is_gone_however_its_block_ends(etcd_cluster_runtime: str, ends: str) -> None:
    """After the block nothing runs and no file is left, whatever happened inside to it or to its record."""
    error = {"error": _Boom, "interrupt": KeyboardInterrupt}.get(ends)
    spec = ClusterSpec.of_size("tmp", 1, timing=Timing(10, 100))
    cluster = Cluster.create(spec, runtime=etcd_cluster_runtime, temporary=True)
    root = cluster.store.root
    assert root.name.startswith("etcdops-")
    record = root / "clusters" / "tmp" / "cluster.json"

    def use() -> None:
        with cluster:
            assert cluster.status().verdict == "healthy"
            if ends == "purged":
                cluster.purge()
                assert not root.exists()
                with pytest.raises(ClusterNotFound):
                    cluster.members[0].start()
                assert not root.exists()
            elif ends == "record lost":
                record.unlink()
            elif ends == "record damaged":
                record.write_text("{")
            elif ends == "frozen":
                cluster.members[0].pause()
            elif error:
                raise error

    if error:
        with pytest.raises(error):
            use()
    else:
        use()
    assert left(etcd_cluster_runtime, root) == []
    assert not root.exists()


def test_wishes_that_differ_are_refused(etcd_cluster: Cluster, tmp_path: Path) -> None:
    """What is fixed at creation is not changed by asking for something else: it says what the cluster has."""
    name, record = etcd_cluster.name, etcd_cluster.record
    plain = ClusterSpec.of_size(name)
    pem = tmp_path / "pem"
    pem.write_text("")
    tls = Tls(str(pem), str(pem), str(pem))
    members = tuple(MemberSpec(m.name, cert=str(pem), key=str(pem)) for m in plain.members)
    first_port = etcd_cluster.endpoints[0].rpartition(":")[2]
    wishes: list[tuple[ClusterSpec, dict[str, object], str]] = [
        (plain, {"size": 5}, "3 members, not 5"),
        (plain, {"runtime": "fake"}, f"runtime {record.runtime}, not fake"),
        (msgspec.structs.replace(plain, etcd_version="3.4.0"), {}, f"etcd {record.etcd_version}, not 3.4.0"),
        (msgspec.structs.replace(plain, etcd_bin="/bin"), {}, "not /bin"),
        (ClusterSpec.of_size(name, base_port=2379), {}, f"port {first_port} for its first member, not 2379"),
        (msgspec.structs.replace(plain, timing=Timing(10, 100)), {}, "an election timeout of 500 ms"),
        (msgspec.structs.replace(plain, purpose="production"), {}, "the purpose lab, not production"),
        (msgspec.structs.replace(plain, tls=tls, members=members), {}, "has no TLS"),
        (plain, {"size": 1, "runtime": "fake"}, "not fake; 3 members, not 1"),
    ]
    for spec, options, says in wishes:
        with pytest.raises(Refused, match=says) as caught:
            Cluster.ensure_up(spec, store=etcd_cluster.store, **options)  # type: ignore[arg-type]
        assert "fixed when it is created" in str(caught.value)
        assert caught.value.exit_code == 3
    assert etcd_cluster.record == record
    same = msgspec.structs.replace(plain, etcd_version=f"v{record.etcd_version}")
    assert Cluster.ensure_up(same, runtime=record.runtime, size=3, store=etcd_cluster.store).started == []


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"spec": "Upper"}, SpecError, "'Upper' cannot name a cluster"),
        ({"spec": "a/b"}, SpecError, "'a/b' cannot name a cluster"),
        ({"spec": "lab", "size": 0}, SpecError, "a cluster of 0 members is not offered"),
        ({"spec": None, "size": 9}, SpecError, "a cluster of 9 members is not offered"),
        ({"spec": "lab", "runtime": "docker"}, SpecError, "there is no runtime 'docker'"),
        ({"spec": None, "runtime": "docker"}, SpecError, "there is no runtime 'docker'"),
    ],
)
def test_bad_wishes_leave_nothing(
    store: Store, options: dict[str, object], error: type[Exception], says: str, tmp_path: Path
) -> None:
    """What is not valid is refused before anything is made, not even a directory."""
    with pytest.raises(error, match=says):
        Cluster.create(store=store, **options)  # type: ignore[arg-type]
    assert not store.root.exists()
    assert list(tmp_path.iterdir()) == []


def test_tls_files_are_looked_at_first(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PEM file that is missing is named; relative paths are recorded as absolute ones, as members run elsewhere."""
    monkeypatch.chdir(tmp_path)
    spec = ClusterSpec(
        "lab", (MemberSpec("a", cert="a.pem", key="a.key"),), tls=Tls("ca.pem", "client.pem", "client.key")
    )
    with pytest.raises(SpecError, match=r"cannot read the PEM file ca\.pem: No such file"):
        Cluster.create(spec, store=store)
    assert store.names() == []
    for name in ("a.pem", "a.key", "ca.pem", "client.pem", "client.key"):
        (tmp_path / name).write_text("")
    recorded = Cluster.create(spec, store=store).record.spec
    assert recorded.tls == Tls(*(str(tmp_path / name) for name in ("ca.pem", "client.pem", "client.key")))
    assert (recorded.members[0].cert, recorded.members[0].key) == (str(tmp_path / "a.pem"), str(tmp_path / "a.key"))


def test_a_damaged_record_is_refused_by_everything(etcd_cluster: Cluster) -> None:
    """With a record that cannot be read nothing is done, and the members go on as they are."""
    path = etcd_cluster.store.cluster_dir(etcd_cluster.name) / "cluster.json"
    content = path.read_text()
    path.write_text(content.replace('"runtime"', '"runtim"'))
    for act in (etcd_cluster.up, etcd_cluster.down, etcd_cluster.purge, etcd_cluster.status, etcd_cluster.leader):
        with pytest.raises(StateError, match=r"cluster\.json is damaged: .*`runtim"):
            act()
    path.write_text(content)
    assert etcd_cluster.status().verdict == "healthy"
