"""Mutual TLS that etcdops makes itself, with real members: who is served, renewal, and members that join.

The clusters are shared by the tests of this module, one for each runtime.
"""

from __future__ import annotations

import json
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import trustme

from etcdops import wire
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError, EtcdopsError, PartlyChanged, Refused
from etcdops.operations.plan import Plan
from etcdops.state import ClusterRecord
from etcdops.tls import expiry, leaves, serving
from etcdops.tls.authority import Authority
from etcdops.tls.renewing import renew
from etcdops.tls.showing import show
from tests.conftest import CommandLine, place
from tests.suite.containers import client_of, in_client
from tests.suite.members import docker, lives, log_of

_ASK = b"GET /version HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def line(etcd_cluster_runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A command line with a cluster of three with certificates of its own, "lab"."""
    with place(tmp_path_factory.mktemp("tls"), etcd_cluster_runtime) as line:
        up = line("up-env", "--tls")
        assert up.code == 0, up.err
        assert "PRIVATE" not in up.out + up.err
        yield line


@pytest.fixture
def lab(line: CommandLine) -> Cluster:
    """That cluster, up, with certificates that have not ended."""
    cluster = line.cluster()
    if expiry.findings(cluster.record, expiry.certificates(cluster.record)):
        cluster.renew_certificates()
    cluster.up()
    return cluster


def _serials(cluster: Cluster) -> dict[tuple[str, str], str]:
    return {(each.member, each.port): each.serial for each in show(cluster).served}


def _age(record: ClusterRecord, name: str, *, days_left: float) -> None:
    """Put a pair in the place of a member's that ends in so many days."""
    tls = record.spec.tls
    assert tls
    pair = Authority.load(tls.ca, tls.ca_key).issue(
        name,
        leaves.hosts_of(record.member(name)),
        server=True,
        lifetime=timedelta(days=days_left),
        backdated=timedelta(days=400),
    )
    Path(record.spec.member(name).cert).write_bytes(pair)


def test_all_that_works_without_works_with_it(line: CommandLine, lab: Cluster, tmp_path: Path) -> None:
    """ctl, status, the etcd3 client, snapshots and their restoration, each with the operator's certificate."""
    assert line("up-env", "--tls").code == 0
    status = line("status", "-o", "json")
    told = json.loads(status.out)
    assert (status.code, told["verdict"]) == (0, "healthy")
    assert 360 < told["certificate"]["days_left"] <= 365
    assert "certificates 365 d" in line("status").out
    assert line("ctl", "--", "put", "greeting", "hello").out == "OK\n"
    client = lab.client()
    assert client.get("greeting")[0] == b"hello"
    saved = line("snapshot.save", str(tmp_path / "x.db"))
    assert saved.code == 0, saved.err
    made = line("snapshot.restore", str(tmp_path / "x.db"), "--cluster", "copy", "--size", "1", "--tls", "--yes")
    try:
        assert made.code == 0, made.err
        copy = line.cluster("copy")
        assert copy.endpoints[0].startswith("https://")
        assert line("ctl", "--cluster", "copy", "--", "get", "greeting", "--print-value-only").out == "hello\n"
        # Each has an authority of its own: what the one trusts is nothing to the other.
        with wire.Connection(copy.endpoints[0], lab.record.spec.tls) as stranger, pytest.raises(EtcdError):
            stranger.range(b"greeting", timeout_s=2.0)
    finally:
        line("down-env", "--purge", "--yes", "--cluster", "copy")


def test_no_secret_is_told(line: CommandLine, lab: Cluster) -> None:
    """No key is in a member's argv, environment or log, nor in what `purge` would name, nor readable by others."""
    tls = lab.record.spec.tls
    assert tls
    secrets = [
        text
        for path in Path(tls.ca).parent.iterdir()
        if path.name != "ca.pem"
        for text in path.read_text().partition("PRIVATE KEY-----\n")[2].splitlines()[:2]
    ]
    assert len(secrets) >= 8
    seen = "".join(log_of(lab.record, name).decode() for name in lab.record.spec.names)
    if lab.runtime.name == "compose":
        for container in [*(member.ref for member in lab.record.members), client_of(lab)]:
            seen += docker("inspect", container)
    else:
        for member in lab.record.members:
            pid = member.ref.partition(":")[0]
            seen += "".join(Path(f"/proc/{pid}/{what}").read_text() for what in ("cmdline", "environ"))
    assert not [secret for secret in secrets if secret in seen]
    for path in Path(tls.ca).parent.iterdir():
        assert path.name == "ca.pem" or stat.S_IMODE(path.stat().st_mode) == 0o600


