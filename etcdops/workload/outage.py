"""How long a cluster did not serve, computed from the record of a run: pure functions, no clock and no cluster.

Operations are sent by a schedule, whatever became of the ones before, so that a pause of the cluster shows in full
(a client that waits for each answer before it sends the next hides all but one of the operations that it delayed).
Every number here is in milliseconds; instants are nanoseconds of one host's CLOCK_MONOTONIC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from etcdops.errors import SpecError
from etcdops.workload.calls import FAILED, OK, SERVICES, UNKNOWN, Arrivals, Calls, Ints, calls_of
from etcdops.workload.deliveries import Delivery
from etcdops.workload.gaps import Gap, find_gap, lease_gap, watch_gaps
from etcdops.workload.history import FAILOVER_READ, FAILOVER_WRITE, PINNED, Operation
from etcdops.workload.prediction import Prediction, explain_outlier, predict, predicted_mean_ms
from etcdops.workload.recovery import Quickness, count_errors, nearest_rank, new_leader_ms, quick_again

if TYPE_CHECKING:
    from etcdops.verify.recorded import Claim, Fault

__all__ = [
    "UNAVAILABLE_AFTER_MS",
    "Outage",
    "StreamOutage",
    "WriteGap",
    "fault_window",
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

    `resolution_ms` = 1/rate (or the longest time between two neighbours of the schedule at the window, where that is
    more) + `late_ms` (the largest send lateness in the window) + `p99_ms` (99th percentile latency of the acknowledged
    calls that were not under way in it, which the outage would lengthen; of all acknowledged ones if there are no such
    calls).

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


class WriteGap(msgspec.Struct, frozen=True):
    """When the gap was that is the headline. `ended` is False when no acknowledgement came after it."""

    from_ns: int
    until_ns: int
    ended: bool


class Outage(msgspec.Struct, frozen=True):
    """What the users of a cluster met, over all streams. None where no such stream was sent while the fault acted.

    `write_ms` is the headline: the longest gap of a stream pinned to a surviving member, the worst of them
    (`worst_member`). `unavailable_ms` is the largest among the same streams, and so are `noise_ms` and
    `resolution_ms`. `affected_member_ms` is the longest gap of the streams pinned to members that the fault hit: it
    ends when the member is back, not when the cluster is. `write_gap` is when the headline's gap was; older records
    have none (see `stopped`). `predicted_ms` is Raft's prediction (see `predict`), None when there is none.
    `noise_short` as in StreamOutage. `streams` holds the details.
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
    new_leader_ms: float | None = None
    watch_ms: float | None = None
    lease_ms: float | None = None
    p99_before_ms: float | None = None
    p99_back_ms: float | None = None
    errors: dict[str, dict[str, int]] = {}
    watches: dict[str, Gap] = {}
    lease: Gap | None = None
    prediction: Prediction | None = None
    outlier: str = ""
    write_gap: WriteGap | None = None

    @property
    def stopped(self) -> WriteGap | None:
        """When the gap was that is the headline; None where that is not known.

        In older records it is that of the worst member's stream, where that is as long.
        """
        stream = self.streams.get(f"{PINNED}{self.worst_member}")
        if self.write_gap or stream is None or stream.gap_ms != self.write_ms:
            return self.write_gap
        return WriteGap(stream.gap_from_ns, stream.gap_until_ns, stream.ended)


def fault_window(faults: Sequence[Fault]) -> tuple[int, int, tuple[str, ...]]:
    """Give from when to when some faults acted, the first injection to the last healing, and which members were hit.

    Raises SpecError when there are none.
    """
    if not faults:
        raise SpecError("a run without a fault has no outage to measure")
    affected = tuple(dict.fromkeys(fault.member for fault in faults if fault.member))
    return min(fault.inject_ns for fault in faults), max(fault.heal_ns for fault in faults), affected


