"""The outage: exact on histories computed by hand, and equal to a brute-force reading of its definition."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcdops.errors import SpecError
from etcdops.ops import KeepAlive, Put, Range
from etcdops.spec import Timing
from etcdops.verify.recorded import Claim, Fault
from etcdops.workload.deliveries import Delivery
from etcdops.workload.history import FAILOVER_READ, FAILOVER_WRITE, Operation, Outcome, pinned_stream
from etcdops.workload.outage import Outage, fault_window, measure, measure_stream
from etcdops.workload.prediction import predict_distribution

_MS = 1_000_000


def _op(
    scheduled_ms: float,
    return_ms: float,
    outcome: Outcome = "ok",
    *,
    stream: str = "pinned.thor",
    call_ms: float | None = None,
    attempt: int = 1,
) -> Operation:
    call_ms = scheduled_ms if call_ms is None else call_ms
    return Operation(
        id=int(scheduled_ms * 100) + attempt,
        stream=stream,
        process=0,
        member="thor",
        request=Range(b"k") if stream == FAILOVER_READ else Put(b"k", b"v"),
        scheduled_ns=round(scheduled_ms * _MS),
        call_ns=round(call_ms * _MS),
        return_ns=round(return_ms * _MS),
        outcome=outcome,
        attempt=attempt,
        code="" if outcome == "ok" else "LOST",
    )


def _steady(
    begin: int, end: int, *, every: int = 10, latency: float = 2, stream: str = "pinned.thor"
) -> list[Operation]:
    return [_op(at, at + latency, stream=stream) for at in range(begin, end, every)]


def _hand_made() -> list[Operation]:
    """100/s; every answer takes 2 ms; from 1,000 to 2,200 ms none is given; the window is [1,005, 2,505] ms."""
    lost = [_op(at, at + 1000, "unknown") for at in range(1010, 1510, 10)]
    # These waited: the new leader answers them all at 2,200 ms.
    late = [_op(at, 2200) for at in range(1510, 2200, 10)]
    return _steady(0, 1010) + lost + late + _steady(2200, 5000)


def test_hand_made_history() -> None:
    """A leader's death, computed by hand."""
    outage = measure_stream(_hand_made(), inject_ns=1005 * _MS, heal_ns=2505 * _MS, rate=100)
    # The last answer before comes at 1,002, the first after at 2,200.
    assert outage.gap_ms == 1198
    assert (outage.gap_from_ns, outage.gap_until_ns) == (1002 * _MS, 2200 * _MS)
    assert outage.began
    assert outage.ended
    # Slots from 1,010 on are lost; the one of 2,100 is the first that is answered within 100 ms: 109 slots of 10 ms.
    assert outage.unavailable_ms == 1090
    assert outage.late_ms == 0
    # 101 answers before 1,005 and 249 after 2,505, each after 2 ms.
    assert outage.p99_ms == 2
    assert outage.resolution_ms == 12
    assert outage.noise_ms == 10
    # 1,005 ms before and 2,485 ms after; the window has 1,500.
    assert not outage.noise_short
    # Calls under way at some time in the window: 50 lost, 69 late, those of 2,200 to 2,500 (31).
    assert (outage.acknowledged, outage.failed, outage.unknown) == (100, 0, 50)


def test_lateness_and_latency_set_the_resolution() -> None:
    """Resolution is 1/rate + the largest lateness in the window + the 99th percentile latency outside of it."""
    ops = _steady(0, 1000, latency=4)
    ops[10] = _op(100, 900)  # under way in the window: its latency is the outage's
    ops[20] = _op(200, 480, call_ms=290)  # before the window: its lateness does not count, its latency is the largest
    ops[60] = _op(600, 640, call_ms=617)  # in the window: its lateness counts
    outage = measure_stream(ops, inject_ns=500 * _MS, heal_ns=700 * _MS, rate=100)
    assert outage.late_ms == 17
    # 78 latencies outside of [500, 700]: the 99th percentile is the 78th smallest, 190 ms.
    assert outage.p99_ms == 190
    assert outage.resolution_ms == 10 + 17 + 190


def test_p99_is_of_the_ninety_ninth_in_a_hundred() -> None:
    """One slow answer in 200 is beyond the 99th percentile."""
    ops = [*_steady(0, 1990, latency=3), _op(1990, 2390)]
    outage = measure_stream(ops, inject_ns=2000 * _MS, heal_ns=2000 * _MS, rate=100, end_ns=2000 * _MS)
    assert outage.p99_ms == 3