def _met(address: tuple[str, int], *pair: str) -> str:
    """Give what a port answers to a client with this certificate and key: the first line, or the error."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if pair:
        context.load_cert_chain(*pair)
    with socket.create_connection(address, timeout=5) as plain:
        try:
            with context.wrap_socket(plain) as secured:
                secured.sendall(_ASK)
                return secured.recv(100).partition(b"\r")[0].decode()
        except ssl.SSLError as error:
            return f"refused: {error.reason}"


def test_strangers_are_turned_away_on_every_port(line: CommandLine, lab: Cluster, tmp_path: Path) -> None:
    """Without a certificate, or with one of another authority, nobody is served, be it as a client or as a peer."""
    tls = lab.record.spec.tls
    assert tls
    other = trustme.CA().issue_cert("ironman", "ironman.peer", "127.0.0.1")
    theirs = tmp_path / "other.pem"
    other.private_key_and_cert_chain_pem.write_to_path(str(theirs))
    for name in lab.record.spec.names:
        for port in serving.PORTS:
            address = serving.address_of(lab, name, port)
            assert address
            assert _met(address, tls.client_cert, tls.client_key).startswith("HTTP/1.1 200")
            assert "CERTIFICATE" in _met(address).upper()
            assert _met(address, str(theirs)).startswith("refused: ")
    proof = serving.prove(lab)
    assert (proof.result, len(proof.encounters)) == ("passed", 18)
    shown = line("tls.show", "-o", "json")
    told = json.loads(shown.out)
    assert (shown.code, told["own"], told["proof"]["result"], told["missing"]) == (0, True, "passed", [])
    assert {each["result"] for each in told["served"]} == {"as here"}
    assert [each["whose"] for each in told["certificates"]] == ["authority", "operator", *lab.record.spec.names]
    assert "18 of 18 connections are as they should be" in line("tls.show").out


@contextmanager
def _writing(cluster: Cluster) -> Iterator[list[str]]:
    """Write through a member, one write after the other, inside the block; give what failed."""
    failed: list[str] = []
    over = threading.Event()

    def write() -> None:
        with wire.Connection(cluster.endpoints[0], cluster.record.spec.tls) as connection:
            while not over.is_set():
                try:
                    connection.put(b"during", b"x", timeout_s=10.0)
                except EtcdError as error:
                    failed.append(str(error))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield failed
    finally:
        over.set()
        thread.join(20)


def test_renewal_is_served_at_once_and_without_a_restart(line: CommandLine, lab: Cluster) -> None:
    """Every port serves another certificate, every member leads the life that it led, and no write fails meanwhile."""
    before, alive = _serials(lab), lives(lab.record)
    with _writing(lab) as failed:
        done = line("tls.renew")
    assert done.code == 0, done.err
    after = _serials(lab)
    assert lives(lab.record) == alive
    assert after.keys() == before.keys()
    assert not set(after.values()) & set(before.values())
    assert len(set(after.values())) == 3
    assert failed == []
    assert lab.status().verdict == "healthy"
    one = line("tls.renew", "--member", "thor", "-o", "json")
    assert one.code == 0, one.err
    changed = {key for key, serial in _serials(lab).items() if serial != after[key]}
    assert changed == {("thor", "client"), ("thor", "peer")}
    assert json.loads(one.out)["plan"]["operation"] == "tls.renew"


def test_a_handshake_in_between_is_harmless(lab: Cluster) -> None:
    """While pairs are exchanged again and again, a handshake meets an old or a new one, or fails and may be repeated.

    etcd reads the certificate first, and then the key: the exchange may come between the two.
    """
    record, name = lab.record, "thor"
    address = serving.address_of(lab, name, "client")
    assert address
    seen: set[str] = set()
    failed: list[str] = []
    lasting: list[str] = []
    over = threading.Event()

    def shake() -> None:
        while not over.is_set():
            met = serving.served(address, record.spec.tls, name)
            if isinstance(met, str):
                failed.append(met)
                deadline = time.monotonic() + 5
                while isinstance(met, str) and time.monotonic() < deadline:
                    met = serving.served(address, record.spec.tls, name)
                if isinstance(met, str):
                    lasting.append(met)
                    continue
            seen.add(met.serial)

    issued = {_serials(lab)[name, "client"]}
    threads = [threading.Thread(target=shake) for _ in range(2)]
    for thread in threads:
        thread.start()
    gives = getattr(lab.runtime, "give_certificates", None)
    for _ in range(5 if gives else 40):
        leaves.issue(record, [name])
        if gives:
            gives(record, name)
        issued.add(_serial(record, name))
        time.sleep(0.02)
    over.set()
    for thread in threads:
        thread.join(20)
    assert len(seen) > 1
    assert seen <= issued
    assert lasting == [], (failed, lasting)
    assert lab.status().verdict == "healthy"


def _serial(record: ClusterRecord, name: str) -> str:
    found = expiry.read(record.spec.member(name).cert, name)
    assert found
    return found.serial


def test_members_join_leave_and_are_replaced(line: CommandLine, lab: Cluster) -> None:
    """A new member gets a pair from the authority, one that takes another's place a new one; who leaves leaves none."""
    planned = line("member.add", "hulk", "--dry-run")
    assert planned.code == 0, planned.err
    assert not Path(lab.record.spec.members[0].cert).with_name("member-hulk.pem").exists()
    added = line("member.add", "hulk")
    assert added.code == 0, added.err
    pair = Path(lab.record.spec.member("hulk").cert)
    assert serving.prove(lab, ["hulk"]).result == "passed"
    removed = line("member.remove", "hulk", "--yes")
    assert removed.code == 0, removed.err
    assert not pair.exists()
    before = _serial(lab.record, "deadpool")
    assert line("member.kill", "deadpool", "--yes").code == 0
    replaced = line("member.replace", "deadpool", "--yes")
    assert replaced.code == 0, replaced.err
    assert _serial(lab.record, "deadpool") != before
    assert serving.prove(lab).result == "passed"
    assert lab.status().verdict == "healthy"


