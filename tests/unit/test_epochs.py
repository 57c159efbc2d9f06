"""What a restore brought back and what it undid, from the records of two windows: told by hand, then bent."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from etcdops.answers import KeyValue
from etcdops.ops import Delete, Grant, Put
from etcdops.verify.epochs import STATE, Epoch, compare_epochs
from etcdops.verify.recorded import Final, Observed, Recorded, Restored, State
from etcdops.verify.witness import witness
from etcdops.workload.history import Operation
from tests.unit.stories import MEMBERS, RUN, Story, key, value

_BUMP = 1_000_000_000


def _story() -> Story:
    """A window in which a (twice), b and, with a lease, c and d are written, then the snapshot, then more."""
    story = Story()
    for name in "aab":
        story.put(name)
    story.do(Grant(7, 5))
    for name in "cd":
        story.do(Put(key(name), value(story.next_id()), 7))
    return story


def _snapshot(story: Story) -> tuple[int, list[KeyValue]]:
    return story.model.revision, list(story.model.span(b"\0", b"\0"))


def _after(
    revision: int, kvs: Sequence[KeyValue], *, through: dict[str, Sequence[KeyValue]] | None = None, error: str = ""
) -> Recorded:
    """Give the window after a restore; `through` says what single members have otherwise."""
    through = through or {}
    states = [State(revision + _BUMP, tuple(kvs))]
    opened = {}
    for member in MEMBERS:
        if member in through:
            states.append(State(revision + _BUMP, tuple(through[member])))
        opened[member] = Final(len(states) - 1 if member in through else 0)
    if error:
        opened["thor"] = Final(error=error)
    observed = Observed(
        run=RUN, members=MEMBERS, states=tuple(states), base=0, restored=Restored(revision, "x.db"), opened=opened
    )
    return Recorded(observed, [], {})


def _compare(story: Story, after: Recorded, between: Sequence[Operation] = ()) -> Epoch:
    before = story.told()
    return compare_epochs(before, witness(before), after, between)


def _restored() -> tuple[Story, int, list[KeyValue]]:
    story = _story()
    revision, kvs = _snapshot(story)
    story.put("a")
    story.put("e")
    story.do(Delete(key("b")))
    return story, revision, kvs


def test_the_snapshot_and_nothing_else_is_back() -> None:
    """The state at the snapshot's revision passes; the acknowledged writes after it are the RPO, in their order."""
    story, revision, kvs = _restored()
    found = _compare(story, _after(revision, kvs))
    assert (found.check.name, found.check.result) == (STATE, "passed"), found.check.detail
    assert "all 4 keys" in found.check.detail
    # Those three, and the write that closed the window.
    assert [op.id for op in found.undone] == [7, 8, 9, 10]
    assert [(figure.name, figure.value) for figure in found.figures] == [("RPO", 4.0), ("RPO, time", 8.0)]


def test_nothing_is_undone_where_nothing_was_written() -> None:
    """Reads and deletes of nothing after the snapshot are no writes that a restore undoes."""
    story = _story()
    recorded = story.told()
    revision = story.model.revision
    story.get("a")
    story.do(Delete(key("nothing")))
    found = compare_epochs(recorded, witness(recorded), _after(revision, _snapshot(story)[1]))
    assert found.check.result == "passed", found.check.detail
    assert (found.undone, found.figures[0].value, found.figures[1].value) == ((), 0, 0)


def test_unknown_writes_that_were_applied_are_told() -> None:
    """Who wrote without an answer does not know; that it was applied, and is undone, is said beside the RPO."""
    story, revision, kvs = _restored()
    story.lost(Put(key("f"), value(story.next_id())))
    found = _compare(story, _after(revision, kvs))
    assert found.unknown == 1
    assert "1 more were applied whose clients did not know" in found.figures[0].detail
    assert 10 not in [op.id for op in found.undone]


def _bent(kvs: list[KeyValue], name: str, **changed: object) -> list[KeyValue]:
    return [kv._replace(**changed) if kv.key == key(name) else kv for kv in kvs]  # type: ignore[arg-type]


def _without(kvs: list[KeyValue], *names: str) -> list[KeyValue]:
    return [kv for kv in kvs if kv.key not in map(key, names)]


def _and(kvs: list[KeyValue], name: bytes, content: bytes, revision: int) -> list[KeyValue]:
    return sorted([*(kv for kv in kvs if kv.key != name), KeyValue(name, content, revision, revision, 1, 0)])


@pytest.mark.parametrize("member", ["", "thor"])
@pytest.mark.parametrize(
    ("bend", "words"),
    [
        (lambda kvs: _without(kvs, "b"), "1 keys of the snapshot are missing: etcdops/run1/b"),
        (lambda kvs: _bent(kvs, "b", value=b"else"), "1 keys are not as they were"),
        (lambda kvs: _bent(kvs, "b", version=2), "1 keys are not as they were"),
        (lambda kvs: _and(kvs, key("a"), value(7), 7), "1 keys are newer than the snapshot: etcdops/run1/a"),
        (lambda kvs: _and(kvs, key("e"), value(8), 8), "1 keys are newer than the snapshot: etcdops/run1/e"),
        (lambda kvs: _and(kvs, key("z"), b"?", _BUMP + 9), "1 keys are not as they were"),
        # A lease that ends takes all of its keys.
        (lambda kvs: _without(kvs, "c"), "1 keys of the snapshot are missing: etcdops/run1/c"),
    ],
)
def test_what_is_not_the_snapshot_is_found(bend: object, words: str, member: str) -> None:
    """A key that is missing, differs or is too new, through the first member that was asked or through another."""
    assert callable(bend)
    story, revision, kvs = _restored()
    after = _after(revision, kvs, through={member: bend(kvs)}) if member else _after(revision, bend(kvs))
    found = _compare(story, after)
    assert found.check.result == "failed"
    assert words in found.check.detail
    assert not member or f"through {member}" in found.check.detail


def test_what_may_be_is_not_flagged() -> None:
    """A lease may have ended, the drill has written a key, and others may write once the cluster serves again."""
    story, revision, kvs = _restored()
    probe = Operation(99, "drill", 1, "thor", Put(key("probe"), b"p"), 0, 0, 1, "ok", revision + _BUMP + 1)
    there = _and(_without(kvs, "c", "d"), key("probe"), b"p", revision + _BUMP + 1)
    there = _and(there, b"theirs", b"x", revision + _BUMP + 2)
    found = _compare(story, _after(revision, there), [probe])
    assert found.check.result == "passed", found.check.detail
    assert "2 more had a lease" in found.check.detail
    assert "1 keys were written by others" in found.check.detail
    assert _compare(_restored()[0], _after(revision, there)).check.result == "failed"


def test_what_cannot_be_known_is_inconclusive() -> None:
    """A member that could not be read, and a record that does not reach the snapshot's revision, prove nothing."""
    story, revision, kvs = _restored()
    found = _compare(story, _after(revision, kvs, error="it does not answer"))
    assert (found.check.result, "it does not answer" in found.check.detail) == ("inconclusive", True)
    story, _, kvs = _restored()
    assert _compare(story, _after(99, kvs)).check.result == "inconclusive"
    story, revision, kvs = _restored()
    after = _after(revision, kvs)
    unread = after._replace(observed=msgspec.structs.replace(after.observed, opened={}))
    assert _compare(story, unread).check.result == "inconclusive"
