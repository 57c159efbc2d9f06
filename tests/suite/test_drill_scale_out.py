"""The drill replace-member on real etcd, on each runtime, and members that come and go in drills that are killed.

scale-out to its end is the example of docs/drills/scale-out.md; on each runtime, `scripts/soak` has it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.operations import data
from etcdops.spec import ClusterSpec
from tests.conftest import CommandLine, assert_passed

Wait = Callable[..., None]


@pytest.fixture
def etcd_cluster_spec() -> ClusterSpec:
    """Three members at etcd's own timing: what must not cost an election is not to cost one on a busy machine."""
    return ClusterSpec.of_size("lab")


def _ids(cluster: Cluster) -> dict[str, str]:
    return {member.name: member.id for member in cluster.status().members}


@pytest.mark.parametrize(
    "who",
    [
        pytest.param("follower", marks=pytest.mark.runtime("compose")),
        pytest.param("leader", marks=pytest.mark.runtime("process")),
    ],
)
def test_a_lost_disk_is_replaced(etcd_cluster: Cluster, who: str) -> None:
    """The member has another ID and the same data; nothing that was acknowledged is gone."""
    before = _ids(etcd_cluster)
    verdict = drills.run("replace-member", etcd_cluster, who=who, rate=20, baseline_s=0.5)
    assert_passed(verdict)
    [fault] = verdict.faults
    after = _ids(etcd_cluster)
    assert [name for name in before if before[name] != after[name]] == [fault.member]
    assert {each.state for each in data.generations(etcd_cluster)} == {"in use"}
    assert f"the data of {fault.member} is gone" in verdict.check("plain start refused").detail


@pytest.mark.runtime("process")  # what is healed by, not what runs, is what this is about
@pytest.mark.parametrize(("drill", "at"), [("scale-out", "add wasp"), ("replace-member", "put a new member")])
def test_kill_minus_nine_is_healed(cli: CommandLine, wait_until: Wait, drill: str, at: str) -> None:
    """After kill -9 in the midst of a change of members, `heal` makes the members what they were."""
    assert cli("up-env").code == 0
    process = cli.start(drill, "--rate", "20")
    assert process.stderr is not None
    said = ""
    while at not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    healed = cli("heal")
    assert healed.code == 0, healed.err
    cluster = cli.cluster()
    assert cluster.record.spec.names == ("ironman", "thor", "deadpool")
    assert cluster.status().verdict == "healthy"
    assert cli.store.unhealed("lab") is None
    assert list(cluster.client().get_prefix("etcdops/")) == []
