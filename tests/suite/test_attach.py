"""Clusters that etcdops did not make: attached by their endpoints, looked at, and never touched behind their backs."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from etcdops import runtimes, versions, wire
from etcdops.answers import hex_id
from etcdops.binaries import etcdctl_for
from etcdops.cluster import Cluster
from etcdops.drills import run as run_drill
from etcdops.errors import EtcdError, QuorumLost, Refused, RuntimeUnavailable, SpecError
from etcdops.facts import collect
from etcdops.faults.heal import heal
from etcdops.foreign.endpoints import parse_endpoints
from etcdops.inventory import find_clusters
from etcdops.logs import merged
from etcdops.operations import data, members, reconfigure
from etcdops.operations.leader import move_leader
from etcdops.runtimes.attached import AttachedRuntime
from etcdops.runtimes.base import Runtime
from etcdops.runtimes.fake import FakeRuntime
from etcdops.snapshots.saving import save_snapshot
from etcdops.snapshots.verifying import verify_snapshot
from etcdops.spec import Tls
from etcdops.state import Store
from tests.conftest import CommandLine, place
from tests.suite.byhand import ByHand, free_ports
from tests.suite.shared import NAMED

Wait = Callable[..., None]

#: A host name, one that cannot be a name here, and one with a capital.
_NAMES = ["infra0.example.com", "a member", "Thor"]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    """A cluster of three: one advertises an address where nothing listens, and one that of another member."""
    by_hand = ByHand(tmp_path_factory.mktemp("theirs"), _NAMES)
    by_hand.advertise = {
        "a member": f"http://127.0.0.1:{free_ports(1)[0]}",
        "Thor": by_hand.client["infra0.example.com"],
    }
    by_hand.start()
    try:
        by_hand.wait()
        yield by_hand
    finally:
        by_hand.stop()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    """Another cluster, of one member that nobody gave a name."""
    by_hand = ByHand(tmp_path_factory.mktemp("other"), ["default"], token="other")
    by_hand.start()
    try:
        by_hand.wait()
        yield by_hand
    finally:
        by_hand.stop()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[CommandLine]:
    """A command line in a directory of its own."""
    with place(tmp_path / "place") as command_line:
        yield command_line


@pytest.fixture
def prod(theirs: ByHand, store: Store) -> Iterator[Cluster]:
    """The cluster of three, attached, with every member reached; untouched by whatever is done with it."""
    alive, before = theirs.alive(), theirs.stamps()
    yield Cluster.attach_endpoints(theirs.client.values(), "prod", store=store)
    assert theirs.alive() == alive
    assert {name: each[0] for name, each in theirs.stamps().items()} == {name: each[0] for name, each in before.items()}


def _urls(cluster: Cluster) -> dict[str, str]:
    return {member.name: member.client_url for member in cluster.record.members}


# -- who its members are


def test_every_member_that_proves_itself_is_recorded(theirs: ByHand, store: Store) -> None:
    """Members are recorded with their ids and the endpoints that are theirs; nothing is written to the cluster."""
    before = theirs.stamps()
    said: list[str] = []
    cluster = Cluster.attach_endpoints(
        ",".join(theirs.client.values()) + "/", "prod", store=store, progress=said.append
    )
    record = cluster.record
    ids = {name: hex_id(stamp[0]) for name, stamp in before.items()}
    assert {m.etcd_name or m.name: (m.ref, m.client_url) for m in record.members} == {
        name: (ids[name], theirs.client[name]) for name in _NAMES
    }
    assert [m.name for m in record.members] == ["a-member", "infra0.example.com", "Thor"]
    assert (record.runtime, record.spec.purpose, record.etcd_version) == ("attached", "production", _version(theirs))
    assert said == []
    status = cluster.status(gate=True)
    assert (status.verdict, [f.code for f in status.blockers]) == ("healthy", [])
    assert status.leader in record.spec.names
    assert theirs.stamps() == before
    assert "etcd's name for it: 'a member'" in cluster.runtime.described(record, record.members[0])


def _version(by_hand: ByHand) -> str:
    with wire.Connection(next(iter(by_hand.client.values()))) as connection:
        return connection.status(timeout_s=20).version


def test_an_advertised_address_is_used_only_where_it_proves_true(theirs: ByHand, line: CommandLine) -> None:
    """Where no endpoint is given, a member's own is tried: one that works is used, one that leads elsewhere is not."""
    one = line("cluster.attach", "--endpoints", theirs.client["Thor"], "--cluster", "prod")
    assert one.code == 0, one.err
    assert _urls(line.cluster("prod")) == {
        "a-member": "",
        "infra0.example.com": theirs.client["infra0.example.com"],
        "Thor": theirs.client["Thor"],
    }
    assert "infra0.example.com is reached at" in one.err
    assert f"a member advertises {theirs.advertise['a member']}, where nobody answers from here" in one.err
    assert "a-member is recorded, and not reached from here" in one.err
    assert "2 of 3 members are reached, purpose production" in one.err

    # Seen from infra0's side, what Thor advertises is infra0 itself.
    two = line("cluster.attach", "--endpoints", theirs.client["infra0.example.com"], "--cluster", "prod", "-o", "json")
    assert two.code == 0, two.err
    assert _urls(line.cluster("prod"))["Thor"] == theirs.client["Thor"], "what was recorded before is still true"
    pruned = line("cluster.prune", "--cluster", str(line.store.cluster_dir("prod")), "--yes")
    assert "forgot prod" in pruned.err, pruned.err
    assert "nothing of prod itself" in pruned.err
    three = line("cluster.attach", "--endpoints", theirs.client["infra0.example.com"], "--cluster", "prod")
    assert f"advertises {theirs.advertise['Thor']}, and from here that is" in three.err
    assert _urls(line.cluster("prod"))["Thor"] == ""

    # Two of three are not reached: they are shown so, and nowhere are the addresses that do not work.
    status = line("status", "--cluster", "prod", "-o", "json")
    assert status.code == 5
    seen = json.loads(status.out)
    assert [(m["name"], m["health"]) for m in seen["members"]] == [
        ("a-member", "unreachable"),
        ("infra0.example.com", "healthy"),
        ("Thor", "unreachable"),
    ]
    assert theirs.advertise["a member"] not in status.out
    # Given an endpoint of each, it is whole again.
    whole = line("cluster.attach", "--endpoints", ",".join(theirs.client.values()), "--cluster", "prod")
    assert "was attached before, and is refreshed: 3 of 3 members are reached" in whole.err
    assert line("status", "--cluster", "prod").code == 0
    again = line("cluster.attach", "--cluster", "prod")
    assert again.code == 0, again.err
    assert _urls(line.cluster("prod"))["a-member"] == theirs.client["a member"]


