"""The nine guarantees of a watch: each is broken by hand and named, with the member."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from etcdops.answers import Event
from etcdops.ops import Compact, Delete, Grant, Put, Revoke, Txn
from etcdops.verify import Check
from etcdops.verify.recorded import Recorded
from etcdops.verify.watch import GUARANTEES, NAME, check_watch
from etcdops.workload.deliveries import Delivery
from tests.unit.stories import MEMBERS, Story, key, random_story, redelivered, value

Messages = list[Delivery]


def _story() -> Story:
    """Give revisions 2 to 8: puts, a transaction of two events at 4, a delete at 6."""
    story = Story()
    story.put("a")
    story.put("a")
    story.do(Txn((), (Put(key("b"), value(3)), Put(key("c"), value(3)))))
    story.put("a")
    story.do(Delete(key("a")))
    story.put("a")
    story.put("b")
    return story


def _bent(bend: Callable[[Messages], Messages], recorded: Recorded | None = None) -> Recorded:
    """Give the story with thor's messages bent; the first opens the watch."""
    recorded = recorded or _story().told()
    return recorded._replace(deliveries={**recorded.deliveries, "thor": bend(list(recorded.deliveries["thor"]))})


def _breaks(guarantee: str, recorded: Recorded) -> Check:
    assert guarantee in GUARANTEES
    check = check_watch(recorded)
    assert (check.name, check.result) == (NAME, "failed"), check.detail
    assert f"{guarantee} is broken: thor" in check.detail, check.detail
    return check


def _event(delivery: Delivery, number: int = 0, **changed: object) -> Delivery:
    events = list(delivery.events)
    events[number] = events[number]._replace(**changed)  # type: ignore[arg-type]
    return msgspec.structs.replace(delivery, events=tuple(events))


def _progress(t_ns: int, revision: int, watch: int = 1) -> Delivery:
    return Delivery(t_ns, watch, "progress", revision)


@pytest.mark.parametrize("seed", range(20))
def test_legal_deliveries_pass(seed: int) -> None:
    """Whatever happened: what the members of a correct etcd deliver keeps all guarantees."""
    check = check_watch(random_story(seed, 60).told())
    assert check.result == "passed", check.detail


def test_what_was_checked_is_said() -> None:
    """A check that passed says how many events were looked at."""
    check = check_watch(_story().told())
    assert check.detail == "27 events delivered by ironman, thor, deadpool keep all 9 guarantees"


def test_messages_may_hold_many_revisions_and_watches_may_be_resumed() -> None:
    """One message of several revisions, a watch that broke and was resumed, and true bookmarks are legal."""

    def bend(found: Messages) -> Messages:
        first = msgspec.structs.replace(found[2], events=found[2].events + found[3].events, revision=4)
        return [
            *found[:2],
            first,
            _progress(first.t_ns, 4),
            Delivery(first.t_ns, 1, "ended", error="UNAVAILABLE"),
            Delivery(first.t_ns, 2, "opened", 4, 5),
            _progress(first.t_ns, 4, 2),
            *(msgspec.structs.replace(one, watch=2) for one in found[4:]),
            _progress(found[-1].t_ns, 9, 2),
        ]

    check = check_watch(_bent(bend))
    assert check.result == "passed", check.detail


def test_event_without_a_key_breaks_filterable() -> None:
    """Only what was asked for is delivered: keys, which are not empty."""
    put = _story().log[0][1][0]
    event = Event("put", put.kv._replace(key=b""), None)
    check = _breaks("Filterable", _bent(lambda found: [*found[:2], _event(found[2], kv=event.kv), *found[3:]]))
    assert "of no key" in check.detail


def test_older_event_after_a_newer_breaks_ordered() -> None:
    """Events come in the order of revisions."""
    _breaks("Ordered", _bent(lambda found: [*found[:2], found[3], found[2], *found[4:]]))


def test_event_twice_breaks_unique() -> None:
    """An event is delivered once; again after a resumption from before it is not twice on one watch."""
    _breaks("Unique", _bent(lambda found: [*found[:3], found[2], *found[3:]]))


def test_revision_in_two_messages_breaks_atomic() -> None:
    """All events of a revision come in one message."""

    def split(found: Messages) -> Messages:
        whole = found[3]
        one, two = (msgspec.structs.replace(whole, events=(event,)) for event in whole.events)
        return [*found[:3], one, two, *found[4:]]

    assert "in more than one message" in _breaks("Atomic", _bent(split)).detail


def test_part_of_a_revision_breaks_atomic() -> None:
    """A message never holds a part of a transaction."""
    bend = _bent(lambda found: [*found[:3], msgspec.structs.replace(found[3], events=found[3].events[:1]), *found[4:]])
    assert "in part" in _breaks("Atomic", bend).detail


@pytest.mark.parametrize("late", [True, False])
def test_false_progress_breaks_bookmarkable(late: bool) -> None:
    """A progress notification says that everything up to its revision has been delivered."""

    def bend(found: Messages) -> Messages:
        mark = _progress(found[3].t_ns, 5)
        return [*found[:4], mark, *(found[4:] if late else found[5:])]

    assert "revision 5" in _breaks("Bookmarkable", _bent(bend)).detail


