"""The drills that take a quorum away, move the leader, restart every member, or do nothing; in memory, no etcd.

Each check is shown to pass on an honest cluster, and to fail where the cluster lies or the drill is broken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.drills import rolling_restart
from etcdops.errors import EtcdError, SnapshotError, SpecError
from etcdops.fake.lies import Lies
from etcdops.report.lanes import lanes
from etcdops.report.loading import load_run
from etcdops.report.verdict import Verdict
from etcdops.state import Store
from etcdops.wire import Connection
from tests.unit import drilling
from tests.unit.drilling import QUICK, be_honest, failed, fake_cluster, interrupting

Run = Callable[..., Verdict]


@pytest.fixture
def run(store: Store) -> Run:
    """Runs a drill on a cluster in memory that lies as it is told; the cluster is well afterwards."""

    def run(
        name: str,
        lies: Lies | None = None,
        *,
        size: int = 3,
        on_say: Callable[[Cluster, str], None] = lambda cluster, text: None,
        **options: Any,
    ) -> Verdict:
        told = lies or Lies()
        with fake_cluster(store, told, size=size) as cluster:
            try:
                options["say"] = lambda text: on_say(cluster, text)
                return drills.run(name, cluster, clients=0, **QUICK, **options)
            finally:
                be_honest(told)
                assert [member.state() for member in cluster.members] == ["running"] * size
                cluster.wait_healthy(timeout_s=30)
                assert store.unhealed("fake") is None

    return run


# -- reduce-quorum


@pytest.mark.parametrize(("size", "how", "stays"), [(3, "freeze", "goes"), (5, "kill", "stays")])
def test_quorum_goes_and_comes_back(run: Run, size: int, how: str, stays: str) -> None:
    """Whoever goes, and in whichever way: every outcome is as predicted, and the figures are there."""
    verdict = run("reduce-quorum", size=size, how=how, leader=stays)
    assert verdict.verdict == "passed", failed(verdict)
    # A minority, and one more.
    assert [fault.kind for fault in verdict.faults] == [how] * ((size - 1) // 2 + 1)
    figures = {figure.name: figure.value for figure in verdict.figures}
    assert ("new leader" in figures) == (stays == "goes")
    without = figures["without a quorum"]
    # Twice the deadline, for a write and a read.
    assert without is not None
    assert without > 1000
    assert verdict.outage is not None
    # From the last acknowledgement to the first, so but for what was under way when it began.
    assert (verdict.outage.write_ms or 0) > without - 500
    assert figures["first write after the return"] is not None
    assert verdict.outage.predicted_ms is None
    assert (verdict.folder / "without-quorum.db").exists()


def test_service_without_a_quorum_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader that goes on alone is found by what the drill asks, by its status, and by the traffic."""
    monkeypatch.setattr(drilling, "PATIENCE", 15)
    found = failed(run("reduce-quorum", Lies(ignores_quorum=True, after_fault=True)))
    assert {
        "members answer and know of no leader",
        "no write without a quorum",
        "no linearizable read without a quorum",
        "status says no quorum",
        "no traffic without a quorum",
    } <= set(found)
    assert "ok at revision" in found["no write without a quorum"]


def test_a_serializable_read_of_something_else_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A survivor that does not give what it acknowledged is found."""
    monkeypatch.setattr(drilling, "PATIENCE", 15)
    assert "serializable reads without a quorum" in failed(run("reduce-quorum", Lies(diverges="ironman")))


def test_a_snapshot_that_cannot_be_had_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a snapshot the check fails with the reason, and the drill goes on to its end."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise SnapshotError("the disk is full")

    monkeypatch.setattr("etcdops.snapshots.saving.save_snapshot", refuse)
    verdict = run("reduce-quorum")
    found = failed(verdict)
    assert set(found) == {"snapshot without a quorum"}
    assert "the disk is full" in found["snapshot without a quorum"]
    assert verdict.check("service with a quorum back").result == "passed"


@pytest.mark.parametrize("step", [4, 10])
def test_interrupted_without_a_quorum(run: Run, step: int) -> None:
    """Ctrl-C without a quorum, and half-way back: every member is back and serves."""
    with pytest.raises(KeyboardInterrupt):
        run("reduce-quorum", pause=interrupting(step), how="freeze")


# -- move-leader


def test_leadership_moves(run: Run) -> None:
    """Leadership is handed over to the follower that the seed names, beside Raft's prediction of a heartbeat."""
    verdict = run("move-leader", seed=3)
    assert verdict.verdict == "passed", failed(verdict)
    assert verdict.outage is not None
    assert verdict.outage.predicted_ms == (0.0, 20.0)
    # No member is away, so the streams of all of them count.
    assert verdict.outage.affected_member_ms is None
    assert verdict.faults[0].member == ""