def test_an_address_that_leads_to_another_member_by_now_is_not_believed(prod: Cluster, theirs: ByHand) -> None:
    """A recorded member whose address is another's by now counts as not reached, and the finding says who is there."""
    thor = prod.record.member("Thor")
    prod.store.save(
        prod.record.with_member(msgspec.structs.replace(thor, client_url=theirs.client["infra0.example.com"]))
    )
    status = prod.status()
    assert status.verdict == "degraded"
    assert status.member("Thor").health == "unreachable"
    [finding] = [f for f in status.blockers if f.member == "Thor"]
    assert finding.code == "member-unreachable"
    assert f"answers there, and {thor.ref} is recorded" in finding.message
    assert "cluster.attach" in finding.remedy
    assert "logs" not in finding.remedy.replace("its log", "")


@pytest.mark.parametrize("version", list(NAMED) or [""])
def test_each_version(version: str, store: Store, tmp_path: Path) -> None:
    """Every release of etcd that is given can be attached, whatever is known to be bad about it, which is said."""
    by_hand = ByHand(tmp_path / "one", ["solo"], binary=f"{NAMED[version]}/etcd" if version else "")
    by_hand.start()
    try:
        by_hand.wait()
        cluster = Cluster.attach_endpoints(by_hand.client["solo"], store=store)
        assert cluster.record.etcd_version == (version or _version(by_hand))
        status = cluster.status(gate=True)
        assert (status.verdict, status.blockers) == ("healthy", ())
        unsafe = versions.is_unsafe(versions.parse_version(cluster.record.etcd_version))
        assert unsafe or not any(finding.code.startswith("known-bad") for finding in status.warnings)
        assert save_snapshot(cluster, tmp_path / "x.db").manifest
    finally:
        by_hand.stop()


