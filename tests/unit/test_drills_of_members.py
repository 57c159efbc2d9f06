"""The drills that add members, replace one, or kill them in turn; in memory, no etcd.

Each check is shown to pass on an honest cluster, and to fail where the cluster lies or the drill is broken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.drills import kill_restart, scale_out
from etcdops.errors import Refused
from etcdops.fake.lies import Lies
from etcdops.faults.heal import heal, mark
from etcdops.faults.membership import EXTRA, WIPED
from etcdops.operations import data, pending, reconfigure
from etcdops.report.lanes import lanes
from etcdops.report.loading import load_run
from etcdops.report.verdict import Verdict
from etcdops.runtimes.fake import FakeRuntime
from etcdops.state import ClusterRecord, Store, Unhealed
from tests.unit.drilling import QUICK, be_honest, failed, fake_cluster, interrupting, saying

Run = Callable[..., Verdict]

#: A process that there is not: whoever finds its fault heals it.
_DEAD = "999999:1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two looks a second apart are tested elsewhere; members in memory need no time, but that of a busy machine."""
    monkeypatch.setattr(reconfigure, "GAP_S", 0.0)
    monkeypatch.setattr(scale_out, "_HOLD_S", 0.1)
    monkeypatch.setattr(scale_out, "_LEAST_MS", 60_000.0)
    monkeypatch.setattr(kill_restart, "_AWAY_S", 0.2)
    monkeypatch.setattr(kill_restart, "_BETWEEN_S", 0.1)


def _check_well(cluster: Cluster, names: tuple[str, ...]) -> None:
    """The cluster has these members, all of them serve, and nothing is left of any operation or run."""
    assert cluster.record.spec.names == names
    cluster.wait_healthy(timeout_s=30)
    assert pending.load(cluster) is None
    assert cluster.store.unhealed(cluster.name) is None
    assert list(cluster.client().get_prefix("etcdops/")) == []


@pytest.fixture
def run(store: Store) -> Run:
    """Runs a drill on a cluster in memory that lies as it is told; the cluster is as it was afterwards."""

    def run(name: str, lies: Lies | None = None, *, size: int = 3, **options: Any) -> Verdict:
        told = lies or Lies()
        with fake_cluster(store, told, size=size) as cluster:
            before = cluster.record.spec.names
            try:
                return drills.run(name, cluster, clients=0, **QUICK, **options)
            finally:
                be_honest(told)
                _check_well(cluster, before)
                assert {each.state for each in data.generations(cluster)} == {"in use"}

    return run


# -- scale-out


@pytest.mark.parametrize(("size", "even"), [(3, 4), (1, 2)])
def test_two_members_come_and_go(run: Run, size: int, even: int) -> None:
    """Two more join and leave; the figures show that the even number tolerates no more than the odd one."""
    verdict = run("scale-out", size=size)
    assert verdict.verdict == "passed", failed(verdict)
    quorums = {figure.name: figure.value for figure in verdict.figures}
    assert quorums == {
        f"quorum of {size}": size // 2 + 1,
        f"quorum of {even}": even // 2 + 1,
        f"quorum of {size + 2}": size // 2 + 2,
        "elections": 0,
    }
    assert verdict.check(f"{even} tolerate no more than {size}").result == "passed"
    for members in (even, size + 2):
        assert verdict.check(f"replicated to {members}, not spread").result == "passed"
    assert [fault.kind for fault in verdict.faults] == ["member.add"] * 2 + ["member.remove"] * 2
    assert {path.stem for path in verdict.folder.glob("*.log")} >= {fault.member for fault in verdict.faults}
    # Those that came were asked who leads, and are not said to have been away.
    loaded = load_run(verdict.folder)
    found = lanes(loaded, loaded.info.began_ns, loaded.entries[-1].t_ns)
    for name in {fault.member for fault in verdict.faults}:
        states = [each.state for each in found if each.member == name]
        assert states.count("changing") == 2, states
        assert "follows" in states[states.index("changing") :], states
        assert "away" not in states


