"""Recovering from a quorum that is lost for good: refused while it is not, and then from the best that is left."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcdops import runtimes
from etcdops.cluster import Cluster
from etcdops.errors import Refused, SpecError
from etcdops.operations.equality import hashes_agree
from etcdops.operations.exchange import restorer
from etcdops.operations.pending import load
from etcdops.operations.plan import Plan
from etcdops.snapshots.recovering import prepare_recover, recover
from tests.conftest import CommandLine
from tests.suite import members
from tests.suite.shared import cluster_by
from tests.suite.test_restore import _keys, _kill, _put


@pytest.fixture(scope="module", params=runtimes.names())
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three, for all tests of a runtime; each leaves it recovered."""
    with cluster_by(request, tmp_path_factory.mktemp("recover")) as cluster:
        yield cluster


@pytest.fixture
def lab(shared: Cluster) -> Cluster:
    """The shared cluster, healthy, with a key."""
    assert load(shared) is None
    shared.up()
    _put(shared, "a")
    return shared


def _lose(cluster: Cluster, *names: str) -> None:
    """Kill members, and destroy their disks."""
    for name in names:
        cluster.member(name).kill()
        place = cluster.record.member(name).data.place
        if cluster.record.runtime == "compose":
            members.docker("rm", "--force", cluster.record.member(name).ref)
            members.docker("volume", "rm", place)
        else:
            shutil.rmtree(place)


def test_from_the_one_that_still_answers(lab: Cluster) -> None:
    """All three are made anew with what it has, and nothing is deleted; what may be lost is said, and why."""
    with pytest.raises(Refused, match="3 of 3 voters of lab answer"):
        recover(lab)
    _lose(lab, "ironman", "deadpool")
    at = lab.member("thor").status()
    place = lab.record.member("thor").data
    plans: list[Plan] = []
    done = recover(lab, confirm=plans.append)
    [plan] = plans
    assert "3 voters, quorum 2" in plan.consequence
    assert f"made anew from thor, at revision {at.revision} (applied index " in plan.consequence
    assert "in the logs of 2 of 3, and ironman and deadpool are as many" in plan.consequence
    assert done.revision == at.revision
    assert _keys(lab) == {"a"}
    assert hashes_agree(lab, lab.record.spec.names, timeout_s=30.0).equal
    assert lab.status().verdict == "healthy"
    assert place in [each.data for each in lab.record.retired]
    assert restorer(lab).present_data(lab.record, [place]) == (place,)


# -- what no runtime changes: by processes alone


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A place for clusters of processes."""
    from tests.conftest import place

    with place(tmp_path_factory.mktemp("home") / "place") as line:
        assert line("up-env", "--offline").code == 0
        yield line


@pytest.fixture
def plain(home: CommandLine) -> Cluster:
    """Its cluster, healthy, with a key."""
    cluster = home.cluster()
    assert load(cluster) is None
    cluster.up()
    _put(cluster, "a")
    return cluster


def test_refused_as_long_as_a_quorum_can_be_brought_back(plain: Cluster) -> None:
    """Who is only stopped or frozen is named, with what brings it back, and how to give it up."""
    plain.member("ironman").kill()
    plain.member("deadpool").pause()
    with pytest.raises(Refused, match=r"can be had: ironman is stopped.*deadpool is frozen") as refused:
        recover(plain)
    assert "`up-env`" in refused.value.remedy
    assert "--lost ironman" in refused.value.remedy
    with pytest.raises(SpecError, match="no member hulk"):
        recover(plain, lost=["hulk"])
    # Two that are given up are no quorum any more: this would go on.
    plan = prepare_recover(plain, lost=["ironman", "deadpool"])
    assert [step.do for step in plan.steps] == ["save", "restore"]
    assert "made anew from thor" in plan.consequence
    plain.up()


def test_from_one_that_has_to_be_started_first(plain: Cluster) -> None:
    """Nobody runs, and one has its data: it is started to apply what its log holds, and its database is taken."""
    _put(plain, *(f"last {i}" for i in range(20)))
    for member in plain.members:
        member.kill()
    _lose(plain, "ironman", "deadpool")
    assert prepare_recover(plain).steps[0].do == "replay"
    said: list[str] = []
    recover(plain, progress=said.append)
    assert any(text.startswith("starting thor") for text in said)
    # etcd writes its database down ten times a second; that an entry is committed, a follower hears with the next one.
    assert {f"last {i}" for i in range(18)} <= _keys(plain)


def test_from_the_database_file_of_one_that_cannot_be_started(plain: Cluster) -> None:
    """Its log is damaged: what its database has is taken, and that the log is lost is said."""
    _put(plain, "b")
    plain.down()
    _lose(plain, "ironman", "deadpool")
    for log in Path(plain.record.member("thor").data.place, "member", "wal").glob("*.wal"):
        log.write_bytes(b"\1" * 4096)
    plans: list[Plan] = []
    recover(plain, confirm=plans.append)
    assert "only its database is taken" in plans[0].consequence
    assert {"a", "b"} <= _keys(plain)
    assert plain.status().verdict == "healthy"


def test_killed_and_gone_on_with_or_taken_back(plain: Cluster) -> None:
    """Killed before the record was written, it is taken back to the survivor; killed after, it goes on."""
    _lose(plain, "ironman", "deadpool")
    assert _kill(plain, 5, "recover") == -signal.SIGKILL
    assert "is taken back" in plain.rollback()
    assert plain.runtime.states(plain.record)["thor"] == "running"
    assert _kill(plain, 7, "recover") == -signal.SIGKILL
    recover(plain)
    assert "a" in _keys(plain)
    # Even then the survivor's data is there to go back to.
    plain.rollback()
    assert plain.status().verdict == "no-quorum"
    recover(plain, lost=["ironman", "deadpool"])
    assert "a" in _keys(plain)


def test_the_task(home: CommandLine, plain: Cluster) -> None:
    """It asks for the name of the cluster, once it has said what may be lost; refusing changes nothing."""
    assert home("cluster.recover").code == 3
    _lose(plain, "ironman", "deadpool")
    assert home("cluster.recover", "--dry-run").code == 0
    asked = home("cluster.recover")
    assert asked.code == 2
    assert "This means: 3 voters, quorum 2: " in asked.err
    done = home("cluster.recover", "--yes")
    assert done.code == 0, done.err
    assert "lab is restored from " in done.err