def test_learners_and_members_that_never_started(store: Store, tmp_path: Path, wait_until: Wait) -> None:
    """One that never started goes by its id; two of one name by name and id; a learner is seen, and can be promoted."""
    first = ByHand(tmp_path / "first", ["default"])
    second = ByHand(tmp_path / "second", ["default"])
    try:
        first.start()
        first.wait()
        url = first.client["default"]
        with wire.Connection(url) as connection:
            added = connection.member_add([second.peer["default"]], learner=True, timeout_s=10.0)
        cluster = Cluster.attach_endpoints(url, store=store)
        assert _urls(cluster) == {hex_id(added.id): "", "default": url}
        assert "member-unstarted" in [f.code for f in cluster.status().warnings]

        join = f"first={first.peer['default']},default={second.peer['default']}"
        second.start(join=join)
        wait_until(lambda: _serves_locally(second.client["default"]))
        cluster = Cluster.attach_endpoints(store=store)
        learner = f"default-{hex_id(added.id)}"
        assert _urls(cluster)[learner] == second.client["default"]
        assert len(cluster.record.members) == 2
        status = cluster.status()
        assert (status.verdict, status.member(learner).role) == ("healthy", "learner")
        assert "learner-pending" in [f.code for f in status.blockers]
        with pytest.raises(Refused, match="learner"):
            save_snapshot(cluster, tmp_path / "x.db", member=learner)

        wait_until(lambda: _promoted(cluster, learner), 60.0)
        assert cluster.status().member(learner).role == "follower"
    finally:
        first.stop()
        second.stop()


def _serves_locally(url: str) -> bool:
    try:
        with wire.Connection(url) as connection:
            return bool(connection.status(timeout_s=1.0).leader)
    except EtcdError:
        return False


def _promoted(cluster: Cluster, name: str) -> bool:
    return bool(cluster.promote_member(name, allow_known_bad=True).operation)


def test_members_that_are_down_and_no_quorum(store: Store, tmp_path: Path) -> None:
    """Attached while most are down, a cluster is recorded as one member knows it; once they are back it is whole."""
    by_hand = ByHand(tmp_path / "three", ["a", "b", "c"])
    try:
        by_hand.start()
        by_hand.wait()
        with wire.Connection(by_hand.client["a"]) as connection:
            connection.put(b"k", b"v", timeout_s=20)
        by_hand.stop("c")
        said: list[str] = []
        cluster = Cluster.attach_endpoints(by_hand.client.values(), "down", store=store, progress=said.append)
        assert _urls(cluster) == {"a": by_hand.client["a"], "b": by_hand.client["b"], "c": ""}
        assert any(by_hand.client["c"] in line and "nothing listens there" in line for line in said)
        assert any(line.startswith("c is recorded, and not reached") for line in said)
        status = cluster.status()
        assert (status.verdict, status.member("c").health, status.exit_code) == ("degraded", "unreachable", 4)

        by_hand.stop("b")
        assert cluster.status().verdict == "no-quorum"
        with pytest.raises(Refused, match="up-env of down"):
            cluster.up()
        with pytest.raises(QuorumLost) as lost:
            cluster.leader()
        assert "up-env" not in lost.value.remedy
        with pytest.raises(QuorumLost) as lost:
            move_leader(cluster)
        assert "up-env" not in lost.value.remedy
        said.clear()
        again = Cluster.attach_endpoints(by_hand.client["a"], "down", store=store, progress=said.append)
        assert any("no quorum answers" in line for line in said)
        assert set(_urls(again)) == {"a", "b", "c"}
        saved = save_snapshot(again, tmp_path / "lost.db")
        assert saved.manifest
        assert not saved.manifest.quorum
        found = {each.name: each for each in find_clusters(store)}["down"]
        assert (found.state, found.runtime) == ("partly up", "attached")

        by_hand.start("b", "c")
        by_hand.wait()
        whole = Cluster.attach_endpoints(store=store, name="down")
        assert all(_urls(whole).values())
        assert whole.status(gate=True).blockers == ()
        by_hand.stop()
        assert {each.name: each.state for each in find_clusters(store)}["down"] == "unknown"
    finally:
        by_hand.stop()


