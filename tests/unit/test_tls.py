"""The authority of a cluster and what it signs, without any etcd."""

from __future__ import annotations

import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import cast

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from etcdops.cluster import Cluster
from etcdops.docker import tls as container_tls
from etcdops.docker.compose import ComposeFile, render
from etcdops.docker.files import archive, names_in
from etcdops.docker.services import services_of
from etcdops.errors import EtcdopsError, Refused, SpecError
from etcdops.operations.membership import new_member
from etcdops.placement import check_same
from etcdops.runtimes.process import ProcessRuntime
from etcdops.spec import ClusterSpec, Tls
from etcdops.state import ClusterRecord, Store
from etcdops.tls import expiry, leaves, renewing, serving
from etcdops.tls.authority import Authority

DAY = timedelta(days=1)


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    """A cluster of three with an authority of its own, that was never started."""
    return Cluster.create("lab", store=Store(tmp_path), tls=True)


def _paths(record: ClusterRecord) -> dict[str, Path]:
    tls = record.spec.tls
    assert tls
    found = {member.name: Path(member.cert) for member in record.spec.members}
    return {**found, "operator": Path(tls.client_cert), "ca": Path(tls.ca), "key": Path(tls.ca_key)}


def _certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def _age(record: ClusterRecord, name: str, *, days_left: float) -> None:
    """Give a member, or the "operator", a pair that ends in so many days."""
    tls = record.spec.tls
    assert tls
    authority, server = Authority.load(tls.ca, tls.ca_key), name != "operator"
    hosts = leaves.hosts_of(record.member(name)) if server else ()
    pair = authority.issue(name, hosts, server=server, lifetime=days_left * DAY, backdated=400 * DAY)
    _paths(record)[name].write_bytes(pair)


def test_files_are_their_owners_alone(cluster: Cluster) -> None:
    """Keys have mode 0600, in a directory of 0700; the authority's certificate holds no key."""
    paths = _paths(cluster.record)
    directory = paths["ca"].parent
    assert directory == cluster.store.cluster_dir("lab") / "tls"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name for path in directory.iterdir()} == {path.name for path in paths.values()}
    for path in directory.iterdir():
        secret = b"PRIVATE KEY" in path.read_bytes()
        assert secret == (path.name != "ca.pem")
        assert not secret or stat.S_IMODE(path.stat().st_mode) == 0o600


