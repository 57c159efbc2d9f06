"""The checks of members, logs, activity and the verdict: each shown to pass, to fail and to be inconclusive."""

from __future__ import annotations

import msgspec
import pytest

from etcdops.answers import RangeResult
from etcdops.ops import Put, Range
from etcdops.verify import Check, Result
from etcdops.verify.activity import Minimum, check_activity
from etcdops.verify.building import columns_of
from etcdops.verify.caught_up import MemberView, check_caught_up
from etcdops.verify.columns import Columns
from etcdops.verify.logs import Allowed, check_logs, scan
from etcdops.verify.members_agree import MemberHash, add_logs, check_members_agree
from etcdops.verify.recorded import State
from etcdops.verify.verdict import combine
from etcdops.workload.history import Operation, Outcome

_MS = 1_000_000


# Members agree


def _hash(number: int = 0xABCD, revision: int = 100, compact_revision: int = 0, error: str = "") -> MemberHash:
    return MemberHash(number, revision, compact_revision, error)


def test_equal_hashes_pass() -> None:
    """Equal hashes at one revision and one compact revision pass, and are shown."""
    check = check_members_agree({"ironman": _hash(), "thor": _hash(), "deadpool": _hash()})
    assert check.result == "passed"
    assert check.detail == "ironman, thor, deadpool: hash 0000abcd at revision 100, compact revision 0"


def test_different_hashes_fail() -> None:
    """Two members whose data differ at the same revisions are a failure, with who stands where."""
    check = check_members_agree({"ironman": _hash(), "thor": _hash(0xBEEF), "deadpool": _hash()})
    assert check.result == "failed"
    assert "ironman, deadpool: 0000abcd; thor: 0000beef" in check.detail


def test_failed_hash_call_is_never_passed() -> None:
    """A call that failed leaves the question open, even when all the others agree."""
    check = check_members_agree({"ironman": _hash(), "thor": _hash(error="UNAVAILABLE: gone"), "deadpool": _hash()})
    assert check.result == "inconclusive"
    assert check.detail == "HashKV failed: thor: UNAVAILABLE: gone"
    everything = check_members_agree({"ironman": _hash(error="x"), "thor": _hash(error="x")})
    assert everything.result == "inconclusive"


def test_difference_outweighs_a_failed_call() -> None:
    """Two different hashes are proof, whatever a third member says."""
    check = check_members_agree({"ironman": _hash(), "thor": _hash(0xBEEF), "deadpool": _hash(error="x")})
    assert check.result == "failed"


@pytest.mark.parametrize("other", [_hash(0xBEEF, revision=101), _hash(0xBEEF, compact_revision=50), _hash(revision=99)])
def test_hashes_at_different_revisions_cannot_be_compared(other: MemberHash) -> None:
    """Hashes of different states say nothing: neither that data differ nor that they agree."""
    check = check_members_agree({"ironman": _hash(), "thor": other})
    assert check.result == "inconclusive"
    assert "cannot be compared" in check.detail


def test_no_hashes_are_inconclusive() -> None:
    """Nobody asked, nothing known."""
    assert check_members_agree({}).result == "inconclusive"


def test_one_member_agrees_with_itself() -> None:
    """A cluster of one member has nobody to disagree with."""
    assert check_members_agree({"ironman": _hash()}).result == "passed"


def test_logs_of_events_that_differ_fail() -> None:
    """Equal hashes do not excuse two members that told of different events."""
    check = check_members_agree({"ironman": _hash(), "thor": _hash()})
    assert add_logs(check, [], 7).detail.endswith("; what they delivered of 7 revisions is identical")
    assert add_logs(check, ["revision 5 …"], 7).result == "failed"
    unasked = check_members_agree({})
    assert add_logs(unasked, [], 7).result == "inconclusive"


# Logs

