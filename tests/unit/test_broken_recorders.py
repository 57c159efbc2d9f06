"""A recorder that is broken is caught: the run was right, and what is written of it is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from etcdops.histories.generated import Settings, generate
from etcdops.verify.recorded import Recorded
from etcdops.verify.witness import check_witness
from etcdops.workload.history import Operation
from tests.unit.faulty import FAULTS

_MS = 1_000_000


def _run(seed: int) -> Recorded:
    return generate(Settings(seed=seed, operations=400, clients=10, keys=5, unknown=0.05, fault=0.0))


def _each(how: Callable[[Operation], Operation]) -> Callable[[Recorded], Recorded]:
    return lambda recorded: recorded._replace(history=sorted(map(how, recorded.history), key=lambda op: op.return_ns))


def _without(which: Callable[[Operation], bool]) -> Callable[[Recorded], Recorded]:
    return lambda recorded: recorded._replace(history=[op for op in recorded.history if not which(op)])


_BROKEN: dict[str, Callable[[Recorded], Recorded]] = {
    "the call is stamped when the answer is there": _each(lambda op: replace(op, call_ns=op.return_ns)),
    "the return is stamped when the call is made": _each(lambda op: replace(op, return_ns=op.call_ns)),
    "the return has the time that a loop remembered": _each(
        lambda op: replace(op, return_ns=max(op.call_ns, op.return_ns // (50 * _MS) * (50 * _MS)))
    ),
    "the call has the time of the next round of a loop": _each(
        lambda op: replace(op, call_ns=min(op.return_ns, -(-op.call_ns // (50 * _MS)) * (50 * _MS)))
    ),
    "one host's clock is 50 ms ahead": _each(
        lambda op: (
            replace(op, call_ns=op.call_ns + 50 * _MS, return_ns=op.return_ns + 50 * _MS)
            if op.stream == "client-3"
            else op
        )
    ),
    "every tenth record is dropped": _without(lambda op: op.id % 10 == 0),
    "what is unknown is dropped": _without(lambda op: op.outcome == "unknown"),
    "what is unknown is called failed": _each(
        lambda op: replace(op, outcome="failed", code="UNAVAILABLE") if op.outcome == "unknown" else op
    ),
    "answers are given to the next operation": lambda recorded: recorded._replace(
        history=[
            replace(op, answer=other.answer, revision=other.revision) if op.kind == other.kind == "range" else op
            for op, other in zip(recorded.history, [*recorded.history[1:], recorded.history[0]], strict=True)
            if op.outcome == other.outcome == "ok"
        ]
    ),
}


@pytest.mark.parametrize("name", _BROKEN)
def test_a_broken_recorder_is_caught(name: str) -> None:
    """On three runs out of three; as they are they pass."""
    for seed in range(3):
        recorded = _run(seed)
        assert check_witness(recorded).result == "passed"
        check = check_witness(_BROKEN[name](recorded))
        assert check.result == "failed", f"seed {seed}: {check.detail}"


def test_a_retry_recorded_as_one_operation_is_caught() -> None:
    """A client that sends a write again and records it once shows one value at two revisions."""
    recorded = generate(Settings(seed=1, operations=50), FAULTS["applies_twice"])
    check = check_witness(recorded)
    assert check.result == "failed"
    assert "W1" in check.detail