def test_a_drill_with_certificates(line: CommandLine, lab: Cluster) -> None:
    """The leader drill, with its traffic from a process of its own."""
    drill = line("failed-leader", "--rate", "20", "-o", "json")
    verdict = json.loads(drill.out)
    assert drill.code == 0, [check for check in verdict["checks"] if check["result"] != "passed"]
    assert verdict["writes"]["acknowledged"] > 0


@pytest.mark.runtime("process")  # Members that join are the same in containers; the drill is long.
def test_scale_out_with_certificates(line: CommandLine, lab: Cluster) -> None:
    """Members that are added for a while get pairs, and leave none behind."""
    files = {path.name for path in Path(lab.record.spec.members[0].cert).parent.iterdir()}
    drill = line("scale-out", "--rate", "20", "-o", "json")
    assert drill.code == 0, drill.err
    assert {path.name for path in Path(lab.record.spec.members[0].cert).parent.iterdir()} == files


def test_an_expired_certificate_is_told_and_renewed(line: CommandLine, lab: Cluster) -> None:
    """status, tls.show and a start say which has ended and what to do; the renewal brings the member back to all."""
    record = lab.record
    _age(record, "thor", days_left=-1)
    if give := getattr(lab.runtime, "give_certificates", None):
        give(record, "thor")
    status = line("status")
    assert "error certificate-expired: the certificate of thor ended on" in status.out
    assert "`tls.renew --member thor`" in status.out
    tls = record.spec.tls
    assert tls
    # What the member serves has ended as well: who looks is not connected.
    argv = ["curl", "-sS", "--cacert", tls.ca, "--cert", tls.client_cert, "--key", tls.client_key]
    said = subprocess.run([*argv, f"{record.member('thor').client_url}/version"], capture_output=True, text=True)
    assert said.returncode != 0
    assert "expired" in said.stderr
    assert line("member.stop", "thor").code == 0
    started = line("member.start", "thor")
    assert started.code == 3
    assert "the certificate of thor ended on" in started.err
    assert "tls.renew --member thor" in started.err
    up = line("up-env")
    assert (up.code, "the certificate of thor ended on" in up.err) == (3, True)
    renewed = line("tls.renew", "--member", "thor")
    assert renewed.code == 0, renewed.err
    assert "thor does not run: the new one is served once it does" in renewed.err
    assert line("up-env").code == 0
    assert serving.prove(lab).result == "passed"
    assert lab.status().verdict == "healthy"


