"""Every check of a drill is shown to pass on an honest cluster and to fail on one that lies. In memory, no etcd."""

from __future__ import annotations

import re

import pytest

from etcdops import drills
from etcdops.cluster import Cluster
from etcdops.drills import window
from etcdops.errors import EtcdopsError, HealFailed, NoLeader, QuorumLost
from etcdops.fake.lies import Lies
from etcdops.member import Member
from etcdops.report.verdict import Verdict
from etcdops.runtimes.fake import FakeRuntime
from etcdops.state import Store
from etcdops.verify.one_leader import check_one_leader
from etcdops.verify.recorded import Claim
from tests.unit import drilling
from tests.unit.drilling import QUICK, failed, fake_cluster


def run(store: Store, lies: Lies, how: str = "kill", clients: int | None = None) -> Verdict:
    with fake_cluster(store, lies) as cluster:
        return drills.run("failed-leader", cluster, how=how, clients=clients, **QUICK)


@pytest.mark.parametrize("how", ["kill", "freeze", "stop"])
def test_an_honest_cluster_passes(store: Store, how: str) -> None:
    """Without a lie every check passes, whichever way the leader goes."""
    verdict = run(store, Lies(), how)
    assert verdict.verdict == "passed", verdict.checks
    assert verdict.exit_code == 0
    assert verdict.writes.lost == 0


def test_a_leader_that_answers_late_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member on a busy machine may not answer one look in time, and an election may have just begun."""
    looks: list[EtcdopsError] = [NoLeader("none leads"), QuorumLost(healthy=1, voters=3)]
    leader = Cluster.leader

    def late(cluster: Cluster) -> Member:
        if looks:
            raise looks.pop()
        return leader(cluster)

    monkeypatch.setattr(Cluster, "leader", late)
    assert run(store, Lies()).verdict == "passed"
    assert looks == []


def test_a_lost_write_is_found(store: Store) -> None:
    """A write that was acknowledged and is not there makes the run deviate, and is counted and named."""
    verdict = run(store, Lies(lose_every=10, after_fault=True))
    assert verdict.verdict == "deviated"
    assert verdict.exit_code == 1
    assert verdict.writes.lost > 0
    assert "etcdops/" in failed(verdict)["acknowledged writes"]


def test_a_lost_write_that_closes_the_window_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tombstone is acknowledged and no member has it: what is there is read instead, and the loss is told."""
    # Seconds: it would be waited for in vain.
    monkeypatch.setattr(window, "_ANSWER_S", 2.0)
    monkeypatch.setattr(window, "_AGAIN_S", 0.5)
    verdict = run(store, Lies(lose_key="/tombstone", after_fault=True))
    assert (verdict.verdict, verdict.writes.lost) == ("deviated", 1)
    assert re.search(
        r"1 of \d+ acknowledged writes are lost: .*tombstone \(absent", failed(verdict)["acknowledged writes"]
    )


def test_an_event_that_a_watch_on_some_keys_drops_is_found(store: Store) -> None:
    """The watches of the profile `watch` are held to what is in their range, and only they lie here."""
    with fake_cluster(store, Lies(drop_every=5)) as cluster:
        verdict = drills.run("no-fault", cluster, duration="1", rate=20, profile="watch", baseline_s=0.5)
    (check,) = failed(verdict).items()
    assert check[0] == "watch"
    assert re.search(r"Reliable is broken: \w+/[\w-]+: watch 1 dropped revision \d+", check[1])


def test_two_leaders_in_one_term_are_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two members that both claim to lead in one term: the steady state is not met, and nothing is touched."""
    monkeypatch.setattr(drilling, "STEADY", 10)
    verdict = run(store, Lies(two_leaders=True))
    assert verdict.verdict == "aborted"
    assert verdict.fault is None
    assert "different leaders" in verdict.checks[0].detail


def test_a_member_whose_hash_differs_is_found(store: Store) -> None:
    """A member with another hash at the same revision makes the run deviate."""
    assert "members agree" in failed(run(store, Lies(wrong_hash="thor")))


def test_a_member_whose_data_differs_is_found(store: Store) -> None:
    """A member that stores other values is found by reading every write back through it, and by its hash."""
    # Without clients that compare values: their transactions would end otherwise on it, and its revision fall behind.
    assert {"acknowledged writes", "members agree"} <= set(failed(run(store, Lies(diverges="thor"), clients=0)))


def test_a_member_that_does_not_catch_up_is_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member that comes back and serves old data as if nothing had happened makes the run deviate."""
    # It would be waited for in vain.
    monkeypatch.setattr(drilling, "PATIENCE", 8)
    monkeypatch.setattr(drilling, "STEADY", 10)
    monkeypatch.setattr(window, "_ANSWER_S", 2.0)
    monkeypatch.setattr(window, "_AGAIN_S", 0.5)
    assert "caught up" in failed(run(store, Lies(never_catches_up="serves")))


def test_a_panic_in_a_log_is_found(store: Store) -> None:
    """A member that logs a panic makes the run deviate, whatever else it does."""
    assert set(failed(run(store, Lies(panics=True)))) == {"logs"}


def test_a_member_that_never_comes_back_is_stuck(store: Store) -> None:
    """Healing that fails is "stuck", exit 7, says what is wrong, and is not forgotten."""
    with fake_cluster(store, Lies(never_back="dead")) as cluster:
        verdict = drills.run("failed-leader", cluster, how="kill", **QUICK)
        assert (verdict.verdict, verdict.exit_code) == ("stuck", 7)
        assert "could not be healed" in failed(verdict)["healed"]
        fault = store.unhealed("fake")
        assert fault is not None
        assert fault.run == verdict.run


def _check(*claims: Claim, until_s: float = 60.0) -> str:
    check = check_one_leader(list(claims), until_ns=int(until_s * 1e9), patience_ns=2_000_000_000)
    return check.result


def _claim(at_s: float, member: str, term: int, leader: int) -> Claim:
    return Claim(int(at_s * 1e9), member, term, leader)


def test_a_new_leader_named_with_the_old_term_is_no_second_leader() -> None:
    """etcd reports the term of the last applied entry, so for an instant the new leader stands beside the old term."""
    assert (
        _check(
            _claim(0, "thor", 2, 11),
            _claim(1, "thor", 2, 0),
            _claim(2, "thor", 2, 22),
            _claim(2.01, "thor", 3, 22),
        )
        == "passed"
    )


def test_a_second_leader_that_stays_is_found() -> None:
    """A leader that is named beside the old term for longer than two election timeouts is a second one."""
    assert _check(_claim(0, "thor", 2, 11), _claim(2, "thor", 2, 22)) == "failed"


def test_two_members_with_leaders_of_their_own_are_found() -> None:
    """Two members that never agreed on who leads in a term."""
    assert _check(_claim(0, "thor", 2, 11), _claim(0, "ironman", 2, 22)) == "failed"


def test_no_leader_at_all_is_inconclusive() -> None:
    """Nobody named a leader, so nothing was seen."""
    assert _check(_claim(0, "thor", 2, 0)) == "inconclusive"


def test_healing_says_what_is_still_broken(store: Store) -> None:
    """`heal` on a member that does not come back raises HealFailed with the way to go on."""
    from etcdops.faults.heal import heal

    lies = Lies()
    with fake_cluster(store, lies) as cluster:
        runtime = cluster.runtime
        assert isinstance(runtime, FakeRuntime)
        runtime.kill(cluster.record.member("thor"))
        lies.never_back = "dead"
        with pytest.raises(HealFailed, match="thor") as caught:
            heal(cluster)
        assert "`heal` again" in caught.value.remedy
