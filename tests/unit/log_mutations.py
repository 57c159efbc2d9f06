"""Single changes of what the members delivered, and of the states that were read; see `mutations`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from random import Random

from msgspec.structs import replace

from etcdops.answers import Event, KeyValue
from etcdops.verify.recorded import Final, Recorded, State
from etcdops.workload.deliveries import Delivery
from etcdops.workload.encoding import key_prefix
from tests.unit.mutations import Mutation, field_changer, harmless, in_tuple, mutation

Events = tuple[Event, ...]


# -- what all members delivered


def _change_log(recorded: Recorded, how: Callable[[Event], Iterable[Event]]) -> Recorded:
    """Change every event, wherever it was delivered; a message that is left without events is left out."""
    return recorded._replace(
        deliveries={
            member: _changed(deliveries, lambda events: tuple(new for event in events for new in how(event)))
            for member, deliveries in recorded.deliveries.items()
        }
    )


def _changed(deliveries: Sequence[Delivery], how: Callable[[Events], Events]) -> list[Delivery]:
    changed = [replace(d, events=how(d.events)) if d.what == "events" else d for d in deliveries]
    return [d for d in changed if d.what != "events" or d.events]


def _log(recorded: Recorded) -> list[Event]:
    """Give every event once."""
    seen = {e: None for deliveries in recorded.deliveries.values() for d in deliveries for e in d.events}
    return sorted(seen, key=lambda event: event.kv.mod_revision)


def _pick(recorded: Recorded, rng: Random, which: Callable[[Event], bool] = lambda event: True) -> Event | None:
    able = [event for event in _log(recorded) if which(event)]
    return rng.choice(able) if able else None


@mutation
def event_missing(recorded: Recorded, rng: Random) -> Recorded | None:
    gone = _pick(recorded, rng)
    return gone and _change_log(recorded, lambda event: () if event == gone else (event,))


@mutation
def half_of_a_txn_missing(recorded: Recorded, rng: Random) -> Recorded | None:
    log = [event.kv.mod_revision for event in _log(recorded)]
    gone = _pick(recorded, rng, lambda event: log.count(event.kv.mod_revision) > 1)
    return gone and _change_log(recorded, lambda event: () if event == gone else (event,))


@mutation
def acknowledged_write_missing(recorded: Recorded, rng: Random) -> Recorded | None:
    owned = {op.revision for op in recorded.history if op.outcome == "ok" and op.may_write}
    gone = _pick(recorded, rng, lambda event: event.kv.mod_revision in owned)
    return gone and _change_log(
        recorded, lambda event: () if event.kv.mod_revision == gone.kv.mod_revision else (event,)
    )


@mutation
def event_doubled(recorded: Recorded, rng: Random) -> Recorded | None:
    twice = _pick(recorded, rng)
    return twice and _change_log(recorded, lambda event: (event, event) if event == twice else (event,))


@mutation
def kind_of_an_event_changed(recorded: Recorded, rng: Random) -> Recorded | None:
    was = _pick(recorded, rng)
    other = was and was._replace(kind="delete" if was.kind == "put" else "put")
    return other and _change_log(recorded, lambda event: (other,) if event == was else (event,))


def _field_of_an_event(field: str) -> Mutation:
    def change(recorded: Recorded, rng: Random) -> Recorded | None:
        was = _pick(recorded, rng, lambda event: event.kind == "put" or field == "key")
        other = was and was._replace(kv=field_changer(field)(was.kv))
        return other and _change_log(recorded, lambda event: (other,) if event == was else (event,))

    change.__name__ = f"{field}_of_an_event_changed"
    return change


for _field in KeyValue._fields:
    if _field != "mod_revision":
        mutation(_field_of_an_event(_field))


@mutation
def prev_kv_of_an_event_changed(recorded: Recorded, rng: Random) -> Recorded | None:
    was = _pick(recorded, rng, lambda event: event.prev_kv is not None)
    if was is None or was.prev_kv is None:
        return None
    how = field_changer(rng.choice(KeyValue._fields))
    other = was._replace(prev_kv=None if rng.random() < 0.3 else how(was.prev_kv))
    return _change_log(recorded, lambda event: (other,) if event == was else (event,))


@mutation
def two_revisions_swapped(recorded: Recorded, rng: Random) -> Recorded | None:
    revisions = sorted({event.kv.mod_revision for event in _log(recorded)})
    if len(revisions) < 2:
        return None
    at = rng.randrange(len(revisions) - 1)
    swapped = {revisions[at]: revisions[at + 1], revisions[at + 1]: revisions[at]}
    log = _log(recorded)

    def moved(event: Event) -> Iterable[Event]:
        if event.kv.mod_revision not in swapped:
            return (event,)
        to = swapped[event.kv.mod_revision]
        first = next(e for e in log if e.kv.mod_revision == event.kv.mod_revision)
        # The first event stands for its revision: all of the other one come in its place.
        return [_at(e, event.kv.mod_revision) for e in log if e.kv.mod_revision == to] if event == first else ()

    return _change_log(recorded, moved)


def _at(event: Event, revision: int) -> Event:
    created = revision if event.kv.version == 1 else event.kv.create_revision
    return event._replace(kv=event.kv._replace(mod_revision=revision, create_revision=created))


@mutation
def txn_over_two_revisions(recorded: Recorded, rng: Random) -> Recorded | None:
    """The last event of a transaction has the next revision, and all that follows is one later."""
    log = [event.kv.mod_revision for event in _log(recorded)]
    last = _pick(recorded, rng, lambda event: log.count(event.kv.mod_revision) > 1)
    if last is None:
        return None

    def later(event: Event) -> Iterable[Event]:
        revision = event.kv.mod_revision
        return (_at(event, revision + (event == last or revision > last.kv.mod_revision)),)

    return _change_log(recorded, later)


@mutation
def events_of_a_revision_reordered(recorded: Recorded, rng: Random) -> Recorded | None:
    log = _log(recorded)
    several = [e.kv.mod_revision for e, f in pairwise(log) if e.kv.mod_revision == f.kv.mod_revision]
    if not several:
        return None
    revision = rng.choice(several)
    members = [e for d in next(iter(recorded.deliveries.values())) for e in d.events if e.kv.mod_revision == revision]
    if len(members) < 2:
        return None
    order = dict(zip(members, members[1:] + members[:1], strict=True))
    return _change_log(recorded, lambda event: (order.get(event, event),))


def _extra(recorded: Recorded, rng: Random, key: bytes) -> Recorded | None:
    beside = _pick(recorded, rng)
    if beside is None:
        return None
    revision = beside.kv.mod_revision
    extra = Event("put", KeyValue(key, b"nobody's", revision, revision, 1, 0), None)
    return _change_log(recorded, lambda event: (event, extra) if event == beside else (event,))


@mutation
def event_of_nobody(recorded: Recorded, rng: Random) -> Recorded | None:
    return _extra(recorded, rng, key_prefix(recorded.observed.run).encode() + b"k/nobody")


@mutation
def foreign_event_in_a_revision_of_ours(recorded: Recorded, rng: Random) -> Recorded | None:
    return _extra(recorded, rng, b"other/nobody")


@harmless
def log_stops_early(recorded: Recorded, rng: Random) -> Recorded | None:
    last = _pick(recorded, rng)
    if last is None:
        return None
    cut = {member: _until(deliveries, last.kv.mod_revision) for member, deliveries in recorded.deliveries.items()}
    return recorded._replace(deliveries=cut)


def _until(deliveries: Sequence[Delivery], revision: int) -> list[Delivery]:
    kept = []
    for delivery in deliveries:
        if delivery.what == "progress" and delivery.revision >= revision:
            break
        events = tuple(event for event in delivery.events if event.kv.mod_revision < revision)
        if delivery.events and not events:
            break
        kept.append(replace(delivery, events=events))
        if len(events) < len(delivery.events):
            break
    return kept


# -- what one member delivered


def _change_member(
    recorded: Recorded, rng: Random, how: Callable[[list[Delivery]], list[Delivery] | None]
) -> Recorded | None:
    member = rng.choice(recorded.observed.members)
    changed = how(list(recorded.deliveries[member]))
    return None if changed is None else recorded._replace(deliveries={**recorded.deliveries, member: changed})


def _message(deliveries: Sequence[Delivery], rng: Random, least: int = 1) -> int | None:
    able = [at for at, d in enumerate(deliveries) if len(d.events) >= least]
    return rng.choice(able) if able else None


@harmless
def log_of_one_member_stops_early(recorded: Recorded, rng: Random) -> Recorded | None:
    last = _pick(recorded, rng)
    if len(recorded.observed.members) == 1:
        return None
    return last and _change_member(recorded, rng, lambda deliveries: _until(deliveries, last.kv.mod_revision))


@mutation
def message_missing_at_one_member(recorded: Recorded, rng: Random) -> Recorded | None:
    def less(deliveries: list[Delivery]) -> list[Delivery] | None:
        at = _message(deliveries, rng)
        return None if at is None else deliveries[:at] + deliveries[at + 1 :]

    return _change_member(recorded, rng, less)


@mutation
def event_missing_at_one_member(recorded: Recorded, rng: Random) -> Recorded | None:
    gone = _pick(recorded, rng)
    return _change_member(recorded, rng, lambda ds: _changed(ds, lambda es: tuple(e for e in es if e != gone)))


@mutation
def event_differs_at_one_member(recorded: Recorded, rng: Random) -> Recorded | None:
    was = _pick(recorded, rng, lambda event: event.kind == "put")
    other = was and was._replace(kv=field_changer(rng.choice(("value", "version", "create_revision", "lease")))(was.kv))
    if was is None or other is None:
        return None
    return _change_member(
        recorded, rng, lambda ds: _changed(ds, lambda es: tuple(other if e == was else e for e in es))
    )


@mutation
def message_delivered_twice(recorded: Recorded, rng: Random) -> Recorded | None:
    def twice(deliveries: list[Delivery]) -> list[Delivery] | None:
        at = _message(deliveries, rng)
        return None if at is None else [*deliveries[: at + 1], deliveries[at], *deliveries[at + 1 :]]

    return _change_member(recorded, rng, twice)


@mutation
def watch_goes_back(recorded: Recorded, rng: Random) -> Recorded | None:
    """An older message comes again later, on the same watch or the next."""

    def again(deliveries: list[Delivery]) -> list[Delivery] | None:
        at = _message(deliveries, rng)
        if at is None or at == len(deliveries) - 1:
            return None
        to = rng.randrange(at + 1, len(deliveries))
        late = replace(deliveries[at], t_ns=deliveries[to].t_ns, watch=deliveries[to].watch)
        return [*deliveries[: to + 1], late, *deliveries[to + 1 :]]

    return _change_member(recorded, rng, again)


@mutation
def messages_swapped(recorded: Recorded, rng: Random) -> Recorded | None:
    def swapped(deliveries: list[Delivery]) -> list[Delivery] | None:
        pairs = [at for at in range(len(deliveries) - 1) if deliveries[at].events and deliveries[at + 1].events]
        if not pairs:
            return None
        at = rng.choice(pairs)
        a, b = deliveries[at], deliveries[at + 1]
        return [*deliveries[:at], replace(b, t_ns=a.t_ns), replace(a, t_ns=b.t_ns), *deliveries[at + 2 :]]

    return _change_member(recorded, rng, swapped)


@mutation
def revision_torn_over_two_messages(recorded: Recorded, rng: Random) -> Recorded | None:
    def torn(deliveries: list[Delivery]) -> list[Delivery] | None:
        at = _message(deliveries, rng, least=2)
        if at is None:
            return None
        message = deliveries[at]
        cut = rng.randrange(1, len(message.events))
        parts = [replace(message, events=message.events[:cut]), replace(message, events=message.events[cut:])]
        return [*deliveries[:at], *parts, *deliveries[at + 1 :]]

    return _change_member(recorded, rng, torn)


@mutation
def progress_before_its_events(recorded: Recorded, rng: Random) -> Recorded | None:
    def early(deliveries: list[Delivery]) -> list[Delivery] | None:
        at = _message(deliveries, rng)
        if at is None:
            return None
        message = deliveries[at]
        progress = Delivery(message.t_ns, message.watch, "progress", message.events[-1].kv.mod_revision)
        return [*deliveries[:at], progress, *deliveries[at:]]

    return _change_member(recorded, rng, early)


@harmless
def progress_after_its_events(recorded: Recorded, rng: Random) -> Recorded | None:
    def late(deliveries: list[Delivery]) -> list[Delivery] | None:
        at = _message(deliveries, rng)
        if at is None:
            return None
        message = deliveries[at]
        progress = Delivery(message.t_ns, message.watch, "progress", message.events[-1].kv.mod_revision)
        return [*deliveries[: at + 1], progress, *deliveries[at + 1 :]]

    return _change_member(recorded, rng, late)


@mutation
def delivered_before_it_was_called(recorded: Recorded, rng: Random) -> Recorded | None:
    def early(deliveries: list[Delivery]) -> list[Delivery] | None:
        at = _message(deliveries, rng)
        return (
            None
            if at is None
            else [replace(d, t_ns=d.t_ns - 20_000_000) if number <= at else d for number, d in enumerate(deliveries)]
        )

    return _change_member(recorded, rng, early)


@harmless
def watch_opened_again_from_an_older_revision(recorded: Recorded, rng: Random) -> Recorded | None:
    """A watch begins anew with everything: what it delivers again is no mistake."""

    def again(deliveries: list[Delivery]) -> list[Delivery] | None:
        if not deliveries:
            return None
        ended = deliveries[-1]
        opened = Delivery(ended.t_ns, ended.watch + 1, "opened", ended.revision, deliveries[0].start_revision)
        second = [replace(d, t_ns=ended.t_ns, watch=ended.watch + 1) for d in deliveries if d.events]
        return [*deliveries, Delivery(ended.t_ns, ended.watch, "ended"), opened, *second]

    return _change_member(recorded, rng, again)


# -- the observed states


def _change_state(recorded: Recorded, rng: Random, kvs: Iterable[KeyValue]) -> tuple[KeyValue, ...] | None:
    items = tuple(kvs)
    if rng.random() < 0.3 and items:
        at = rng.randrange(len(items))
        return items[:at] + items[at + 1 :]
    return in_tuple(items, rng, field_changer(rng.choice(KeyValue._fields[1:])))


def _with_final(recorded: Recorded, rng: Random, members: Sequence[str]) -> Recorded | None:
    final = recorded.final(members[0])
    kvs = _change_state(recorded, rng, final.kvs) if final else None
    if final is None or kvs is None:
        return None
    observed = recorded.observed
    states = (*observed.states, State(final.revision, kvs))
    finals = {**observed.final, **{member: Final(len(states) - 1) for member in members}}
    return recorded._replace(observed=replace(observed, states=states, final=finals))


@mutation
def final_state_of_one_member_differs(recorded: Recorded, rng: Random) -> Recorded | None:
    return _with_final(recorded, rng, [rng.choice(recorded.observed.members)])


@mutation
def final_state_of_all_members_differs(recorded: Recorded, rng: Random) -> Recorded | None:
    return _with_final(recorded, rng, recorded.observed.members)


@mutation
def hash_of_one_member_differs(recorded: Recorded, rng: Random) -> Recorded | None:
    observed = recorded.observed
    member = rng.choice(observed.members)
    hashes = {**observed.hashes, member: replace(observed.hashes[member], hash=observed.hashes[member].hash ^ 1)}
    return recorded._replace(observed=replace(observed, hashes=hashes))
