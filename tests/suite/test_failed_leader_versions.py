"""The leader drill on several releases of etcd, on each runtime; see releases.py for which."""

from __future__ import annotations

import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.spec import ClusterSpec
from tests.conftest import assert_passed
from tests.suite.releases import RELEASES, spec_of
from tests.suite.shared import GIVEN, NAMED


@pytest.fixture(params=sorted({*RELEASES, *NAMED}))
def version(request: pytest.FixtureRequest) -> str:
    """Each release in turn."""
    release: str = request.param
    return release


@pytest.fixture
def etcd_cluster_spec(version: str, etcd_cluster_runtime: str) -> ClusterSpec:
    """Three members of that release."""
    return spec_of(version, etcd_cluster_runtime)


def test_what_is_named_is_there() -> None:
    """Every directory of ETCDOPS_TEST_ETCDS has an etcd that tells its version."""
    assert sorted(NAMED.values()) == sorted(GIVEN)


def _drill(cluster: Cluster, version: str, how: str) -> None:
    leader = cluster.leader().name
    verdict = drills.run("failed-leader", cluster, how=how, rate=50, baseline_s=1.0)
    assert_passed(verdict)
    assert (verdict.cluster.etcd_version, verdict.cluster.runtime) == (version, cluster.runtime.name)
    assert verdict.fault is not None
    assert (verdict.fault.kind, verdict.fault.member) == (how, leader)
    assert {member.version for member in cluster.status().members} == {version}


def test_a_leader_that_is_killed(etcd_cluster: Cluster, version: str) -> None:
    """On every release another is elected, and no acknowledged write is lost but by what that release is known for."""
    _drill(etcd_cluster, version, "kill")


# The other ways are those of test_failed_leader.py on the newest release; on others, one or two each.


@pytest.mark.parametrize(("version", "how"), [("3.4.23", "freeze"), ("3.5.1", "stop"), ("3.5.16", "freeze")])
def test_other_ways(etcd_cluster: Cluster, version: str, how: str) -> None:
    """Leaders that hang or are stopped, on older releases."""
    _drill(etcd_cluster, version, how)


@pytest.mark.runtime("compose")  # the one that can
@pytest.mark.parametrize(("version", "how"), [("3.4.23", "isolate"), ("3.5.16", "isolate")])
def test_a_leader_that_is_cut_off(etcd_cluster: Cluster, version: str, how: str) -> None:
    """A leader that is cut off, on older releases."""
    _drill(etcd_cluster, version, how)
