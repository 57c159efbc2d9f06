"""Watches on parts of the keys are held to the same nine guarantees, of their range and start."""

from __future__ import annotations

import random
from collections.abc import Callable

import msgspec
import pytest

from etcdops.answers import Event
from etcdops.calls import prefix_end
from etcdops.ops import Delete, Put, Txn, in_range
from etcdops.verify import Check
from etcdops.verify.recorded import Recorded
from etcdops.verify.watch import GUARANTEES, check_watch
from etcdops.workload.deliveries import Delivery, ExtraDeliveries, ExtraWatch
from tests.unit.stories import MEMBERS, Story, key, random_story, value

Messages = list[Delivery]

PREFIX = ExtraWatch("prefix", key("a"), prefix_end(key("a")))


def _wants(watch: ExtraWatch, event: Event) -> bool:
    first, after = in_range(watch.key, watch.range_end)
    name = event.kv.key
    return first <= name and (after is None or name < after) and f"NO{event.kind.upper()}" not in watch.filters


def _deliveries(story: Story, watch: ExtraWatch, start: int = 0) -> Messages:
    """Give what an honest member delivers: a message a revision, and at the end what says that this was all."""
    found = [Delivery(0, 1, "opened", story.base.revision, start or story.base.revision + 1)]
    for t_ns, events in story.log:
        wanted = tuple(event for event in events if _wants(watch, event))
        revision = events[0].kv.mod_revision
        if wanted and revision >= found[0].start_revision:
            found.append(Delivery(t_ns, 1, "events", revision, events=wanted))
    return [*found, Delivery(story.now, 1, "progress", story.model.revision), Delivery(story.now, 1, "ended")]


def _story() -> Story:
    """Give revisions 2 to 10: a1 is created at 2, changed at 4 and 7 with a2, deleted at 8, created again at 10."""
    story = Story()
    story.put("a1")
    story.put("b")
    story.put("a1")
    story.put("b")
    story.put("a2")
    story.do(Txn((), (Put(key("a1"), value(6)), Put(key("a2"), value(6)), Put(key("b"), value(6)))))
    story.do(Delete(key("a1")))
    story.put("b")
    story.put("a1")
    return story


def _check(bend: Callable[[Messages], Messages], watch: ExtraWatch = PREFIX) -> Check:
    story = _story()
    recorded = story.told()
    return check_watch(recorded._replace(extra=[ExtraDeliveries("thor", watch, bend(_deliveries(story, watch)))]))


def _event(delivery: Delivery, number: int = 0, **changed: object) -> Delivery:
    events = list(delivery.events)
    events[number] = events[number]._replace(**changed)  # type: ignore[arg-type]
    return msgspec.structs.replace(delivery, events=tuple(events))


def _foreign(found: Messages) -> Messages:
    """Add the event of another key, as the log has it: revision 3, of b."""
    at = _story().log[1]
    return [*found[:2], Delivery(at[0], 1, "events", 3, events=at[1]), *found[2:]]


def _split(found: Messages) -> Messages:
    one, two = (msgspec.structs.replace(found[4], events=(event,)) for event in found[4].events)
    return [*found[:4], one, two, *found[5:]]


def _wrong_previous(found: Messages) -> Messages:
    previous = found[2].events[0].prev_kv
    assert previous is not None
    return [*found[:2], _event(found[2], prev_kv=previous._replace(value=b"other")), *found[3:]]


def _created(found: Messages) -> Messages:
    kv = found[2].events[0].kv
    return [*found[:2], _event(found[2], kv=kv._replace(create_revision=kv.mod_revision, version=1)), *found[3:]]


def _early(found: Messages) -> Messages:
    return [*found[:3], Delivery(found[2].t_ns, 1, "progress", 6), *found[3:]]


def _resumed(found: Messages, start: int, skipped: int) -> Messages:
    """Break the watch after its first event, and open another that skips some."""
    rest = [msgspec.structs.replace(one, watch=2) for one in found[2 + skipped :]]
    return [*found[:2], Delivery(found[1].t_ns, 1, "ended"), Delivery(found[1].t_ns, 2, "opened", start, start), *rest]


