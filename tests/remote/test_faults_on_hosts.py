"""Faults of a cluster over three real Docker hosts: what its members, its hosts and the operator's connection lose."""

from __future__ import annotations

import functools
import ipaddress
import json
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import msgspec
import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.docker import on_host
from etcdops.errors import EtcdError
from etcdops.faults.heal import heal
from etcdops.remote.dead_man import DeadMan, armed_on
from etcdops.remote.host import SSHHost
from etcdops.report.verdict import Verdict
from etcdops.runtimes.remote import RemoteRuntime
from scripts.lab_hosts.bed import Bed
from tests.conftest import CommandLine, need_runtime, place
from tests.remote.beds import record_of, ssh

HOST_OF = {"ironman": "h1", "thor": "h2", "deadpool": "h3"}


@pytest.fixture(scope="module")
def line(
    bed_to_break: Bed, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandLine]:
    """A command line with the cluster `lab` of three members, each on a host of its own."""
    need_runtime("compose", request.config)
    with place(tmp_path_factory.mktemp("faults") / "place", "auto") as line:
        line.env["INVOKE_ETCDOPS_HOSTS"] = str(bed_to_break.inventory)
        for words in (("image.push",), ("up-env",)):
            done = line(*words)
            assert done.code == 0, done.err
        yield line
        line("down-env", "--purge", "--yes")


@pytest.fixture
def lab(line: CommandLine) -> Cluster:
    """That cluster, up and with nothing amiss."""
    cluster = line.cluster()
    cluster.up()
    assert {member.name: member.host for member in cluster.record.members} == HOST_OF
    return cluster


def failed(verdict: Verdict) -> list[str]:
    """Give what a verdict holds against the cluster."""
    return [f"{check.name}: {check.detail}" for check in verdict.checks if check.result == "failed"]


def test_unplug(lab: Cluster) -> None:
    """A leader off all networks loses its clients too; it is at the same address and ports when it is plugged in.

    The way between the hosts is as it was, and nothing else is said of it.
    """
    before = lab.endpoints
    seen: list[str] = []
    warned: list[str] = []

    def look(text: str) -> None:
        if text.startswith("4/"):
            away = next(name for name, state in lab.runtime.states(lab.record).items() if state == "isolated")
            try:
                lab.client(away, timeout_s=1.0).status()
            except EtcdError as error:
                seen.append(error.code)
            warned.extend(finding.code for finding in lab.status(hosts=True).warnings)

    verdict = drills.run("failed-leader", lab, how="unplug", rate=20, profile="register", baseline_s=0.5, say=look)
    assert (failed(verdict), verdict.writes and verdict.writes.lost) == ([], 0)
    assert [each.kind for each in verdict.faults] == ["unplug"]
    assert [code for code in seen if code not in ("UNAVAILABLE", "DEADLINE_EXCEEDED")] == []
    assert seen
    assert "member-isolated" in warned
    assert "hosts-cut" not in warned
    assert (set(lab.runtime.states(lab.record).values()), lab.endpoints) == ({"running"}, before)
    assert lab.status().verdict == "healthy"


def test_the_timer_plugs_in(lab: Cluster, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]) -> None:
    """What is undone by a host's own timer after `unplug` is just that: the member is on its network again."""
    # Sooner than it is renewed.
    monkeypatch.setattr(on_host, "DeadMan", functools.partial(DeadMan, limit_s=1))
    runtime, member = lab.runtime, lab.record.member("thor")
    assert isinstance(runtime, RemoteRuntime)
    runtime.unplug(lab.record, member)
    assert runtime.states(lab.record)["thor"] == "isolated"
    timer = runtime.arm(lab.record, member, "unplug")
    wait_until(lambda: runtime.states(lab.record)["thor"] == "running", 60)
    timer.disarm()
    assert (timer.fired, timer.lost) == (True, False)
    lab.wait_healthy(timeout_s=90)