# -- what works


def test_what_needs_no_process_works(prod: Cluster, theirs: ByHand, tmp_path: Path) -> None:
    """Status, snapshots, moving leadership, the client, and what comes from facts alone, work as on any cluster."""
    prod.client().put("k", "v")
    assert prod.client("Thor").get("k")[0] == b"v"
    saved = save_snapshot(prod, tmp_path / "x.db")
    assert saved.manifest
    assert saved.manifest.cluster == "prod"
    assert verify_snapshot(saved.path).exit_code == 0
    leader = prod.leader().name
    to = next(name for name in prod.record.spec.names if name != leader)
    assert move_leader(prod, to).name == to
    assert prod.leader().name == to
    assert data.generations(prod) == ()
    assert prod.status().blockers == ()
    assert prod.promote_member("Thor").already == "Thor is a voter already"


def test_the_commands_work_on_it(theirs: ByHand, line: CommandLine) -> None:
    """From the command line: attach, ctl, status, snapshot.save, member.move-leader, cluster.list, and forgetting."""
    alive = theirs.alive()
    attached = line("cluster.attach", "--endpoints", ",".join(theirs.client.values()))
    assert attached.code == 0, attached.err
    exported = next(text for text in attached.out.splitlines() if text.startswith("export "))
    assert set(exported.partition("=")[2].split(",")) == set(theirs.client.values())
    assert line("ctl", "--", "put", "greeting", "hello").out == "OK\n"
    assert line("ctl", "--", "get", "greeting", "--print-value-only").out == "hello\n"
    assert line("status", "--gate").code == 0
    saved = line("snapshot.save")
    assert saved.code == 0, saved.err
    moved = line("member.move-leader")
    assert moved.code == 0, moved.err
    listed = json.loads(line("cluster.list", "-o", "json").out)["clusters"]
    [mine] = [each for each in listed if each["state_dir"] == str(line.store.root)]
    assert (mine["name"], mine["state"], mine["runtime"]) == ("lab", "up", "attached")

    asked = line("down-env", "--purge")
    assert asked.code == 2
    assert "are not touched" in asked.err
    forgotten = line("down-env", "--purge", "--yes")
    assert forgotten.code == 0, forgotten.err
    assert "is forgotten; its members were not touched" in forgotten.err
    assert line.store.names() == []
    assert theirs.alive() == alive
    theirs.wait()
    assert Path(saved.out.strip()).exists(), "snapshots are kept"


# -- what is refused


def _refusals(prod: Cluster) -> dict[str, Callable[[], Any]]:
    record, name = prod.record, "Thor"
    member = prod.member(name)
    return {
        "up": prod.up,
        "down": prod.down,
        "ensure_up": lambda: Cluster.ensure_up(record.spec, store=prod.store),
        "enter": prod.__enter__,
        "start": member.start,
        "stop": member.stop,
        "kill": member.kill,
        "pause": member.pause,
        "resume": member.resume,
        "logs": lambda: list(member.logs()),
        "merged": lambda: list(merged(prod.runtime, record.members)),
        "heal": lambda: heal(prod),
        "add": lambda: reconfigure.add(prod),
        "replace": lambda: reconfigure.replace(prod, name),
        "remove": lambda: reconfigure.remove(prod, name),
        "restore": lambda: prod.restore("any.db"),
        "recover": prod.recover,
        "rollback": prod.rollback,
        "drill": lambda: run_drill("failed-leader", prod, how="stop"),
        "next_data": lambda: prod.runtime.next_data(record, name),
        "remove_data": lambda: prod.runtime.remove_data(record, [record.members[0].data]),
        **{action: lambda a=action: members.run(prod, a, name) for action in members.ACTIONS},  # type: ignore[misc]
        **{f"plan {action}": lambda a=action: members.prepare(prod, a, name) for action in members.ACTIONS},  # type: ignore[misc]
    }