def test_event_again_after_progress_breaks_bookmarkable() -> None:
    """After a notification no event comes that it covers, not even one that was delivered already."""
    _breaks("Bookmarkable", _bent(lambda found: [*found[:4], _progress(found[3].t_ns, 4), *found[3:]]))


def test_watch_that_skips_its_beginning_breaks_resumable() -> None:
    """A watch from revision 4 on begins with revision 4."""

    def bend(found: Messages) -> Messages:
        again = Delivery(found[2].t_ns, 2, "opened", 3, 4)
        return [*found[:3], again, *(msgspec.structs.replace(one, watch=2) for one in found[4:])]

    assert "watch 2 from revision 4 on skipped revision 4" in _breaks("Resumable", _bent(bend)).detail


def test_dropped_event_breaks_reliable() -> None:
    """Between two events that are delivered none is left out."""
    assert "watch 1 dropped revision 4" in _breaks("Reliable", _bent(lambda f: [*f[:3], *f[4:]])).detail


def test_other_event_breaks_reliable() -> None:
    """What is delivered is what the log has."""

    def bend(found: Messages) -> Messages:
        event = found[1].events[0]
        return [found[0], _event(found[1], kv=event.kv._replace(value=b"other")), *found[2:]]

    assert "otherwise than the log has it" in _breaks("Reliable", _bent(bend)).detail


@pytest.mark.parametrize("number", [2, 5])
def test_wrong_previous_value_breaks_prev_kv(number: int) -> None:
    """The previous value is what the key was one revision earlier, for puts and deletes; and it is there."""

    def bend(found: Messages, other: bool) -> Messages:
        prev = found[number].events[0].prev_kv
        assert prev is not None
        changed = prev._replace(version=9) if other else None
        return [*found[:number], _event(found[number], prev_kv=changed), *found[number + 1 :]]

    _breaks("PrevKV", _bent(lambda found: bend(found, True)))
    _breaks("PrevKV", _bent(lambda found: bend(found, False)))


def test_compaction_takes_previous_values_away() -> None:
    """A member that is behind a compaction delivers without previous values; a wrong one is wrong all the same."""
    story = _story()
    story.do(Compact(5))
    recorded = story.told()
    absent = _bent(lambda found: [*found[:2], _event(found[2], prev_kv=None), *found[3:]], recorded)
    assert check_watch(absent).result == "passed", check_watch(absent).detail
    wrong = recorded.deliveries["thor"][1].events[0].kv._replace(version=7)
    _breaks("PrevKV", _bent(lambda found: [*found[:2], _event(found[2], prev_kv=wrong), *found[3:]], recorded))


@pytest.mark.parametrize("number", [1, 2])
def test_event_that_looks_created_breaks_is_create(number: int) -> None:
    """An event is a creation exactly when the key did not exist, and a modification otherwise."""

    def bend(found: Messages) -> Messages:
        kv = found[number].events[0].kv
        other = kv._replace(create_revision=1, version=2) if number == 1 else kv._replace(create_revision=3, version=1)
        return [*found[:number], _event(found[number], kv=other), *found[number + 1 :]]

    _breaks("IsCreate/IsModify", _bent(bend))


def test_expiry_is_delivered_as_deletes() -> None:
    """The deletes at a lease's end keep the guarantees as any others do."""
    story = Story()
    story.do(Grant(7, 5))
    for name in "ab":
        story.do(Put(key(name), value(story.next_id()), 7))
    story.silently(Revoke(7))
    assert check_watch(story.told()).result == "passed"


def test_member_that_delivered_too_little_is_inconclusive() -> None:
    """Who served at the end has told everything up to there; a gap between two watches is nobody's promise."""
    check = check_watch(_bent(lambda found: found[:-2]))
    assert (check.result, check.detail) == ("inconclusive", "thor delivered nothing after revision 7, of 9")

    def gap(found: Messages) -> Messages:
        again = Delivery(found[4].t_ns, 2, "opened", 5, 6)
        return [*found[:3], again, *(msgspec.structs.replace(one, watch=2) for one in found[5:])]

    check = check_watch(_bent(gap))
    assert (check.result, check.detail) == ("inconclusive", "thor was not watched between revisions 3 and 6")
    recorded = _story().told()
    assert check_watch(redelivered(recorded, lambda d: None)).result == "inconclusive"
    assert check_watch(recorded._replace(deliveries={})).result == "inconclusive"


def test_every_member_is_judged() -> None:
    """The one that breaks a guarantee is named, whoever it is."""
    for member in MEMBERS:
        recorded = _story().told()
        found = list(recorded.deliveries[member])
        found[2], found[3] = found[3], found[2]
        check = check_watch(recorded._replace(deliveries={**recorded.deliveries, member: found}))
        assert f"Ordered is broken: {member} delivered revision 3" in check.detail