def test_ssh_is_cut_in_a_drill(lab: Cluster, bed_to_break: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host heals itself by its timer; the drill comes to its end, and says that this is how it was healed."""
    monkeypatch.setattr(on_host, "DeadMan", functools.partial(DeadMan, limit_s=8))
    gone: list[str] = []

    def cut(text: str) -> None:
        if text.startswith("3/"):
            away = next(name for name, state in lab.runtime.states(lab.record).items() if state == "paused")
            gone.append(HOST_OF[away])
            bed_to_break.stop_sshd(gone[0])

    try:
        verdict = drills.run("failed-leader", lab, how="freeze", rate=20, profile="register", baseline_s=0.5, say=cut)
    finally:
        for name in gone:
            bed_to_break.start_sshd(name)
    assert (verdict.verdict, failed(verdict)) == ("inconclusive", [])
    details = {check.name: check.detail for check in verdict.checks if check.result != "passed"}
    assert len(gone) == 1, details
    assert "timer" in details.get("fault held", ""), details
    heal(lab)
    assert lab.store.unhealed("lab") is None
    assert set(lab.runtime.states(lab.record).values()) == {"running"}
    assert all("fired" in name for spec in lab.record.hosts for name in armed_on(SSHHost(spec), lab.record.id))


def test_two_hosts_are_cut_apart(line: CommandLine, lab: Cluster, bed_to_break: Bed) -> None:
    """With h1 and h2 cut and h1's member leading, h1 and h3 go on, nothing is lost, and the pair is named."""
    lab.move_leader("ironman")
    cut = threading.Event()
    told: list[str] = []

    def act(text: str) -> None:
        if text.startswith("2/"):
            bed_to_break.cut("h1", "h2")
            cut.set()
        elif text.startswith("3/"):
            told.append(line("status", "-o", "json").out)
            bed_to_break.mend("h1", "h2")
            cut.clear()
            lab.wait_healthy(timeout_s=90)

    try:
        verdict = drills.run("no-fault", lab, duration="3", rate=20, profile="register", baseline_s=0.5, say=act)
    finally:
        if cut.is_set():
            bed_to_break.mend("h1", "h2")
    assert verdict.verdict in ("passed", "inconclusive"), failed(verdict)
    assert verdict.writes is not None
    assert verdict.writes.lost == 0
    assert verdict.writes.acknowledged > 0
    warned = [each["message"] for each in json.loads(told[0])["warnings"] if each["code"] == "hosts-cut"]
    assert [message.partition(" (")[0] for message in warned] == ["h1 and h2 do not reach each other"], told
    lab.wait_healthy(timeout_s=90)


@pytest.fixture
def only_ssh(bed_to_break: Bed) -> Iterator[None]:
    """The hosts let this machine in at the port of their sshd alone; their members reach each other as ever."""
    subnet = ipaddress.ip_network(record_of(bed_to_break)["subnet"])
    here = str(list(subnet.hosts())[-1])
    rule = ["PREROUTING", "-s", here, "-p", "tcp", "!", "--dport", "22", "-j", "DROP"]
    try:
        for name in HOST_OF.values():
            done = ssh(bed_to_break, name, "iptables", "-t", "mangle", "-I", *rule)
            assert done.code == 0, done.err
        yield
    finally:
        for name in HOST_OF.values():
            ssh(bed_to_break, name, "iptables", "-t", "mangle", "-D", *rule)


def test_only_ssh_is_let_in(line: CommandLine, lab: Cluster, only_ssh: None) -> None:
    """Where ports of members are closed to us, all goes through SSH: ctl, status, a drill's traffic, a snapshot."""
    at = urlsplit(lab.endpoints[0])
    with pytest.raises(TimeoutError):
        socket.create_connection((at.hostname or "", at.port or 0), timeout=1.0)
    wrong = line("ctl", "--", "get", "k", "--no-such-flag")
    assert (wrong.code, "unknown flag" in wrong.err) == (1, True), wrong.err
    health = line("ctl", "--", "endpoint", "health")
    assert (health.code, health.out.count("https://127.0.0.1:")) == (0, 3), health.err
    status = line("status", "-o", "json")
    assert status.code == 0, status.err
    assert [each["client_url"] for each in json.loads(status.out)["members"]] == lab.endpoints
    saved = line("snapshot.save", "through.db")
    assert saved.code == 0, saved.err
    drill = line("failed-leader", "--how", "kill", "--rate", "20", "--profile", "register", "-o", "json")
    assert drill.out, drill.err
    verdict = msgspec.json.decode(drill.out, type=Verdict)
    assert failed(verdict) == []
    assert verdict.writes is not None
    assert (verdict.writes.lost, verdict.writes.acknowledged > 0) == (0, True)
