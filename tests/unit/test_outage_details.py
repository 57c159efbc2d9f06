"""New leader, watch and lease gaps, latency that is back, and errors by kind: by hand, and against brute force."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdops.answers import Lease
from etcdops.ops import KeepAlive, Put
from etcdops.verify.recorded import Claim
from etcdops.workload.deliveries import Delivery, Happening
from etcdops.workload.gaps import lease_gap, watch_gaps
from etcdops.workload.history import Operation, Outcome
from etcdops.workload.recovery import classify, count_errors, new_leader_ms, quick_again

_MS = 1_000_000


def _op(
    at: int,
    took: int,
    outcome: Outcome = "ok",
    *,
    stream: str = "pinned.thor",
    attempt: int = 1,
    ttl_s: int | None = None,
) -> Operation:
    return Operation(
        id=at,
        stream=stream,
        process=0,
        member="thor",
        request=Put(b"k", b"v") if ttl_s is None else KeepAlive(1),
        scheduled_ns=at * _MS,
        call_ns=at * _MS,
        return_ns=(at + took) * _MS,
        outcome=outcome,
        answer=Lease(1, ttl_s, 5) if ttl_s is not None and outcome == "ok" else None,
        attempt=attempt,
    )


# -- the new leader

_IDS = {"ironman": 1, "thor": 2, "deadpool": 3}


def _claims(*said: tuple[int, str, int, int]) -> list[Claim]:
    return [Claim(at * _MS, member, term, leader) for at, member, term, leader in said]


def test_the_first_word_of_the_new_leader_counts() -> None:
    """It is the leader's own word, at a higher term: not a follower's, and not one at the old term."""
    claims = _claims(
        (0, "ironman", 4, 1),
        (0, "thor", 4, 1),
        (900, "thor", 4, 0),
        (1200, "thor", 4, 2),  # etcd names the new leader before its first entry raises the term
        (1210, "deadpool", 5, 2),
        (1230, "thor", 5, 2),
        (1900, "deadpool", 6, 3),
    )
    assert new_leader_ms(claims, _IDS, inject_ns=100 * _MS) == 1130
    # In any order: each member is asked from a thread of its own.
    assert new_leader_ms(claims[::-1], _IDS, inject_ns=100 * _MS) == 1130


def test_no_new_leader_is_none() -> None:
    """Where the term stays, or nothing was heard before the fault, there is no time to a new leader."""
    same = _claims((0, "ironman", 4, 1), (500, "ironman", 4, 1), (600, "thor", 4, 1))
    assert new_leader_ms(same, _IDS, inject_ns=100 * _MS) is None
    assert new_leader_ms(_claims((500, "thor", 5, 2)), _IDS, inject_ns=100 * _MS) is None
    assert new_leader_ms([], _IDS, inject_ns=0) is None
    # A member whose ID is not known says nothing of itself.
    other = _claims((0, "ironman", 4, 1), (500, "hulk", 5, 0))
    assert new_leader_ms(other, _IDS, inject_ns=100 * _MS) is None


def test_a_leader_of_the_instant_of_the_fault_is_new() -> None:
    """What is said at the very instant of the injection is said after it."""
    claims = _claims((0, "ironman", 4, 1), (100, "thor", 5, 2))
    assert new_leader_ms(claims, _IDS, inject_ns=100 * _MS) == 0


def test_a_leader_that_is_elected_again_is_new() -> None:
    """After a lost quorum the same member may lead again, at a higher term; in between, none led."""
    claims = _claims((0, "ironman", 4, 1), (800, "ironman", 4, 0), (3000, "ironman", 5, 1))
    assert new_leader_ms(claims, _IDS, inject_ns=100 * _MS) == 2900


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from(sorted(_IDS)), st.integers(1, 4), st.integers(0, 3)), max_size=20
    ),
    st.integers(0, 50),
)
def test_new_leader_by_brute_force(said: list[tuple[int, str, int, int]], inject: int) -> None:
    """For any claims, instant by instant, the first that fits is found."""
    before = [term for at, _, term, _ in said if at < inject]
    expected = None
    for now in range(inject, 51):
        if before and any(
            at == now and term > max(before) and leader == _IDS[member] for at, member, term, leader in said
        ):
            expected = now - inject
            break
    assert new_leader_ms(_claims(*said), _IDS, inject_ns=inject * _MS) == expected


# -- gaps


def _delivered(*instants: int, what: Happening = "events") -> list[Delivery]:
    return [Delivery(at * _MS, 1, what, 5) for at in instants]


def test_only_changes_end_a_watch_gap() -> None:
    """Progress, a broken stream and a new one are no changes; the gap runs from change to change."""
    own = [
        *_delivered(0, what="opened"),
        *_delivered(*range(10, 500, 10)),
        *_delivered(600, 700, what="progress"),
        *_delivered(800, what="ended"),
        *_delivered(850, what="opened"),
        *_delivered(*range(1500, 2000, 10)),
    ]
    gap = watch_gaps({"thor": own}, inject_ns=480 * _MS, heal_ns=900 * _MS, end_ns=1990 * _MS)["thor"]
    assert gap.gap_ms == 1500 - 490
    assert (gap.began, gap.ended) == (True, True)
    assert gap.noise_ms == 10
    assert not gap.noise_short


def test_a_watch_that_delivers_nothing_more_has_a_lower_bound() -> None:
    """The gap runs to the end of the traffic, and says that it did not end."""
    gap = watch_gaps(
        {"thor": _delivered(*range(0, 500, 10))}, inject_ns=480 * _MS, heal_ns=900 * _MS, end_ns=2000 * _MS
    )
    assert gap["thor"].gap_ms == 2000 - 490
    assert not gap["thor"].ended


def test_watches_beside_the_fault_have_no_gap() -> None:
    """A member that joined after the healing, one never watched, and traffic that ended before: no figure."""
    late = {"hulk": _delivered(1000, 1010), "thor": []}
    assert watch_gaps(late, inject_ns=100 * _MS, heal_ns=900 * _MS, end_ns=2000 * _MS) == {}
    assert watch_gaps({"thor": _delivered(0)}, inject_ns=100 * _MS, heal_ns=900 * _MS, end_ns=50 * _MS) == {}


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 80), st.sampled_from(["events", "progress", "ended"])), max_size=25),
    st.integers(0, 60),
    st.integers(0, 30),
    st.integers(60, 80),
)
def test_watch_gap_by_brute_force(said: list[tuple[int, Happening]], inject: int, length: int, end: int) -> None:
    """For any deliveries, the gap is the longest run of instants without a change that touches the window."""
    heal = inject + length
    own = [*_delivered(0, what="opened"), *(Delivery(at * _MS, 1, what) for at, what in said)]
    gap = watch_gaps({"thor": own}, inject_ns=inject * _MS, heal_ns=heal * _MS, end_ns=end * _MS)["thor"]
    seen = {at for at, what in said if what == "events"}
    after = [at for at in sorted(seen) if at > end][:1]
    last = max([end, *after])
    edges = {0, last} | {at for at in seen if at <= end}
    expected = 0
    for since in edges:
        until = since
        while until < last:
            until += 1
            if until in edges:
                break
        if since <= heal and until >= inject:
            expected = max(expected, until - since)
    assert gap.gap_ms == expected


def test_lease_gap_counts_what_keeps_a_lease_alive() -> None:
    """An answer for a lease that has ended keeps nothing alive, and other requests are no keep-alives."""
    alive = [_op(at, 2, ttl_s=9, stream="lease") for at in [*range(0, 500, 50), *range(1500, 3000, 50)]]
    ended = [_op(at, 2, ttl_s=0, stream="lease") for at in range(500, 1000, 50)]
    lost = [_op(at, 200, "unknown", ttl_s=9, stream="lease") for at in range(1000, 1500, 50)]
    writes = [_op(at, 2) for at in range(0, 3000, 50)]
    gap = lease_gap(alive + ended + lost + writes, inject_ns=900 * _MS, heal_ns=1400 * _MS)
    assert gap is not None
    assert gap.gap_ms == 1502 - 452
    assert gap.noise_ms == 50


def test_keep_alives_of_all_clients_count_together() -> None:
    """Any client's acknowledged keep-alive ends the gap, but not one through a member that the fault hit."""
    one = [_op(at, 2, ttl_s=9, stream="client.1") for at in (0, 1000)]
    two = [_op(at, 2, ttl_s=9, stream="client.2") for at in (300, 700)]
    hit = [msgspec.structs.replace(op, member="hulk") for op in (_op(500, 2, ttl_s=9), _op(600, 2, ttl_s=9))]
    gap = lease_gap(one + two + hit, inject_ns=400 * _MS, heal_ns=650 * _MS, affected=["hulk"])
    assert gap is not None
    assert gap.gap_ms == 400
    gap = lease_gap(one + two + hit, inject_ns=400 * _MS, heal_ns=650 * _MS)
    assert gap is not None
    assert gap.gap_ms == 200


