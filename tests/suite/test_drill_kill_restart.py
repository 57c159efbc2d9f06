"""The drill kill-restart on real etcd: silent on sound releases, and loud on one that loses what it acknowledged.

With its own traffic it is the example of docs/drills/kill-restart.md, and on each runtime `scripts/soak` has it.
"""

from __future__ import annotations

import time

import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.report.runinfo import read_run
from etcdops.report.verdict import Verdict
from etcdops.spec import ClusterSpec
from tests.suite.releases import spec_of


class TestWideTransactions:
    """What etcd#13766 did to 3.5.0 to 3.5.2, and not to those after it. The release's own timing, as it was found."""

    @pytest.fixture(params=["3.5.1", "3.5.30"])
    def version(self, request: pytest.FixtureRequest) -> str:
        """One that has it, and one that has not."""
        release: str = request.param
        return release

    @pytest.fixture
    def etcd_cluster_spec(self, version: str, etcd_cluster_runtime: str) -> ClusterSpec:
        """Three members of that release."""
        return spec_of(version, etcd_cluster_runtime)

    @pytest.mark.runtime("process")  # what is found is etcd's, and to find it a second time takes a minute
    def test_a_release_that_loses_data_is_found_and_another_is_not(self, etcd_cluster: Cluster, version: str) -> None:
        """Two kills a round: 3.5.1 has lost an entry after a few, whatever else is on this machine; 3.5.30 never."""
        rounds = "6" if version == "3.5.1" else "2"
        began = time.monotonic()
        verdict = drills.run(
            "kill-restart", etcd_cluster, profile="wide-txn", rounds=rounds, baseline_s=1.0, say=lambda text: None
        )
        said = f"after {time.monotonic() - began:.0f} s: {verdict.checks}"
        if version == "3.5.1":
            assert verdict.verdict == "deviated", said
            assert _loss(verdict), said
        else:
            assert verdict.verdict == "passed", said
        info = read_run(verdict.folder)
        assert (info.rate, info.client_rate) == (10, 8)


def _loss(verdict: Verdict) -> list[str]:
    """Give the checks that say that members do not hold the same, or that an acknowledged write is gone."""
    named = ("rejoined", "acknowledged writes", "members agree")
    return [check.name for check in verdict.checks if check.result == "failed" and check.name.startswith(named)]
