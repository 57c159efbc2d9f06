"""Enough happened: a run in which little was asked proves little, and must not be shown as passed."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from etcdops.verify import Check
from etcdops.verify.columns import OK, Columns

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
    columns: Columns,
    *,
    inject_ns: int,
    heal_ns: int,
    minimum: Minimum | None = None,
    kinds: Collection[str] = (),
) -> Check:
    """Give the check for a fault that acted from `inject_ns` to `heal_ns`; it passes or is inconclusive.

    A write counts where its acknowledgement came. "After" is a write that was also called after the healing, so that
    it proves service and not just a late answer. `kinds` are kinds of operations (`Operation.kind`) of which each must
    have been acknowledged before and after the fault. A run without a fault gives both instants as 0: all it did is
    "after", and nothing else is asked for.
    """
    minimum = minimum or Minimum()
    broken = heal_ns > 0
    if not broken:
        minimum = Minimum(0, 0, minimum.after)
        inject_ns = heal_ns = -1
    ops = columns.operations
    ok = ops.outcome == OK
    early, late = ok & (ops.back < inject_ns), ok & (ops.call > heal_ns)
    writes = ops.may_write()
    counts = {
        "before": int((early & writes).sum()),
        "during": int((ok & writes & (ops.back >= inject_ns) & (ops.back <= heal_ns)).sum()),
        "after": int((late & writes).sum()),
    }
    wanted = {"before": minimum.before, "during": minimum.during, "after": minimum.after}
    met = (ops.call <= heal_ns) & (ops.back >= inject_ns)
    overlapping = int(met.sum()) - sum(
        op.code == "NOT_SENT" and bool(met[number]) for number, op in columns.not_ok().items()
    )
    missing = [
        f"{counts[when]} writes were acknowledged {when} the fault, and at least {wanted[when]} are needed"
        for when in counts
        if counts[when] < wanted[when]
    ]
    for when, there in (("before", early), ("after", late)):
        absent = sorted(kind for kind in set(kinds) if not (there & ops.of_kind(kind)).any())
        if absent and (broken or when == "after"):
            missing.append(f"no {', '.join(absent)} was acknowledged" + f" {when} the fault" * broken)
    if broken and not overlapping:
        missing.append("no operation was under way while the fault acted")
    if missing:
        return Check(NAME, "inconclusive", "; ".join(missing))
    if not broken:
        return Check(NAME, "passed", f"{counts['after']} writes were acknowledged, and nothing was broken")
    told = ", ".join(f"{counts[when]} {when}" for when in counts)
    return Check(NAME, "passed", f"writes acknowledged: {told} the fault; {overlapping} operations met it")