def test_certificates_say_what_etcd_asks_for(cluster: Cluster) -> None:
    """EC P-256; members may serve and dial, for all names that they are reached by; the operator may only dial."""
    paths = _paths(cluster.record)
    authority, serials, now = _certificate(paths["ca"]), set(), datetime.now(timezone.utc)
    basic = authority.extensions.get_extension_for_class(x509.BasicConstraints)
    assert basic.critical
    assert (basic.value.ca, basic.value.path_length) == (True, 0)
    for name in (*cluster.record.spec.names, "operator"):
        certificate = _certificate(paths[name])
        key = load_pem_private_key(paths[name].read_bytes(), password=None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert isinstance(key.curve, ec.SECP256R1)
        assert key.public_key() == certificate.public_key()
        certificate.verify_directly_issued_by(authority)
        serials.add(certificate.serial_number)
        lifetime = certificate.not_valid_after_utc - certificate.not_valid_before_utc
        assert lifetime == 365 * DAY + timedelta(minutes=5)
        assert timedelta(minutes=4) < now - certificate.not_valid_before_utc < timedelta(minutes=6)
        usage = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        if name == "operator":
            assert usage == {ExtendedKeyUsageOID.CLIENT_AUTH}
            assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "etcdops"
            continue
        assert usage == {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert set(names.get_values_for_type(x509.DNSName)) == {name, f"{name}.peer", "localhost"}
        assert {str(each) for each in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}
    assert len(serials) == 4
    assert min(serials) > 2**64
    assert 3649 * DAY < authority.not_valid_after_utc - now < 3651 * DAY


def test_addresses_of_other_machines_are_in_the_certificate(cluster: Cluster) -> None:
    """A member that is reached at another machine's address, or by another name, has both in its certificate."""
    member = cluster.record.member("thor")
    away = msgspec.structs.replace(member, client_url="https://10.1.2.3:2379", peer_url="https://[fd00::7]:2380")
    leaves.issue(cluster.record.with_member(away), ["thor"])
    seen = expiry.read(cluster.record.spec.member("thor").cert, "thor")
    assert seen is not None
    assert {"10.1.2.3", "fd00::7", "thor.peer", "127.0.0.1"} <= set(seen.names)


def test_a_leaf_never_outlives_its_authority(tmp_path: Path) -> None:
    """What is signed shortly before the authority ends, ends with it."""
    authority = Authority.new("old", lifetime=10 * DAY)
    leaf = x509.load_pem_x509_certificate(authority.issue("thor", server=True))
    assert leaf.not_valid_after_utc <= authority.certificate.not_valid_after_utc


def test_openssl_takes_the_chain(cluster: Cluster) -> None:
    """A strict verifier that is not ours takes each certificate for its purpose, and no other for a server's."""
    paths = _paths(cluster.record)

    def verify(name: str, purpose: str) -> int:
        argv = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", str(paths["ca"]), str(paths[name])]
        return subprocess.run(argv, capture_output=True, timeout=20).returncode

    assert [verify("thor", "sslserver"), verify("thor", "sslclient"), verify("operator", "sslclient")] == [0, 0, 0]
    assert verify("operator", "sslserver") != 0


def test_the_plain_commands_make_such_a_pair(cluster: Cluster, tmp_path: Path) -> None:
    """What the plan of a renewal gives as the plain command makes a pair like ours, in the place of the old one."""
    record = cluster.record
    old = expiry.read(record.spec.member("thor").cert, "thor")
    plan = renewing.plan_renew(record, cluster.runtime, dict.fromkeys(record.spec.names, "running"), ["thor"])
    done = subprocess.run(["sh", "-c", plan.steps[0].by_hand], cwd=tmp_path, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    new = expiry.read(record.spec.member("thor").cert, "thor")
    assert old is not None
    assert new is not None
    assert new.serial != old.serial
    assert (set(new.names), set(new.purposes), new.subject) == (set(old.names), set(old.purposes), old.subject)
    leaves.check_files(record, ["thor"])


def test_nothing_is_left_of_a_cluster_that_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the record cannot be written, no key stays behind."""

    def fail(self: Store, record: ClusterRecord) -> None:
        raise EtcdopsError("the disk is full")

    monkeypatch.setattr(Store, "save", fail)
    with pytest.raises(EtcdopsError, match="full"):
        Cluster.create("lab", store=Store(tmp_path), tls=True)
    assert not list(tmp_path.rglob("*.pem"))
    assert not list(tmp_path.rglob("*.key"))


def test_a_key_that_others_can_read_is_refused(cluster: Cluster) -> None:
    """Nothing starts with one, and the authority's signs nothing; the remedy says how to put it right."""
    paths = _paths(cluster.record)
    for name, act in (
        ("thor", lambda: leaves.check_files(cluster.record, ["thor"])),
        ("operator", lambda: cluster.up(timeout_s=5)),
        ("key", lambda: leaves.issue(cluster.record, ["thor"])),
        ("key", lambda: cluster.renew_certificates()),
    ):
        paths[name].chmod(0o640)
        with pytest.raises(Refused, match="can be read by others") as refused:
            cast(Callable[[], object], act)()
        assert f"chmod 600 {paths[name]}" in refused.value.remedy
        paths[name].chmod(0o600)
    assert all(member.state() == "stopped" for member in cluster.members)


def test_a_missing_file_is_named(cluster: Cluster) -> None:
    """Without the authority nothing starts or is signed, and the file is named; a pair of a member is made anew."""
    paths = _paths(cluster.record)
    for name, act in (
        ("ca", lambda: cluster.up(timeout_s=5)),
        ("ca", lambda: cluster.renew_certificates()),
        ("key", lambda: cluster.renew_certificates()),
        ("operator", lambda: cluster.up(timeout_s=5)),
    ):
        away = paths[name].rename(paths[name].with_suffix(".away"))
        with pytest.raises(Refused) as refused:
            cast(Callable[[], object], act)()
        assert str(paths[name]) in f"{refused.value} {refused.value.remedy}"
        away.rename(paths[name])
    paths["thor"].unlink()
    leaves.issue_missing(cluster.record, cluster.record.spec.names)
    leaves.check_files(cluster.record, ["thor"])


def test_a_key_of_another_authority_is_refused_without_being_shown(cluster: Cluster) -> None:
    """A key that does not belong to the certificate, or is none, signs nothing; no message holds what is in it."""
    path = _paths(cluster.record)["key"]
    key = path.read_text()
    Authority.new("other").save(str(path.parent / "other.pem"), str(path))
    with pytest.raises(Refused, match="does not belong"):
        leaves.issue(cluster.record, ["thor"])
    path.write_text(key[:80] + "!" + key[81:])
    with pytest.raises(Refused) as refused:
        leaves.issue(cluster.record, ["thor"])
    assert key[40:60] not in f"{refused.value} {refused.value.remedy}"


@pytest.mark.parametrize(
    ("days_left", "code"), [(-1.0, "certificate-expired"), (29.0, "certificate-expiring"), (31.0, "")]
)
def test_the_end_of_a_certificate_is_told(cluster: Cluster, days_left: float, code: str) -> None:
    """A warning below 30 days, an error from the end on, each about the member and with what to do."""
    _age(cluster.record, "thor", days_left=days_left)
    status = cluster.status()
    assert [(each.code, each.member) for each in status.warnings if "certificate" in each.code] == (
        [(code, "thor")] if code else []
    )
    assert all("tls.renew --member thor" in each.remedy for each in status.warnings if each.code == code)
    assert status.certificate is not None
    assert status.certificate.whose == "thor"
    assert status.certificate.days_left == pytest.approx(days_left, abs=0.1)


def test_nothing_starts_with_a_certificate_that_has_ended(cluster: Cluster) -> None:
    """Instead of a wait for members that cannot meet, there is a message, and the renewal that helps."""
    _age(cluster.record, "operator", days_left=-2)
    with pytest.raises(Refused, match="the operator's certificate ended on") as refused:
        cluster.up(timeout_s=5)
    assert "tls.renew" in refused.value.remedy
    cluster.renew_certificates()
    leaves.check_files(cluster.record, cluster.record.spec.names)


def test_an_authority_that_has_ended_signs_nothing(cluster: Cluster) -> None:
    """A leaf could not outlive it: what is left is another cluster, and that is said."""
    paths = _paths(cluster.record)
    Authority.new("old", lifetime=-1 * DAY, backdated=9 * DAY).save(str(paths["ca"]), str(paths["key"]))
    with pytest.raises(Refused, match="ended on") as refused:
        cluster.renew_certificates()
    assert "snapshot.restore" in refused.value.remedy


def test_a_new_member_needs_no_certificate_and_takes_none(cluster: Cluster) -> None:
    """Where etcdops is the authority, a member gets its pair from it."""
    spec = new_member(cluster.record, "hulk")
    assert spec.cert == spec.key == str(_paths(cluster.record)["ca"].parent / "member-hulk.pem")
    with pytest.raises(SpecError, match="made by etcdops"):
        new_member(cluster.record, "hulk", cert="x.pem", key="x.key")


def test_tls_is_fixed_when_a_cluster_is_created(cluster: Cluster, tmp_path: Path) -> None:
    """Asked for again it is no difference; of a cluster without, it cannot be had."""
    plain = Cluster.create("plain", store=Store(tmp_path))
    wish = {"runtime": "", "size": 0}
    check_same(cluster.record, **wish, spec=ClusterSpec.of_size("lab"), tls=True)  # type: ignore[arg-type]
    check_same(cluster.record, **wish, spec=ClusterSpec.of_size("lab"))  # type: ignore[arg-type]
    with pytest.raises(Refused, match="no TLS"):
        check_same(plain.record, **wish, spec=ClusterSpec.of_size("plain"), tls=True)  # type: ignore[arg-type]
    for act in (plain.renew_certificates, lambda: serving.prove(plain)):
        with pytest.raises(EtcdopsError, match="has no TLS"):
            act()


def test_a_renewal_of_what_is_somebody_elses_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """The files that a user gave are the user's: etcdops has no key to sign others with."""
    tls = cluster.record.spec.tls
    assert tls
    theirs = msgspec.structs.replace(
        cluster.record.spec, name="theirs", tls=Tls(tls.ca, tls.client_cert, tls.client_key)
    )
    with pytest.raises(Refused, match="not made by etcdops"):
        Cluster.create(theirs, store=Store(tmp_path)).renew_certificates()


def test_renewed_pairs_are_all_new(cluster: Cluster) -> None:
    """Keys and serial numbers change, names and purposes stay; the authority stays. A dry run changes nothing."""
    before = {name: path.read_bytes() for name, path in _paths(cluster.record).items()}
    told = {each.whose: each for each in expiry.certificates(cluster.record)}
    assert cluster.renew_certificates(dry_run=True).steps
    assert before == {name: path.read_bytes() for name, path in _paths(cluster.record).items()}
    cluster.renew_certificates(["thor"])
    after = {name: path.read_bytes() for name, path in _paths(cluster.record).items()}
    assert {name for name in after if after[name] != before[name]} == {"thor"}
    cluster.renew_certificates()
    after = {name: path.read_bytes() for name, path in _paths(cluster.record).items()}
    assert {name for name in after if after[name] == before[name]} == {"ca", "key"}
    for each in expiry.certificates(cluster.record):
        assert (each.names, each.purposes, each.subject) == (
            told[each.whose].names,
            told[each.whose].purposes,
            told[each.whose].subject,
        )
    with pytest.raises(SpecError, match="no member"):
        cluster.renew_certificates(["nobody"])


def test_no_secret_is_in_what_runs(cluster: Cluster) -> None:
    """Neither argv, nor a rendered Compose file, nor the record holds any key; they hold paths."""
    record = cluster.record
    runtime = ProcessRuntime()
    argv = " ".join(runtime.command(record, record.member("thor")))
    assert "--client-cert-auth=true" in argv
    assert "--peer-client-cert-auth=true" in argv
    file = render(ComposeFile(record, "image", services_of(record, record.members), []))
    assert "/etc/etcd-tls/pair.pem" in file
    assert "ETCDCTL_CACERT" in file
    secret = _paths(record)["thor"].read_text().splitlines()[-2]
    for text in (argv, file, (cluster.store.cluster_dir("lab") / "cluster.json").read_text()):
        assert "PRIVATE" not in text
        assert secret not in text


def test_the_link_comes_after_the_file_that_it_leads_to(tmp_path: Path) -> None:
    """In the archive for a container the whole pair is there before the link to it is."""
    (tmp_path / "pair").write_bytes(b"x")
    content = archive({"/t/a": str(tmp_path / "pair"), "/t/b": ""}, "7:8", links={"/t/pair.pem": "/t/a"})
    assert content.index(b"t/a\0") < content.index(b"t/pair.pem\0")
    assert names_in(content) == ["a"]
    assert container_tls.paths_of("a", "a") != container_tls.paths_of("a", "b")


def test_ctl_and_status_without_tls_need_no_cryptography() -> None:
    """It is slow to import, and of no use there."""
    code = "import sys, etcdops.cluster, etcdops.status, etcdops.etcdctl; print('cryptography' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def open_port(cluster: Cluster) -> Iterator[tuple[str, int]]:
    """A server with a member's pair that asks nobody for a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cluster.record.spec.member("thor").cert)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    with context.wrap_socket(connection, server_side=True) as secured:
                        secured.recv(1000)
                        secured.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def test_a_port_that_serves_strangers_is_told(
    cluster: Cluster, open_port: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof fails on a port that serves whoever comes; it is not taken for one that nobody reaches."""
    states = dict.fromkeys(cluster.record.spec.names, "running")
    monkeypatch.setattr(ProcessRuntime, "states", lambda self, record: states)
    monkeypatch.setattr(serving, "address_of", lambda cluster, member, port: open_port)
    proof = serving.prove(cluster, ["thor"])
    assert proof.result == "failed"
    assert {(each.port, each.who, each.result) for each in proof.wrong} == {
        (port, who, "served")
        for port in ("client", "peer")
        for who in ("no certificate", "another authority's certificate")
    }
    seen = serving.served(open_port, cluster.record.spec.tls, "thor")
    assert isinstance(seen, expiry.Certificate)
    here = expiry.read(cluster.record.spec.member("thor").cert, "thor")
    assert here is not None
    assert seen.fingerprint == here.fingerprint
    monkeypatch.setattr(serving, "address_of", lambda cluster, member, port: None)
    assert serving.prove(cluster, ["thor"]).result == "inconclusive"
