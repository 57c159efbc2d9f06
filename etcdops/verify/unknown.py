"""What a search may assume of writes without an answer, and nothing more.

An unknown write may have taken effect at any moment after its call, or never. Left open, it is searched for at every
later moment, which is what makes searches long. Two rules let go of some without losing a violation or raising a false
alarm:

- Values that only one operation can have written, and that another one found, were there when the first of those that
  found it returned: the unknown write took effect before.
- An unknown write that nothing can have needed is left out: no operation that returned after its call found or compared
  with what it wrote, and none tells of that key that it held another value, was absent, or had a version or a value
  before. (Without the last condition that is wrong: `put a; unknown put b; cas a -> c finds another value; put d` has
  an order only if b took effect.)

With a complete log of the store's own, what is not in it did not take effect, and what is took effect before anybody
was told of its revision or of a later one.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from etcdops.errors import SpecError
from etcdops.verify.models import Event, Facts, Model, Rule

__all__ = ["Action", "CompleteLog", "Treated", "treat"]


class CompleteLog(msgspec.Struct, frozen=True):
    """What the store's own log says of the unknown operations of a history; only for a log that was shown complete.

    `revisions` gives, for the place in the history of each unknown operation that is in the log, its revision.
    `told` holds (revision, instant) of everything that told a client of a revision: watch deliveries, and returns of
    answers that bear one.
    """

    revisions: Mapping[int, int]
    told: Sequence[tuple[int, int]]


class Action(NamedTuple):
    """An operation as it is searched for; `required` if it has to take effect, by `return_` at the latest."""

    event: Event
    rule: Rule
    required: bool
    observes: bool
    call: int
    return_: float


class Treated(NamedTuple):
    """The operations that are left to search, and how many unknown ones were given an end, left out, or are open."""

    actions: list[Action]
    bounded: int
    dropped: int
    open: int


class _Pending:
    """An operation whose treatment is not decided."""

    def __init__(self, place: int, event: Event, rule: Rule, facts: Facts) -> None:
        self.place = place
        self.event = event
        self.rule = rule
        self.facts = facts
        self.known = event.outcome == "ok"
        self.return_: float = math.inf if event.return_ is None or not self.known else event.return_


def treat(
    events: Sequence[tuple[int, Event]], model: Model, keys: Sequence[Hashable], log: CompleteLog | None = None
) -> Treated:
    """Give what is to be searched of the operations of some keys; each comes with its place in the whole history.

    Operations that failed, and unknown ones that would change nothing, are left out: there is nothing to explain.
    Raises SpecError for an operation with an answer and without an instant of it, or with one before its call.
    """
    places = {key: at for at, key in enumerate(keys)}
    pending = []
    for place, event in events:
        if event.outcome == "failed":
            continue
        _check(event)
        rule = model.rule(event, places)
        if event.outcome == "ok" or not model.observes(rule):
            pending.append(_Pending(place, event, rule, model.facts(rule, keys)))
    unknown = [each for each in pending if not each.known]
    end = 1 + max((max(e.event.call, e.event.return_ or 0) for e in pending), default=0)
    if not unknown:
        dropped: set[int] = set()
    elif log is not None:
        dropped = _by_the_log(unknown, model, log, end)
    else:
        _bound(pending, model, keys)
        dropped = _needless(pending)
    actions = [
        Action(each.event, each.rule, each.known, model.observes(each.rule), each.event.call, each.return_)
        for each in pending
        if each.place not in dropped
    ]
    bounded = sum(each.known for each in unknown)
    return Treated(actions, bounded, len(dropped), len(unknown) - bounded - len(dropped))


def _check(event: Event) -> None:
    if event.outcome == "ok" and (event.return_ is None or event.return_ < event.call):
        where = f"line {event.line}: " if event.line else ""
        raise SpecError(
            f"{where}process {event.process}'s {event.f} was called at {event.call}, answered at {event.return_}"
        )


def _take_effect(each: _Pending, by: float, model: Model, keys: Sequence[Hashable] = ()) -> None:
    """Note that an unknown operation has taken effect, by an instant at the latest."""
    each.known = True
    # Nothing takes effect before it is called. That something found it earlier then has no explanation.
    each.return_ = max(by, each.event.call)
    each.rule = model.applied(each.rule)
    if keys:
        each.facts = model.facts(each.rule, keys)


def _by_the_log(unknown: Sequence[_Pending], model: Model, log: CompleteLog, end: int) -> set[int]:
    told = sorted(log.told)
    revisions = [revision for revision, _ in told]
    earliest: list[float] = [end] * (len(told) + 1)
    for i in range(len(told) - 1, -1, -1):
        earliest[i] = min(earliest[i + 1], told[i][1])
    dropped = set()
    for each in unknown:
        revision = log.revisions.get(each.place)
        if revision is None:
            dropped.add(each.place)
        else:
            _take_effect(each, earliest[bisect_left(revisions, revision)], model)
    return dropped


def _bound(pending: Sequence[_Pending], model: Model, keys: Sequence[Hashable]) -> None:
    """Give each unknown write whose value only it can have written, and that was found, the end that this implies."""
    initial = frozenset(zip(keys, model.initial(keys), strict=True))
    writers = Counter(pair for each in pending for pair in each.facts.writes if pair not in initial)
    found: dict[tuple[Hashable, int], float] = {}
    news = [each for each in pending if each.known]
    open_ = {pair: each for each in pending if not each.known for pair in each.facts.writes if writers[pair] == 1}
    while news:
        each = news.pop()
        for pair in each.facts.saw:
            if each.return_ >= found.get(pair, math.inf):
                continue
            found[pair] = each.return_
            writer = open_.get(pair)
            if writer is None or writer is each or (writer.known and writer.return_ <= each.return_):
                continue
            # It has found what it compared with, by then at the latest: that was there, too.
            _take_effect(writer, each.return_, model, keys)
            news.append(writer)


def _needless(pending: Sequence[_Pending]) -> set[int]:
    """Give the places of the unknown writes that nothing can have needed."""
    dropped: set[int] = set()
    while True:
        left = [each for each in pending if each.place not in dropped]
        names: dict[tuple[Hashable, int], list[_Pending]] = {}
        denies: dict[Hashable, float] = {}
        for each in left:
            for pair in each.facts.names:
                names.setdefault(pair, []).append(each)
            for key in each.facts.denies:
                denies[key] = max(denies.get(key, -math.inf), each.return_)
        more = {each.place for each in left if not each.known and not _needed(each, names, denies)}
        if not more:
            return dropped
        dropped |= more


def _needed(
    each: _Pending, names: Mapping[tuple[Hashable, int], Sequence[_Pending]], denies: Mapping[Hashable, float]
) -> bool:
    call = each.event.call
    return any(
        denies.get(pair[0], -math.inf) >= call
        or any(other is not each and other.return_ >= call for other in names.get(pair, ()))
        for pair in each.facts.writes
    )