def measure(
    history: Sequence[Operation] | Calls,
    *,
    inject_ns: int,
    heal_ns: int,
    rate: float,
    affected: Collection[str] = (),
    predicted_ms: tuple[float, float] | None = None,
    prediction: Prediction | None = None,
    deliveries: Mapping[str, Arrivals | Sequence[Delivery]] | None = None,
    claims: Sequence[Claim] = (),
    ids: Mapping[str, int] | None = None,
) -> Outage:
    """Give the outage that a record shows for faults that acted from `inject_ns` to `heal_ns`.

    Of several faults these are the first injection, stamped before the act, and the last healing (see `fault_window`);
    `affected` names all members that they hit. `rate` is in operations per second of each stream that is pinned to a
    member or fails over; which there are is read from the record, and others have no figures. `deliveries` are the
    watches', by member, `claims` what members said of their leader, `ids` the members' IDs: what is missing has no
    figure. `predicted_ms` is the prediction's unless given. Raises SpecError when `heal_ns` is before `inject_ns`, or
    the rate is not positive.
    """
    _check_window(inject_ns, heal_ns, rate)
    calls = history if isinstance(history, Calls) else calls_of(history)
    end_ns = int(calls.scheduled.max()) if len(calls.scheduled) else heal_ns
    streams: dict[str, StreamOutage] = {}
    members: dict[str, Ints] = {}
    for name, (numbers, own_rate) in sorted(_streams(calls, rate).items(), key=lambda stream: stream[0]):
        if end_ns >= inject_ns and int(calls.scheduled[numbers].min()) <= heal_ns:
            streams[name] = _measure_stream(
                calls.take(numbers), name, inject_ns, heal_ns, own_rate, end_ns, UNAVAILABLE_AFTER_MS
            )
            members[name] = numbers
    surviving: list[StreamOutage] = []
    hit: list[StreamOutage] = []
    for name, stream in streams.items():
        member = name[len(PINNED) :]
        if name.startswith(PINNED) and "." not in member:
            (hit if member in affected else surviving).append(stream)
    worst = max(surviving, key=lambda stream: stream.gap_ms, default=None)
    resolution_ms = _largest(stream.resolution_ms for stream in surviving)
    noise_ms = _largest(stream.noise_ms for stream in surviving)
    quickness = Quickness(None, None)
    outlier = ""
    if worst and resolution_ms is not None:
        # A gap that means nothing is no outage, wherever it lies. One that never ended leaves no time to be quick in.
        outage = worst.gap_ms > resolution_ms + (noise_ms or 0.0)
        quickness = quick_again(
            calls.take(np.concatenate([members[stream.stream] for stream in surviving])),
            inject_ns=inject_ns,
            after_ns=worst.gap_until_ns if outage else inject_ns,
        )
        if prediction:
            outlier = explain_outlier(worst.gap_ms, prediction, resolution_ms=resolution_ms, noise_ms=noise_ms)
    watches = watch_gaps(deliveries or {}, inject_ns=inject_ns, heal_ns=heal_ns, end_ns=end_ns)
    lease = lease_gap(calls.keep_alives, inject_ns=inject_ns, heal_ns=heal_ns, affected=affected)
    return Outage(
        write_ms=worst.gap_ms if worst else None,
        affected_member_ms=_largest(stream.gap_ms for stream in hit),
        failover_write_ms=_largest(streams[name].gap_ms for name in streams if name == FAILOVER_WRITE),
        read_ms=_largest(streams[name].gap_ms for name in streams if name == FAILOVER_READ),
        unavailable_ms=_largest(stream.unavailable_ms for stream in surviving),
        noise_ms=noise_ms,
        resolution_ms=resolution_ms,
        predicted_ms=(prediction.low_ms, prediction.high_ms) if prediction and not predicted_ms else predicted_ms,
        worst_member=worst.stream[len(PINNED) :] if worst else "",
        noise_short=any(stream.noise_short for stream in surviving),
        unavailable_after_ms=UNAVAILABLE_AFTER_MS,
        streams=streams,
        new_leader_ms=new_leader_ms(claims, ids or {}, inject_ns=inject_ns),
        watch_ms=_largest(gap.gap_ms for member, gap in watches.items() if member not in affected),
        lease_ms=lease.gap_ms if lease else None,
        p99_before_ms=quickness.baseline_ms,
        p99_back_ms=quickness.back_ms,
        errors=count_errors(op for op in calls.not_ok.values() if op.call_ns <= heal_ns and op.return_ns >= inject_ns),
        watches=watches,
        lease=lease,
        prediction=prediction,
        outlier=outlier,
        write_gap=WriteGap(worst.gap_from_ns, worst.gap_until_ns, worst.ended) if worst else None,
    )


def _streams(calls: Calls, rate: float) -> dict[str, tuple[Ints, float]]:
    """Give what each stream sent, apart by how it is served, and at which rate.

    A serializable read is served when nothing else is: among writes it would hide their outage. Only streams of that
    rate are given: those that are pinned to a member, and those that fail over.
    """
    streams = {}
    for number, stream in enumerate(calls.streams):
        if not stream.startswith(PINNED) and stream not in (FAILOVER_WRITE, FAILOVER_READ):
            continue
        sent = np.flatnonzero(calls.stream == number)
        services = {
            SERVICES[service]: sent[calls.service[sent] == service]
            for service in np.unique(calls.service[sent]).tolist()
        }
        scheduled = {
            service: len(np.unique(calls.scheduled[numbers])) if len(services) > 1 else 1
            for service, numbers in services.items()
        }
        for service, numbers in services.items():
            own = "reads" if stream == FAILOVER_READ else "writes"
            name = stream if service == own else f"{stream}.{service}"
            streams[name] = numbers, rate * scheduled[service] / sum(scheduled.values())
    return streams