@pytest.mark.runtime("process")  # What is tested is not the runtime's.
def test_all_certificates_have_ended_while_members_ran(line: CommandLine, lab: Cluster) -> None:
    """A cluster that serves nobody any more serves again after one renewal, and no member was started anew."""
    alive = lives(lab.record)
    for name in lab.record.spec.names:
        _age(lab.record, name, days_left=-1)
    status = line("status")
    assert status.code == 5
    assert status.out.count("error certificate-expired") == 3
    done = line("tls.renew")
    assert done.code == 0, done.err
    assert lives(lab.record) == alive
    lab.wait_healthy(timeout_s=30)
    assert line("status").code == 0


@pytest.mark.runtime("process")  # What is tested is not the runtime's.
def test_an_interrupted_renewal_goes_on(line: CommandLine, lab: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made is not made again, what is not is; until then status says so, and another operation is refused."""
    before = {name: _serial(lab.record, name) for name in lab.record.spec.names}
    issue: Callable[..., None] = leaves.issue

    def fail_at_thor(record: ClusterRecord, names: list[str], **how: object) -> None:
        if "thor" in names:
            raise EtcdopsError("the disk is full")
        issue(record, names, **how)

    # Times in certificates have whole seconds: what was made in this one is from before.
    time.sleep(1.1)
    with monkeypatch.context() as patch:
        patch.setattr(leaves, "issue", fail_at_thor)
        with pytest.raises(PartlyChanged, match="the disk is full") as partly:
            renew(lab)
    assert "`tls.renew` goes on" in partly.value.remedy
    made = _serial(lab.record, "ironman")
    assert made != before["ironman"]
    assert _serial(lab.record, "thor") == before["thor"]
    assert "operation-unfinished" in {finding.code for finding in lab.status().warnings}
    with pytest.raises(Refused, match="has not come to its end"):
        lab.add_member()
    plans: list[Plan] = []
    renew(lab, confirm=plans.append)
    assert _serial(lab.record, "ironman") == made
    assert _serial(lab.record, "thor") != before["thor"]
    assert [step.member for step in plans[0].steps if step.do == "issue"] == ["thor", "deadpool", ""]
    assert "operation-unfinished" not in {finding.code for finding in lab.status().warnings}


@pytest.mark.runtime("compose")  # Only there is a client container.
def test_bare_etcdctl_in_the_client_container(line: CommandLine, lab: Cluster) -> None:
    """It finds the operator's certificate by itself, before and after a renewal, and so does ctl without an etcdctl."""
    assert in_client(lab, "put", "bare", "1").stdout == "OK\n"
    lab.renew_certificates()
    asked = in_client(lab, "get", "bare", "--print-value-only")
    assert asked.stdout == "1\n", asked.stderr
    files = docker("exec", client_of(lab), "etcdctl", "version")
    assert "etcdctl version" in files
    docker("rm", "--force", client_of(lab))
    lab.up()
    assert in_client(lab, "get", "bare", "--print-value-only").stdout == "1\n"


def test_tls_is_fixed_when_created(line: CommandLine, lab: Cluster) -> None:
    """A cluster without it is not given it by a flag; what it has is said."""
    made = line("up-env", "--cluster", "plain", "--size", "1")
    try:
        assert made.code == 0, made.err
        again = line("up-env", "--cluster", "plain", "--tls")
        assert (again.code, "cluster plain has no TLS" in again.err) == (3, True)
        for task in ("tls.show", "tls.renew"):
            refused = line(task, "--cluster", "plain")
            assert (refused.code, "plain has no TLS" in refused.err) == (3, True)
    finally:
        line("down-env", "--purge", "--yes", "--cluster", "plain")