def test_a_handover_that_does_not_happen_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the same member leads on, the drill deviates."""
    monkeypatch.setattr(drilling, "PATIENCE", 15)
    monkeypatch.setattr(Connection, "move_leader", lambda self, target_id, *, timeout_s: None)
    assert set(failed(run("move-leader"))) == {"new leader"}


def test_a_handover_that_is_refused_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the leader refuses, the drill deviates with what it said."""

    def refuse(self: Connection, to: int, *, timeout_s: float) -> None:
        raise EtcdError("UNAVAILABLE", "leader transfer took too long", endpoint=self.endpoint)

    monkeypatch.setattr(Connection, "move_leader", refuse)
    assert "took too long" in failed(run("move-leader"))["leadership moved"]


def test_a_handover_to_another_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another member leads in the end than the one that was to, the drill deviates."""
    real = Connection.move_leader

    def astray(self: Connection, to: int, *, timeout_s: float) -> None:
        others = {member.id for member in self.member_list(timeout_s=1)} - {to, self.status(timeout_s=1).leader}
        real(self, others.pop(), timeout_s=timeout_s)

    monkeypatch.setattr(Connection, "move_leader", astray)
    assert set(failed(run("move-leader"))) == {"leadership moved"}


# -- rolling-restart


def _check_members_are_heard_again(verdict: Verdict) -> None:
    """A member that comes back to the leader that it followed before says so, and its lane shows it."""
    run = load_run(verdict.folder)
    found = lanes(run, run.info.began_ns, run.entries[-1].t_ns)
    for name in ("ironman", "thor", "deadpool"):
        own = [each.state for each in found if each.member == name]
        assert own[own.index("away") + 1 :][-1] in ("follows", "leads"), own


def test_every_member_is_restarted(run: Run) -> None:
    """Each member is stopped once, the leader last and after a handover; the outage is that of those who stayed."""
    verdict = run("rolling-restart")
    assert verdict.verdict == "passed", failed(verdict)
    kinds = [(fault.kind, bool(fault.member)) for fault in verdict.faults]
    assert kinds == [("stop", True), ("stop", True), ("move-leader", False), ("stop", True)]
    assert {fault.member for fault in verdict.faults} == {"", "ironman", "thor", "deadpool"}
    assert verdict.faults[-1].member == "ironman"  # who leads first, in memory
    assert verdict.outage is not None
    # Each member's stream stopped while it was away, and that is not what users of the others met.
    assert verdict.outage.write_ms is not None
    assert verdict.outage.affected_member_ms is not None
    assert verdict.outage.write_ms < verdict.outage.affected_member_ms
    # So is when it was: that is what the page marks.
    stopped = verdict.outage.stopped
    assert stopped is not None
    assert (stopped.until_ns - stopped.from_ns) / 1e6 == pytest.approx(verdict.outage.write_ms, abs=0.001)
    assert verdict.outage.noise_ms is not None
    _check_members_are_heard_again(verdict)
    assert len([check for check in verdict.checks if check.name.startswith("rejoined")]) == 3


def test_elections_too_many_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two elections are one too many."""
    real = rolling_restart._hand_over

    def twice(scene: Any, old: Any, new: Any) -> None:
        real(scene, old, new)
        real(scene, new, old)
        real(scene, old, new)

    monkeypatch.setattr(rolling_restart, "_hand_over", twice)
    assert set(failed(run("rolling-restart"))) == {"one election at most"}


def test_writes_that_stop_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another member does not serve while one is away, service was not throughout; and that one is healed too."""
    monkeypatch.setattr(drilling, "PATIENCE", 15)

    def freeze_another(cluster: Cluster, text: str) -> None:
        if ", 1 of 3: SIGTERM" in text:
            next(m for m in cluster.members if m.name != "ironman" and f" {m.name}," not in text).pause()

    assert set(failed(run("rolling-restart", on_say=freeze_another))) == {"service throughout"}


def test_interrupted_restarts(run: Run) -> None:
    """Ctrl-C while a member is away: every member is back and serves."""
    with pytest.raises(KeyboardInterrupt):
        run("rolling-restart", pause=interrupting(2))


# -- no-fault


def test_nothing_is_broken(run: Run) -> None:
    """The control passes, also on a single member, and what it measures is the noise."""
    verdict = run("no-fault", size=1, duration="1")
    assert verdict.verdict == "passed", failed(verdict)
    assert [(fault.kind, fault.member) for fault in verdict.faults] == [("no-fault", "")]
    assert {figure.name: figure.value for figure in verdict.figures} == {"elections": 0}
    assert verdict.outage is not None
    assert verdict.outage.predicted_ms is None


def test_the_control_finds_what_is_wrong(run: Run) -> None:
    """A lost write makes the control deviate, too."""
    assert "acknowledged writes" in failed(run("no-fault", Lies(lose_every=50), duration="1"))


@pytest.mark.parametrize("duration", ["0", "501", "1.5", "long"])
def test_durations_that_are_not_offered(run: Run, duration: str) -> None:
    """A duration that is no whole number, or beyond the longest traffic, is refused."""
    with pytest.raises(SpecError, match="1 to 500"):
        drills.find("no-fault").options({"duration": duration})