_INFO = (
    '{"level":"info","ts":"2024-01-01T00:00:00.000Z","caller":"etcdmain/etcd.go:72","msg":"Running: ","args":["etcd"]}'
)
_QUOTING = (
    '{"level":"warn","ts":"2024-01-01T00:00:00.000Z","msg":"apply request took too long",'
    '"request":"header:<ID:1 > put:<key:\\"etcdops/panic: found hash mismatch\\" value_size:9 >"}'
)
_FAILURES = [
    '{"level":"panic","ts":"2024-01-01T00:00:00.000Z","msg":"tocommit(11) is out of range [lastIndex(8)]."}',
    '{"level":"fatal","ts":"2024-01-01T00:00:00.000Z","msg":"failed to save Raft hard state and entries"}',
    '{"level":"fatal","ts":"2024-01-01T00:00:00.000Z","msg":"failed to sa',
    '{"level":"warn","ts":"2024-01-01T00:00:00.000Z","msg":"found hash mismatch","revision-1":5}',
    '{"level":"warn","msg":"found different hash values from remote peer","remote-peer-hash":1}',
    '{"level":"error","msg":"Detected compaction hash mismatch","leader-id":"1"}',
    '{"level":"error","msg":"checkInitialHashKV failed","error":"8e9e found data inconsistency with peers"}',
    '{"level":"warn","msg":"alarm raised","alarm":"CORRUPT","from":"8e9e05c52164694d"}',
    '{"level":"warn","msg":"failed to read","error":"walpb: crc mismatch"}',
    "panic: runtime error: invalid memory address or nil pointer dereference",
    "fatal error: concurrent map writes",
    "2021-01-01 00:00:00.000000 C | raft: tocommit(11) is out of range [lastIndex(8)]. Was the raft log corrupted?",
]
_HARMLESS = [
    _INFO,
    _QUOTING,
    '{"level":"error","ts":"2024-01-01T00:00:00.000Z","msg":"failed to purge","error":"x"}',
    '{"level":"warn","msg":"alarm raised","alarm":"NOSPACE","from":"8e9e05c52164694d"}',
    '{"level":"info","msg":"initial corruption checking passed; no corruption"}',
    '{"level":"info","msg":"starting an etcd server","initial-corrupt-check":false,"corrupt-check-time-interval":"0s"}',
    '{"level":"warn","msg":"found different compact revision values from remote peer"}',
    '{"level":"info","ts":"2024-01-01T00:00:00.0',
    "2021-01-01 00:00:00.000000 I | etcdserver: published {Name:thor} to cluster",
    "[",
    "{}",
    "",
]


@pytest.mark.parametrize("line", _FAILURES)
def test_failure_in_a_log_fails(line: str) -> None:
    """Each kind of failure is found, with member and line."""
    check = check_logs({"ironman": [_INFO], "thor": [_INFO, line + "\n"]})
    assert check.result == "failed"
    assert check.detail == f"thor, line 2: {line}"


@pytest.mark.parametrize("line", _HARMLESS)
def test_harmless_lines_pass(line: str) -> None:
    """Warnings, errors that are handled, and words of failure in somebody's key are not failures."""
    check = check_logs({"ironman": [line], "thor": []})
    assert check.result == "passed", check.detail


def test_allowed_lines_are_counted_with_their_reason() -> None:
    """What the drill itself brought about does not fail, and is not hidden."""
    full = '{"level":"fatal","msg":"failed to save Raft entries","error":"no space left on device"}'
    allowed = [Allowed("no space left", "the drill filled the disk of thor", member="thor")]
    check = check_logs({"thor": [full], "ironman": []}, allowed)
    assert check.result == "passed"
    assert check.detail.endswith("; 1 lines do not count: the drill filled the disk of thor")
    assert check_logs({"ironman": [full]}, allowed).result == "failed"
    assert [finding.allowed for finding in scan("thor", [full], allowed)] == ["the drill filled the disk of thor"]


def test_unread_logs_are_inconclusive() -> None:
    """A log that could not be read may hold anything."""
    check = check_logs({"ironman": [_INFO], "thor": None})
    assert (check.result, check.detail) == ("inconclusive", "no log could be read of thor")
    assert check_logs({}).result == "inconclusive"
    assert check_logs({"ironman": [_FAILURES[0]], "thor": None}).result == "failed"


# Activity


def _put(call_ms: int, return_ms: int, outcome: Outcome = "ok", code: str = "") -> Operation:
    return Operation(
        id=call_ms,
        stream="pinned.thor",
        process=1,
        member="thor",
        request=Put(b"k", b"v"),
        scheduled_ns=call_ms * _MS,
        call_ns=call_ms * _MS,
        return_ns=return_ms * _MS,
        outcome=outcome,
        code=code,
    )


def _activity(history: list[Operation], minimum: Minimum | None = None) -> Check:
    return check_activity(_columns(history), inject_ns=1000 * _MS, heal_ns=2000 * _MS, minimum=minimum)


def _columns(history: list[Operation]) -> Columns:
    return columns_of("run1", (), State(0, ()), history, {})


_BUSY = [_put(at, at + 2) for at in range(0, 3000, 50)]


def test_enough_activity_passes() -> None:
    """Writes before, during and after the fault, and operations that met it."""
    check = _activity(_BUSY)
    assert check.result == "passed"
    assert check.detail == "writes acknowledged: 20 before, 20 during, 19 after the fault; 21 operations met it"


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ([op for op in _BUSY if op.call_ns >= 600 * _MS], "8 writes were acknowledged before"),
        ([op for op in _BUSY if not 1000 * _MS <= op.call_ns <= 2000 * _MS], "0 writes were acknowledged during"),
        ([op for op in _BUSY if op.call_ns <= 2400 * _MS], "8 writes were acknowledged after"),
        ([], "no operation was under way"),
    ],
)
def test_too_little_activity_is_inconclusive(history: list[Operation], words: str) -> None:
    """Each of the three times needs its writes."""
    check = _activity(history)
    assert check.result == "inconclusive"
    assert words in check.detail