def test_a_quorum_that_is_not_as_it_should_be_ends_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that was said to be added and is not there ends the drill, and nothing is left of it."""
    monkeypatch.setattr(scale_out, "_EQUAL_S", 0.5)
    monkeypatch.setattr(Cluster, "add_member", lambda *args, **options: None)
    assert "3 voters: quorum 2" in failed(run("scale-out"))["4 voters"]


def test_members_that_do_not_hold_every_key_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were keys spread over the members, each would have some of them: the counts would differ."""
    count = iter(range(100))
    monkeypatch.setattr(scale_out, "_count", lambda scene, member, revision: next(count))
    assert "ironman 0, thor 1" in failed(run("scale-out"))["replicated to 4, not spread"]


def test_writes_that_stop_meanwhile_are_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause that is longer than the limit fails the check of service."""
    monkeypatch.setattr(scale_out, "_limit_ms", lambda scene, noise_ms: 1.0)
    assert "the longest time between two acknowledged writes" in failed(run("scale-out"))["service throughout"]


@pytest.mark.parametrize("at", ["2/5 start hulk", "5/5 prove", "1/5 add wasp", "1/3 remove wasp", "2/3 see that wasp"])
def test_ctrl_c_in_the_midst_of_a_change_leaves_no_member_behind(run: Run, at: str) -> None:
    """Ctrl-C at any step of an addition or a removal: those that were added are gone, and nothing is unfinished."""
    with pytest.raises(KeyboardInterrupt):
        run("scale-out", say=saying(at))


@pytest.mark.parametrize("after", [2, 4])
def test_ctrl_c_between_steps_leaves_no_member_behind(run: Run, after: int) -> None:
    """The same between the drill's own steps."""
    with pytest.raises(KeyboardInterrupt):
        run("scale-out", pause=interrupting(after))


def test_too_many_members_are_refused(store: Store) -> None:
    """Where two more would be more than are offered, nothing is begun."""
    with fake_cluster(store, size=7) as cluster:
        with pytest.raises(Refused, match="with 2 more it would have more than 7"):
            drills.run("scale-out", cluster)
        assert not store.runs.exists()


@pytest.mark.parametrize("until", ["2/5 start", "5/5 prove", ""])
def test_members_of_a_run_that_died_are_removed_by_heal(store: Store, until: str) -> None:
    """After kill -9 of the drill, at any step of the addition or after it, `heal` removes the member again."""
    with fake_cluster(store) as cluster:
        mark(cluster, "run1", EXTRA, "hulk")
        try:
            cluster.add_member("hulk", progress=saying(until) if until else lambda text: None)
        except KeyboardInterrupt:
            assert pending.load(cluster) is not None
        else:
            assert not until
        store.mark_unhealed("fake", Unhealed("run1", EXTRA, "hulk", _DEAD, "now"))
        said = heal(cluster)
        assert any("run run1 is closed" in line for line in said)
        _check_well(cluster, ("ironman", "thor", "deadpool"))


# -- replace-member


@pytest.mark.parametrize("who", ["follower", "leader"])
def test_a_lost_disk_is_replaced(run: Run, who: str) -> None:
    """The plain start is refused, another member takes its place, and has all keys; no write is lost."""
    verdict = run("replace-member", who=who)
    assert verdict.verdict == "passed", failed(verdict)
    assert "is gone" in verdict.check("plain start refused").detail
    assert verdict.check("replaced").result == "passed"
    assert verdict.writes.lost == 0
    [fault] = verdict.faults
    assert verdict.outage is not None
    assert (verdict.outage.predicted_ms is not None) == (who == "leader")
    assert verdict.outage.worst_member != fault.member


