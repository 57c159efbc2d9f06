"""A cluster of three in containers, for several tests in turn, and what Docker tells of it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from etcdops.cluster import Cluster
from etcdops.faults.heal import heal
from etcdops.spec import ClusterSpec, Timing
from etcdops.status import MemberStatus
from tests.conftest import CommandLine, need_runtime, place
from tests.suite.members import docker, end


@contextmanager
def shared_lab(config: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Give a command line with a cluster, "lab", that elects twice as fast as by default; it is yet to be started."""
    need_runtime("compose", config)
    with place(tmp_path_factory.mktemp("compose"), "compose") as line:
        Cluster.create(ClusterSpec.of_size("lab", timing=Timing(50, 500)), runtime="compose", store=line.store)
        try:
            yield line
        finally:
            end("compose", line.store.root)


def client_of(cluster: Cluster) -> str:
    """Give the id of the client container, or "" if there is none."""
    own = [f"label=io.etcdops.cluster-id={cluster.record.id}", "label=io.etcdops.role=client"]
    return docker("ps", "--all", "--quiet", "--no-trunc", *(word for each in own for word in ("--filter", each)))


def in_client(cluster: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run etcdctl in the client container, with these arguments alone."""
    argv = ["docker", "exec", client_of(cluster), "etcdctl", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def ref(cluster: Cluster, name: str) -> str:
    """Give the id of a member's container."""
    return cluster.record.member(name).ref


def network(cluster: Cluster, name: str) -> str:
    """Give the name on the engine of the network "peer" or "client"."""
    return f"etcdops-{cluster.name}-{cluster.record.id[:6]}_{name}"


def inspect(container: str) -> dict[str, Any]:
    """Give what `docker inspect` says of a container."""
    told: dict[str, Any] = json.loads(docker("inspect", container))[0]
    return told


def amiss(cluster: Cluster) -> list[str]:
    """Give what the status calls amiss."""
    return [finding.message for finding in cluster.status().warnings if finding.code == "amiss"]


def seen(cluster: Cluster, name: str) -> MemberStatus:
    """Give a member's status."""
    return cluster.status().member(name)


def bring_back(cluster: Cluster, by: str) -> list[str]:
    """Put the cluster right by "heal" or "up", and give what was done."""
    return heal(cluster) if by == "heal" else cluster.up()
