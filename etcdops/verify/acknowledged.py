"""No acknowledged write is lost: every one of them is in the final state, as read through every member.

The set check of Jepsen's etcd tests (https://github.com/jepsen-io/etcd): every write has a key and a value of its own
and nothing deletes, so what was acknowledged must be there, what definitely failed must not, and what is unknown may
be either.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from etcdops.verify import Check
from etcdops.workload.history import Operation

__all__ = ["NAME", "Writes", "check_acknowledged"]

NAME = "acknowledged writes"
_SHOWN = 5
_SECOND = 1_000_000_000


class Writes(msgspec.Struct, frozen=True):
    """How many writes a run made and what became of them.

    `lost` were acknowledged and are missing, or have another value, through at least one member. `recovered` are those
    of the `unknown` that are in the final state. `not_sent` are part of `failed`.
    """

    acknowledged: int
    lost: int
    failed: int
    unknown: int
    recovered: int
    not_sent: int


def check_acknowledged(
    history: Sequence[Operation], final: Mapping[str, Mapping[str, str] | None]
) -> tuple[Check, Writes]:
    """Give the check, and the counts for the verdict.

    `final` is the state as read, linearizably, through each member that should serve: {member: {key: value}}, all keys
    of the run; None for a member through which it could not be read, which makes a check without other findings
    inconclusive. So do a run without acknowledged writes, and keys of the run's streams that no record explains.
    """
    puts = [op for op in history if op.op == "put"]
    acknowledged = [op for op in puts if op.outcome == "ok"]
    failed = [op for op in puts if op.outcome == "failed"]
    unknown = [op for op in puts if op.outcome == "unknown"]
    states = {member: state for member, state in final.items() if state is not None}

    lost: dict[int, tuple[Operation, list[str]]] = {}
    for op in acknowledged:
        through = [member for member, state in states.items() if state.get(op.key) != op.value]
        if through:
            lost[op.id] = op, through
    applied = [op for op in failed if any(op.key in state for state in states.values())]
    changed = [op for op in unknown if any(state.get(op.key, op.value) != op.value for state in states.values())]
    recovered = [op for op in unknown if any(op.key in state for state in states.values())]
    unexplained = _unexplained(puts, states.values())
    writes = Writes(
        acknowledged=len(acknowledged),
        lost=len(lost),
        failed=len(failed),
        unknown=len(unknown),
        recovered=len(recovered),
        not_sent=sum(op.code == "NOT_SENT" for op in failed),
    )

    origin_ns = min((op.scheduled_ns for op in history), default=0)
    problems: list[str] = []
    if lost:
        problems.append(
            f"{len(lost)} of {len(acknowledged)} acknowledged writes are lost: "
            + _some([_describe_lost(op, through, states, origin_ns) for op, through in lost.values()])
        )
    if applied:
        problems.append(
            f"{len(applied)} writes that definitely failed were applied: "
            + _some([f"{op.key} ({op.code}, sent {_at(op.call_ns, origin_ns)})" for op in applied])
        )
    if changed:
        problems.append(f"{len(changed)} keys hold a value that nobody wrote: " + _some([op.key for op in changed]))
    if problems:
        return Check(NAME, "failed", "; ".join(problems)), writes

    doubts: list[str] = []
    unread = sorted(member for member, state in final.items() if state is None)
    if unread:
        doubts.append(f"the final state could not be read through {', '.join(unread)}")
    if not final:
        doubts.append("the final state was not read")
    if not acknowledged:
        doubts.append("no write was acknowledged")
    if unexplained:
        doubts.append(f"{len(unexplained)} keys have no record of their write: " + _some(unexplained))
    if doubts:
        return Check(NAME, "inconclusive", "; ".join(doubts)), writes
    detail = (
        f"all {len(acknowledged)} acknowledged writes are in the final state through {', '.join(states)}; of"
        f" {len(unknown)} unknown ones {len(recovered)} are; none of {len(failed)} failed ones is"
    )
    return Check(NAME, "passed", detail), writes


def _unexplained(puts: Iterable[Operation], states: Iterable[Mapping[str, str]]) -> list[str]:
    """Give the keys under the streams' prefixes that no put of the record names.

    Other keys of the run (those that a drill writes itself) are none of this check's business.
    """
    known = {op.key for op in puts}
    prefixes = tuple({key.rpartition("/")[0] + "/" for key in known})
    return sorted({key for state in states for key in state if key not in known and key.startswith(prefixes)})


def _describe_lost(op: Operation, through: list[str], states: Mapping[str, Mapping[str, str]], origin_ns: int) -> str:
    found = {states[member].get(op.key) for member in through}
    what = "absent" if found == {None} else f"value {next(value for value in found if value is not None)!r}"
    return (
        f"{op.key} ({what} through {', '.join(through)}; acknowledged by {op.member} at {_at(op.return_ns, origin_ns)},"
        f" revision {op.revision})"
    )


def _at(instant_ns: int, origin_ns: int) -> str:
    return f"+{(instant_ns - origin_ns) / _SECOND:.3f} s"


def _some(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
