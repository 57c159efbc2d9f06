"""With mutual TLS, everything goes on as without: members, wire, etcd3, ctl, status and the drill."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import trustme

from etcdops import wire
from etcdops.cluster import Cluster
from etcdops.errors import EtcdError
from etcdops.spec import ClusterSpec, Tls
from tests.conftest import CommandLine, place
from tests.suite.shared import with_certificates


@pytest.fixture(scope="module")
def secured(
    etcd_cluster_runtime: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[CommandLine, ClusterSpec]]:
    """A place with a cluster of three that is yet to be started, "lab", which tests share; and what it is."""
    spec = with_certificates(tmp_path_factory.mktemp("certificates"))
    with place(tmp_path_factory.mktemp("tls") / "place", etcd_cluster_runtime) as line:
        Cluster.create(spec, runtime=line.runtime, store=line.store)
        yield line, spec


@pytest.fixture
def lab(secured: tuple[CommandLine, ClusterSpec]) -> CommandLine:
    """That place, with its cluster up."""
    assert secured[0]("up-env").code == 0
    return secured[0]


def test_failed_leader_with_certificates(secured: tuple[CommandLine, ClusterSpec]) -> None:
    """The leader drill on a cluster with mutual TLS, and every task beside it, from the command line."""
    cli, spec = secured
    cluster = cli.cluster()
    assert all(url.startswith("https://") for url in cluster.endpoints)
    up = cli("up-env")
    assert up.code == 0, up.err
    assert f"export ETCDCTL_CACERT={spec.tls.ca if spec.tls else ''}" in up.out
    pasted = next(line for line in up.out.splitlines() if line.startswith("curl "))
    answer = subprocess.run(["sh", "-c", pasted], capture_output=True, text=True, timeout=20, check=True)
    assert "revision" in json.loads(answer.stdout)["header"]

    drill = cli("failed-leader", "--how", "freeze", "--rate", "20", "-o", "json")
    verdict = json.loads(drill.out)
    assert drill.code == 0, [check for check in verdict["checks"] if check["result"] != "passed"]
    assert verdict["writes"]["lost"] == 0
    assert cli("status").code == 0
    assert cli("ctl", "--", "get", "hello", ETCDCTL_CACERT="/nowhere", ETCDCTL_ENDPOINTS="http://x:1").out == (
        "hello\nworld\n"
    )
    client = cluster.client()
    client.put("k", "v")
    assert client.get("k")[0] == b"v"


def test_a_member_joins_with_a_certificate_of_its_own(cli: CommandLine, tmp_path: Path) -> None:
    """A new member needs one, signed by the cluster's CA; with it, its peers and clients trust it as the others."""
    spec = with_certificates(tmp_path)
    *two, third = spec.members
    cluster = Cluster.create(msgspec.structs.replace(spec, members=tuple(two)), runtime=cli.runtime, store=cli.store)
    cluster.up()
    bare = cli("member.add", "deadpool")
    assert (bare.code, "lab has TLS, and deadpool has no certificate" in bare.err) == (2, True)
    lost = cli("member.add", "deadpool", "--cert", "nowhere.pem", "--key", third.key)
    assert (lost.code, "cannot read the PEM file nowhere.pem" in lost.err) == (2, True)
    added = cli("member.add", "deadpool", "--cert", third.cert, "--key", third.key)
    assert added.code == 0, added.err
    assert cluster.status().verdict == "healthy"
    assert len(cluster.members) == 3


def test_a_client_without_a_certificate_is_turned_away(
    lab: CommandLine, secured: tuple[CommandLine, ClusterSpec], tmp_path: Path
) -> None:
    """Mutual means mutual: a certificate from another authority, or none, gets no answer."""
    cluster, spec = lab.cluster(), secured[1]
    other = trustme.CA().issue_cert("intruder")
    other.cert_chain_pems[0].write_to_path(str(tmp_path / "other.pem"))
    other.private_key_pem.write_to_path(str(tmp_path / "other.key"))
    assert spec.tls is not None
    stranger = Tls(spec.tls.ca, str(tmp_path / "other.pem"), str(tmp_path / "other.key"))
    with wire.Connection(cluster.endpoints[0], stranger) as connection, pytest.raises(EtcdError) as refused:
        connection.put(b"k", b"v", timeout_s=2.0)
    assert refused.value.code == "UNAVAILABLE"
    with_own = wire.Connection(cluster.endpoints[0], spec.tls)
    with with_own:
        assert with_own.range(b"none", timeout_s=20).count == 0


def test_snapshot_with_certificates(lab: CommandLine, tmp_path: Path) -> None:
    """A snapshot of a cluster with mutual TLS is saved with the client's certificate, and verified to the end."""
    saved = lab("snapshot.save", str(tmp_path / "x.db"))
    assert saved.code == 0, saved.err
    verified = lab("snapshot.verify", str(tmp_path / "x.db"), "--deep", "-o", "json")
    assert verified.code == 0, verified
    assert json.loads(verified.out)["level"] == "boot"
