"""How long a cluster did not serve, computed from the record of a run: pure functions, no clock and no cluster.

Operations are sent by a schedule, whatever became of the ones before, so that a pause of the cluster shows in full
(a client that waits for each answer before it sends the next hides all but one of the operations that it delayed).
Every number here is in milliseconds; instants are nanoseconds of one host's CLOCK_MONOTONIC.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from itertools import pairwise

import msgspec

from etcdops.errors import SpecError
from etcdops.spec import Timing
from etcdops.workload.history import FAILOVER_READ, FAILOVER_WRITE, PINNED, Operation

__all__ = [
    "UNAVAILABLE_AFTER_MS",
    "Outage",
    "StreamOutage",
    "measure",
    "measure_stream",
    "predict",
    "predicted_mean_ms",
]

#: A scheduled operation that is not acknowledged within this time counts as unavailability.
UNAVAILABLE_AFTER_MS = 100.0

_MS = 1_000_000
_SECOND = 1_000_000_000


class StreamOutage(msgspec.Struct, frozen=True):
    """What one stream met between `inject` and `heal`.

    `gap_ms` is the longest interval between acknowledged completions that overlaps [inject, heal], from
    `gap_from_ns` to `gap_until_ns`. `began` is False when no acknowledgement came before it (then it runs from the
    stream's first scheduled instant), `ended` False when none came after it (then it runs to the last scheduled
    instant of the record, and is a lower bound).

    `unavailable_ms` is the scheduled time within [inject, heal] whose operation was not acknowledged within
    UNAVAILABLE_AFTER_MS of its scheduled instant. It sums up what a longest gap hides: flaps.

    `resolution_ms` = 1/rate + `late_ms` (the largest send lateness in the window) + `p99_ms` (99th percentile latency
    of the acknowledged calls that were not under way in it, which the outage would lengthen; of all acknowledged ones
    if there are no such calls).

    `noise_ms` is the largest gap in the fault-free time before and after, over windows of the same length as
    [inject, heal]; None without two acknowledgements there. `noise_short` says that no fault-free stretch was as long
    as that window, so that the noise floor comes from less time than the gap does.

    `acknowledged`, `failed` and `unknown` count the calls that were under way at some time in [inject, heal].
    """

    stream: str
    gap_ms: float
    gap_from_ns: int
    gap_until_ns: int
    began: bool
    ended: bool
    unavailable_ms: float
    resolution_ms: float
    late_ms: float
    p99_ms: float
    noise_ms: float | None
    noise_short: bool
    acknowledged: int
    failed: int
    unknown: int


class Outage(msgspec.Struct, frozen=True):
    """What the users of a cluster met, over all streams. None where no such stream was sent while the fault acted.

    `write_ms` is the headline: the longest gap of a stream pinned to a surviving member, the worst of them
    (`worst_member`). `unavailable_ms` is the largest among the same streams, and so are `noise_ms` and
    `resolution_ms`. `affected_member_ms` is the longest gap of the streams pinned to members that the fault hit: it
    ends when the member is back, not when the cluster is. `predicted_ms` is Raft's prediction (see `predict`), None
    when there is none. `noise_short` as in StreamOutage. `streams` holds the details.
    """

    write_ms: float | None
    affected_member_ms: float | None
    failover_write_ms: float | None
    read_ms: float | None
    unavailable_ms: float | None
    noise_ms: float | None
    resolution_ms: float | None
    predicted_ms: tuple[float, float] | None
    worst_member: str
    noise_short: bool
    unavailable_after_ms: float
    streams: dict[str, StreamOutage]


def measure(
    history: Sequence[Operation],
    *,
    inject_ns: int,
    heal_ns: int,
    rate: float,
    affected: Collection[str] = (),
    predicted_ms: tuple[float, float] | None = None,
) -> Outage:
    """Give the outage that a record shows for a fault that acted from `inject_ns` to `heal_ns`.

    `rate` is in operations per second and stream. `affected` names the members that the fault hit. Which streams there
    are is read from the record. Raises SpecError when `heal_ns` is before `inject_ns`, or the rate is not positive.
    """
    by_stream: dict[str, list[Operation]] = {}
    for operation in history:
        by_stream.setdefault(operation.stream, []).append(operation)
    end_ns = max((operation.scheduled_ns for operation in history), default=heal_ns)
    streams = {
        name: measure_stream(operations, inject_ns=inject_ns, heal_ns=heal_ns, rate=rate, end_ns=end_ns)
        for name, operations in sorted(by_stream.items())
        if end_ns >= inject_ns and min(operation.scheduled_ns for operation in operations) <= heal_ns
    }
    surviving: list[StreamOutage] = []
    hit: list[StreamOutage] = []
    for name, stream in streams.items():
        if name.startswith(PINNED):
            (hit if name[len(PINNED) :] in affected else surviving).append(stream)
    worst = max(surviving, key=lambda stream: stream.gap_ms, default=None)
    return Outage(
        write_ms=worst.gap_ms if worst else None,
        affected_member_ms=_largest(stream.gap_ms for stream in hit),
        failover_write_ms=_largest(streams[name].gap_ms for name in streams if name == FAILOVER_WRITE),
        read_ms=_largest(streams[name].gap_ms for name in streams if name == FAILOVER_READ),
        unavailable_ms=_largest(stream.unavailable_ms for stream in surviving),
        noise_ms=_largest(stream.noise_ms for stream in surviving),
        resolution_ms=_largest(stream.resolution_ms for stream in surviving),
        predicted_ms=predicted_ms,
        worst_member=worst.stream[len(PINNED) :] if worst else "",
        noise_short=any(stream.noise_short for stream in surviving),
        unavailable_after_ms=UNAVAILABLE_AFTER_MS,
        streams=streams,
    )


def measure_stream(
    operations: Sequence[Operation],
    *,
    inject_ns: int,
    heal_ns: int,
    rate: float,
    end_ns: int | None = None,
    unavailable_after_ms: float = UNAVAILABLE_AFTER_MS,
) -> StreamOutage:
    """Give what one stream met; `operations` are all of it, in any order, at least one.

    `end_ns` is the last scheduled instant of the run, over all streams (default: of this one). Raises SpecError, also
    when nothing was scheduled as late as the injection or as early as the healing: silence is not service.
    """
    if heal_ns < inject_ns:
        raise SpecError(f"the fault cannot heal ({heal_ns} ns) before it was injected ({inject_ns} ns)")
    if rate <= 0:
        raise SpecError(f"a rate of {rate} operations per second is not positive")
    if not operations:
        raise SpecError("a stream without a single operation has no outage to measure")
    start_ns = min(operation.scheduled_ns for operation in operations)
    if end_ns is None:
        end_ns = max(operation.scheduled_ns for operation in operations)
    if end_ns < inject_ns or start_ns > heal_ns:
        raise SpecError(f"stream {operations[0].stream} was not sent while the fault acted")
    acked = sorted(operation.return_ns for operation in operations if operation.outcome == "ok")
    gap_from_ns, gap_until_ns = _longest_gap(acked, start_ns, end_ns, inject_ns, heal_ns)

    in_window = [op for op in operations if inject_ns <= op.scheduled_ns <= heal_ns]
    late_ms = max((op.call_ns - op.scheduled_ns for op in in_window if op.attempt == 1), default=0) / _MS
    p99_ms = _p99_latency_ms(operations, inject_ns, heal_ns)
    noise_ms, noise_short = _noise(acked, start_ns, end_ns, inject_ns, heal_ns)
    under_way = [op for op in operations if op.call_ns <= heal_ns and op.return_ns >= inject_ns]
    return StreamOutage(
        stream=operations[0].stream,
        gap_ms=(gap_until_ns - gap_from_ns) / _MS,
        gap_from_ns=gap_from_ns,
        gap_until_ns=gap_until_ns,
        began=bool(acked) and gap_from_ns >= acked[0],
        ended=bool(acked) and gap_until_ns <= acked[-1],
        unavailable_ms=_unavailable_ms(operations, inject_ns, heal_ns, rate, unavailable_after_ms),
        resolution_ms=1000 / rate + late_ms + p99_ms,
        late_ms=late_ms,
        p99_ms=p99_ms,
        noise_ms=noise_ms,
        noise_short=noise_short,
        acknowledged=sum(op.outcome == "ok" for op in under_way),
        failed=sum(op.outcome == "failed" for op in under_way),
        unknown=sum(op.outcome == "unknown" for op in under_way),
    )


def _longest_gap(acked: list[int], start_ns: int, end_ns: int, inject_ns: int, heal_ns: int) -> tuple[int, int]:
    """Give the longest interval between neighbours of start, the acknowledgements and end that overlaps the window.

    An interval that only touches the window counts: it errs on the side of a longer outage.
    """
    # Where nothing is scheduled any more, answers are rare and gaps mean nothing: the first one ends the last gap.
    late = bisect_right(acked, end_ns)
    edges = [start_ns, *acked[: late + 1]]
    if end_ns > edges[-1]:
        edges.append(end_ns)
    longest = (edges[0], edges[0])
    for since, until in pairwise(edges):
        if since <= heal_ns and until >= inject_ns and until - since > longest[1] - longest[0]:
            longest = (since, until)
    return longest


def _unavailable_ms(
    operations: Iterable[Operation], inject_ns: int, heal_ns: int, rate: float, within_ms: float
) -> float:
    """Sum up the slots of the schedule, cut to the window, that no attempt served within `within_ms`.

    An operation's slot lasts from its scheduled instant to the next one's, 1/rate later.
    """
    served: dict[int, bool] = {}
    for op in operations:
        good = op.outcome == "ok" and op.return_ns - op.scheduled_ns <= within_ms * _MS
        served[op.scheduled_ns] = served.get(op.scheduled_ns, False) or good
    slot_ns = _SECOND / rate
    lost_ns = sum(
        max(0.0, min(scheduled_ns + slot_ns, heal_ns) - max(scheduled_ns, inject_ns))
        for scheduled_ns, good in served.items()
        if not good
    )
    return lost_ns / _MS


def _noise(acked: list[int], start_ns: int, end_ns: int, inject_ns: int, heal_ns: int) -> tuple[float | None, bool]:
    """Give the largest fault-free gap, and whether the fault-free stretches are all shorter than the window.

    Windows of the fault's length slide over each stretch that is long enough, and together they cover it; so the
    largest gap over all of them is the largest of the stretch. Stretches that are too short serve only when none is
    long enough.
    """
    length_ns = heal_ns - inject_ns
    stretches = [
        (max(0, min(inject_ns, end_ns) - start_ns), [at for at in acked if at < inject_ns]),
        (max(0, end_ns - max(heal_ns, start_ns)), [at for at in acked if heal_ns < at <= end_ns]),
    ]
    long_enough = [stretch for stretch in stretches if stretch[0] >= length_ns]
    gaps = [until - since for _, returns in long_enough or stretches for since, until in pairwise(returns)]
    return (max(gaps) / _MS if gaps else None), not long_enough


def _p99_latency_ms(operations: Iterable[Operation], inject_ns: int, heal_ns: int) -> float:
    acked = [op for op in operations if op.outcome == "ok"]
    outside = [op for op in acked if op.return_ns < inject_ns or op.call_ns > heal_ns]
    latencies = sorted(op.return_ns - op.call_ns for op in outside or acked)
    if not latencies:
        return 0.0
    return latencies[math.ceil(0.99 * len(latencies)) - 1] / _MS


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def predict(timing: Timing, voters: int, how: str) -> tuple[float, float]:
    """Give the shortest and the longest outage that Raft predicts when the leader goes, in milliseconds.

    kill, freeze, isolate: a follower that hears nothing campaigns after a time that it draws anew in each term,
    uniformly from T to 2T - 1 ticks of one heartbeat interval each, T = election timeout // heartbeat interval (raft's
    `randomizedElectionTimeout`; etcd turns `--election-timeout` into ticks in that way). The first to draw wins: from
    1,000 to 1,900 ms at etcd's defaults, whatever the number of followers. Measured on 3 members of etcd 3.5.1: 1.00 to
    1.86 s over 15 kills. Not in it: up to one heartbeat less, since the leader may go just before its next heartbeat
    was due; a few round trips for votes and the first commit; a further timeout after a split vote.

    stop: on SIGTERM the leader hands leadership over before it exits (etcd's TryTransferLeadershipOnShutdown), and what
    is left is about one heartbeat: 0 to 100 ms at the defaults. Measured: 0.04 to 0.08 s over 9 stops.

    Raises SpecError for another way than these, and when the voters that are left are no quorum: then the outage does
    not end.
    """
    if how not in ("kill", "freeze", "isolate", "stop"):
        raise SpecError(f"no prediction for a leader taken away by {how!r}: kill, freeze, isolate and stop have one")
    _check_quorum_left(voters)
    if how == "stop":
        return 0.0, float(timing.heartbeat_ms)
    ticks = timing.election_ms // timing.heartbeat_ms
    return float(ticks * timing.heartbeat_ms), float((2 * ticks - 1) * timing.heartbeat_ms)


def predicted_mean_ms(timing: Timing, voters: int) -> float:
    """Give the mean outage that Raft predicts after the leader was killed or frozen, in milliseconds.

    It is the mean of the earliest of voters - 1 draws (see `predict`): 1,285 ms for 3 voters and 1,153 ms for 5 at the
    defaults; measured mean 1,330 ms for 3. Raises SpecError as `predict` does.
    """
    _check_quorum_left(voters)
    ticks = timing.election_ms // timing.heartbeat_ms
    # The mean of a whole number that is never negative is the sum of the chances that it reaches 1, 2, 3, ...
    beyond = sum(((ticks - j) / ticks) ** (voters - 1) for j in range(1, ticks))
    return (ticks + beyond) * timing.heartbeat_ms


def _check_quorum_left(voters: int) -> None:
    if voters - 1 < voters // 2 + 1:
        raise SpecError(
            f"no prediction for a leader taken from {voters} voter{'s' * (voters != 1)}: what is left is no quorum",
            remedy="Use a cluster of 3 or more members.",
        )