def test_drill_without_quorum_needs_none_during() -> None:
    """Where no write can be acknowledged, attempts that met the fault are enough; what was not sent met nothing."""
    around = [op for op in _BUSY if not 1000 * _MS <= op.call_ns <= 2000 * _MS]
    minimum = Minimum(during=0)
    assert _activity([*around, _put(1500, 2500, "unknown")], minimum).result == "passed"
    assert _activity([*around, _put(1500, 1500, "failed", "NOT_SENT")], minimum).result == "inconclusive"
    assert _activity(around, minimum).result == "inconclusive"


def test_late_answer_to_an_early_call_is_no_service_after() -> None:
    """A call made before the healing does not count as activity after it."""
    history = [op for op in _BUSY if op.call_ns <= 2000 * _MS] + [_put(1900 + at, 2500 + at) for at in range(20)]
    assert _activity(history).result == "inconclusive"


def test_each_kind_that_was_promised_is_needed() -> None:
    """A profile's kinds must have been acknowledged before and after; without a fault, at all."""
    read = [
        msgspec.structs.replace(op, request=Range(b"k"), answer=RangeResult(0, (), False, 0))
        if op.call_ns in (500 * _MS, 2500 * _MS)
        else op
        for op in _BUSY
    ]

    def check(history: list[Operation], *kinds: str) -> Check:
        return check_activity(_columns(history), inject_ns=1000 * _MS, heal_ns=2000 * _MS, kinds=kinds)

    assert check(read, "put", "range").result == "passed"
    for kind, words in (("delete", "no delete was acknowledged before the fault"), ("txn", "no txn")):
        assert check(read, kind).result == "inconclusive"
        assert words in check(read, kind).detail
    assert "no range was acknowledged after the fault" in check(read[:-10], "range").detail


def test_run_without_a_fault_needs_writes_alone() -> None:
    """The control breaks nothing, so nothing can have met it."""
    check = check_activity(_columns(_BUSY), inject_ns=0, heal_ns=0)
    assert check.result == "passed"
    assert check.detail == "60 writes were acknowledged, and nothing was broken"
    assert check_activity(_columns(_BUSY[:5]), inject_ns=0, heal_ns=0).result == "inconclusive"
    assert check_activity(_columns(_BUSY), inject_ns=0, heal_ns=0, kinds=["txn"]).result == "inconclusive"


# Caught up

_LEADER = MemberView("thor", member_id=7, leader=7, raft_term=3, raft_applied_index=500, revision=400)


def _view(leader: int = 7, term: int = 3, index: int = 500, revision: int = 400, error: str = "") -> MemberView:
    return MemberView("ironman", 5, leader, term, index, revision, error)


def test_caught_up_passes() -> None:
    """A member that has what the leader had, or more, in its term and under it, has caught up."""
    assert check_caught_up(_view(), _LEADER).result == "passed"
    assert check_caught_up(_view(index=501, revision=401), _LEADER).result == "passed"


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (_view(revision=399), "its revision is 399, the leader's was 400"),
        (_view(index=499), "it has applied index 499, the leader had 500"),
        (_view(term=2), "it is in term 2, the leader in 3"),
        (_view(leader=0), "it sees no leader"),
        (_view(leader=5), "it takes 5 for the leader, not thor (7)"),
        (_view(error="UNAVAILABLE: connection refused"), "ironman does not answer: UNAVAILABLE"),
    ],
)
def test_member_that_is_behind_fails(view: MemberView, words: str) -> None:
    """Behind in any respect, or silent, is not caught up."""
    check = check_caught_up(view, _LEADER)
    assert check.result == "failed"
    assert words in check.detail


def test_changed_leader_is_inconclusive() -> None:
    """Without the leader's view there is nothing to compare with."""
    assert check_caught_up(_view(term=4), _LEADER).result == "inconclusive"
    assert check_caught_up(_view(), MemberView("thor", error="x")).result == "inconclusive"
    assert check_caught_up(_view(), MemberView("thor", 7, 5, 3, 500, 400)).result == "inconclusive"
    assert check_caught_up(_view(leader=0), MemberView("thor", 0, 0, 3, 500, 400)).result == "inconclusive"


# Verdict


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        (["passed", "passed"], "passed"),
        (["passed", "failed", "inconclusive"], "deviated"),
        (["failed"], "deviated"),
        (["passed", "inconclusive"], "inconclusive"),
        ([], "inconclusive"),
    ],
)
def test_verdict(results: list[Result], verdict: str) -> None:
    """One failure deviates; one open question, or no check at all, is never shown as passed."""
    assert combine(Check("x", result, "") for result in results) == verdict
