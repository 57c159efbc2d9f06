"""A cluster over three real Docker hosts: created, looked at, broken, healed by whoever is left, and removed."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator

import msgspec
import pytest

from etcdops.cluster import Cluster
from etcdops.docker.filters import Filters
from etcdops.errors import HostUnreachable
from etcdops.remote.dead_man import DeadMan, armed_on
from etcdops.remote.host import SSHHost
from etcdops.remote.inventory import load
from etcdops.report.verdict import Verdict
from etcdops.runtimes.remote import RemoteRuntime
from etcdops.tls import expiry, serving
from scripts.lab_hosts.bed import Bed
from tests.conftest import CommandLine, assert_passed, need_runtime, place
from tests.remote.beds import ssh

HOSTS = ("h1", "h2", "h3")


@pytest.fixture(scope="module")
def line(
    bed_to_break: Bed, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandLine]:
    """A command line with the cluster `lab` of three members, each on a host of its own."""
    need_runtime("compose", request.config)
    with place(tmp_path_factory.mktemp("remote") / "place", "auto") as line:
        line.env["INVOKE_ETCDOPS_HOSTS"] = str(bed_to_break.inventory)
        pushed = line("image.push")
        assert pushed.code == 0, pushed.err
        assert [row.split(":")[0] for row in pushed.out.splitlines()] == list(HOSTS)
        assert f"with {'zstd' if shutil.which('zstd') else 'gzip'}\n" in pushed.err
        up = line("up-env")
        assert up.code == 0, up.err
        yield line


@pytest.fixture
def lab(line: CommandLine) -> Cluster:
    """That cluster, up and with nothing amiss."""
    cluster = line.cluster()
    cluster.up()
    return cluster


def running(bed: Bed, name: str) -> list[str]:
    """Give the members that run on a host, as its own docker says."""
    told = ssh(bed, name, "docker", "ps", "--format", '{{.Label "io.etcdops.member"}}')
    assert told.code == 0, told.err
    return [member for member in told.out.split() if member]


def test_image_push_again(line: CommandLine) -> None:
    """A host that has the image gets nothing."""
    assert line("image.push").out.splitlines() == [f"{name}: had it already" for name in HOSTS]


def test_members_are_spread(line: CommandLine, lab: Cluster, bed_to_break: Bed) -> None:
    """Each host has one member, at its own address; status and ctl need not be told where they are."""
    assert [member.host for member in lab.record.members] == list(HOSTS)
    assert all(url.startswith("https://10.") for url in lab.endpoints)
    assert [running(bed_to_break, name) for name in HOSTS] == [["ironman"], ["thor"], ["deadpool"]]
    status = line("status", "-o", "json")
    assert status.code == 0, status.err
    assert {each["health"] for each in json.loads(status.out)["members"]} == {"healthy"}
    members = line("ctl", "--", "member", "list")
    assert sorted(row.split(", ")[2] for row in members.out.splitlines()) == ["deadpool", "ironman", "thor"]
    again = line("up-env")
    assert (again.code, "nothing was changed" in again.err) == (0, True), again.err


@pytest.mark.parametrize("how", ["kill", "isolate"])
def test_failed_leader(line: CommandLine, lab: Cluster, how: str) -> None:
    """The drill passes as it does on one machine, and each step names the plain command, by ssh."""
    ended = line("failed-leader", "--how", how, "--rate", "20", "-o", "json")
    assert ended.code == 0, ended.err
    assert_passed(msgspec.json.decode(ended.out, type=Verdict))
    assert "$ ssh h" in ended.err
    assert set(lab.runtime.states(lab.record).values()) == {"running"}
    assert [armed_on(host, lab.record.id) for host in hosts_of(lab)] == [[], [], []]


def hosts_of(lab: Cluster) -> list[SSHHost]:
    return [SSHHost(spec) for spec in lab.record.hosts]


def test_the_operators_machine_dies(line: CommandLine, lab: Cluster, wait_until: Callable[..., None]) -> None:
    """A drill that is killed half-way leaves a host that brings its member back by itself; heal closes the run."""
    drill = line.start("failed-leader", "--how", "freeze", "--rate", "20")
    try:
        # What is frozen is so for a second or two: who only looks now and then may miss it.
        assert drill.stderr is not None
        told = []
        for text in drill.stderr:
            told.append(text)
            if " 3/6 " in text:
                break
        assert " 3/6 " in told[-1], told
    finally:
        os.kill(drill.pid, signal.SIGKILL)
        drill.communicate(timeout=30)
    wait_until(lambda: set(lab.runtime.states(lab.record).values()) == {"running"}, 90, "the host to heal itself")
    healed = line("heal")
    assert healed.code == 0, healed.err
    assert lab.store.unhealed("lab") is None


def test_a_timer_that_is_renewed(lab: Cluster, wait_until: Callable[..., None]) -> None:
    """A timer that is disarmed has done nothing; one that nobody renews does what it is there for, and says so."""
    host = hosts_of(lab)[0]
    there = ["sh", "-c", 'echo "$1" >/tmp/etcdops-test-fired', "sh", "it's done; $(x)"]
    timer = DeadMan(host, "of-nobody", "thor", there)
    timer.arm()
    assert armed_on(host, "of-nobody") == ["thor"]
    timer.disarm()
    assert (timer.fired, host.read("/tmp/etcdops-test-fired")) == (False, b"")
    silent = DeadMan(host, "of-nobody", "thor", there, limit_s=1)
    silent.arm()
    wait_until(lambda: host.read("/tmp/etcdops-test-fired") == b"it's done; $(x)\n", 30)
    silent.disarm()
    host.remove("/tmp/etcdops-test-fired")
    assert (silent.fired, armed_on(host, "of-nobody")) == (True, [])


def test_a_timer_stays_until_what_it_is_for_is_undone(lab: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is cut off from a host as he begins to heal leaves the timer armed there; who has healed leaves none."""
    member = lab.member("thor")
    host = next(each for each in hosts_of(lab) if each.name == member.record.host)
    assert isinstance(lab.runtime, RemoteRuntime)
    timer = lab.runtime.arm(lab.record, member.record, "isolate")
    try:
        lab.runtime.isolate(lab.record, member.record)
        assert armed_on(host, lab.record.id) == ["thor"]
        with monkeypatch.context() as patch:

            def cut_off(*arguments: object) -> None:
                raise HostUnreachable("h2 is gone")

            patch.setattr(Filters, "open", cut_off)
            lab.runtime.mend(lab.record)
        assert armed_on(host, lab.record.id) == ["thor"]
        assert lab.runtime.states(lab.record)["thor"] == "isolated"
        lab.runtime.mend(lab.record)
        assert armed_on(host, lab.record.id) == []
        assert lab.runtime.states(lab.record)["thor"] == "running"
    finally:
        timer.disarm()
        lab.runtime.mend(lab.record)
    lab.wait_healthy(timeout_s=60)


