"""The check that no acknowledged write is lost: it passes, fails and is inconclusive where it should."""

from __future__ import annotations

from etcdops.verify.acknowledged import NAME, Writes, check_acknowledged
from etcdops.workload.history import Operation, Outcome

_MEMBERS = ("ironman", "thor", "deadpool")


def _put(number: int, outcome: Outcome = "ok", *, code: str = "") -> Operation:
    return Operation(
        id=number,
        stream="pinned.thor",
        member="thor",
        op="put",
        key=f"etcdops/run1/pinned.thor/{number:08d}",
        value=f"run1/{number}",
        scheduled_ns=number * 10_000_000,
        call_ns=number * 10_000_000,
        return_ns=number * 10_000_000 + 2_000_000,
        outcome=outcome,
        revision=number + 1 if outcome == "ok" else 0,
        code=code,
    )


def _state(*operations: Operation) -> dict[str, str]:
    return {operation.key: operation.value for operation in operations}


def _everywhere(state: dict[str, str]) -> dict[str, dict[str, str] | None]:
    return {member: dict(state) for member in _MEMBERS}


def test_all_present_passes() -> None:
    """Acknowledged writes are there, failed ones are not, unknown ones may be either."""
    ok, unknown_in, unknown_out, failed = _put(1), _put(2, "unknown"), _put(3, "unknown"), _put(4, "failed")
    not_sent = _put(5, "failed", code="NOT_SENT")
    history = [ok, unknown_in, unknown_out, failed, not_sent]
    check, writes = check_acknowledged(history, _everywhere(_state(ok, unknown_in)))
    assert (check.name, check.result) == (NAME, "passed"), check.detail
    assert writes == Writes(acknowledged=1, lost=0, failed=2, unknown=2, recovered=1, not_sent=1)
    assert "all 1 acknowledged writes" in check.detail


def test_lost_write_fails() -> None:
    """An acknowledged write that no member has is lost; the detail says which, and when it was acknowledged."""
    kept, lost = _put(1), _put(123)
    check, writes = check_acknowledged([kept, lost], _everywhere(_state(kept)))
    assert check.result == "failed"
    assert writes.lost == 1
    assert "1 of 2 acknowledged writes are lost" in check.detail
    assert lost.key in check.detail
    assert "acknowledged by thor at +1.222 s, revision 124" in check.detail


def test_write_lost_through_one_member_fails() -> None:
    """Reads through every member must show it: one that has it lost is enough, and is named."""
    ok = _put(1)
    final = _everywhere(_state(ok))
    final["deadpool"] = {}
    check, writes = check_acknowledged([ok], final)
    assert check.result == "failed"
    assert writes.lost == 1
    assert "absent through deadpool;" in check.detail


def test_other_value_fails() -> None:
    """A key that holds another value than the acknowledged one has lost the write."""
    ok = _put(1)
    check, writes = check_acknowledged([ok], _everywhere({ok.key: "run1/999"}))
    assert check.result == "failed"
    assert writes.lost == 1
    assert "value 'run1/999'" in check.detail


def test_only_the_first_lost_are_listed() -> None:
    """A thousand lost writes make no thousand lines."""
    history = [_put(number) for number in range(1, 1001)]
    check, writes = check_acknowledged(history, _everywhere({}))
    assert writes.lost == 1000
    assert "and 995 more" in check.detail
    assert check.detail.count("acknowledged by") == 5


def test_failed_write_that_was_applied_fails() -> None:
    """What the server said it did not do must not be there: not through a single member."""
    ok, failed = _put(1), _put(2, "failed", code="UNAVAILABLE")
    final = _everywhere(_state(ok))
    final["thor"] = _state(ok, failed)
    check, writes = check_acknowledged([ok, failed], final)
    assert check.result == "failed"
    assert writes.lost == 0
    assert f"1 writes that definitely failed were applied: {failed.key} (UNAVAILABLE" in check.detail


def test_unknown_write_with_another_value_fails() -> None:
    """An unknown write may be there or not, but not with a value that nobody wrote."""
    ok, unknown = _put(1), _put(2, "unknown")
    check, _ = check_acknowledged([ok, unknown], _everywhere({**_state(ok), unknown.key: "x"}))
    assert check.result == "failed"
    assert "a value that nobody wrote" in check.detail


def test_unread_member_is_inconclusive() -> None:
    """A member that could not be read leaves the question open; a loss elsewhere still fails."""
    ok = _put(1)
    final = {**_everywhere(_state(ok)), "thor": None}
    check, _ = check_acknowledged([ok], final)
    assert check.result == "inconclusive"
    assert "could not be read through thor" in check.detail
    final["ironman"] = {}
    assert check_acknowledged([ok], final)[0].result == "failed"


def test_nothing_to_check_is_inconclusive() -> None:
    """No acknowledged write, or no final state, proves nothing."""
    unknown = _put(1, "unknown")
    check, _ = check_acknowledged([unknown], _everywhere({}))
    assert (check.result, check.detail) == ("inconclusive", "no write was acknowledged")
    check, _ = check_acknowledged([_put(1)], {})
    assert (check.result, check.detail) == ("inconclusive", "the final state was not read")


def test_keys_without_a_record_are_inconclusive() -> None:
    """A key of the run's streams that the record does not know means that the record is not whole."""
    ok, unrecorded = _put(1), _put(2)
    check, _ = check_acknowledged([ok], _everywhere(_state(ok, unrecorded)))
    assert check.result == "inconclusive"
    assert unrecorded.key in check.detail


def test_other_keys_do_not_matter() -> None:
    """Keys that are not the streams' own, and reads, are none of its business."""
    ok = _put(1)
    read = Operation(2, "failover-read", "thor", "get", ok.key, "", 1, 2, 3, "failed")
    state = {**_state(ok), "etcdops/run1/tombstone": "x", "etcdops/run0/pinned.thor/00000001": "y", "mine": "z"}
    check, writes = check_acknowledged([ok, read], _everywhere(state))
    assert check.result == "passed", check.detail
    assert writes.failed == 0
