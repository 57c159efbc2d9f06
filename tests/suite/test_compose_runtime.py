"""Members as containers: their networks, their ports and the client beside them. Real Docker throughout."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from etcdops.cluster import Cluster
from etcdops.errors import SpecError
from etcdops.faults.heal import heal
from etcdops.spec import ClusterSpec, MemberSpec
from tests.conftest import CommandLine, free_from, place
from tests.suite.containers import amiss, client_of, in_client, inspect, network, ref
from tests.suite.members import docker, lives

Wait = Callable[..., None]


# -- what members are reached by


def test_ports_are_published_on_loopback_alone(lab: Cluster) -> None:
    """Of each member one port is published, the recorded one, on 127.0.0.1; peers' ports and the client have none."""
    listening = set()
    for table in ("tcp", "tcp6"):
        rows = [line.split() for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]]
        listening |= {row[1] for row in rows if row[3] == "0A"}
    for member in lab.record.members:
        port = int(member.client_url.rpartition(":")[2])
        binding = [{"HostIp": "127.0.0.1", "HostPort": str(port)}]
        assert inspect(member.ref)["HostConfig"]["PortBindings"] == {"2379/tcp": binding}
        assert {address for address in listening if address.endswith(f":{port:04X}")} == {f"0100007F:{port:04X}"}
    assert inspect(client_of(lab))["HostConfig"]["PortBindings"] in (None, {})


def test_a_members_name_for_its_peers_leads_nowhere_on_the_clients_network(lab: Cluster, wait_until: Wait) -> None:
    """NAME.peer is known on the network of the peers alone, so that a member which leaves it cannot come back over
    the other, where its plain name goes on to lead to it."""

    def asks(container: str, host: str) -> str:
        argv = ["docker", "exec", container, "etcdctl", "--endpoints", f"http://{host}:2379", "--command-timeout=2s"]
        done = subprocess.run([*argv, "endpoint", "health"], capture_output=True, text=True, timeout=60)
        return done.stdout + done.stderr

    ironman, client = ref(lab, "ironman"), client_of(lab)
    assert "is healthy" in asks(ironman, "thor.peer")
    assert "no such host" in asks(client, "thor.peer")
    assert "is healthy" in asks(client, "thor")
    docker("network", "disconnect", network(lab, "peer"), ref(lab, "thor"))
    assert "no such host" in asks(ironman, "thor.peer")
    networks = inspect(ref(lab, "thor"))["NetworkSettings"]["Networks"]
    assert set(networks) == {network(lab, "client")}
    heal(lab)
    aliases = {
        name.rpartition("_")[2]: set(each["Aliases"])
        for name, each in inspect(ref(lab, "thor"))["NetworkSettings"]["Networks"].items()
    }
    assert "thor.peer" in aliases["peer"]
    assert "thor" in aliases["client"]
    assert "thor.peer" not in aliases["client"]
    assert "is healthy" in asks(ironman, "thor.peer")


# -- the client container


def test_a_bare_etcdctl_in_the_client_outlives_any_member(lab: Cluster, wait_until: Wait) -> None:
    """Without flags or environment it lists the members: with any one killed, with it back at another address, and
    with it created anew."""
    client = life_of_client = client_of(lab)
    assert {"ETCDCTL_ENDPOINTS", "ETCDCTL_API"}.isdisjoint("=".join(inspect(client)["Config"]["Env"]).split("="))

    def lists() -> bool:
        done = in_client(lab, "member", "list")
        assert done.returncode == 0, done.stderr
        return done.stdout.count(", started, ") == 3

    assert lists()
    for name in lab.record.spec.names:
        docker("kill", ref(lab, name))
        wait_until(lambda: len(lab.status().leader or "") > 0, what="a leader")
        assert lists()
        lab.member(name).start()
        assert lists()
    docker("rm", "--force", ref(lab, "thor"))
    lab.up()
    for _ in range(4):
        assert lists()
    assert client_of(lab) == life_of_client


def test_the_client_finds_members_again_after_all_were_away(lab: Cluster, wait_until: Wait) -> None:
    """Asked in vain while no member ran, it tries them again within seconds, not after the gateway's default minute."""
    for name in lab.record.spec.names:
        docker("kill", ref(lab, name))
    assert in_client(lab, "--command-timeout=1s", "member", "list").returncode != 0
    lab.up()
    wait_until(lambda: in_client(lab, "--command-timeout=2s", "member", "list").returncode == 0, timeout_s=45)


@pytest.mark.parametrize("paused", [False, True])
def test_the_client_goes_and_comes_with_the_members(lab: Cluster, paused: bool) -> None:
    """Down stops it with the last member, even a paused one; up brings it back."""
    if paused:
        docker("pause", client_of(lab))
    lab.down()
    assert inspect(client_of(lab))["State"]["Status"] == "exited"
    assert amiss(lab) == []
    lab.up()
    assert in_client(lab, "member", "list").returncode == 0


def test_a_member_cannot_have_the_clients_name(line: CommandLine) -> None:
    """A member called "client" would be taken for the client: it is refused before anything is made."""
    spec = ClusterSpec("other", (MemberSpec("client"),))
    with pytest.raises(SpecError, match="cannot be called 'client'"):
        Cluster.create(spec, runtime="compose", store=line.store)
    assert not line.store.exists("other")