def test_no_acknowledgement_in_the_window() -> None:
    """A window without any answer has the gap around it, which is longer than the window."""
    ops = _steady(0, 500) + [_op(at, at + 100, "failed") for at in range(500, 900, 10)] + _steady(900, 1500)
    outage = measure_stream(ops, inject_ns=600 * _MS, heal_ns=800 * _MS, rate=100)
    assert outage.gap_ms == 902 - 492
    # Only scheduled time within the window counts.
    assert outage.unavailable_ms == 200
    # Under way from 600 to 800: those scheduled from 500 (until 600) to 800.
    assert (outage.acknowledged, outage.failed, outage.unknown) == (0, 31, 0)


def test_no_acknowledgement_before_the_window() -> None:
    """Without an answer before, the gap runs from the stream's start, and says so."""
    ops = [_op(at, at + 50, "failed") for at in range(100, 400, 10)] + _steady(400, 1000)
    outage = measure_stream(ops, inject_ns=200 * _MS, heal_ns=600 * _MS, rate=100)
    assert outage.gap_ms == 402 - 100
    assert not outage.began
    assert outage.ended


def test_outage_until_the_end_of_traffic() -> None:
    """Without an answer after, the gap runs to the last scheduled instant, not to when the last call gave up."""
    ops = _steady(0, 300) + [_op(at, at + 1000, "unknown") for at in range(300, 1000, 10)]
    outage = measure_stream(ops, inject_ns=305 * _MS, heal_ns=990 * _MS, rate=100)
    assert outage.gap_ms == 990 - 292
    assert outage.began
    assert not outage.ended
    # From 305 to 990, the slot of 300 being cut.
    assert outage.unavailable_ms == 685
    assert outage.noise_ms == 10
    assert outage.noise_short


def test_healthy_stream_has_no_gap_to_the_last_give_up_of_another() -> None:
    """A frozen member's calls that give up 1 s after the end do not lengthen the other streams' gaps."""
    healthy = _steady(0, 1000)
    frozen = [_op(at, at + 1000, "unknown", stream="pinned.ironman") for at in range(0, 1000, 10)]
    outage = measure(healthy + frozen, inject_ns=100 * _MS, heal_ns=990 * _MS, rate=100, affected=["ironman"])
    assert outage.write_ms == 10
    assert outage.affected_member_ms == 990


def test_nothing_acknowledged_at_all() -> None:
    """A stream without one answer has been away from its start to its end; there is no noise floor to tell."""
    ops = [_op(at, at + 5, "failed") for at in range(0, 1000, 10)]
    outage = measure_stream(ops, inject_ns=100 * _MS, heal_ns=900 * _MS, rate=100)
    assert outage.gap_ms == 990
    assert not outage.began
    assert not outage.ended
    assert outage.unavailable_ms == 800
    assert outage.noise_ms is None
    assert outage.p99_ms == 0


def test_gap_elsewhere_is_noise() -> None:
    """A gap that ends before the injection is noise; one that reaches into the window is the outage."""
    ops = _steady(0, 1000) + _steady(1300, 3000)
    outage = measure_stream(ops, inject_ns=2000 * _MS, heal_ns=2400 * _MS, rate=100)
    assert outage.gap_ms == 10
    assert outage.noise_ms == 310
    outage = measure_stream(ops, inject_ns=1250 * _MS, heal_ns=1400 * _MS, rate=100)
    assert outage.gap_ms == 310
    assert outage.noise_ms == 10


def test_noise_comes_from_stretches_that_are_long_enough() -> None:
    """A stretch shorter than the window says nothing while another one is long enough."""
    ops = _steady(0, 100) + _steady(200, 300) + _steady(300, 2000)
    # Before: 300 ms with a gap of 110. In the window 500. After: 1,190 ms without.
    outage = measure_stream(ops, inject_ns=300 * _MS, heal_ns=800 * _MS, rate=100)
    assert outage.noise_ms == 10
    assert not outage.noise_short
    # Now neither is as long as the window, and both are used.
    outage = measure_stream(ops, inject_ns=300 * _MS, heal_ns=1800 * _MS, rate=100)
    assert outage.noise_ms == 110
    assert outage.noise_short