def _check_window(inject_ns: int, heal_ns: int, rate: float) -> None:
    if heal_ns < inject_ns:
        raise SpecError(f"the fault cannot heal ({heal_ns} ns) before it was injected ({inject_ns} ns)")
    if rate <= 0:
        raise SpecError(f"a rate of {rate} operations per second is not positive")


def measure_stream(
    operations: Sequence[Operation],
    *,
    inject_ns: int,
    heal_ns: int,
    rate: float,
    end_ns: int | None = None,
    unavailable_after_ms: float = UNAVAILABLE_AFTER_MS,
    name: str = "",
) -> StreamOutage:
    """Give what one stream met; `operations` are all of it, in any order, at least one.

    `end_ns` is the last scheduled instant of the run, over all streams (default: of this one), `name` what to call it
    if not by the stream's. Raises SpecError, also
    when nothing was scheduled as late as the injection or as early as the healing: silence is not service.
    """
    _check_window(inject_ns, heal_ns, rate)
    if not operations:
        raise SpecError("a stream without a single operation has no outage to measure")
    calls = calls_of(operations)
    if end_ns is None:
        end_ns = int(calls.scheduled.max())
    name = name or operations[0].stream
    return _measure_stream(calls, name, inject_ns, heal_ns, rate, end_ns, unavailable_after_ms)


def _measure_stream(
    calls: Calls, name: str, inject_ns: int, heal_ns: int, rate: float, end_ns: int, unavailable_after_ms: float
) -> StreamOutage:
    start_ns = int(calls.scheduled.min())
    if end_ns < inject_ns or start_ns > heal_ns:
        raise SpecError(f"stream {calls.streams[calls.stream[0]]} was not sent while the fault acted")
    acked = np.sort(calls.back[calls.outcome == OK])
    gap = find_gap(acked, start_ns=start_ns, end_ns=end_ns, inject_ns=inject_ns, heal_ns=heal_ns)
    first = (inject_ns <= calls.scheduled) & (calls.scheduled <= heal_ns) & (calls.attempt == 1)
    late_ms = int((calls.call - calls.scheduled)[first].max()) / _MS if first.any() else 0.0
    p99_ms = _p99_latency_ms(calls, inject_ns, heal_ns)
    under_way = calls.outcome[(calls.call <= heal_ns) & (calls.back >= inject_ns)]
    return StreamOutage(
        stream=name,
        gap_ms=gap.gap_ms,
        gap_from_ns=gap.gap_from_ns,
        gap_until_ns=gap.gap_until_ns,
        began=gap.began,
        ended=gap.ended,
        unavailable_ms=_unavailable_ms(calls, inject_ns, heal_ns, rate, unavailable_after_ms),
        resolution_ms=max(1000 / rate, _spacing_ms(calls.scheduled, inject_ns, heal_ns)) + late_ms + p99_ms,
        late_ms=late_ms,
        p99_ms=p99_ms,
        noise_ms=gap.noise_ms,
        noise_short=gap.noise_short,
        acknowledged=int((under_way == OK).sum()),
        failed=int((under_way == FAILED).sum()),
        unknown=int((under_way == UNKNOWN).sum()),
    )


def _spacing_ms(scheduled: Ints, inject_ns: int, heal_ns: int) -> float:
    """Give the longest time between two neighbours of the schedule that overlaps the window."""
    instants = np.unique(scheduled)
    low, high = np.searchsorted(instants, inject_ns), np.searchsorted(instants, heal_ns, side="right")
    edges = instants[max(0, int(low) - 1) : int(high) + 1]
    return int(np.diff(edges).max(initial=0)) / _MS


def _unavailable_ms(calls: Calls, inject_ns: int, heal_ns: int, rate: float, within_ms: float) -> float:
    """Sum up the slots of the schedule, cut to the window, that no attempt served within `within_ms`.

    An operation's slot lasts from its scheduled instant to the next one's, 1/rate later.
    """
    slot_ns = _SECOND / rate
    inside = (inject_ns - slot_ns <= calls.scheduled) & (calls.scheduled <= heal_ns)
    good = (calls.outcome == OK) & (calls.back - calls.scheduled <= within_ms * _MS)
    slots = dict.fromkeys(calls.scheduled[inside].tolist())
    served = set(calls.scheduled[inside & good].tolist())
    lost_ns = sum(
        max(0.0, min(scheduled_ns + slot_ns, heal_ns) - max(scheduled_ns, inject_ns))
        for scheduled_ns in slots
        if scheduled_ns not in served
    )
    return float(lost_ns) / _MS


def _p99_latency_ms(calls: Calls, inject_ns: int, heal_ns: int) -> float:
    acked = calls.outcome == OK
    outside = acked & ((calls.back < inject_ns) | (calls.call > heal_ns))
    latencies = np.sort((calls.back - calls.call)[outside if outside.any() else acked])
    return nearest_rank(latencies) / _MS if len(latencies) else 0.0


def _largest(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
