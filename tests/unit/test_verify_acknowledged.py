"""The check that no acknowledged write is lost: it passes, fails and is inconclusive where it should."""

from __future__ import annotations

from typing import Any

import msgspec

from etcdops.answers import KeyValue
from etcdops.ops import Put
from etcdops.verify import Check
from etcdops.verify.acknowledged import NAME, Writes, check_acknowledged
from etcdops.verify.recorded import Final, Recorded, State
from tests.unit.stories import MS, Story, key, redelivered, replaced, value

THOR = "pinned.thor"


def _story() -> Story:
    """Give one write of each outcome: acknowledged, unknown and applied, unknown and not, failed, not sent."""
    story = Story()
    story.put("pinned.thor/1", stream=THOR)
    story.lost(Put(key("pinned.thor/2"), value(2)), stream=THOR)
    story.lost(Put(key("pinned.thor/3"), value(3)), applied=False, stream=THOR)
    story.lost(Put(key("pinned.thor/4"), value(4)), applied=False, outcome="failed", stream=THOR)
    story.record(Put(key("pinned.thor/5"), value(5)), outcome="failed", code="NOT_SENT", stream=THOR)
    return story


def _through(recorded: Recorded, **states: State | None) -> Recorded:
    """Give a history whose final state is another through some members; None was not read."""
    known, final = list(recorded.observed.states), dict(recorded.observed.final)
    for member, state in states.items():
        final[member] = Final(error="no answer") if state is None else Final(len(known))
        known += [] if state is None else [state]
    return recorded._replace(observed=msgspec.structs.replace(recorded.observed, states=tuple(known), final=final))


def _final(recorded: Recorded) -> State:
    return recorded.observed.states[1]


def _without(recorded: Recorded, name: str) -> State:
    final = _final(recorded)
    return State(final.revision, tuple(kv for kv in final.kvs if kv.key != key(name)))


def _with(recorded: Recorded, name: str, content: bytes) -> State:
    """Give the final state with one key more, or otherwise."""
    final = _without(recorded, name)
    kv = KeyValue(key(name), content, 2, 2, 1, 0)
    return State(final.revision, tuple(sorted((*final.kvs, kv))))


def _check(recorded: Recorded) -> tuple[Check, Writes]:
    check, writes = check_acknowledged(recorded)
    assert check.name == NAME
    return check, writes


def test_all_present_passes() -> None:
    """Acknowledged writes are there, failed ones are not, unknown ones may be either."""
    check, writes = _check(_story().told())
    assert check.result == "passed", check.detail
    assert writes == Writes(acknowledged=2, lost=0, failed=2, unknown=2, recovered=1, not_sent=1)
    assert "all 2 acknowledged writes" in check.detail
    assert "of 2 unknown ones 1 are" in check.detail


def test_write_lost_through_one_member_fails() -> None:
    """Reads through every member must show it: one that has it lost is enough, and is named with the write."""
    recorded = _story().told()
    check, writes = _check(_through(recorded, deadpool=_without(recorded, "pinned.thor/1")))
    assert (check.result, writes.lost) == ("failed", 1)
    assert "1 of 2 acknowledged writes are lost" in check.detail
    assert "pinned.thor/1 (absent through deadpool; acknowledged by thor at +0.00" in check.detail
    assert "revision 2)" in check.detail


def test_other_value_fails() -> None:
    """A key that holds another value than the acknowledged one has lost the write."""
    recorded = _story().told()
    check, writes = _check(_through(recorded, thor=_with(recorded, "pinned.thor/1", b"run1/999")))
    assert (check.result, writes.lost) == ("failed", 1)
    assert "value 'run1/999'" in check.detail


def test_only_the_first_lost_are_listed() -> None:
    """A thousand lost writes make no thousand lines."""
    story = Story()
    for number in range(1000):
        story.put(f"pinned.thor/{number}", stream=THOR)
    recorded = story.told()
    nothing = State(_final(recorded).revision, ())
    check, writes = _check(_through(recorded, ironman=nothing, thor=nothing, deadpool=nothing))
    assert writes.lost == 1001
    assert "and 996 more" in check.detail
    assert check.detail.count("acknowledged by") == 5