def test_flaps_add_up_in_unavailable() -> None:
    """Three short outages have a short longest gap; the unavailable time is their sum."""
    ops: list[Operation] = []
    for at in range(0, 3000, 10):
        down = any(begin <= at < begin + 200 for begin in (500, 1000, 1500))
        ops.append(_op(at, at + 150 if down else at + 2, "unknown" if down else "ok"))
    outage = measure_stream(ops, inject_ns=400 * _MS, heal_ns=2000 * _MS, rate=100)
    assert outage.gap_ms == 210
    assert outage.unavailable_ms == 600


def test_one_good_attempt_serves_the_slot() -> None:
    """A stream that fails over is available when any attempt of a scheduled operation was acknowledged in time."""
    ops = _steady(0, 1000, stream=FAILOVER_WRITE)
    ops[50] = _op(500, 530, "failed", stream=FAILOVER_WRITE)
    ops.append(_op(500, 560, "ok", stream=FAILOVER_WRITE, call_ms=530, attempt=2))
    ops[60] = _op(600, 680, "unknown", stream=FAILOVER_WRITE)
    ops.append(_op(600, 720, "ok", stream=FAILOVER_WRITE, call_ms=680, attempt=2))
    outage = measure_stream(ops, inject_ns=400 * _MS, heal_ns=800 * _MS, rate=100)
    assert outage.unavailable_ms == 10
    assert measure_stream(ops[::-1], inject_ns=400 * _MS, heal_ns=800 * _MS, rate=100) == outage
    # Later attempts are not late: they are called when the one before has failed.
    assert outage.late_ms == 0


def test_whole_outage_names_the_worst_survivor() -> None:
    """The headline is the worst surviving member; the member that was hit, failover and reads stand apart."""

    def away(begin: int, end: int, stream: str) -> list[Operation]:
        return (
            _steady(0, begin, stream=stream)
            + _steady(end, 4000, stream=stream)
            + [_op(at, at + 50, "failed", stream=stream) for at in range(begin, end, 10)]
        )

    history = [
        *away(1000, 3000, pinned_stream("ironman")),
        *away(1000, 2200, pinned_stream("thor")),
        *away(1000, 2300, pinned_stream("deadpool")),
        *away(1000, 2500, FAILOVER_WRITE),
        *away(1000, 2100, FAILOVER_READ),
    ]
    outage = measure(
        history, inject_ns=1000 * _MS, heal_ns=2600 * _MS, rate=100, affected=["ironman"], predicted_ms=(1000, 1900)
    )
    assert outage.write_ms == 1310
    assert outage.worst_member == "deadpool"
    assert outage.affected_member_ms == 2010
    assert outage.failover_write_ms == 1510
    assert outage.read_ms == 1110
    assert outage.unavailable_ms == 1300
    assert outage.noise_ms == 10
    assert outage.noise_short
    assert outage.resolution_ms == 12
    assert outage.predicted_ms == (1000, 1900)
    assert set(outage.streams) == {"pinned.ironman", "pinned.thor", "pinned.deadpool", FAILOVER_WRITE, FAILOVER_READ}


def test_streams_that_a_run_lacks_are_none() -> None:
    """No number is made up for streams that did not run, or not while the fault acted."""
    outage = measure(_steady(0, 1000), inject_ns=100 * _MS, heal_ns=200 * _MS, rate=100)
    assert outage.write_ms == 10
    assert outage.affected_member_ms is None
    assert outage.failover_write_ms is None
    assert outage.read_ms is None
    for history in ([], _steady(0, 90)):
        outage = measure(history, inject_ns=100 * _MS, heal_ns=200 * _MS, rate=100)
        assert outage.write_ms is None
        assert outage.unavailable_ms is None
        assert outage.streams == {}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: measure_stream(_steady(0, 90), inject_ns=200 * _MS, heal_ns=100 * _MS, rate=100), "cannot heal"),
        (lambda: measure_stream(_steady(0, 90), inject_ns=0, heal_ns=100 * _MS, rate=0), "not positive"),
        (lambda: measure_stream([], inject_ns=0, heal_ns=100 * _MS, rate=100), "without a single operation"),
        (lambda: measure_stream(_steady(0, 90), inject_ns=99 * _MS, heal_ns=99 * _MS, rate=1), "was not sent while"),
    ],
)
def test_questions_without_an_answer_are_refused(call: Callable[[], object], words: str) -> None:
    """A window that makes no sense, or that nothing was sent in, raises instead of giving 0."""
    with pytest.raises(SpecError, match=words):
        call()


