"""Whether members hold the same keys, by members in memory: equal, different, and not to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from etcdops.cluster import Cluster
from etcdops.fake.lies import Lies
from etcdops.operations.equality import hashes_agree
from etcdops.runtimes.fake import FakeRuntime
from etcdops.spec import ClusterSpec
from etcdops.state import Store


def _cluster(directory: Path, lies: Lies | None = None) -> Cluster:
    runtime = FakeRuntime(lies=lies) if lies else FakeRuntime()
    return Cluster.create(ClusterSpec.of_size("lab"), runtime=runtime, store=Store(directory), temporary=True)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Cluster]:
    """A running cluster of three with a key."""
    with _cluster(tmp_path) as cluster:
        cluster.client().put("a", "b")
        yield cluster


def test_equal(lab: Cluster) -> None:
    """All hold the same keys, and the revision that was compared is one that all have."""
    seen = hashes_agree(lab, lab.record.spec.names, timeout_s=5.0)
    assert seen.equal
    assert seen.revision == lab.member("thor").status().revision


def test_a_member_that_does_not_answer_is_no_agreement(lab: Cluster) -> None:
    """Who cannot be asked is named; others that agree prove nothing of it."""
    lab.member("thor").kill()
    seen = hashes_agree(lab, lab.record.spec.names, timeout_s=0.2)
    assert seen.result == "unknown"
    assert "thor" in seen.detail
    assert hashes_agree(lab, ["ironman", "deadpool"], timeout_s=5.0).equal


def test_different(tmp_path: Path) -> None:
    """A member with another hash is named."""
    with _cluster(tmp_path, Lies(wrong_hash="thor")) as cluster:
        cluster.client().put("a", "b")
        seen = hashes_agree(cluster, cluster.record.spec.names, timeout_s=5.0)
        assert seen.result == "different"
        assert "thor" in seen.detail