@pytest.mark.parametrize("purpose", ["production", "lab"])
def test_what_needs_their_processes_is_refused(theirs: ByHand, store: Store, purpose: str) -> None:
    """Each says that etcdops did not start them, and what to do; no process, key, log entry or record is changed."""
    prod = Cluster.attach_endpoints(theirs.client.values(), "prod", purpose=purpose, store=store)
    alive, before, record = theirs.alive(), theirs.stamps(), prod.record
    for what, call in _refusals(prod).items():
        with pytest.raises(Refused) as refused:
            call()
        if (what, purpose) != ("drill", "production"):
            assert "etcdops did not start" in str(refused.value), what
        assert refused.value.remedy, what
    assert (theirs.alive(), theirs.stamps()) == (alive, before)
    assert Cluster.attach("prod", store=store).record == record
    assert not store.runs.exists() or not list(store.runs.iterdir())


def test_commands_that_are_refused_exit_3(theirs: ByHand, line: CommandLine) -> None:
    """The tasks say the same, with exit code 3, also for a dry run; `ctl` offers nothing when nobody answers."""
    line("cluster.attach", "--endpoints", theirs.client["Thor"])
    before = theirs.stamps()
    for words in (("up-env",), ("logs",), ("failed-leader",), ("member.stop", "Thor", "--dry-run")):
        ended = line(*words)
        assert ended.code == 3, (words, ended)
        assert "  -> " in ended.err
    assert theirs.stamps() == before


def test_no_cluster_is_made_in_this_way(store: Store) -> None:
    """The runtime is for what is there already: nothing can be created by it, and no command line offers it."""
    runtime: Runtime = AttachedRuntime()
    for given in (runtime, "attached"):
        with pytest.raises(RuntimeUnavailable, match="makes no clusters"):
            Cluster.create("new", runtime=given, store=store)
    assert "attached" not in runtimes.names()
    assert store.names() == []


def test_ctl_says_that_nobody_answers(line: CommandLine, tmp_path: Path) -> None:
    """With all members down, `ctl` and `status` say so; neither offers to start what is not etcdops' to start."""
    by_hand = ByHand(tmp_path / "gone", ["solo"])
    by_hand.start()
    try:
        by_hand.wait()
        assert line("cluster.attach", "--endpoints", by_hand.client["solo"]).code == 0
    finally:
        by_hand.stop()
    ended = line("ctl", "--", "get", "k")
    assert ended.code == 3
    assert "etcdops did not start them" in ended.err
    assert "up-env" not in ended.err
    status = line("status")
    assert status.code == 5
    assert "up-env" not in status.out + status.err
    again = line("cluster.attach")
    assert again.code == 3
    assert "nothing listens there" in again.err
    assert line("cluster.list").out.count("unknown") >= 1


# -- what cannot be attached


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("", "no endpoint is given"),
        (",", "no endpoint is given"),
        ("localhost:2379", "has no scheme"),
        ("ftp://localhost:2379", "neither http"),
        ("unix://localhost:2379", "neither http"),
        ("http://localhost", "names no port"),
        ("http://localhost:0", "names no port"),
        ("http://localhost:99999", "not a URL"),
        ("http://localhost:x", "not a URL"),
        ("http://:2379", "names no host"),
        ("http://local host:2379", "names no host"),
        ("http://localhost:2379/v3", "more than a host and a port"),
        ("http://localhost:2379?x=1", "more than a host and a port"),
        ("http://root:secret@localhost:2379", "no user and no password"),
        ("http://[::1:2379", "not a URL"),
        ("https://localhost:2379", "no authority's certificate"),
    ],
)
def test_what_is_no_endpoint(store: Store, given: str, said: str) -> None:
    """Refused before anything is asked, saying what is wrong and what an endpoint looks like; secrets stay unsaid."""
    with pytest.raises(SpecError, match=said) as refused:
        Cluster.attach_endpoints(given, store=store)
    assert refused.value.remedy
    assert "secret" not in f"{refused.value}{refused.value.remedy}"
    assert not store.root.exists()


