"""Whether a history is linearizable: is there one order of its operations that explains every answer?

The search is Wing and Gong's with Lowe's memo of configurations (Testing for linearizability, 2016), over the returns
of the operations in their order: before a return is passed, its operation must have taken effect. Operations that
change nothing take effect at the first moment that explains them; among equal operations the one that must take effect
first goes first; one that may never have taken effect is only tried where the next operation needs it. None of these
loses an explanation. Histories are parted by keys that no operation touches together (Horn and Kroening, 2015).

Unknown writes are left out, or given an end, by `etcdops.verify.unknown` alone. A search that runs out of its budget is
inconclusive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from etcdops.verify import Result
from etcdops.verify.models import Event, Facts, Model, Rule, State, describe, model_of
from etcdops.verify.unknown import Action, CompleteLog, Treated, treat

__all__ = ["Budget", "SearchResult", "search", "unseen"]

_CHECK_EVERY = 1024
_SLOT = 1 << 20


class Budget(msgspec.Struct, frozen=True):
    """What a search may take: seconds, and configurations kept in memory (some 150 bytes each)."""

    seconds: float = 60.0
    states: int = 5_000_000


class SearchResult(msgspec.Struct, frozen=True):
    """What a search found.

    `mode` says how unknown writes were dealt with. `states` counts the configurations that were explored. Of a history
    that failed, `counterexample` holds operations that have no order even by themselves, and `explanation` says so in
    words; `minimal` says whether leaving out one more of those that may be left out would let them pass, and
    `unexplained` is the operation whose answer could not be passed.
    """

    result: Result
    detail: str
    mode: str
    states: int
    seconds: float
    counterexample: tuple[Event, ...] = ()
    explanation: str = ""
    minimal: bool = False
    unexplained: Event | None = None


class _OutOfBudget(Exception):
    """The search has used up its time, or its memory."""


class _Meter:
    """Counts the configurations of all searches of one call, and ends them when the budget is used up."""

    def __init__(self, budget: Budget, clock: Callable[[], float]) -> None:
        self.budget = budget
        self.clock = clock
        self.began = clock()
        self.states = 0

    @property
    def seconds(self) -> float:
        return self.clock() - self.began

    def allowance(self, explored: int) -> int:
        """Give how many configurations may be explored before this is asked again; raise when there are none."""
        if self.seconds > self.budget.seconds or self.states + explored >= self.budget.states:
            raise _OutOfBudget
        return min(_CHECK_EVERY, self.budget.states - self.states - explored)


class _Stuck(NamedTuple):
    """Why a search failed: the operation whose return could not be passed, and the states that there could be."""

    action: Action
    states: frozenset[State]


class _Levels:
    """The returns in their order, and for each which operations can take effect before it.

    An operation has a bit while it is in reach, which another gets once it is out of it: a configuration is the number
    of returns that were passed, the bits of the operations in reach that have taken effect, and the state.
    """

    def __init__(self, actions: Sequence[Action], model: Model, initial: State) -> None:
        self.model = model
        self.required = sorted((a for a in actions if a.required), key=lambda a: (a.return_, a.call))
        self.states: list[State] = [initial]
        self._ids: dict[State, int] = {initial: 0}
        self._rules: dict[Rule, int] = {}
        self._steps: list[dict[int, int]] = []
        self._looks: list[dict[int, tuple[int, list[tuple[int, int, int, bool]]]]] = [{} for _ in self.required]
        self._needing: dict[tuple[int, int, int], list[tuple[int, int, int, bool]]] = {}
        self.bits: list[int] = []
        self.required_bits: list[int] = []
        self.observer_bits: list[int] = []
        self.optional_bits = 0
        self._observers: list[list[tuple[int, int]]] = []
        self._movers: list[list[tuple[int, int, int, bool]]] = []
        self._rule_of: list[Rule] = []
        self._lay_out(actions)

    def _lay_out(self, actions: Sequence[Action]) -> None:
        waiting = sorted(actions, key=lambda a: a.call, reverse=True)
        free: list[int] = []
        taken = 0
        # In reach: by the instant at which they have to have taken effect, those that never have to last.
        movers: list[tuple[Action, int, int]] = []
        observers: list[tuple[Action, int, int]] = []
        for level in self.required:
            # Lists of earlier levels are kept as they are: each level has its own.
            added = False
            while waiting and waiting[-1].call <= level.return_:
                action = waiting.pop()
                if free:
                    bit = free.pop()
                else:
                    bit, taken = 1 << taken, taken + 1
                (observers if action.observes else movers).append((action, bit, self._number(action.rule)))
                added = True
            if added:
                movers.sort(key=lambda m: (not m[0].required, m[0].return_, m[0].call))
            bit = next(bit for action, bit, _ in (*movers, *observers) if action is level)
            self.bits.append(bit)
            self._observers.append([(bit, rule) for _, bit, rule in observers])
            before: dict[int, int] = {}
            row = []
            for action, mask, rule in movers:
                row.append((mask, before.get(rule, 0) | mask, rule, not action.required))
                before[rule] = before.get(rule, 0) | mask
            self._movers.append(row)
            self.required_bits.append(sum(bit for action, bit, _ in movers if action.required))
            self.observer_bits.append(sum(bit for _, bit, _ in observers))
            self.optional_bits |= sum(bit for action, bit, _ in movers if not action.required)
            free.append(bit)
            movers = [m for m in movers if m[0] is not level]
            observers = [o for o in observers if o[0] is not level]

    def _number(self, rule: Rule) -> int:
        number = self._rules.setdefault(rule, len(self._rules))
        if number == len(self._steps):
            self._steps.append({})
            self._rule_of.append(rule)
        return number

    def _step(self, rule: int, state: int) -> int:
        """Give the number of the state afterwards, -1 if there is none."""
        known = self._steps[rule]
        after = known.get(state)
        if after is None:
            found = self.model.step(self._rule_of[rule], self.states[state])
            if found is None:
                after = -1
            else:
                after = self._ids.setdefault(found, len(self.states))
                if after == len(self.states):
                    self.states.append(found)
            known[state] = after
        return after

    def look(self, level: int, state: int) -> tuple[int, list[tuple[int, int, int, bool]]]:
        """Give what is possible in a state before a return: the bits of what only observes it, and the moves.

        A move is the operation's bit, that bit with those of its equals that go first, the state afterwards, and
        whether it may as well never have taken effect. They come in the reverse of the order in which to try them.
        """
        mask = 0
        for bit, rule in self._observers[level]:
            if self._step(rule, state) >= 0:
                mask |= bit
        moves = []
        for bit, need, rule, optional in reversed(self._movers[level]):
            after = self._step(rule, state)
            if after >= 0 and not (optional and after == state):
                moves.append((bit, need, after, optional))
        found = self._looks[level][state] = (mask, moves)
        return found

    def needing(self, level: int, state: int, before: int) -> list[tuple[int, int, int, bool]]:
        """Give the moves in a state that would have been impossible, or come out otherwise, in the one before."""
        place = (level, state, before)
        moves = self._needing.get(place)
        if moves is None:
            without = {(bit, after) for bit, _, after, _ in self._looks[level][before][1]}
            moves = self._needing[place] = [
                move for move in self._looks[level][state][1] if (move[0], move[2]) not in without
            ]
        return moves

    def explore(self, meter: _Meter) -> _Stuck | None:
        """Give None when there is an order that explains every answer; raise _OutOfBudget."""
        bits, looks, look = self.bits, self._looks, self.look
        end = len(bits)
        if end >= _SLOT:
            raise _OutOfBudget
        movers, watchers, optional = self.required_bits, self.observer_bits, self.optional_bits
        # Configurations alike but for what is the worse for them; of these, none that another is better than.
        seen: dict[int, list[int]] = {}
        tried: set[tuple[int, int, int]] = set()
        # (returns passed, bits, state, the state before if the last operation need not have taken effect and nothing
        # has needed it yet, else -1)
        stack: list[tuple[int, int, int, int]] = []
        level, mask, state, before = 0, 0, 0, -1
        furthest = explored = 0
        allowed = meter.allowance(0)
        try:
            while True:
                # What only observes takes effect here, where it is explained; and returns are passed.
                while level < end:
                    here = looks[level].get(state) or look(level, state)
                    if here[0] & ~mask:
                        mask |= here[0]
                        before = -1
                    bit = bits[level]
                    if not mask & bit:
                        break
                    mask ^= bit
                    level += 1
                else:
                    return None
                required = mask & movers[level]
                key = ((required << 20 | level) << 20) | state
                # What is the worse for it: what may never have taken effect and did, what is not yet seen and could be.
                worse = (mask & optional) | (watchers[level] & ~mask)
                front = seen.get(key)
                known = False
                for each in front or ():
                    if each & worse == each:
                        known = True
                        break
                moves = here[1]
                if known:
                    pass
                elif before >= 0:
                    restricted = (key, worse, before)
                    known = restricted in tried
                    tried.add(restricted)
                    moves = self.needing(level, state, before)
                elif front is None:
                    seen[key] = [worse]
                else:
                    front[:] = [each for each in front if each & worse != worse]
                    front.append(worse)
                if not known:
                    explored += 1
                    if level > furthest:
                        furthest = level
                    if explored >= allowed:
                        if len(self.states) >= _SLOT - _CHECK_EVERY * 64:
                            raise _OutOfBudget
                        allowed = explored + meter.allowance(explored)
                    for bit, need, after, needless in moves:
                        # All of its equals that go first have taken effect, and it has not.
                        if mask & need == need ^ bit:
                            stack.append((level, mask | bit, after, state if needless else -1))
                if not stack:
                    break
                level, mask, state, before = stack.pop()
        finally:
            meter.states += explored
        keys = (*seen, *(key for key, _, _ in tried))
        found = frozenset(self.states[key & (_SLOT - 1)] for key in keys if (key >> 20) & (_SLOT - 1) == furthest)
        return _Stuck(self.required[furthest], found)


def search(
    events: Sequence[Event],
    model: str | Model = "register",
    *,
    log: CompleteLog | None = None,
    budget: Budget | None = None,
    explain: bool = True,
    fewest: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> SearchResult:
    """Search for an order of `events` that explains every answer, and give the verdict with what it rests on.

    Of a history that fails, `explain` also makes a counterexample, which may take as long again and a second more. With
    `fewest` it also lacks writes whose values nobody saw, where it fails without them.

    `log` is what a complete log of the store says of the unknown operations. Raises SpecError for an operation that the
    model does not have, and for an answer without an instant, or before its call.
    """
    chosen = model_of(model) if isinstance(model, str) else model
    meter = _Meter(budget or Budget(), clock)
    parts = _components(events, chosen)
    counts = [0, 0, 0]
    open_part: str = ""
    for keys, part in parts:
        treated = treat(part, chosen, keys, log)
        for i, count in enumerate((treated.bounded, treated.dropped, treated.open)):
            counts[i] += count
        try:
            stuck = _explore(treated, chosen, keys, meter)
        except _OutOfBudget:
            open_part = f"the search of {_named(keys)} ({len(treated.actions)} operations) ran out of its budget"
            if meter.states >= meter.budget.states or meter.seconds > meter.budget.seconds:
                break
            continue
        if stuck is not None:
            return _failed(_Part(keys, part, chosen, log), stuck, counts, meter, explain, fewest)
    mode = _mode(counts, log)
    if open_part:
        detail = (
            f"{open_part} of {meter.budget.seconds:g} s and {meter.budget.states:,} states after {meter.seconds:.1f} s "
            f"and {meter.states:,} states, and found no violation until then; {mode}"
        )
        return SearchResult("inconclusive", detail, mode, meter.states, meter.seconds)
    apart = f", in {len(parts):,} independent parts" if len(parts) > 1 else ""
    detail = f"{len(events):,} operations have an order that explains every answer{apart}"
    return SearchResult("passed", f"{detail}; {mode}", mode, meter.states, meter.seconds)


def _mode(counts: Sequence[int], log: CompleteLog | None) -> str:
    bounded, dropped, open_ = counts
    if not any(counts):
        return "no unknown writes"
    if log is not None:
        return f"unknown writes by the complete log: {bounded} took effect, {dropped} did not"
    return f"unknown writes: {bounded} were found, {dropped} that nothing needs were left out, {open_} are open"


def _named(keys: Sequence[Hashable]) -> str:
    if keys == (None,):
        return "the register"
    shown = ", ".join(map(str, keys[:3]))
    return f"key {shown}" if len(keys) == 1 else f"the {len(keys)} keys {shown}{', ...' if len(keys) > 3 else ''}"


def _components(events: Sequence[Event], model: Model) -> list[tuple[tuple[Hashable, ...], list[tuple[int, Event]]]]:
    """Give the operations (with their places) of each set of keys that no operation joins to others."""
    parent: dict[Hashable, Hashable] = {}

    def root(key: Hashable) -> Hashable:
        above = parent.setdefault(key, key)
        while above != key:
            parent[key] = parent[above]
            key, above = above, parent[above]
        return key

    touched = []
    for event in events:
        keys = model.keys(event)
        touched.append(keys)
        first = root(keys[0]) if keys else None
        for key in keys[1:]:
            parent[root(key)] = first
    members: dict[Hashable, list[Hashable]] = {}
    for key in parent:
        members.setdefault(root(key), []).append(key)
    parts: dict[Hashable, list[tuple[int, Event]]] = {top: [] for top in members}
    for place, (event, keys) in enumerate(zip(events, touched, strict=True)):
        if keys:
            parts[root(keys[0])].append((place, event))
    return [(tuple(members[top]), part) for top, part in parts.items()]


def _explore(treated: Treated, model: Model, keys: Sequence[Hashable], meter: _Meter) -> _Stuck | None:
    return _Levels(treated.actions, model, model.initial(keys)).explore(meter)


class _Part(NamedTuple):
    """A part of a history, as it is searched."""

    keys: tuple[Hashable, ...]
    events: list[tuple[int, Event]]
    model: Model
    log: CompleteLog | None

    def without_order(self, events: list[tuple[int, Event]], meter: _Meter) -> tuple[_Stuck, Treated] | None:
        """Give why some of the operations have no order by themselves, None if they have one."""
        treated = treat(events, self.model, self.keys, self.log)
        stuck = _explore(treated, self.model, self.keys, meter)
        return stuck and (stuck, treated)


def _failed(
    part: _Part, stuck: _Stuck, counts: Sequence[int], meter: _Meter, explain: bool, fewest: bool
) -> SearchResult:
    states, took, mode = meter.states, meter.seconds, _mode(counts, part.log)
    if not explain:
        return SearchResult("failed", _verdict(part, stuck, mode), mode, states, took)
    # To make it small may take as long again as finding it, and a second at the least.
    smaller = _Meter(Budget(seconds=max(1.0, took), states=max(200_000, states)), meter.clock)
    events, minimal = part.events, False
    try:
        events = _until(part, stuck, smaller)
        events, minimal = _fewer(part, events, smaller, fewest)
    except _OutOfBudget as gave_up:
        events = getattr(gave_up, "best", events)
    again = part.without_order(events, _Meter(Budget(), meter.clock))
    assert again is not None
    stuck, treated = again
    shown = tuple(action.event for action in sorted(treated.actions, key=lambda a: (a.call, a.return_)))
    explanation = _in_words(part, stuck, shown)
    detail = _verdict(part, stuck, mode)
    return SearchResult("failed", detail, mode, states, took, shown, explanation, minimal, stuck.action.event)


def _verdict(part: _Part, stuck: _Stuck, mode: str) -> str:
    event = stuck.action.event
    return f"{_named(part.keys)}: no order of its operations explains {describe(event)}{_line(event)}; {mode}"


def _line(event: Event) -> str:
    return f" (line {event.line})" if event.line else ""


def _cut(part: _Part, at: float) -> list[tuple[int, Event]]:
    """Give what was known at an instant: what was called until then, and the answers that there were."""
    kept = []
    for place, event in part.events:
        if event.call > at:
            continue
        if event.outcome == "ok" and event.return_ is not None and event.return_ > at:
            event = msgspec.structs.replace(event, outcome="unknown", answer=None, return_=None)
        kept.append((place, event))
    return kept


def _until(part: _Part, stuck: _Stuck, meter: _Meter) -> list[tuple[int, Event]]:
    """Cut off what came after the first answer with which there was no order any more."""
    if part.log is not None:
        # An operation that the cut leaves without an answer has one in the log, which is not cut.
        return part.events
    returns = sorted({e.return_ for _, e in part.events if e.outcome == "ok" and e.return_ is not None})
    low = next(i for i, each in enumerate(returns) if each >= stuck.action.return_ or i == len(returns) - 1)
    high = len(returns) - 1
    if part.without_order(_cut(part, returns[low]), meter):
        return _cut(part, returns[low])
    while high - low > 1:
        middle = (low + high) // 2
        if part.without_order(_cut(part, returns[middle]), meter):
            high = middle
        else:
            low = middle
    return _cut(part, returns[high])


def unseen(facts: Mapping[int, Facts], kept: Iterable[int], writes: Iterable[int]) -> set[int]:
    """Give those of some writes whose values no other operation that stays saw: what has an order has one without them.

    `facts` are those of all, by number. In every order that explains the answers, there are only operations between
    such a write and the next one to its key that do not look at it.
    """
    staying, left = set(kept), set(writes)
    while True:
        named = {pair for number in staying for pair in facts[number].names}
        denied = {key for number in staying for key in facts[number].denies}
        needed = {n for n in left if any(pair in named or pair[0] in denied for pair in facts[n].writes)}
        if not needed:
            return left
        staying |= needed
        left -= needed


def _fewer(
    part: _Part, events: list[tuple[int, Event]], meter: _Meter, fewest: bool
) -> tuple[list[tuple[int, Event]], bool]:
    """Leave out what changes nothing, and, with `fewest`, writes whose values nobody saw, if no order comes of it."""
    size = max(1, len(events) // 2)
    places = {key: at for at, key in enumerate(part.keys)}
    rules = {place: part.model.rule(event, places) for place, event in events}
    facts = {place: part.model.facts(rule, part.keys) for place, rule in rules.items()}

    def without(chosen: range) -> list[tuple[int, Event]]:
        kept: set[int] = set()
        writes: set[int] = set()
        for i, (place, event) in enumerate(events):
            if i not in chosen or event.outcome == "failed":
                kept.add(place)
            elif event.outcome != "ok" or not part.model.observes(rules[place]):
                (writes if fewest else kept).add(place)
        kept |= writes - unseen(facts, kept, writes)
        return [each for each in events if each[0] in kept]

    try:
        while True:
            start = len(events)
            removed = False
            while start > 0:
                first = max(0, start - size)
                fewer = without(range(first, start))
                if len(fewer) < len(events) and part.without_order(fewer, meter):
                    events, removed = fewer, True
                start = first
            if size == 1 and not removed:
                return events, True
            size = max(1, size // 2)
    except _OutOfBudget as gave_up:
        gave_up.best = events  # type: ignore[attr-defined]
        raise


def _in_words(part: _Part, stuck: _Stuck, shown: Sequence[Event]) -> str:
    event = stuck.action.event
    could = sorted(part.model.state_in_words(state, part.keys) for state in stuck.states)
    lines = ["These operations have no order in which every answer is right, in the order of their calls:"]
    for each in shown:
        when = (
            f"{each.call} to {each.return_}" if each.return_ is not None and each.outcome == "ok" else f"{each.call} on"
        )
        lines.append(f"  {when:<20} {describe(each)}{_line(each)}")
    state = " or ".join(could[:6]) + (" or another" if len(could) > 6 else "")
    lines.append(
        f"When process {event.process}'s {event.f} had been answered, no order of what was called before explains it: "
        f"the state could only be {state}."
    )
    return "\n".join(lines)