@st.composite
def _histories(draw: st.DrawFn) -> tuple[list[Operation], int, int, int]:
    """Give a stream at some rate with answers as they come, and a window that overlaps it; all in whole ms."""
    every = draw(st.sampled_from([5, 10, 25]))
    count = draw(st.integers(1, 40))
    ops: list[Operation] = []
    for number in range(count):
        latency = draw(st.one_of(st.integers(0, 20), st.integers(0, 400)))
        lateness = draw(st.one_of(st.just(0), st.integers(0, 30)))
        outcome: Outcome = draw(st.sampled_from(["ok", "ok", "ok", "failed", "unknown"]))
        at = number * every
        ops.append(_op(at, at + lateness + latency, outcome, call_ms=at + lateness))
    last = (count - 1) * every
    inject = draw(st.integers(-50, last))
    heal = draw(st.integers(max(0, inject), last + 200))
    return ops, inject, heal, every


def _brute_gap(acked: list[int], edges: tuple[int, int], inject: int, heal: int) -> int:
    """Give the longest [a, b], without an acknowledgement strictly inside, that shares an instant with the window."""
    points = sorted({*acked, *edges})
    return max(
        (
            b - a
            for a in points
            for b in points
            if a < b and a <= heal and b >= inject and not any(a < at < b for at in acked)
        ),
        default=0,
    )


