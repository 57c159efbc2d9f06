"""The drills that lose data and bring it back, on real etcd.

What a lock does not protect is the example of docs/drills/lock-fencing.md; a drill that dies at any of its steps is
`scripts/soak kills-drills`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from etcdops import drills, interrupts, runtimes
from etcdops.cluster import Cluster
from etcdops.errors import Interrupted, Refused
from etcdops.faults.heal import heal
from etcdops.operations.pending import load
from etcdops.report.assembling import recheck
from etcdops.report.journal import Entry, Journal
from etcdops.report.judged import UNDONE
from etcdops.report.verdict import Verdict
from etcdops.snapshots.verifying import verify_snapshot
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
from etcdops.workload.history import read_history
from tests.conftest import assert_passed, need_runtime

_SHORT: dict[str, Any] = {"keys": "10", "age": "0.2", "rate": 20, "baseline_s": 0.5}


def _cluster(runtime: str, store: Store, config: pytest.Config) -> Cluster:
    need_runtime(runtime, config)
    spec = ClusterSpec.of_size("lab", timing=Timing(heartbeat_ms=100, election_ms=1000))
    return Cluster.create(spec, runtime=runtimes.get(runtime), store=store, temporary=True)


@pytest.fixture(scope="module")
def contained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of three in containers, at etcd's own timing: no election by accident."""
    with _cluster("compose", Store(tmp_path_factory.mktemp("lab")), request.config) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def plain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of processes that tests share, at etcd's own timing."""
    with _cluster("process", Store(tmp_path_factory.mktemp("plain")), request.config) as cluster:
        yield cluster


def _as_before(cluster: Cluster) -> None:
    """See that nothing is left of a drill: no fault, no operation, no keys."""
    assert cluster.status().verdict == "healthy"
    assert cluster.store.unhealed(cluster.name) is None
    assert load(cluster) is None
    assert heal(cluster) == []
    assert list(cluster.client().get_prefix("etcdops/")) == []


def _figures(verdict: Verdict) -> dict[str, float]:
    return {figure.name: figure.value for figure in verdict.figures if figure.value is not None}


def _check_restored(cluster: Cluster, verdict: Verdict, phases: set[str]) -> None:
    """What both drills promise: the state, the RPO with its list, the RTO by phase, and the same verdict again."""
    assert_passed(verdict)
    figures = _figures(verdict)
    undone = read_history(verdict.folder / UNDONE)
    revision = verify_snapshot(verdict.folder / "snapshot.db").revision or 0
    assert figures["RPO"] == len(undone) > 0
    assert all(op.outcome == "ok" and op.revision > revision for op in undone)
    assert sum(figures[f"RTO, {phase}"] for phase in phases) == pytest.approx(figures["RTO"], rel=0.1, abs=50)
    assert "all 10 keys" in verdict.check("data set is back (window 2)").detail
    again = recheck(verdict.folder)
    assert [check.name for check in again.checks] == [check.name for check in verdict.checks]
    assert (again.verdict, again.figures, again.writes) == (verdict.verdict, verdict.figures, verdict.writes)
    _as_before(cluster)


def test_data_loss_beside_data_of_others(plain: Cluster) -> None:
    """What was deleted is back through every member; what was acknowledged after the snapshot is counted and listed.

    It does not begin where there are others' keys; told to, it keeps what they had.
    """
    client = plain.client()
    client.put("theirs", "precious")
    try:
        with pytest.raises(Refused, match="1 keys outside") as refused:
            drills.run("data-loss", plain, **_SHORT)
        assert "--destroy-data lab" in refused.value.remedy
        verdict = drills.run("data-loss", plain, destroy_data="lab", **_SHORT)
        _check_restored(plain, verdict, {"verify", "scratch restore", "stop", "swap", "start", "first write"})
        assert {"put", "delete"} <= {op.kind for op in read_history(verdict.folder / UNDONE)}
        assert plain.client().get("theirs")[0] == b"precious"
        assert len(plain.record.retired) == 3
    finally:
        plain.client().delete("theirs")