def test_no_keep_alives_no_gap() -> None:
    """Without keep-alives, with none through a surviving member, and with none while the fault acted: None."""
    hit = [_op(at, 2, ttl_s=9) for at in range(0, 1000, 50)]
    early = [msgspec.structs.replace(_op(at, 2, ttl_s=9), member="hulk") for at in range(0, 100, 50)]
    assert lease_gap(hit + early, inject_ns=500 * _MS, heal_ns=600 * _MS, affected=["thor"]) is None
    assert lease_gap([_op(550, 2)], inject_ns=500 * _MS, heal_ns=600 * _MS) is None


# -- latency


def test_latency_is_back_after_the_backlog() -> None:
    """By hand: writes are answered again at 2,000 ms, slowly until 2,500 ms."""
    ops = [_op(at, 4) for at in range(0, 1000, 10)]
    ops += [_op(at, 2000 - at) for at in range(1000, 2000, 10)]
    ops += [_op(at, 9) for at in range(2000, 2500, 10)] + [_op(at, 8) for at in range(2500, 4000, 10)]
    back = quick_again(ops, inject_ns=1000 * _MS, after_ns=2000 * _MS)
    assert back.baseline_ms == 4
    # 9 ms are more than twice 4, and 8 are not. Of 50 operations none may be slower.
    assert back.back_ms == 1500
    # An outage up to the end of the record leaves nothing to look at.
    assert quick_again(ops, inject_ns=1000 * _MS, after_ns=3990 * _MS) == (4, None)