def test_a_member_that_starts_without_its_data_is_found(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the plain start not refused, the drill says so, and the member is replaced all the same."""
    seen = FakeRuntime.lost_data

    def lost_data(self: FakeRuntime, record: ClusterRecord, names: tuple[str, ...]) -> tuple[str, ...]:
        if asked:
            return seen(self, record, names)
        asked.append(names)
        return ()

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(FakeRuntime, "lost_data", lost_data)
    assert failed(run("replace-member")) == {"plain start refused": "it was started"}


@pytest.mark.parametrize("after", [2, 3, 5])
def test_ctrl_c_while_the_disk_is_lost_replaces_the_member(run: Run, after: int) -> None:
    """Ctrl-C between any of the steps: all members are there again."""
    with pytest.raises(KeyboardInterrupt):
        run("replace-member", pause=interrupting(after))


@pytest.mark.parametrize("at", ["2/6 add", "4/6 wait", "6/6 prove"])
def test_ctrl_c_while_it_is_replaced_replaces_the_member(run: Run, at: str) -> None:
    """Ctrl-C in the midst of the replacement: it is brought to its end."""
    with pytest.raises(KeyboardInterrupt):
        run("replace-member", say=saying(at))


def test_the_disk_that_a_dead_run_has_deleted_is_made_up_for_by_heal(store: Store) -> None:
    """After kill -9 of the drill, `heal` replaces the member; for a disk that nobody is known to have deleted it does
    not, as that is not its to decide."""
    with fake_cluster(store) as cluster:
        thor = cluster.member("thor")
        before = thor.status().member_id
        store.mark_unhealed("fake", Unhealed("run1", WIPED, "thor", _DEAD, "now"))
        thor.kill()
        cluster.runtime.remove_data(cluster.record, [thor.record.data])
        assert "the disk of thor was lost, and it was replaced" in heal(cluster)
        assert thor.status().member_id != before
        _check_well(cluster, ("ironman", "thor", "deadpool"))


# -- kill-restart


def test_members_killed_in_turn_come_back_with_everything(run: Run) -> None:
    """Every round kills a member twice, each in turn, and proves it; all of it is in the verdict."""
    verdict = run("kill-restart", rounds="4")
    assert verdict.verdict == "passed", failed(verdict)
    assert [(figure.name, figure.value) for figure in verdict.figures] == [("kills", 8)]
    names = [fault.member for fault in verdict.faults]
    assert sorted(names[:3]) == ["deadpool", "ironman", "thor"]
    assert names[3] == names[0]
    assert {check.name for check in verdict.checks} >= {f"rejoined {name}" for name in names}
    assert {f"rejoined {names[0]} #2", "caught up #4"} <= {check.name for check in verdict.checks}


def test_it_ends_with_the_first_check_that_fails(run: Run) -> None:
    """A member whose keys differ is found in its round, and the rounds that were left are not run."""
    verdict = run("kill-restart", Lies(diverges="thor", after_fault=True))
    assert any(name.startswith("rejoined ") for name in failed(verdict))
    assert verdict.figures[0].value < 12  # type: ignore[operator]


def test_a_seed_kills_in_the_same_order(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the members comes from the seed."""
    orders: list[list[str]] = []
    monkeypatch.setattr(kill_restart, "_kill_twice", lambda scene, member, which: orders[-1].append(member.name))
    for seed in (5, 5, 7):
        orders.append([])
        run("kill-restart", rounds="3", seed=seed)
    assert orders[0] == orders[1] != orders[2]
    assert {*map(len, map(set, orders))} == {3}


@pytest.mark.parametrize("after", [1, 2, 3])
def test_ctrl_c_between_two_kills_brings_the_member_back(run: Run, after: int) -> None:
    """Ctrl-C while a member is away, or comes back for the first time: it is back."""
    with pytest.raises(KeyboardInterrupt):
        run("kill-restart", pause=interrupting(after))


def test_wide_transactions_have_a_pace_of_their_own(run: Run) -> None:
    """Unless told otherwise a run has the profile's rates, and says so in its record."""
    from etcdops.report.runinfo import read_run

    verdict = run("kill-restart", rounds="1", profile="wide-txn")
    info = read_run(verdict.folder)
    assert (info.rate, info.client_rate, info.profile) == (20, 8, "wide-txn")
