"""The drills that take a quorum away or move the leader, on real etcd.

The restart of every member and the run without a fault are the examples of docs/drills/; each drill on each runtime is
run by `scripts/soak drills-process` and `drills-compose`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcdops import drills, runtimes
from etcdops.cluster import Cluster
from etcdops.faults.heal import heal
from etcdops.report.verdict import Verdict
from etcdops.snapshots.verifying import verify_snapshot
from etcdops.spec import ClusterSpec
from etcdops.state import Store
from tests.conftest import CommandLine, assert_passed

#: Nothing below a drill's own steps differs but how a member is started and stopped, and that is tested elsewhere.
on_processes = pytest.mark.runtime("process")


@pytest.fixture(scope="module")
def lab(etcd_cluster_runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three that the tests of a runtime share, at etcd's own timing: no election by accident."""
    store = Store(tmp_path_factory.mktemp("lab"))
    spec = ClusterSpec.of_size("lab")
    with Cluster.create(spec, runtime=runtimes.get(etcd_cluster_runtime), store=store, temporary=True) as cluster:
        yield cluster


def _as_before(cluster: Cluster) -> None:
    """See that nothing is left of a drill."""
    assert cluster.status().verdict == "healthy"
    assert cluster.store.unhealed(cluster.name) is None
    assert heal(cluster) == []
    assert list(cluster.client().get_prefix("etcdops/")) == []


def _figures(verdict: Verdict) -> dict[str, float | None]:
    return {figure.name: figure.value for figure in verdict.figures}


@pytest.mark.parametrize(
    ("how", "stays"),
    [
        # Killed, with the leader among those who stay: docs/drills/reduce-quorum.md.
        pytest.param("freeze", "goes", marks=on_processes),
        # The one that members in containers alone can suffer, and the way back of which is another for each of several.
        pytest.param("isolate", "stays", marks=pytest.mark.runtime("compose")),
    ],
)
def test_reduce_quorum(lab: Cluster, how: str, stays: str) -> None:
    """Service with a minority away, none without a quorum but what needs none, and all of it again afterwards."""
    leader = lab.leader().name
    verdict = drills.run("reduce-quorum", lab, how=how, leader=stays, rate=20, baseline_s=0.5, clients=0)
    assert_passed(verdict)
    gone = [fault.member for fault in verdict.faults]
    assert len(gone) == 2
    assert (leader == gone[0]) == (stays == "goes")
    assert verify_snapshot(verdict.folder / "without-quorum.db").result == "passed"
    figures = _figures(verdict)
    # The leader steps down after an election timeout in which it has not heard a quorum.
    assert (figures["no leader"] or 0) > 400
    assert figures["first write after the return"] is not None
    assert verdict.outage is not None
    assert (verdict.outage.write_ms or 0) >= (figures["without a quorum"] or 0) - 500
    _as_before(lab)


@on_processes
def test_move_leader(lab: Cluster) -> None:
    """Another member leads, no write is lost, and the outage stands beside the prediction of a heartbeat."""
    before = lab.leader().name
    verdict = drills.run("move-leader", lab, rate=20, baseline_s=0.5, clients=0)
    assert_passed(verdict)
    assert lab.leader().name != before
    assert verdict.outage is not None
    assert verdict.outage.predicted_ms == (0.0, 100.0)
    assert verdict.outage.new_leader_ms is not None
    _as_before(lab)


@on_processes
def test_by_name_and_in_the_list(cli: CommandLine) -> None:
    """`drill.run NAME` takes the drill's own flags, and `drill.list` has the verdict of the last run."""
    ended = cli("drill.run", "no-fault", "--duration", "1", "--rate", "20", "--size", "1", "-o", "json")
    assert ended.code == 0, ended.err
    verdict = json.loads(ended.out)
    assert (verdict["drill"], verdict["verdict"]) == ("no-fault", "passed")
    listed = json.loads(cli("drill.list", "-o", "json").out)["drills"]
    last = next(each["last"] for each in listed if each["name"] == "no-fault")
    assert (last["run"], last["verdict"]) == (Path(verdict["report"]).parent.name, "passed")
    row = next(line for line in cli("drill.run", program="invoke").out.splitlines() if line.startswith("no-fault "))
    assert "1 voter" in row
    assert "passed 20" in row