def test_latency_that_stays_away_is_none() -> None:
    """Answers that stay slow, failures, and a record too short for a window: never back."""
    before = [_op(at, 4) for at in range(0, 1000, 10)]
    slow = [_op(at, 9) for at in range(1000, 3000, 10)]
    failed = [_op(at, 1, "failed") for at in range(1000, 3000, 10)]
    short = [_op(at, 4) for at in range(1000, 1500, 10)]
    for after in (slow, failed, short):
        assert quick_again(before + after, inject_ns=1000 * _MS, after_ns=1000 * _MS) == (4, None)
    enough = [_op(at, 4) for at in range(1000, 1510, 10)]
    assert quick_again(before + enough, inject_ns=1000 * _MS, after_ns=1000 * _MS) == (4, 0)


def test_no_baseline_no_verdict() -> None:
    """Fewer than 20 answers before the fault are no baseline."""
    ops = [_op(at, 4) for at in range(0, 3000, 10)]
    assert quick_again(ops, inject_ns=190 * _MS, after_ns=190 * _MS) == (None, None)
    assert quick_again(ops, inject_ns=200 * _MS, after_ns=200 * _MS) == (4, 0)
    assert quick_again([], inject_ns=0, after_ns=0) == (None, None)


def test_one_good_attempt_makes_an_operation_quick() -> None:
    """An operation that fails over is as slow as its best attempt, and counts once."""
    ops = [_op(at, 4) for at in range(0, 1000, 10)]
    for at in range(1000, 2000, 10):
        ops += [_op(at, 2, "failed"), _op(at, 5, attempt=2)]
    assert quick_again(ops, inject_ns=1000 * _MS, after_ns=1000 * _MS) == (4, 0)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([1, 1, 1, 1, 2, 3, 5, None]), min_size=60, max_size=250),
    st.integers(0, 400),
)
def test_latency_by_brute_force(after: list[int | None], wait: int) -> None:
    """For any latencies, the first window whose own 99th percentile is within the limit is found."""
    inject = 400
    ops = [_op(at, 2) for at in range(0, inject, 10)]
    for number, took in enumerate(after):
        at = inject + 10 * number
        ops.append(_op(at, 40, "unknown") if took is None else _op(at, took))
    found = quick_again(ops, inject_ns=inject * _MS, after_ns=(inject + wait) * _MS)
    assert found.baseline_ms == 2
    expected = None
    for begin in range(math.ceil(wait / 10), len(after)):
        window = [math.inf if took is None else took for took in after[begin : begin + 50]]
        # The record has an operation at the window's end, so that it is known to be whole.
        if len(after) > begin + 50 and sorted(window)[math.ceil(0.99 * 50) - 1] <= 4:
            expected = 10 * begin
            break
    assert found.back_ms == expected


