"""Enough happened: a run in which little was asked proves little, and must not be shown as passed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from etcdops.verify import Check
from etcdops.workload.history import Operation

__all__ = ["NAME", "Minimum", "check_activity"]

NAME = "activity"


class Minimum(msgspec.Struct, frozen=True):
    """How many writes must have been acknowledged before, during and after the fault, at least.

    A drill that takes the quorum away sets `during` to 0; that at least one operation was under way while the fault
    acted is asked for in any case.
    """

    before: int = 10
    during: int = 1
    after: int = 10


def check_activity(
    history: Sequence[Operation], *, inject_ns: int, heal_ns: int, minimum: Minimum | None = None
) -> Check:
    """Give the check for a fault that acted from `inject_ns` to `heal_ns`; it passes or is inconclusive.

    A write counts where its acknowledgement came. "After" is a write that was also called after the healing, so that
    it proves service and not just a late answer.
    """
    minimum = minimum or Minimum()
    acked = [op for op in history if op.op == "put" and op.outcome == "ok"]
    counts = {
        "before": sum(op.return_ns < inject_ns for op in acked),
        "during": sum(inject_ns <= op.return_ns <= heal_ns for op in acked),
        "after": sum(op.call_ns > heal_ns for op in acked),
    }
    wanted = {"before": minimum.before, "during": minimum.during, "after": minimum.after}
    overlapping = sum(op.call_ns <= heal_ns and op.return_ns >= inject_ns and op.code != "NOT_SENT" for op in history)
    missing = [
        f"{counts[when]} writes were acknowledged {when} the fault, and at least {wanted[when]} are needed"
        for when in counts
        if counts[when] < wanted[when]
    ]
    if not overlapping:
        missing.append("no operation was under way while the fault acted")
    if missing:
        return Check(NAME, "inconclusive", "; ".join(missing))
    told = ", ".join(f"{counts[when]} {when}" for when in counts)
    return Check(NAME, "passed", f"writes acknowledged: {told} the fault; {overlapping} operations met it")