@settings(deadline=None)
@given(_histories())
def test_gap_is_the_longest_interval_without_acknowledgement(drawn: tuple[list[Operation], int, int, int]) -> None:
    """For any history the gap equals the brute-force maximum, and lies where it says."""
    ops, inject, heal, every = drawn
    outage = measure_stream(ops, inject_ns=inject * _MS, heal_ns=heal * _MS, rate=1000 / every)
    acked = sorted(op.return_ns // _MS for op in ops if op.outcome == "ok")
    last = ops[-1].scheduled_ns // _MS
    # After the last scheduled instant one answer counts, and ends the last gap.
    after = [at for at in acked if at > last][:1]
    acked = [at for at in acked if at <= last] + after
    assert outage.gap_ms == _brute_gap(acked, (0, max([last, *after])), inject, heal)
    assert not any(outage.gap_from_ns < at * _MS < outage.gap_until_ns for at in acked)


@settings(deadline=None)
@given(_histories(), st.integers(0, 300))
def test_unavailable_is_the_scheduled_time_that_was_not_served(
    drawn: tuple[list[Operation], int, int, int], within: int
) -> None:
    """For any history and limit, unavailable(d) equals the count of its milliseconds, one by one."""
    ops, inject, heal, every = drawn
    outage = measure_stream(
        ops, inject_ns=inject * _MS, heal_ns=heal * _MS, rate=1000 / every, unavailable_after_ms=within
    )
    lost = 0
    for ms in range(max(0, inject), heal):
        slot = ms // every
        if slot < len(ops):
            op = ops[slot]
            lost += not (op.outcome == "ok" and op.return_ns - op.scheduled_ns <= within * _MS)
    assert outage.unavailable_ms == pytest.approx(lost, abs=1e-6)


@settings(deadline=None)
@given(_histories())
def test_noise_is_the_largest_gap_over_windows_of_the_same_length(drawn: tuple[list[Operation], int, int, int]) -> None:
    """For any history whose stretches are long enough, the noise equals the maximum over all sliding windows."""
    ops, inject, heal, every = drawn
    outage = measure_stream(ops, inject_ns=inject * _MS, heal_ns=heal * _MS, rate=1000 / every)
    last = ops[-1].scheduled_ns // _MS
    acked = sorted(op.return_ns // _MS for op in ops if op.outcome == "ok" and op.return_ns <= last * _MS)
    gaps = [gap for gap in pairwise(acked) if gap[1] < inject or gap[0] > heal]
    length = heal - inject
    seen: set[int] = set()
    windows = [
        (begin, begin + length)
        for begin in range(last + 1)
        if begin + length <= inject or (begin >= heal and begin + length <= last)
    ]
    for begin, end in windows:
        seen |= {b - a for a, b in gaps if a <= end and b >= begin and (b < inject) == (end <= inject)}
    assert outage.noise_short == (not windows)
    if windows:
        assert outage.noise_ms == max(seen, default=None)
    else:
        assert outage.noise_ms == max((b - a for a, b in gaps), default=None)


@settings(deadline=None)
@given(_histories())
def test_counts_are_of_the_calls_under_way(drawn: tuple[list[Operation], int, int, int]) -> None:
    """Every call that shares an instant with the window counts once, by its outcome."""
    ops, inject, heal, every = drawn
    outage = measure_stream(ops, inject_ns=inject * _MS, heal_ns=heal * _MS, rate=1000 / every)
    under_way = [op for op in ops if not (op.call_ns > heal * _MS or op.return_ns < inject * _MS)]
    assert outage.acknowledged + outage.failed + outage.unknown == len(under_way)


@settings(deadline=None)
@given(_histories())
def test_order_of_the_record_does_not_matter(drawn: tuple[list[Operation], int, int, int]) -> None:
    """A record is in the order of completion; the outage is the same in any."""
    ops, inject, heal, every = drawn

    def outage(history: list[Operation]) -> object:
        return measure_stream(history, inject_ns=inject * _MS, heal_ns=heal * _MS, rate=1000 / every)

    assert outage(ops) == outage(ops[::-1])


def test_reads_that_a_member_answers_by_itself_hide_no_outage() -> None:
    """Serializable reads on a pinned stream are served all the time; they stand apart from its writes."""
    history: list[Operation] = []
    for number, at in enumerate(range(0, 4000, 10)):
        if number % 2:
            read = _op(at, at + 2)
            history.append(msgspec.structs.replace(read, request=Range(b"k", serializable=True)))
        else:
            down = 1000 <= at < 2200
            history.append(_op(at, at + (90 if down else 2), "failed" if down else "ok"))
    outage = measure(history, inject_ns=1000 * _MS, heal_ns=2600 * _MS, rate=100)
    assert outage.write_ms == 2202 - 982
    assert outage.worst_member == "thor"
    reads = outage.streams["pinned.thor.serializable-reads"]
    assert reads.gap_ms == 20
    assert reads.stream == "pinned.thor.serializable-reads"
    # Half the stream's rate: a slot of the writes' schedule lasts 20 ms, and so does their resolution's first part.
    assert outage.unavailable_ms == 1200
    assert outage.streams["pinned.thor"].resolution_ms == 22


def test_only_reads_on_a_pinned_stream_give_no_write_outage() -> None:
    """Where no write was sent through the members, there is no headline."""
    reads = [msgspec.structs.replace(op, request=Range(b"k")) for op in _steady(0, 1000)]
    outage = measure(reads, inject_ns=100 * _MS, heal_ns=200 * _MS, rate=100)
    assert outage.write_ms is None
    assert set(outage.streams) == {"pinned.thor.reads"}


def test_a_hole_in_the_schedule_is_resolution() -> None:
    """Where nothing was sent for 300 ms, nothing shorter can be told."""
    ops = _steady(0, 1000) + _steady(1300, 3000)
    assert measure_stream(ops, inject_ns=1100 * _MS, heal_ns=1400 * _MS, rate=100).resolution_ms == 310 + 2
    assert measure_stream(ops, inject_ns=2000 * _MS, heal_ns=2400 * _MS, rate=100).resolution_ms == 10 + 2


def test_prediction_and_outlier_stand_in_the_outage() -> None:
    """Raft's prediction is kept whole beside the headline, and an outage beyond it is an outlier, with the reason."""
    prediction = predict_distribution(Timing(), 3, "kill")
    outage = measure(_hand_made(), inject_ns=1005 * _MS, heal_ns=2505 * _MS, rate=100, prediction=prediction)
    assert outage.write_ms == 1198
    assert outage.predicted_ms == (1000, 1900)
    assert outage.prediction == prediction
    assert outage.outlier == ""
    quick = predict_distribution(Timing(heartbeat_ms=10, election_ms=100), 3, "kill")
    outage = measure(_hand_made(), inject_ns=1005 * _MS, heal_ns=2505 * _MS, rate=100, prediction=quick)
    assert "longer than predicted" in outage.outlier


def test_figures_of_the_whole_record() -> None:
    """Leader, watches, leases, latency and errors are measured over the same window, and kept beside the headline."""
    ids = {"thor": 7, "deadpool": 8}
    claims = [
        Claim(0, "thor", 2, 8),
        Claim(0, "deadpool", 2, 8),
        Claim(2150 * _MS, "thor", 3, 7),
    ]
    changes = [*range(0, 1010, 10), *range(2205, 5000, 10)]
    deliveries = {
        "thor": [Delivery(at * _MS, 1, "events", 5) for at in changes],
        "deadpool": [Delivery(at * _MS, 1, "events", 5) for at in [*range(0, 1000, 10), 4000]],
    }
    beats = [msgspec.structs.replace(op, stream="client.1", request=KeepAlive(5)) for op in _hand_made()]
    # Beside the window, errors are no effect of the fault.
    beside = [_op(100, 160, "failed"), _op(4900, 4960, "unknown")]
    outage = measure(
        _hand_made() + beats + beside,
        inject_ns=1005 * _MS,
        heal_ns=2505 * _MS,
        rate=100,
        affected=["deadpool"],
        claims=claims,
        ids=ids,
        deliveries=deliveries,
    )
    assert outage.new_leader_ms == 1145
    assert outage.watch_ms == 2205 - 1000
    assert set(outage.watches) == {"thor", "deadpool"}
    assert outage.watches["deadpool"].gap_ms == 4000 - 990
    assert outage.lease_ms == 1198
    assert outage.lease is not None
    assert outage.lease.noise_ms == 10
    # What is no stream of a fixed rate to a member has no figures of its own.
    assert set(outage.streams) == {"pinned.thor"}
    assert outage.errors == {"unknown": {"LOST": 100}}
    # From 2,200 on, where all that waited was answered.
    assert outage.p99_before_ms == 2
    assert outage.p99_back_ms == 2200 - 1005


def test_figures_without_their_records_are_none() -> None:
    """Nothing is made up where no claims, deliveries or keep-alives were recorded."""
    outage = measure(_hand_made(), inject_ns=1005 * _MS, heal_ns=2505 * _MS, rate=100)
    assert (outage.new_leader_ms, outage.watch_ms, outage.lease_ms) == (None, None, None)
    assert (outage.watches, outage.lease, outage.prediction, outage.outlier) == ({}, None, None, "")


def test_latency_is_back_at_once_where_there_was_no_outage() -> None:
    """A gap within resolution and noise is no outage: latency was never away, wherever that gap lies."""
    ops = _steady(0, 5000)
    ops[300] = _op(3000, 3009)
    outage = measure(ops, inject_ns=1000 * _MS, heal_ns=4000 * _MS, rate=100)
    assert outage.write_ms == 17
    assert outage.p99_back_ms == 0


def test_latency_is_not_back_where_the_outage_never_ended() -> None:
    """Without an answer after the outage there is no latency to be back."""
    ops = _steady(0, 1000) + [_op(at, at + 50, "failed") for at in range(1000, 3000, 10)]
    outage = measure(ops, inject_ns=1000 * _MS, heal_ns=1500 * _MS, rate=100)
    assert outage.p99_before_ms == 2
    assert outage.p99_back_ms is None


def test_window_of_several_faults() -> None:
    """Several faults act from the first injection to the last healing, on all members that they hit."""
    faults = [
        Fault("kill", "thor", 20, 21, 88, 90),
        Fault("freeze", "deadpool", 10, 11, 48, 50),
        Fault("kill", "thor", 60, 61, 93, 95),
    ]
    assert fault_window(faults) == (10, 95, ("thor", "deadpool"))
    with pytest.raises(SpecError, match="without a fault"):
        fault_window([])


def test_a_verdict_of_before_reads_as_an_outage() -> None:
    """verdict.json is public: an outage without the figures that came later is still read."""
    outage = measure(_hand_made(), inject_ns=1005 * _MS, heal_ns=2505 * _MS, rate=100)
    old = msgspec.to_builtins(outage)
    for name in ("new_leader_ms", "watch_ms", "lease_ms", "p99_before_ms", "p99_back_ms", "errors", "watches"):
        del old[name]
    for name in ("lease", "prediction", "outlier"):
        del old[name]
    read = msgspec.convert(old, Outage)
    assert (read.write_ms, read.watch_ms, read.errors) == (1198, None, {})