# -- errors


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (
            "UNAVAILABLE",
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:29688: Connection refused",
            "UNAVAILABLE: Connection refused",
        ),
        (
            "UNAVAILABLE",
            "Stream removed (sendmsg: Broken pipe (32))",
            "UNAVAILABLE: Stream removed (sendmsg: Broken pipe (N))",
        ),
        ("UNAVAILABLE", "etcdserver: leader changed", "UNAVAILABLE: etcdserver: leader changed"),
        (
            "DEADLINE_EXCEEDED",
            "Stream removed (RST_STREAM (Received RST_STREAM with error code 8))",
            "DEADLINE_EXCEEDED",
        ),
        (
            "NOT_SENT",
            "200 operations of this stream were in flight",
            "NOT_SENT: N operations of this stream were in flight",
        ),
        ("UNAVAILABLE", "", "UNAVAILABLE"),
    ],
)
def test_errors_of_one_kind_are_one(code: str, text: str, kind: str) -> None:
    """Addresses and numbers differ from call to call, and so do the ways to say that a deadline is over."""
    assert classify(code, text) == kind


def test_errors_are_counted_by_outcome() -> None:
    """Kinds are counted apart for failed and unknown, the most frequent first; what was acknowledged is no error."""

    def failing(outcome: Outcome, code: str, error: str) -> Operation:
        return Operation(1, "s", 0, "thor", Put(b"k", b"v"), 0, 0, 1, outcome, code=code, error=error)

    ops = [
        failing("unknown", "UNAVAILABLE", "etcdserver: request timed out"),
        failing("failed", "UNAVAILABLE", "etcdserver: leader changed"),
        failing("unknown", "DEADLINE_EXCEEDED", "context deadline exceeded"),
        failing("unknown", "DEADLINE_EXCEEDED", "Stream removed (Deadline Exceeded)"),
        _op(0, 1),
    ]
    counts = count_errors(ops)
    assert counts == {
        "failed": {"UNAVAILABLE: etcdserver: leader changed": 1},
        "unknown": {"DEADLINE_EXCEEDED": 2, "UNAVAILABLE: etcdserver: request timed out": 1},
    }
    assert list(counts["unknown"]) == ["DEADLINE_EXCEEDED", "UNAVAILABLE: etcdserver: request timed out"]
    assert count_errors([_op(0, 1)]) == {}