@pytest.mark.parametrize("runtime", ["plain", "contained"])
def test_disaster(runtime: str, request: pytest.FixtureRequest) -> None:
    """With all data gone nothing starts, and the snapshot brings everything back that it had; on each runtime."""
    cluster: Cluster = request.getfixturevalue(runtime)
    retired = cluster.record.retired
    verdict = drills.run("disaster", cluster, **_SHORT)
    _check_restored(cluster, verdict, {"verify", "scratch restore", "swap", "start", "first write"})
    # Repeated runs do not fill the disk.
    assert cluster.record.retired == retired
    assert "data of all members" in verdict.check("plain start is refused (window 2)").detail
    assert _figures(verdict)["RTO without service"] > _figures(verdict)["RTO"]


def _signal_at(monkeypatch: pytest.MonkeyPatch, event: str, detail: str) -> None:
    """Have this process get Ctrl-C at an entry of a journal."""
    note = Journal.note

    def note_and_signal(self: Journal, *args: Any, **options: Any) -> Entry:
        entry = note(self, *args, **options)
        if entry.event == event and detail in entry.detail:
            os.kill(os.getpid(), signal.SIGINT)
        return entry

    monkeypatch.setattr(Journal, "note", note_and_signal)


@pytest.mark.parametrize(
    ("drill", "event", "detail"),
    [
        ("data-loss", "step", "3 exchange"),
        ("data-loss", "step", "5 prove"),
        ("disaster", "erased", ""),
        ("disaster", "step", "3 start"),
    ],
)
def test_interrupted(plain: Cluster, monkeypatch: pytest.MonkeyPatch, drill: str, event: str, detail: str) -> None:
    """Ctrl-C leaves a cluster that serves: the restore is taken back, or ended where there is nothing to go back to."""
    with monkeypatch.context() as patch:
        _signal_at(patch, event, detail)
        with interrupts.handled(), pytest.raises(Interrupted):
            drills.run(drill, plain, **_SHORT)
    _as_before(plain)


_KILLED = """
import os, signal, sys
from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.report.journal import Journal
from etcdops.state import Store

directory, drill, event, detail = sys.argv[1:]
note = Journal.note

def note_and_die(self, *args, **options):
    entry = note(self, *args, **options)
    if entry.event == event and detail in entry.detail:
        os.kill(os.getpid(), signal.SIGKILL)
    return entry

Journal.note = note_and_die
drills.run(drill, Cluster.attach("lab", store=Store(directory)), keys="10", age="0.2", rate=20, baseline_s=0.5)
"""


@pytest.mark.parametrize(
    ("drill", "event", "detail", "done"),
    [("data-loss", "step", "4 start", "taken back"), ("disaster", "erased", "", "made anew from")],
)
def test_killed(plain: Cluster, drill: str, event: str, detail: str, done: str) -> None:
    """What a drill that was killed itself has left, `heal` puts right; before, nothing starts without its data."""
    argv = [sys.executable, "-c", _KILLED, str(plain.store.root), drill, event, detail]
    ended = subprocess.run(argv, capture_output=True, timeout=100, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    if drill == "disaster":
        with pytest.raises(Refused, match="data of all members") as refused:
            plain.up()
        assert "`heal`" in refused.value.remedy
    assert any(done in said for said in heal(plain))
    _as_before(plain)


def test_lock_fencing_needs_rivals(plain: Cluster) -> None:
    """With one client nobody competes for the lock, so the drill shows nothing, and says so."""
    verdict = drills.run("lock-fencing", plain, rate=20, baseline_s=0.5, clients=1)
    assert verdict.verdict == "inconclusive"
    assert "--clients 3" in verdict.check("ran to its end").detail
    _as_before(plain)
