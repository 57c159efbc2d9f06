"""The leader drill on several releases of etcd, on each runtime; see releases.py for which."""

from __future__ import annotations

import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.spec import ClusterSpec
from tests.conftest import assert_passed
from tests.suite.releases import RELEASES, spec_of
from tests.suite.shared import GIVEN, NAMED

#: How else the leader goes on some releases than by being killed; on the newest, test_failed_leader.py has every way,
#: and `scripts/soak releases` has every way on each.
WAYS = {"3.4.23": "freeze"}


@pytest.fixture
def etcd_cluster_spec(version: str, etcd_cluster_runtime: str) -> ClusterSpec:
    """Three members of that release."""
    return spec_of(version, etcd_cluster_runtime)


def test_what_is_named_is_there() -> None:
    """Every directory of ETCDOPS_TEST_ETCDS has an etcd that tells its version."""
    assert sorted(NAMED.values()) == sorted(GIVEN)


def _drill(cluster: Cluster, version: str, how: str) -> None:
    leader = cluster.leader().name
    verdict = drills.run("failed-leader", cluster, how=how, rate=20, baseline_s=0.5)
    assert_passed(verdict)
    assert (verdict.cluster.etcd_version, verdict.cluster.runtime) == (version, cluster.runtime.name)
    assert verdict.fault is not None
    assert (verdict.fault.kind, verdict.fault.member) == (how, leader)
    assert {member.version for member in cluster.status().members} == {version}


@pytest.mark.runtime("process")  # as another runtime has them, below
@pytest.mark.parametrize("version", sorted({*RELEASES, *NAMED}))
def test_a_leader_that_hangs_is_stopped_or_killed(etcd_cluster: Cluster, version: str) -> None:
    """On every release another is elected, and no acknowledged write is lost but by what that release is known for."""
    if version in WAYS:
        _drill(etcd_cluster, version, WAYS[version])
    _drill(etcd_cluster, version, "kill")


@pytest.mark.runtime("compose")  # the one that can
@pytest.mark.parametrize("version", ["3.4.23"])
def test_a_leader_that_is_cut_off(etcd_cluster: Cluster, version: str) -> None:
    """A leader that is cut off, on the oldest release."""
    _drill(etcd_cluster, version, "isolate")
