"""All checks of a run together: their order, and that each one's failure is the run's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec
import pytest

from etcdops.verify.activity import Minimum
from etcdops.verify.judging import Judgement, judge
from etcdops.verify.members_agree import MemberHash
from etcdops.verify.recorded import Fault, Final, Recorded
from etcdops.verify.verdict import combine
from tests.unit.stories import MEMBERS, Story, redelivered, replaced

LOGS: dict[str, list[str] | None] = {member: [] for member in MEMBERS}


def _story() -> Story:
    story = Story()
    for number in range(30):
        story.put(f"pinned.thor/{number}", stream="pinned.thor")
        story.get("k")
    return story


def _run(recorded: Recorded | None = None) -> Recorded:
    recorded = recorded or _story().told()
    at = [op.call_ns for op in recorded.history]
    fault = Fault("kill", "thor", at[25], at[26], at[34], at[35])
    return recorded._replace(observed=msgspec.structs.replace(recorded.observed, faults=(fault,)))


def _judge(recorded: Recorded, logs: Mapping[str, Iterable[str] | None] = LOGS) -> Judgement:
    return judge(recorded, logs=logs)


def test_all_checks_of_a_good_run_pass() -> None:
    """The order is fixed: the record's checks, logs, activity."""
    found = _judge(_run())
    assert combine(found.checks) == "passed", found.checks
    assert [check.name for check in found.checks] == [
        "acknowledged writes",
        "revision witness",
        "watch",
        "members agree",
        "logs",
        "activity",
    ]
    assert found.writes.acknowledged == 31


def _stale(recorded: Recorded) -> Recorded:
    return replaced(recorded, 40, revision=3)


def _dropped(recorded: Recorded) -> Recorded:
    return redelivered(recorded, lambda d: None if d.revision == 9 else d, ["thor"])


def _hash(recorded: Recorded) -> Recorded:
    hashes = {**recorded.observed.hashes, "thor": MemberHash(8, recorded.observed.tombstone)}
    return recorded._replace(observed=msgspec.structs.replace(recorded.observed, hashes=hashes))


def _other(recorded: Recorded) -> Recorded:
    return redelivered(
        recorded,
        lambda d: msgspec.structs.replace(d, events=(d.events[0]._replace(prev_kv=d.events[0].kv),)),
        ["thor"],
    )


def _lost(recorded: Recorded) -> Recorded:
    final = {**recorded.observed.final, "thor": Final(0)}
    return recorded._replace(observed=msgspec.structs.replace(recorded.observed, final=final))


@pytest.mark.parametrize(
    ("bend", "name"),
    [
        (_stale, "revision witness"),
        (_dropped, "watch"),
        (_hash, "members agree"),
        (_other, "members agree"),
        (_lost, "acknowledged writes"),
    ],
)
def test_one_failed_check_deviates(bend: Callable[[Recorded], Recorded], name: str) -> None:
    """Each of them alone decides."""
    found = _judge(bend(_run()))
    assert combine(found.checks) == "deviated"
    assert name in [check.name for check in found.checks if check.result == "failed"]


def test_logs_and_activity_count_too() -> None:
    """A panic fails, and too little activity is inconclusive."""
    panic = {**LOGS, "thor": ["panic: oh"]}
    assert combine(_judge(_run(), panic).checks) == "deviated"
    assert combine(_judge(_run(), {**LOGS, "thor": None}).checks) == "inconclusive"
    assert combine(judge(_run(), logs=LOGS, minimum=Minimum(before=100)).checks) == "inconclusive"
    assert combine(judge(_run(), logs=LOGS, kinds=["lease"]).checks) == "inconclusive"


def test_run_without_a_fault_is_judged() -> None:
    """The control has no fault to meet."""
    assert combine(_judge(_story().told()).checks) == "passed"
