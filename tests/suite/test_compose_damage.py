"""What is done to containers behind our back, or in a drill: it is seen as what it is, and put right."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable

import pytest

from etcdops import wire
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError
from tests.conftest import CommandLine
from tests.suite.containers import amiss, bring_back, client_of, in_client, inspect, network, ref, seen
from tests.suite.members import docker, life, lives

Wait = Callable[..., None]


def test_a_leader_that_is_cut_off_from_its_peers(lab: Cluster, wait_until: Wait) -> None:
    """Its writes fail and it reports no leader, yet it answers serializable reads at its published port all the time;
    another leads at a higher term. Connected again, it follows, and it was never restarted."""
    lab.client().put("k", "before")
    before, first = lives(lab.record), lab.leader()
    term = lab.status().term
    with wire.Connection(first.client_url, None) as connection:
        read = connection.range(b"k", serializable=True, timeout_s=20)
        docker("network", "disconnect", network(lab, "peer"), first.record.ref)
        with pytest.raises(EtcdError):
            connection.put(b"k", b"lost", timeout_s=2.0)

        def has_no_leader() -> bool:
            # On a channel that was open before, and is never opened anew.
            assert connection.range(b"k", serializable=True, timeout_s=20).kvs == read.kvs
            return connection.status(timeout_s=20).leader == 0

        wait_until(has_no_leader, what="a leader that has stepped down")
        wait_until(lambda: lab.leader().name != first.name, what="another leader")
        assert lab.status().term > term
        status = seen(lab, first.name)
        assert (status.health, status.role) == ("isolated", "")
        assert any("no leader" in error for error in status.errors)
        assert [said for said in amiss(lab) if first.name in said and network(lab, "peer") in said]
        assert lab.status().verdict == "degraded"
        lab.client(lab.leader().name).put("k", "after")
        assert first.name in "".join(bring_back(lab, "heal"))
        assert connection.range(b"k", timeout_s=20).kvs[0].value == b"after"
    assert lab.status().verdict == "healthy"
    assert amiss(lab) == []
    assert lives(lab.record) == before


# -- behind our back

DAMAGES = {
    "killed": (["kill"], "stopped"),
    "stopped": (["stop", "-t", "5"], "stopped"),
    "paused": (["pause"], "frozen"),
    "removed": (["rm", "--force"], "stopped"),
    "restarted": (["restart", "-t", "5"], "healthy"),
    "cut off from its peers": (["network", "disconnect", "peer"], "isolated"),
    "cut off from its clients": (["network", "disconnect", "client"], "isolated"),
}


#: What `up` and `heal` do themselves is to start, to let go on, and to have the runtime mend the rest: each does all
#: three, and a member that has to be made anew is made by both.
@pytest.mark.parametrize(
    ("damage", "by"),
    [
        ("killed", "up"),
        ("paused", "up"),
        ("removed", "up"),
        ("cut off from its peers", "up"),
        ("stopped", "heal"),
        ("paused", "heal"),
        ("removed", "heal"),
        ("restarted", "heal"),
        ("cut off from its clients", "heal"),
    ],
)
def test_what_was_done_to_a_member_is_seen_and_put_right(lab: Cluster, wait_until: Wait, damage: str, by: str) -> None:
    """A member that somebody killed, paused, removed, … is seen as what it is, and comes back with its data, while
    nothing happens to the others."""
    command, health = DAMAGES[damage]
    if command[0] == "network":
        command = [*command[:-1], network(lab, command[-1])]
    lab.client("thor").put("k", damage)
    name = "thor"
    id_ = seen(lab, name).id
    others, old = [life(lab.record, n) for n in ("ironman", "deadpool")], ref(lab, name)
    docker(*command, old)
    wait_until(lambda: seen(lab, name).health == health, what=f"thor seen as {health}")
    assert len(lab.record.members) == 3

    did = bring_back(lab, by)
    assert bool(did) == (health != "healthy"), did
    assert name in "".join(did) or not did
    status = lab.status()
    assert (status.verdict, amiss(lab)) == ("healthy", [])
    assert status.member(name).id == id_
    assert lab.client(name).get("k")[0] == damage.encode()
    assert [life(lab.record, n) for n in ("ironman", "deadpool")] == others
    assert (ref(lab, name) != old) == (damage == "removed")
    assert inspect(ref(lab, name))["State"]["Running"]
    if damage == "removed":
        # Under "new" it would try to form a cluster of its own.
        assert "--initial-cluster-state=existing" in inspect(ref(lab, name))["Args"]
    assert bring_back(lab, by) == []


def test_several_that_are_cut_off_find_each_other_again(lab: Cluster) -> None:
    """With all members off the peers' network, they come back to it with other addresses, and serve at once."""
    ids = [ref(lab, name) for name in ("deadpool", "ironman", "thor")]
    for each in ids:
        docker("network", "disconnect", network(lab, "peer"), each)
    assert {member.health for member in lab.status().members} == {"isolated"}
    bring_back(lab, "up")
    assert lab.status().verdict == "healthy"
    assert [ref(lab, name) for name in ("deadpool", "ironman", "thor")] == ids