# -- ports


def test_a_port_that_somebody_took_is_given_up(line: CommandLine, lab: Cluster) -> None:
    """A stopped member whose port is taken gets another one, which is said and recorded; its data is kept, and the
    containers of the others are."""
    lab.client().put("k", "kept")
    before = {member.name: (member.client_url, member.ref) for member in lab.record.members}
    lab.down()
    port = int(before["thor"][0].rpartition(":")[2])
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", port))
        thief.listen()
        ended = line("up-env")
    assert ended.code == 0, ended.err
    after = {member.name: (member.client_url, member.ref) for member in lab.record.members}
    assert f"something else listens on port {port} of thor: it is at {after['thor'][0]} now" in ended.err
    assert after["thor"][0] in ended.out
    assert {name for name in before if before[name] != after[name]} == {"thor"}
    assert lab.client("thor").get("k")[0] == b"kept"
    assert lab.status().verdict == "healthy"
    # What the member tells clients who ask where everybody is.
    assert after["thor"][0] in in_client(lab, "member", "list").stdout


def test_a_pinned_port_that_somebody_took_is_refused(tmp_path: Path, lab: Cluster) -> None:
    """A port from --port is the member's for good: up-env names it and ends with exit 3, and nobody was started."""
    base = free_from(4)
    with place(tmp_path / "pinned", "compose") as line:
        assert line("up-env", "--port", str(base), "--size", "2").code == 0
        assert line("down-env").code == 0
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("127.0.0.1", base + 2))
            thief.listen()
            ended = line("up-env")
        assert (ended.code, f"something else listens on port {base + 2}" in ended.err) == (3, True), ended.err
        assert "nothing was started" in ended.err
        assert {member.state() for member in line.cluster().members} == {"stopped"}
        assert line("up-env").code == 0
        assert [url.rpartition(":")[2] for url in line.cluster().endpoints] == [str(base), str(base + 2)]


# -- the containers themselves


def test_proxies_of_the_docker_client_do_not_reach_members(
    lab: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxies that a Docker client's configuration puts into every container are blank in a member and the client,
    and in the members of a cluster that etcdctl in the client reaches."""
    proxies = {f"{name}Proxy": "http://127.0.0.1:9" for name in ("http", "https", "ftp", "all")}
    config = {"proxies": {"default": {**proxies, "noProxy": "example.org"}}}
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(json.dumps(config))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    docker("rm", "--force", ref(lab, "ironman"), client_of(lab))
    lab.up()
    for container in (ref(lab, "ironman"), client_of(lab)):
        environment = dict(entry.split("=", 1) for entry in inspect(container)["Config"]["Env"])
        assert {name: value for name, value in environment.items() if name.lower().endswith("_proxy") and value} == {}
    assert lab.status().verdict == "healthy"
    assert in_client(lab, "endpoint", "health").returncode == 0


def test_members_run_as_an_ordinary_user_without_a_shell(lab: Cluster) -> None:
    """The image has no shell to depend on; etcd is no root, and owns its data; a killed one stays dead."""
    for member in lab.record.members:
        told = inspect(member.ref)
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", told["Config"]["User"])
        assert told["HostConfig"]["RestartPolicy"]["Name"] == "no"
        assert [mount["Name"] for mount in told["Mounts"]] == [member.data.place]
        shell = subprocess.run(["docker", "exec", member.ref, "sh", "-c", "true"], capture_output=True, timeout=60)
        assert shell.returncode != 0


def test_docker_comes_to_call_members_healthy(lab: Cluster, wait_until: Wait) -> None:
    """The health check of a container, which runs every 15 s, succeeds without a shell."""

    def healthy() -> bool:
        told = [inspect(member.ref)["State"]["Health"] for member in lab.record.members]
        assert not any(each["Log"] and each["Log"][-1]["ExitCode"] for each in told), told
        return all(each["Status"] == "healthy" for each in told)

    wait_until(healthy, timeout_s=60, what="health checks that have succeeded")


def test_purge_leaves_nothing_on_the_engine(tmp_path: Path, lab: Cluster) -> None:
    """Containers, networks and volumes are gone, paused and cut off ones as well; another purge finds no cluster, and
    the runtime's own destroys nothing twice."""
    before = lives(lab.record)
    with place(tmp_path / "purged", "compose") as line:
        assert line("up-env", "--size", "1").code == 0
        cluster = line.cluster()
        record = cluster.record
        docker("network", "disconnect", network(cluster, "peer"), ref(cluster, "ironman"))
        docker("pause", ref(cluster, "ironman"), client_of(cluster))
        ended = line("down-env", "--purge", "--yes")
        assert ended.code == 0, ended.err
        mine = ["--filter", f"label=io.etcdops.cluster-id={record.id}"]
        for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
            assert docker(*kind, "--quiet", *mine) == ""
        assert line("down-env", "--purge", "--yes").code == 3
        cluster.runtime.destroy(record)
        assert not os.path.exists(line.store.cluster_dir("lab"))
    assert lives(lab.record) == before
