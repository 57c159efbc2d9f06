"""The longest time without an answer: of a stream's writes, of what a watch delivers, of a lease's keep-alives.

Pure functions over instants of one host's CLOCK_MONOTONIC, in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
import numpy as np

from etcdops.answers import Lease
from etcdops.ops import KeepAlive
from etcdops.workload.calls import Arrivals, Ints, arrivals_of
from etcdops.workload.deliveries import Delivery
from etcdops.workload.history import Operation

__all__ = ["Gap", "find_gap", "lease_gap", "watch_gaps"]

_MS = 1_000_000


class Gap(msgspec.Struct, frozen=True):
    """The longest interval between neighbouring events that overlaps [inject, heal].

    It lasts `gap_ms`, from `gap_from_ns` to `gap_until_ns`. `began` is False when no event came before it (then it runs
    from the first instant at which one could come), `ended` False when none came after it (then it runs to the last
    such instant, and is a lower bound).

    `noise_ms` is the largest gap in the fault-free time before and after, over windows of the same length as
    [inject, heal]; None without two events there. `noise_short` says that no fault-free stretch was as long as that
    window, so that the noise floor comes from less time than the gap does.
    """

    gap_ms: float
    gap_from_ns: int
    gap_until_ns: int
    began: bool
    ended: bool
    noise_ms: float | None
    noise_short: bool


def find_gap(instants: Sequence[int] | Ints, *, start_ns: int, end_ns: int, inject_ns: int, heal_ns: int) -> Gap:
    """Give the longest gap among `instants`, which are sorted; events were to be expected from start to end.

    The first event after the end still ends the last gap; what comes later means nothing.
    """
    at = np.asarray(instants, np.int64)
    since, until = _longest(at, start_ns, end_ns, inject_ns, heal_ns)
    noise_ms, noise_short = _noise(at, start_ns, end_ns, inject_ns, heal_ns)
    return Gap(
        gap_ms=(until - since) / _MS,
        gap_from_ns=since,
        gap_until_ns=until,
        began=len(at) > 0 and since >= int(at[0]),
        ended=len(at) > 0 and until <= int(at[-1]),
        noise_ms=noise_ms,
        noise_short=noise_short,
    )


def _longest(instants: Ints, start_ns: int, end_ns: int, inject_ns: int, heal_ns: int) -> tuple[int, int]:
    """Give the longest interval between neighbours of start, the instants and end that overlaps the window.

    An interval that only touches the window counts: it errs on the side of a longer outage.
    """
    # Where nothing is scheduled any more, answers are rare and gaps mean nothing: the first one ends the last gap.
    late = int(np.searchsorted(instants, end_ns, side="right"))
    edges = np.concatenate(([start_ns], instants[: late + 1]))
    if end_ns > edges[-1]:
        edges = np.append(edges, end_ns)
    since, until = edges[:-1], edges[1:]
    lengths = np.where((since <= heal_ns) & (until >= inject_ns), until - since, 0)
    if not lengths.any() or lengths.max() <= 0:
        return start_ns, start_ns
    longest = int(lengths.argmax())
    return int(since[longest]), int(until[longest])


def _noise(instants: Ints, start_ns: int, end_ns: int, inject_ns: int, heal_ns: int) -> tuple[float | None, bool]:
    """Give the largest fault-free gap, and whether the fault-free stretches are all shorter than the window.

    Windows of the fault's length slide over each stretch that is long enough, and together they cover it; so the
    largest gap over all of them is the largest of the stretch. Stretches that are too short serve only when none is
    long enough.
    """
    length_ns = heal_ns - inject_ns
    stretches = [
        (max(0, min(inject_ns, end_ns) - start_ns), instants[instants < inject_ns]),
        (max(0, end_ns - max(heal_ns, start_ns)), instants[(instants > heal_ns) & (instants <= end_ns)]),
    ]
    long_enough = [stretch for stretch in stretches if stretch[0] >= length_ns]
    gaps = [int(np.diff(events).max()) for _, events in long_enough or stretches if len(events) > 1]
    return (max(gaps) / _MS if gaps else None), not long_enough


def watch_gaps(
    deliveries: Mapping[str, Arrivals | Sequence[Delivery]], *, inject_ns: int, heal_ns: int, end_ns: int
) -> dict[str, Gap]:
    """Give for each member the longest time in which the watch through it delivered no change.

    Only changes count. A progress notification is no sign of service: a member answers it by itself, even when it is
    cut off from the leader. `end_ns` is the last instant at which traffic was scheduled: later there is nothing to
    deliver. A member whose watch was first opened after the healing, or after that end, has no figure.
    """
    found = {}
    for member, own in sorted(deliveries.items()):
        start_ns, seen = own if isinstance(own, Arrivals) else arrivals_of(own)
        if start_ns is None or start_ns > min(heal_ns, end_ns) or end_ns < inject_ns:
            continue
        found[member] = find_gap(seen, start_ns=start_ns, end_ns=end_ns, inject_ns=inject_ns, heal_ns=heal_ns)
    return found


def lease_gap(
    history: Sequence[Operation], *, inject_ns: int, heal_ns: int, affected: Collection[str] = ()
) -> Gap | None:
    """Give the longest time in which no keep-alive was acknowledged, of all those through members not hit by the fault.

    An answer that grants no time (the lease has ended) keeps nothing alive, and is none. None where no keep-alive was
    scheduled as late as the injection and as early as the healing.
    """
    sent = [op for op in history if isinstance(op.request, KeepAlive) and op.member not in affected]
    start_ns = min((operation.scheduled_ns for operation in sent), default=heal_ns + 1)
    end_ns = max((operation.scheduled_ns for operation in sent), default=inject_ns - 1)
    if end_ns < inject_ns or start_ns > heal_ns:
        return None
    alive = sorted(operation.return_ns for operation in sent if _keeps_alive(operation))
    return find_gap(alive, start_ns=start_ns, end_ns=end_ns, inject_ns=inject_ns, heal_ns=heal_ns)


def _keeps_alive(operation: Operation) -> bool:
    answer = operation.answer
    return operation.outcome == "ok" and (not isinstance(answer, Lease) or answer.ttl_s > 0)