def test_endpoints_in_their_plain_form() -> None:
    """Given twice, with a slash or with capitals, an endpoint is one; IPv6 keeps its brackets."""
    assert parse_endpoints(["http://Host:1/,http://host:1", " http://[::1]:2 "]) == ("http://host:1", "http://[::1]:2")


def test_endpoints_of_two_clusters(theirs: ByHand, other: ByHand, store: Store) -> None:
    """Both clusters are named, and which endpoint leads to which; nothing is recorded."""
    with pytest.raises(Refused, match="different clusters") as refused:
        Cluster.attach_endpoints([theirs.client["Thor"], other.client["default"]], store=store)
    for by_hand in (theirs, other):
        with wire.Connection(next(iter(by_hand.client.values()))) as connection:
            assert hex_id(connection.status(timeout_s=20).cluster_id) in str(refused.value)
    assert store.names() == []


def test_names_that_are_taken(theirs: ByHand, other: ByHand, store: Store) -> None:
    """A name of another cluster's is refused, be it ours or theirs; so is a second name for the same cluster."""
    Cluster.create("mine", runtime=FakeRuntime(), store=store)
    before = Store(store.root).load("mine")
    with pytest.raises(Refused, match="which etcdops made"):
        Cluster.attach_endpoints(other.client["default"], "mine", store=store)
    assert store.load("mine") == before
    with pytest.raises(SpecError, match="cannot name a cluster"):
        Cluster.attach_endpoints(other.client["default"], "../x", store=store)

    one = Cluster.attach_endpoints(other.client["default"], "one", store=store)
    with pytest.raises(Refused, match=f"'one' is recorded as the cluster {one.record.id}"):
        Cluster.attach_endpoints(theirs.client["Thor"], "one", store=store)
    with pytest.raises(Refused, match="attached already, as 'one'"):
        Cluster.attach_endpoints(other.client["default"], "two", store=store)
    assert store.names() == ["mine", "one"]
    assert one.record == store.load("one")
    # What was asked for the first time stays, until something else is asked for.
    assert Cluster.attach_endpoints(name="one", purpose="lab", store=store).record.spec.purpose == "lab"
    assert Cluster.attach_endpoints(name="one", store=store).record.spec.purpose == "lab"
    with pytest.raises(SpecError, match="purpose"):
        Cluster.attach_endpoints(name="one", purpose="play", store=store)


