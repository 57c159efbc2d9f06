"""Clusters that the tests of a module share, one for each runtime; certificates for those that want them; and the
releases of etcd that the tests are given.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from etcdops import runtimes
from etcdops.cluster import Cluster
from etcdops.executables import ask
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec, MemberSpec, Timing, Tls
from etcdops.state import Store
from tests.conftest import need_runtime

#: Every runtime, members in memory among them.
RUNTIMES = ["fake", *runtimes.names()]


def etcds_in(directories: Sequence[str]) -> dict[str, str]:
    """Give those of the directories that hold an etcd, by its version; the first where several hold the same."""
    found: dict[str, str] = {}
    for directory in directories:
        version = ask(f"{directory}/etcd", remember=False).version
        if version:
            found.setdefault(str(version), directory)
    return found


#: The directories of ETCDOPS_TEST_ETCDS, and by version those that hold an etcd. Read now: tests see nothing of this
#: machine's settings.
GIVEN = [path for path in os.environ.get("ETCDOPS_TEST_ETCDS", "").split(os.pathsep) if path]
NAMED = etcds_in(GIVEN)


@contextmanager
def cluster_by(request: pytest.FixtureRequest, directory: Path, *, size: int = 3) -> Iterator[Cluster]:
    """Give a running cluster by the runtime that a fixture's parameter names, gone afterwards.

    One that this machine lacks is skipped with its reason, or fails if it is required.
    """
    name: str = request.param
    runtime = FakeRuntime(request_timeout_s=0.5) if name == "fake" else runtimes.get(name)
    if name != "fake":
        need_runtime(name, request.config)
    spec = ClusterSpec.of_size("lab", size, timing=Timing(50, 500))
    with Cluster.create(spec, runtime=runtime, store=Store(directory), temporary=True) as cluster:
        yield cluster


def with_certificates(directory: Path) -> ClusterSpec:
    """Give the specification of a cluster of three with certificates from an authority of the test's own."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))

    def issue(name: str) -> tuple[str, str]:
        # Members as processes meet on loopback, containers by names of their own.
        issued = authority.issue_cert("127.0.0.1", "localhost", f"{name}.peer", common_name=name)
        cert, key = directory / f"{name}.pem", directory / f"{name}.key"
        # etcd takes the chain and the key from files of their own.
        issued.cert_chain_pems[0].write_to_path(str(cert))
        issued.private_key_pem.write_to_path(str(key))
        key.chmod(0o600)
        return str(cert), str(key)

    plain = ClusterSpec.of_size("lab")
    members = tuple(MemberSpec(name, cert=cert, key=key) for name in plain.names for cert, key in [issue(name)])
    cert, key = issue("operator")
    return ClusterSpec("lab", members, tls=Tls(str(directory / "ca.pem"), cert, key))