@pytest.mark.parametrize(
    ("guarantee", "said", "bend"),
    [
        ("Filterable", "revision 3 (etcdops/run1/b) of no key that was watched", _foreign),
        ("Ordered", "revision 2", lambda f: [f[0], f[2], f[1], *f[3:]]),
        ("Unique", "revision 4", lambda f: [*f[:3], f[2], *f[3:]]),
        ("Atomic", "in more than one message", _split),
        ("Atomic", "in part", lambda f: [*f[:4], msgspec.structs.replace(f[4], events=f[4].events[:1]), *f[5:]]),
        ("Bookmarkable", "up to revision 6", _early),
        ("Bookmarkable", "up to revision 11", lambda f: [*f[:-3], *f[-2:]]),
        ("Resumable", "watch 1 from revision 2 on skipped revision 2", lambda f: [f[0], *f[2:]]),
        ("Resumable", "watch 2 from revision 3 on skipped revision 4", lambda f: _resumed(f, 3, 1)),
        ("Resumable", "on watch 1, which began at revision 3", lambda f: [Delivery(0, 1, "opened", 1, 3), *f[1:]]),
        ("Reliable", "watch 1 dropped revision 4", lambda f: [*f[:2], *f[3:]]),
        ("Reliable", "otherwise", lambda f: [f[0], _event(f[1], kv=f[1].events[0].kv._replace(lease=7)), *f[2:]]),
        ("PrevKV", "revision 4", _wrong_previous),
        ("PrevKV", "revision 4", lambda f: [*f[:2], _event(f[2], prev_kv=None), *f[3:]]),
        ("IsCreate/IsModify", "revision 4", _created),
    ],
)
def test_what_is_broken_is_named(guarantee: str, said: str, bend: Callable[[Messages], Messages]) -> None:
    """Each guarantee is broken by hand, and named with the member's watch."""
    assert guarantee in GUARANTEES
    check = _check(bend)
    assert check.result == "failed"
    found = check.detail.split(f"{guarantee} is broken: ")[1]
    assert found.startswith("thor/prefix"), check.detail
    assert said in found


@pytest.mark.parametrize(("filters", "kind"), [(("NOPUT",), "put"), (("NODELETE",), "delete")])
def test_what_is_filtered_out_breaks_filterable(filters: tuple[str, ...], kind: str) -> None:
    """A watch without puts, or without deletes, delivers none; all others of its range it does."""
    watch = PREFIX._replace(filters=filters)
    assert _check(lambda found: found, watch).result == "passed"
    story = _story()
    everything = _deliveries(story, PREFIX)
    check = _check(lambda found: everything, watch)
    assert "Filterable is broken: thor/prefix" in check.detail
    assert kind not in {event.kind for one in _deliveries(story, watch) for event in one.events}


def test_a_watch_is_owed_what_comes_after_its_start() -> None:
    """One that begins later owes nothing of before."""
    story = _story()
    recorded = story.told()
    check = check_watch(recorded._replace(extra=[ExtraDeliveries("thor", PREFIX, _deliveries(story, PREFIX, 6))]))
    assert check.result == "passed", check.detail


@pytest.mark.parametrize("seed", range(20))
def test_honest_watches_are_not_flagged(seed: int) -> None:
    """Whatever happened: what a correct member delivers of a range, filtered or not, resumed or not, is in order."""
    chance = random.Random(seed)
    story = random_story(seed, 60)
    recorded = story.told()
    extra = []
    for number in range(8):
        first = key(chance.choice(["k0", "k1", "k2", "k3", "", "none"]))
        end = chance.choice([b"", prefix_end(first), key("k4"), b"\0"])
        filters = chance.choice([(), (), ("NOPUT",), ("NODELETE",), ("NOPUT", "NODELETE")])
        watch = ExtraWatch(f"w{number}", first, end, filters)
        found = _deliveries(story, watch, chance.choice([0, 0, 5]))
        if len(found) > 3 and chance.random() < 0.5:
            found = _resumed(found, found[1].revision + 1, 0)
        extra.append(ExtraDeliveries(chance.choice(MEMBERS), watch, found))
    check = check_watch(recorded._replace(extra=extra))
    assert check.result == "passed", check.detail
    assert f"of 8 watches on parts of the keys ({extra[0].member}/w0, " in check.detail


def test_what_was_checked_is_said() -> None:
    """How many events of how many watches is said, and of which."""
    story = _story()
    recorded: Recorded = story.told()
    told = check_watch(recorded._replace(extra=[ExtraDeliveries("thor", PREFIX, _deliveries(story, PREFIX))]))
    assert told.detail.endswith("; so do 7 events of 1 watch on a part of the keys (thor/prefix)")


def test_watch_that_ends_early_is_inconclusive() -> None:
    """Who served at the end owes all up to there; a member that did not owes nothing, and a gap is nobody's promise."""
    story = _story()
    recorded = story.told()
    cut = [ExtraDeliveries("thor", PREFIX, _deliveries(story, PREFIX)[:-3])]
    check = check_watch(recorded._replace(extra=cut))
    assert (check.result, check.detail) == ("inconclusive", "thor/prefix delivered nothing after revision 8, of 10")
    final = {name: each for name, each in recorded.observed.final.items() if name != "thor"}
    gone = recorded._replace(observed=msgspec.structs.replace(recorded.observed, final=final), extra=cut)
    assert check_watch(gone).result == "passed"
    gap = _check(lambda found: _resumed(found, 5, 1))
    assert (gap.result, gap.detail) == ("inconclusive", "thor/prefix was not watched between revisions 2 and 5")