def test_what_answers_and_is_no_etcd(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that accepts connections and says nothing is told from one where nothing listens."""
    # It says nothing however long it is listened to.
    monkeypatch.setattr("etcdops.foreign.trouble._SPEAK_S", 0.3)
    monkeypatch.setattr("etcdops.foreign.probing._ANSWER_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = f"http://127.0.0.1:{mute.getsockname()[1]}"
        dead = f"http://127.0.0.1:{free_ports(1)[0]}"
        with pytest.raises(Refused, match="no endpoint answers") as refused:
            Cluster.attach_endpoints([silent, dead], store=store)
    said = str(refused.value)
    assert f"{silent}: something accepts connections and does not answer as etcd does" in said
    assert f"{dead}: nothing listens there" in said
    assert store.names() == []


def test_behind_a_gateway_nobody_is_proved(theirs: ByHand, store: Store, tmp_path: Path, wait_until: Wait) -> None:
    """An endpoint behind which several members answer stands for none of them, alone or beside others."""
    port = free_ports(1)[0]
    backends = ",".join(url.removeprefix("http://") for url in theirs.client.values())
    argv = [theirs.binary, "gateway", "start", f"--endpoints={backends}", f"--listen-addr=127.0.0.1:{port}"]
    with open(tmp_path / "gateway.log", "wb") as log:
        gateway = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: _serves_locally(url))
        said: list[str] = []
        cluster = Cluster.attach_endpoints([url, theirs.client["a member"]], store=store, progress=said.append)
        assert url not in _urls(cluster).values()
        assert _urls(cluster)["a-member"] == theirs.client["a member"]
        assert any(f"several members answer behind {url}" in each for each in said)
    finally:
        gateway.kill()
        gateway.wait(timeout=20)


# -- TLS


class _Keys:
    """Certificates for servers and clients, as files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.ca = self._write("ca.pem", self.authority.cert_pem)
        self.stranger = trustme.CA()
        self.other_ca = self._write("other-ca.pem", self.stranger.cert_pem)

    def _write(self, name: str, blob: trustme.Blob) -> str:
        blob.write_to_path(str(self.directory / name))
        return str(self.directory / name)

    def issue(self, name: str, *hosts: str, by: trustme.CA | None = None) -> tuple[str, str]:
        """Give the files of a certificate and its key."""
        issued = (by or self.authority).issue_cert(*(hosts or ("127.0.0.1",)), common_name=name)
        cert = self._write(f"{name}.pem", issued.cert_chain_pems[0])
        return cert, self._write(f"{name}.key", issued.private_key_pem)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> _Keys:
    """Certificates from an authority of the tests' own, and from another."""
    return _Keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def mutual(keys: _Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ByHand]:
    """A member that asks its clients for certificates; its own is for 127.0.0.1 alone."""
    server = (*keys.issue("server"), keys.ca)
    by_hand = ByHand(tmp_path_factory.mktemp("mutual"), ["sec"], server=server, mutual=True)
    by_hand.start()
    try:
        by_hand.wait(tls=Tls(keys.ca, *keys.issue("waiter")))
        yield by_hand
    finally:
        by_hand.stop()


def test_with_certificates(mutual: ByHand, keys: _Keys, line: CommandLine) -> None:
    """With an authority and a client certificate all goes on as without, from the command line too."""
    cert, key = keys.issue("operator")
    files = ["--cacert", keys.ca, "--cert", cert, "--key", key]
    attached = line("cluster.attach", "--endpoints", mutual.client["sec"], *files)
    assert attached.code == 0, attached.err
    assert f"ETCDCTL_CACERT={keys.ca} ETCDCTL_CERT={cert} ETCDCTL_KEY={key}" in attached.out
    assert line("ctl", "--", "put", "k", "v").out == "OK\n"
    assert line.cluster().status(gate=True).blockers == ()
    assert save_snapshot(line.cluster()).manifest
    assert line.cluster().client().get("k")[0] == b"v"
    again = line("cluster.attach")
    assert again.code == 0, again.err
    assert line.cluster().record.spec.tls == Tls(keys.ca, cert, key)


def test_a_server_that_asks_for_no_client_certificate(keys: _Keys, line: CommandLine, tmp_path: Path) -> None:
    """An authority alone is enough where members ask for no more; ctl and the library work so, too."""
    by_hand = ByHand(tmp_path / "plain", ["tls"], server=(*keys.issue("plain"), keys.ca))
    by_hand.start()
    try:
        by_hand.wait(tls=Tls(keys.ca, "", ""))
        attached = line("cluster.attach", "--endpoints", by_hand.client["tls"], "--cacert", keys.ca)
        assert attached.code == 0, attached.err
        assert line("ctl", "--", "put", "k", "v").out == "OK\n"
        assert line.cluster().client().get("k")[0] == b"v"
        assert line.cluster().status(gate=True).blockers == ()
        assert save_snapshot(line.cluster()).manifest
    finally:
        by_hand.stop()


def test_a_certificate_may_stand_for_a_user(keys: _Keys, store: Store, tmp_path: Path) -> None:
    """Where authentication is on, a certificate whose common name is a user is enough; without one it is said why."""
    by_hand = ByHand(tmp_path / "auth", ["auth"], server=(*keys.issue("server2"), keys.ca), mutual=True)
    root, nobody = keys.issue("root"), keys.issue("nobody")
    by_hand.start()
    try:
        by_hand.wait(tls=Tls(keys.ca, *root))
        url = by_hand.client["auth"]
        argv = [etcdctl_for(""), f"--endpoints={url}", f"--cacert={keys.ca}", f"--cert={root[0]}", f"--key={root[1]}"]
        for words in ("user add root --no-password", "user grant-role root root", "auth enable"):
            subprocess.run([*argv, *words.split()], check=True, capture_output=True, timeout=20)
        cluster = Cluster.attach_endpoints(url, tls=Tls(keys.ca, *root), store=store)
        assert cluster.status(gate=True).blockers == ()
        assert save_snapshot(cluster, tmp_path / "x.db").manifest
        stranger = Tls(keys.ca, *nobody)
        said = _as_stranger(url, stranger, Store(tmp_path / "stranger"))
        assert "authentication is on" in said
        assert "no user" in said or "common name" in said
    finally:
        by_hand.stop()


def _as_stranger(url: str, tls: Tls, store: Store) -> str:
    """Give what is said where a member knows a certificate, and no user of its name: newer releases tell nothing."""
    try:
        return " ".join(
            str(finding) for finding in Cluster.attach_endpoints(url, tls=tls, store=store).status().warnings
        )
    except Refused as refused:
        return f"{refused} {refused.remedy}"


def test_what_is_wrong_with_tls_is_named(mutual: ByHand, keys: _Keys, store: Store, tmp_path: Path) -> None:
    """Which scheme, which authority, which host name, whose certificate: each has words of its own, and a remedy."""
    url = mutual.client["sec"]
    good = keys.issue("good")
    bad = keys.issue("bad", by=keys.stranger)
    cases: list[tuple[str, Tls | None, str, str]] = [
        (url.replace("https", "http"), None, "http is given, and it speaks TLS", "https://"),
        (url, Tls(keys.other_ca, *good), "not issued by the authority", "--cacert"),
        (url, Tls(keys.ca, "", ""), "asks for a client certificate", "--cert"),
        (url, Tls(keys.ca, *bad), "does not take the client certificate", "members trust"),
        (url.replace("127.0.0.1", "localhost"), Tls(keys.ca, *good), "is not for localhost", "by a name"),
    ]
    for given, tls, said, remedy in cases:
        with pytest.raises(Refused, match="no endpoint answers") as refused:
            Cluster.attach_endpoints(given, tls=tls, store=store)
        assert said in str(refused.value), (said, str(refused.value))
        assert remedy in refused.value.remedy, (said, refused.value.remedy)
    assert store.names() == []


def test_https_where_none_is_spoken(other: ByHand, keys: _Keys, store: Store) -> None:
    """https:// to a member without TLS is told from a wrong certificate."""
    url = other.client["default"].replace("http", "https")
    with pytest.raises(Refused, match="https is given, and it does not speak TLS"):
        Cluster.attach_endpoints(url, tls=Tls(keys.ca, "", ""), store=store)


def test_pem_files_that_cannot_be_used(other: ByHand, keys: _Keys, line: CommandLine, tmp_path: Path) -> None:
    """Missing, empty, not belonging together, half given, or of no use: said before anything is asked."""
    url, secure = other.client["default"], "https://127.0.0.1:1"
    cert, key = keys.issue("one")
    _, other_key = keys.issue("two")
    (tmp_path / "empty.pem").write_text("")
    for given, tls, said in (
        (secure, Tls("/nowhere.pem", "", ""), "cannot be read"),
        (secure, Tls(str(tmp_path / "empty.pem"), "", ""), "cannot be used"),
        (secure, Tls(keys.ca, cert, other_key), "do not belong together"),
        (secure, Tls("", cert, key), "without the authority's certificate"),
        (url, Tls(keys.ca, "", ""), "no endpoint is https://"),
    ):
        with pytest.raises(SpecError, match=said):
            Cluster.attach_endpoints(given, tls=tls, store=line.store)
    ended = line("cluster.attach", "--endpoints", secure, "--cacert", keys.ca, "--cert", cert)
    assert ended.code == 2
    assert "needs its key" in ended.err
    assert line.store.names() == []


# -- looking never writes


def test_facts_of_it(prod: Cluster) -> None:
    """What operations see of it says that somebody else runs it."""
    facts = collect(prod.record, prod.runtime)
    assert facts.foreign
    assert {member.state for member in facts.members} == {"running"}