def test_lost_writes_of_every_kind_are_counted() -> None:
    """A write that owns no revision of the log is lost, though no key of its own tells."""
    story = _story()
    lost = story.put("shared")
    story.put("shared")
    recorded = redelivered(story.told(), lambda d: None if d.revision == lost.revision else d)
    check, writes = _check(recorded)
    assert (check.result, writes.lost) == ("failed", 1)
    assert f"shared (not in the log; operation {lost.id}," in check.detail


def test_writes_beyond_a_rolled_back_end_are_lost() -> None:
    """A write whose revision the store has never reached again, though it was acknowledged first, is lost."""
    story = _story()
    recorded = story.told()
    lost = recorded.history[0]
    check, writes = _check(replaced(recorded, lost.id, revision=99))
    assert writes.lost == 1
    assert check.result == "failed"


def test_failed_write_that_was_applied_fails() -> None:
    """What the server said it did not do must not be there: not through a single member."""
    recorded = _story().told()
    check, writes = _check(_through(recorded, thor=_with(recorded, "pinned.thor/4", value(4))))
    assert (check.result, writes.lost) == ("failed", 0)
    assert f"1 writes that definitely failed were applied: {key('pinned.thor/4').decode()} (INVALID_A" in check.detail


def test_unknown_write_with_another_value_fails() -> None:
    """An unknown write may be there or not, but not with a value that nobody wrote."""
    recorded = _story().told()
    check, _ = _check(_through(recorded, thor=_with(recorded, "pinned.thor/3", b"x")))
    assert check.result == "failed"
    assert "a value that nobody wrote" in check.detail


def test_read_that_misses_an_acknowledged_write_fails() -> None:
    """A linearizable read called after the acknowledgement sees it; a serializable one, or an earlier one, need not."""
    story = _story()
    before = story.model.copy()
    put = story.put("set/1", stream="mixed")
    request: Any = None
    for request in (story.get("set/1").request,):
        answer = Story().model.apply(request)
        stale = story.record(
            request, answer=answer, revision=before.revision, outcome="ok", call_ns=story.now, return_ns=story.now + MS
        )
    recorded = story.told()
    check, _ = _check(recorded)
    assert check.result == "failed"
    assert f"operation {stale.id} through thor did not see etcdops/run1/set/1 of operation {put.id}" in check.detail
    assert _check(replaced(recorded, stale.id, call_ns=put.call_ns))[0].result == "passed"
    assert _check(replaced(recorded, stale.id, request=request._replace(serializable=True)))[0].result == "passed"


def test_unread_member_is_inconclusive() -> None:
    """A member that could not be read leaves the question open; a loss elsewhere still fails."""
    recorded = _through(_story().told(), thor=None)
    check, _ = _check(recorded)
    assert check.result == "inconclusive"
    assert "could not be read through thor" in check.detail
    assert _check(_through(recorded, ironman=_without(recorded, "pinned.thor/1")))[0].result == "failed"


def test_nothing_to_check_is_inconclusive() -> None:
    """No acknowledged write, or no final state, proves nothing."""
    check, _ = _check(Story().told())
    assert (check.result, check.detail) == ("inconclusive", "no write was acknowledged")
    check, _ = _check(_story().told(final={}))
    assert (check.result, check.detail) == ("inconclusive", "the final state was not read")


def test_keys_without_a_record_are_inconclusive() -> None:
    """A key of the run's streams that the record does not know means that the record is not whole."""
    recorded = _story().told()
    check, _ = _check(_through(recorded, thor=_with(recorded, "pinned.thor/9", value(9))))
    assert check.result == "inconclusive"
    assert "pinned.thor/9" in check.detail


def test_other_keys_do_not_matter() -> None:
    """Keys that are not the streams' own, and those of other kinds of operation, are none of its business."""
    story = _story()
    story.silently(Put(b"etcdops/run0/pinned.thor/1", b"run0/1"))
    story.silently(Put(b"mine", b"x"))
    story.put("mixed")
    story.put("mixed")
    check, writes = _check(story.told())
    assert check.result == "passed", check.detail
    assert writes.acknowledged == 4