def test_networks_that_were_removed_are_made_again(lab: Cluster) -> None:
    """Both networks gone from under running members: they are made again, and all are connected to them."""
    before = {name: ref(lab, name) for name in lab.record.spec.names}
    client = client_of(lab)
    for each in before.values():
        docker("network", "disconnect", network(lab, "peer"), each)
    for each in (*before.values(), client):
        docker("network", "disconnect", network(lab, "client"), each)
    docker("network", "rm", network(lab, "peer"), network(lab, "client"))
    assert len(amiss(lab)) == 7
    bring_back(lab, "heal")
    assert (lab.status().verdict, amiss(lab)) == ("healthy", [])
    assert {name: ref(lab, name) for name in before} == before
    assert client_of(lab) == client
    peer = json.loads(docker("network", "inspect", network(lab, "peer")))[0]
    assert (peer["Internal"], peer["Labels"]["io.etcdops.cluster-id"]) == (True, lab.record.id)


def test_a_network_that_was_removed_while_all_was_down(lab: Cluster) -> None:
    """A stopped cluster of whose networks one is gone: up makes it again, for the same containers."""
    lab.client().put("k", "kept")
    before = [(ref(lab, name)) for name in lab.record.spec.names]
    lab.down()
    docker("network", "rm", network(lab, "peer"))
    assert lab.up() == ["ironman", "thor", "deadpool"]
    assert lab.client().get("k")[0] == b"kept"
    assert [ref(lab, name) for name in lab.record.spec.names] == before
    assert amiss(lab) == []
    assert in_client(lab, "member", "list").returncode == 0


def test_all_removed_at_once(lab: Cluster) -> None:
    """With every container and both networks removed, the data is still there in the volumes, and up finds it."""
    lab.client().put("k", "kept")
    ids = {member.name: member.id for member in lab.status().members}
    docker("rm", "--force", *(ref(lab, name) for name in ids), client_of(lab))
    docker("network", "rm", network(lab, "peer"), network(lab, "client"))
    assert lab.status().verdict == "down"
    assert lab.up() == ["ironman", "thor", "deadpool"]
    assert {member.name: member.id for member in lab.status().members} == ids
    assert lab.client().get("k")[0] == b"kept"


@pytest.mark.parametrize(
    ("damage", "by"),
    [(["kill"], "up"), (["pause"], "heal"), (["rm", "--force"], "up"), (["network", "disconnect", "client"], "heal")],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_what_was_done_to_the_client_is_seen_and_put_right(lab: Cluster, damage: list[str], by: str) -> None:
    """The status names the client that is not as it should be; it is put right, and nothing happens to the members."""
    before = lives(lab.record)
    command = [*damage[:-1], network(lab, "client")] if damage[0] == "network" else damage
    docker(*command, client_of(lab))
    [said] = amiss(lab)
    assert "client" in said
    [found] = [warning for warning in lab.status().warnings if warning.code == "amiss"]
    assert (found.message, found.remedy) == (said, "`up-env` and `heal` put right what they reach.")
    assert lab.status().verdict == "healthy"
    assert "client" in "".join(bring_back(lab, by))
    assert amiss(lab) == []
    assert in_client(lab, "member", "list").returncode == 0
    assert lives(lab.record) == before


# -- drills


def _until_isolated(line: CommandLine, process: subprocess.Popen[str], wait_until: Wait) -> Cluster:
    cluster = line.cluster()

    def cut_off() -> bool:
        assert process.poll() is None, process.communicate()
        return any(member.state() == "isolated" for member in cluster.members)

    wait_until(cut_off, timeout_s=40, what="a member that is cut off")
    return cluster


@pytest.mark.parametrize("ends", ["Ctrl-C", "heal"])
def test_a_drill_that_is_ended_while_the_leader_is_cut_off(
    line: CommandLine, lab: Cluster, wait_until: Wait, ends: str
) -> None:
    """Ctrl-C connects it again before the drill ends; after kill -9, the next `heal` does."""
    before = lives(lab.record)
    process = line.start("failed-leader", "--how", "isolate", "--rate", "20")
    cluster = _until_isolated(line, process, wait_until)
    process.send_signal(signal.SIGINT if ends == "Ctrl-C" else signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    if ends == "Ctrl-C":
        assert process.returncode == 130, err
    else:
        assert [m for m in cluster.members if m.state() == "isolated"]
        healed = line(ends)
        assert healed.code == 0, healed.err
        assert "was cut off and is connected again" in healed.err
    assert cluster.status().verdict == "healthy"
    assert amiss(cluster) == []
    assert cluster.store.unhealed("lab") is None
    assert list(cluster.client().get_prefix("etcdops/")) == []
    assert lives(cluster.record) == before
