"""What is concluded from what members say, and in which form it is given. No etcd: members are in memory, or lines."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdops.answers import Status
from etcdops.cluster import Cluster
from etcdops.errors import NoLeader, QuorumLost
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from etcdops.status import even_size, leader_of, observe

Wait = Callable[..., None]

NAMES = {11: "ironman", 12: "thor", 13: "deadpool"}


def _says(member_id: int, *, term: int, leader: int) -> Status:
    return Status(member_id, 1, "3.5.16", 20480, 20480, leader, term, 9, 9, 4, (), False)


def _make(store: Store, size: int = 3, name: str = "lab") -> Cluster:
    return Cluster.create(ClusterSpec.of_size(name, size), runtime=FakeRuntime(request_timeout_s=0.3), store=store)


# -- who leads


def test_the_highest_term_decides() -> None:
    """A leader that was cut off goes on believing in itself at the older term; the newer one leads."""
    says = {
        "ironman": _says(11, term=4, leader=11),
        "thor": _says(12, term=5, leader=13),
        "deadpool": _says(13, term=5, leader=13),
    }
    assert leader_of(says, NAMES) == ("deadpool", 5)


def test_at_the_highest_term_any_member_that_knows_will_do() -> None:
    """A member that has reached the new term and knows no leader yet does not hide the one that another knows."""
    says = {"ironman": _says(11, term=5, leader=0), "thor": _says(12, term=5, leader=12)}
    assert leader_of(says, NAMES) == ("thor", 5)


def test_a_leader_of_an_older_term_is_none() -> None:
    """During an election nobody leads: what an older term says is history."""
    says = {"ironman": _says(11, term=5, leader=0), "thor": _says(12, term=4, leader=11)}
    with pytest.raises(NoLeader, match="ironman, thor answered, and the highest term seen is 5") as caught:
        leader_of(says, NAMES)
    assert caught.value.exit_code == 5


def test_a_leader_that_did_not_answer_is_none() -> None:
    """Followers name a dead leader until they time out; it has not answered, so it does not lead."""
    says = {"thor": _says(12, term=4, leader=11), "deadpool": _says(13, term=4, leader=11)}
    with pytest.raises(NoLeader):
        leader_of(says, {12: "thor", 13: "deadpool"})


def test_without_an_answer_nobody_leads() -> None:
    """No answers at all are said to be none."""
    with pytest.raises(NoLeader, match="no member answered"):
        leader_of({}, {})


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(NAMES)), st.tuples(st.integers(1, 4), st.sampled_from([0, *NAMES]))))
def test_whoever_leads_is_named_at_the_highest_term(answers: dict[int, tuple[int, int]]) -> None:
    """For any answers: the leader given is named by one of highest term, and none is given only if none of those is."""
    says = {NAMES[i]: _says(i, term=term, leader=leader) for i, (term, leader) in answers.items()}
    highest = max((term for term, _ in answers.values()), default=0)
    named = {NAMES[leader] for term, leader in answers.values() if term == highest and leader}
    if named:
        leader, term = leader_of(says, NAMES)
        assert leader in named
        assert term == highest
    else:
        with pytest.raises(NoLeader):
            leader_of(says, NAMES)


# -- verdicts


@pytest.mark.parametrize(
    ("size", "stopped", "verdict", "code"),
    [
        (1, 0, "healthy", 0),
        (1, 1, "down", 5),
        (3, 0, "healthy", 0),
        (3, 1, "degraded", 4),
        (3, 2, "no-quorum", 5),
        (3, 3, "down", 5),
        (4, 1, "degraded", 4),
        (4, 2, "no-quorum", 5),
        (5, 2, "degraded", 4),
        (5, 3, "no-quorum", 5),
    ],
)
def test_verdicts(store: Store, wait_until: Wait, size: int, stopped: int, verdict: str, code: int) -> None:
    """Healthy when every voter serves, degraded while a quorum does, without quorum below, down when nothing runs."""
    with _make(store, size) as cluster:
        for member in cluster.members[:stopped]:
            member.kill()
        wait_until(lambda: cluster.status().verdict == verdict, what=verdict)
        status = cluster.status()
        assert status.exit_code == code
        assert status.quorum == size // 2 + 1
        assert [m.health == "stopped" for m in status.members] == [i < stopped for i in range(size)]
        if verdict in ("no-quorum", "down"):
            healthy = size - stopped
            with pytest.raises(QuorumLost, match=f"{healthy} of {size} voters answer, and the quorum is") as caught:
                cluster.leader()
            assert (caught.value.healthy, caught.value.voters) == (healthy, size)
        else:
            assert cluster.leader().name == status.leader


def test_each_kind_of_health(store: Store) -> None:
    """Healthy, unhealthy (answers, cannot serve), unreachable (runs, does not answer), frozen and stopped differ."""
    with _make(store, 5) as cluster:
        ironman, thor, deadpool, hulk, _ = cluster.members
        record = cluster.record
        ironman.kill()
        thor.pause()
        hulk.kill()
        # One that is taken for running, and at whose port nobody is.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"http://127.0.0.1:{silent.getsockname()[1]}"
            elsewhere = msgspec.structs.replace(cluster.record.member(deadpool.name), client_url=url)
            status = observe(cluster.record.with_member(elsewhere), cluster.runtime)
        assert [m.health for m in status.members] == ["stopped", "frozen", "unreachable", "stopped", "unhealthy"]
        assert status.verdict == "no-quorum"
        by_name = {m.name: m for m in status.members}
        assert (by_name["thor"].id, by_name["thor"].role, by_name["thor"].errors) == ("", "", ())
        assert by_name["deadpool"].errors[0].startswith("DEADLINE_EXCEEDED")
        assert by_name["wasp"].id
        assert by_name["wasp"].errors
        thor.resume()
        assert record.spec.names == tuple(m.name for m in status.members)


def test_a_look_is_over_in_its_time(store: Store) -> None:
    """Members that accept a connection and answer nothing are waited for together, for as long as is asked."""
    with _make(store, 7) as cluster:
        silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(7)]
        record = cluster.record
        for member, server in zip(record.members, silent, strict=True):
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            record = record.with_member(msgspec.structs.replace(member, client_url=url))
        began = time.monotonic()
        status = observe(record, cluster.runtime, timeout_s=1.0)
        took = time.monotonic() - began
        for server in silent:
            server.close()
    assert {m.health for m in status.members} == {"unreachable"}
    # One deadline after another would be 7 s and more.
    assert 0.9 < took < 6.9


# -- warnings


def test_even_sizes_and_bad_versions_are_warned_of(store: Store) -> None:
    """Each warning has a code for programs and a sentence for people."""
    cluster = _make(store, 4)
    record = msgspec.structs.replace(cluster.record, etcd_version="3.5.1")
    status = observe(record, cluster.runtime)
    warnings = [finding for finding in status.warnings if finding.severity == "warning"]
    assert warnings[0].code == "even-size"
    assert warnings[1:] != []
    assert all(finding.code.startswith("known-bad:") for finding in warnings[1:])
    assert "#" in warnings[1].message
    assert "3.5.33 is without it" in warnings[1].remedy
    # Of this one a cluster of one member dies, and of no other.
    assert "known-bad:etcd-14370" not in [finding.code for finding in warnings]
    sound = observe(msgspec.structs.replace(record, etcd_version="3.5.30"), cluster.runtime).warnings
    assert [finding for finding in sound if finding.severity == "warning"] == [warnings[0]]


@pytest.mark.parametrize(("size", "says"), [(2, "loss of 0, as 1 would"), (4, "loss of 1, as 3"), (6, "of 2, as 5")])
def test_what_an_even_size_gains(size: int, says: str) -> None:
    """An even number of voters tolerates no more than the odd number below it."""
    assert says in even_size(size)


def test_members_that_disagree_in_one_term_are_a_warning(store: Store) -> None:
    """Two leaders in one term cannot be; when members say so, the ids that they name are given."""
    runtime = FakeRuntime()
    with Cluster.create("lab", runtime=runtime, store=store) as cluster:
        runtime.lies.two_leaders = True
        status = cluster.status()
        [finding] = status.warnings
        assert finding.code == "two-leaders"
        assert f"in term {status.term}: " in finding.message
        assert sum(m.id in finding.message for m in status.members) == 2


# -- as JSON

FIELDS = ["schema", "cluster", "runtime", "etcd_version", "verdict", "leader", "term", "quorum", "members", "warnings"]
MEMBER_FIELDS = ["name", "id", "role", "health", "client_url", "peer_url"]
MEMBER_FIELDS += ["term", "revision", "raft_index", "db_size", "alarms", "errors"]


def test_the_document_is_what_the_design_says(store: Store) -> None:
    """`status -o json` has these fields, IDs as hex strings, and the URL that works from here."""
    with _make(store) as cluster:
        status = cluster.status()
        document = json.loads(msgspec.json.encode(status))
        assert list(document) == FIELDS
        for member in document["members"]:
            assert set(MEMBER_FIELDS) <= set(member)
            assert member["client_url"] == cluster.record.member(member["name"]).client_url
            int(member["id"], 16)
        assert sorted(m["role"] for m in document["members"]) == ["follower", "follower", "leader"]
        leader = next(m["name"] for m in document["members"] if m["role"] == "leader")
        assert (document["schema"], document["leader"]) == (1, leader)
        assert status.member("thor").name == "thor"
        with pytest.raises(KeyError):
            status.member("hulk")