def test_certificates_are_renewed_while_all_run(line: CommandLine, lab: Cluster) -> None:
    """Each member serves its new pair without a restart, on both ports; so do the clients beside them have theirs."""
    before = {member.name: (member.record.ref, serial_of(lab, member.name)) for member in lab.members}
    renewed = line("tls.renew")
    assert renewed.code == 0, renewed.err
    lab = line.cluster()
    for name, (ref, serial) in before.items():
        assert lab.member(name).record.ref == ref
        assert serial_of(lab, name) != serial
        for port in ("client", "peer"):
            address = serving.address_of(lab, name, port)
            assert address
            met = serving.served(address, lab.record.spec.tls, name)
            assert isinstance(met, expiry.Certificate), met
            assert met.serial == serial_of(lab, name)
    assert lab.status().verdict == "healthy"
    assert not any(each.code == "operation-unfinished" for each in lab.status().warnings)
    host = hosts_of(lab)[0]
    client = host.run(["docker", "ps", "-q", "--filter", "label=io.etcdops.role=client"], timeout_s=20)
    [container] = client.stdout.decode().split()
    listed = host.run(["docker", "exec", container, "etcdctl", "member", "list"], timeout_s=20)
    assert listed.exit_code == 0, listed.stderr


def serial_of(lab: Cluster, name: str) -> str:
    """Give the serial number of a member's certificate, as it is here."""
    found = expiry.read(lab.record.spec.member(name).cert, name)
    assert found
    return found.serial


def test_a_host_that_is_cut_off(line: CommandLine, lab: Cluster, bed_to_break: Bed) -> None:
    """What runs on the other hosts is still shown, the member on that host is not known of, and the host is named."""
    bed_to_break.cut("h3")
    try:
        assert lab.runtime.states(lab.record) == {"ironman": "running", "thor": "running", "deadpool": "unknown"}
        assert any("h3" in said for said in lab.runtime.amiss(lab.record))
    finally:
        bed_to_break.mend("h3")
    lab.up()


def test_nothing_is_left(line: CommandLine, bed_to_break: Bed) -> None:
    """down-env --purge removes containers, networks and volumes of the cluster from all hosts."""
    purged = line("down-env", "--purge", "--yes")
    assert purged.code == 0, purged.err
    for name in HOSTS:
        for what in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
            left = ssh(bed_to_break, name, "docker", *what, "--quiet", "--filter", "label=io.etcdops.cluster-id")
            assert (left.code, left.out) == (0, ""), (name, what)


def test_inventory_is_recorded(bed_to_break: Bed) -> None:
    """The inventory of the bed names the three hosts."""
    assert load(bed_to_break.inventory).names == HOSTS
