"""What a linearizability search knows of operations: their form, and how each changes the state it finds.

A model turns an `Event` into a *rule*: a tuple that says what the operation does and what it answered. Operations with
equal rules are interchangeable. A state is a tuple of small integers, one for each key of the history that is searched.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Literal, Protocol

import msgspec

from etcdops.errors import SpecError

__all__ = ["MODELS", "Event", "Facts", "Model", "Mutex", "Register", "Rule", "State", "describe", "model_of"]

State = tuple[int, ...]
Rule = tuple[Any, ...]

#: What is absent, and what a mutex is before anybody has it.
ABSENT = 0


class Event(msgspec.Struct, frozen=True):
    """One operation of a history. `call` and `return_` are instants of one clock; equal instants are concurrent.

    | f | arguments | answer |
    |---|---|---|
    | `read` | `()` | the value, None for an absent key |
    | `write` | `(value,)` | anything |
    | `swap` | `(value,)` | the value before, None for an absent key |
    | `cas` | `(old, new)`; None is an absent key | True if it swapped, False if it found another value |
    | `delete` | `()` | how many keys were deleted (0 or 1), None if that is not known |
    | `range` | the keys; `key` is not used | their values, None for each that is absent |
    | `txn` | `(compares, then, otherwise)`, see below; `key` is not used | `(succeeded, values read)` |
    | `acquire`, `release` | `()` | anything |

    A txn compares values, `((key, value), …)`, and its branches hold `("put", key, value)`, `("delete", key)` and
    `("read", key)`. `outcome` is "ok" (answered: a compare that found another value is an answer), "failed" (certainly
    without effect: left out of the search) or "unknown" (may have taken effect, or may yet). `return_` is needed for
    what is ok, and not looked at for what is not. Values are hashable. `line` is where it was called in the file that
    it comes from, 0 if there is none.
    """

    process: int | str
    f: str
    key: Any
    arguments: tuple[Any, ...]
    outcome: Literal["ok", "failed", "unknown"]
    answer: Any
    call: int
    return_: int | None
    line: int = 0


class Facts(msgspec.Struct, frozen=True):
    """What an operation shows of the values of keys, for the rule about unknown writes. Pairs are (key, value).

    `writes`: what it may leave behind, and `certain` whether it then was a success. `saw`: what it certainly found.
    `names`: every value that it compares with or answered. `denies`: the keys about which it says more than a value
    that it saw, such as that they held another one.
    """

    writes: frozenset[tuple[Hashable, int]] = frozenset()
    saw: frozenset[tuple[Hashable, int]] = frozenset()
    names: frozenset[tuple[Hashable, int]] = frozenset()
    denies: frozenset[Hashable] = frozenset()


class Model(Protocol):
    """A sequential specification."""

    name: str

    def keys(self, event: Event) -> tuple[Hashable, ...]:
        """Give the keys that an operation touches. Raises SpecError for an operation that the model does not have."""

    def initial(self, keys: Sequence[Hashable]) -> State:
        """Give the state before the first operation."""

    def rule(self, event: Event, places: dict[Hashable, int]) -> Rule:
        """Give what the operation does; `places` says which part of the state each key is."""

    def applied(self, rule: Rule) -> Rule:
        """Give the rule of an operation without an answer of which it is known that it took effect."""

    def step(self, rule: Rule, state: State) -> State | None:
        """Give the state afterwards, None if the operation cannot have answered so in this state."""

    def observes(self, rule: Rule) -> bool:
        """Whether the operation leaves every state in which it is possible as it is."""

    def facts(self, rule: Rule, keys: Sequence[Hashable]) -> Facts:
        """Give what the operation shows of the values of keys, which are those of the state's places."""

    def state_in_words(self, state: State, keys: Sequence[Hashable]) -> str:
        """Give a state as a person would say it."""


class Register:
    """Keys with a value each: read, write, compare-and-swap by value, delete, and several of these in one txn."""

    name = "register"

    def __init__(self, initial: Hashable = None) -> None:
        self._values: list[Hashable] = [None]
        self._ids: dict[tuple[type, Hashable], int] = {(type(None), None): ABSENT}
        self._initial = self._id(initial)

    def _id(self, value: Any) -> int:
        # 1, 1.0 and True are equal in Python, and different values in a store.
        try:
            found = self._ids.setdefault((type(value), value), len(self._values))
        except TypeError:
            raise SpecError(f"the value {value!r} cannot be searched for: it is not hashable") from None
        if found == len(self._values):
            self._values.append(value)
        return found

    def keys(self, event: Event) -> tuple[Hashable, ...]:
        """Give the keys that an operation touches."""
        if event.f == "range":
            return event.arguments
        if event.f == "txn":
            compares, then, otherwise = event.arguments
            return tuple(dict.fromkeys([*(c[0] for c in compares), *(op[1] for op in (*then, *otherwise))]))
        wanted = {"read": 0, "write": 1, "swap": 1, "cas": 2, "delete": 0}.get(event.f)
        if wanted is None or len(event.arguments) != wanted:
            shown = " ".join(map(repr, event.arguments))
            where = f"line {event.line}: " if event.line else ""
            raise SpecError(f"{where}a register has no operation {f'{event.f} {shown}'.strip()!r}")
        return (event.key,)

    def initial(self, keys: Sequence[Hashable]) -> State:
        """Give the state before the first operation."""
        return (self._initial,) * len(keys)

    def rule(self, event: Event, places: dict[Hashable, int]) -> Rule:
        """Give what the operation does."""
        known, answer, value = event.outcome == "ok", event.answer, self._id
        if event.f == "range":
            slots = tuple(places[key] for key in event.arguments)
            return ("range", slots, tuple(map(value, answer)) if known else None)
        if event.f == "txn":
            return self._txn(event, places)
        at = places[event.key]
        if event.f == "read":
            return ("range", (at,), (value(answer),) if known else None)
        if event.f == "write" or (event.f == "swap" and not known):
            return ("write", at, value(event.arguments[0]))
        if event.f == "swap":
            return ("swap", at, value(event.arguments[0]), value(answer))
        if event.f == "delete":
            return ("delete", at, answer if known else None)
        old, new = event.arguments
        return ("cas", at, value(old), value(new), bool(answer) if known else None)

    def _txn(self, event: Event, places: dict[Hashable, int]) -> Rule:
        def branch(operations: Iterable[tuple[Any, ...]]) -> tuple[tuple[str, int, int], ...]:
            return tuple((op[0], places[op[1]], self._id(op[2]) if op[0] == "put" else ABSENT) for op in operations)

        compares, then, otherwise = event.arguments
        succeeded, read = event.answer if event.outcome == "ok" else (None, None)
        return (
            "txn",
            tuple((places[key], self._id(value)) for key, value in compares),
            branch(then),
            branch(otherwise),
            succeeded,
            None if read is None else tuple(map(self._id, read)),
        )

    def applied(self, rule: Rule) -> Rule:
        """Give the rule of an operation without an answer of which it is known that it took effect."""
        if rule[0] == "cas":
            return (*rule[:4], True)
        if rule[0] == "delete":
            return ("delete", rule[1], 1)
        if rule[0] == "txn":
            then, otherwise = (any(op[0] != "read" for op in branch) for branch in rule[2:4])
            return (*rule[:4], None if then and otherwise else then, rule[5])
        return rule

    def step(self, rule: Rule, state: State) -> State | None:
        """Give the state afterwards, None if the operation cannot have answered so in this state."""
        kind = rule[0]
        if kind == "range":
            return state if all(state[at] == value for at, value in zip(rule[1], rule[2], strict=True)) else None
        if kind == "txn":
            return _step_txn(rule, state)
        at = rule[1]
        found = state[at]
        if kind == "write":
            new = rule[2]
        elif kind == "swap":
            if found != rule[3]:
                return None
            new = rule[2]
        elif kind == "delete":
            if rule[2] is not None and rule[2] != (found != ABSENT):
                return None
            new = ABSENT
        else:
            _, _, old, new, answer = rule
            if answer is not None and answer != (found == old):
                return None
            if found != old:
                return state
        return state if new == found else (*state[:at], new, *state[at + 1 :])

    def observes(self, rule: Rule) -> bool:
        """Whether the operation leaves every state in which it is possible as it is."""
        kind = rule[0]
        if kind == "cas":
            return bool(rule[4] is False or rule[2] == rule[3])
        if kind == "delete":
            return bool(rule[2] == 0)
        if kind == "txn":
            then, otherwise = (any(op[0] != "read" for op in branch) for branch in rule[2:4])
            return not {True: then, False: otherwise, None: then or otherwise}[rule[4]]
        return bool(kind == "range")

    def facts(self, rule: Rule, keys: Sequence[Hashable]) -> Facts:
        """Give what the operation shows of the values of keys."""
        kind = rule[0]
        if kind == "range":
            saw = frozenset(zip((keys[at] for at in rule[1]), rule[2] or (), strict=False))
            return Facts(saw=saw, names=saw, denies=frozenset(key for key, value in saw if value == ABSENT))
        if kind == "txn":
            return _txn_facts(rule, keys)
        key = keys[rule[1]]
        if kind == "write":
            return Facts(writes=frozenset([(key, rule[2])]))
        if kind == "swap":
            saw = frozenset([(key, rule[3])])
            return Facts(frozenset([(key, rule[2])]), saw, saw, frozenset([key]))
        if kind == "delete":
            denies = frozenset() if rule[2] is None else frozenset([key])
            return Facts(frozenset() if rule[2] == 0 else frozenset([(key, ABSENT)]), denies=denies)
        old, answer = frozenset([(key, rule[2])]), rule[4]
        absent = rule[2] == ABSENT and answer is not None
        return Facts(
            writes=frozenset() if answer is False else frozenset([(key, rule[3])]),
            saw=old if answer else frozenset(),
            names=old,
            denies=frozenset([key]) if answer is False or absent else frozenset(),
        )

    def state_in_words(self, state: State, keys: Sequence[Hashable]) -> str:
        """Give a state as a person would say it."""
        values = ["absent" if value == ABSENT else repr(self._values[value]) for value in state]
        if len(values) == 1:
            return values[0]
        return ", ".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))


def _step_txn(rule: Rule, state: State) -> State | None:
    _, compares, then, otherwise, succeeded, read = rule
    holds = all(state[at] == value for at, value in compares)
    if succeeded is not None and succeeded != holds:
        return None
    after, seen = list(state), []
    for op, at, value in then if holds else otherwise:
        if op == "read":
            seen.append(after[at])
        else:
            after[at] = value
    if read is not None and tuple(seen) != read:
        return None
    return tuple(after)


def _txn_facts(rule: Rule, keys: Sequence[Hashable]) -> Facts:
    _, compares, then, otherwise, succeeded, read = rule
    taken = (*(then if succeeded is not False else ()), *(otherwise if succeeded is not True else ()))
    writes = frozenset((keys[at], value) for op, at, value in taken if op != "read")
    compared = frozenset((keys[at], value) for at, value in compares)
    saw = compared if succeeded else frozenset()
    names, denies = compared, frozenset(keys[at] for at, _ in compares)
    if read is not None:
        touched = [keys[at] for op, at, _ in taken if op == "read"]
        # What it reads after a put of its own it has not found: so it names that value, and says nothing of others'.
        own = {key for key, _ in writes}
        found = frozenset(zip(touched, read, strict=True))
        names |= found
        saw |= frozenset(pair for pair in found if pair[0] not in own)
        denies |= frozenset(touched)
    elif succeeded is None and not any(op != "read" for op, _, _ in otherwise):
        # Without an answer, and without an effect where the compare fails: it can only be that it found the value.
        denies = frozenset()
    return Facts(writes, saw, names, denies)


class Mutex:
    """A lock that anybody may release, as Knossos has it: acquire when it is free, release when it is not."""

    name = "mutex"

    def keys(self, event: Event) -> tuple[Hashable, ...]:
        """Give the lock's key."""
        if event.f not in ("acquire", "release"):
            where = f"line {event.line}: " if event.line else ""
            raise SpecError(f"{where}a mutex has no operation {event.f!r}")
        return (event.key,)

    def initial(self, keys: Sequence[Hashable]) -> State:
        """Give the state before the first operation: free."""
        return (ABSENT,)

    def rule(self, event: Event, places: dict[Hashable, int]) -> Rule:
        """Give what the operation does."""
        return (event.f,)

    def applied(self, rule: Rule) -> Rule:
        """Give the rule of an operation of which it is known that it took effect."""
        return rule

    def step(self, rule: Rule, state: State) -> State | None:
        """Give the state afterwards, None if the lock was not as it had to be."""
        held = 1 if rule[0] == "acquire" else 0
        return None if state[0] == held else (held,)

    def observes(self, rule: Rule) -> bool:
        """Whether the operation leaves the lock as it is: none does."""
        return False

    def facts(self, rule: Rule, keys: Sequence[Hashable]) -> Facts:
        """Give what keeps every unknown operation in the search: each is what another waits for."""
        held = 1 if rule[0] == "acquire" else 0
        return Facts(
            writes=frozenset([(keys[0], held)]), names=frozenset([(keys[0], 1 - held)]), denies=frozenset([keys[0]])
        )

    def state_in_words(self, state: State, keys: Sequence[Hashable]) -> str:
        """Give a state as a person would say it."""
        return "held" if state[0] else "free"


#: What `check --model` knows and this search decides.
MODELS: dict[str, type[Register] | type[Mutex]] = {"register": Register, "mutex": Mutex}


def model_of(name: str) -> Model:
    """Give a fresh model by its name; raise SpecError for a name that is none."""
    if name not in MODELS:
        raise SpecError(f"the model {name!r} is not known", remedy=f"Choose {' or '.join(MODELS)}.")
    return MODELS[name]()


def describe(event: Event) -> str:
    """Give an operation in a few words, such as `process 3: cas 1 -> 2 found another value`."""
    key = f" of {event.key}" if event.key is not None and event.f not in ("range", "txn") else ""
    return f"process {event.process}: {_what(event)}{key}{_answer(event)}"


def _what(event: Event) -> str:
    if event.f == "cas":
        old, new = ("absent" if value is None else repr(value) for value in event.arguments)
        return f"cas {old} -> {new}"
    return " ".join([event.f, *map(repr, event.arguments)])


def _answer(event: Event) -> str:
    if event.outcome != "ok":
        return f" ({event.outcome})"
    if event.f == "read":
        return " found nothing" if event.answer is None else f" found {event.answer!r}"
    if event.f == "cas":
        return " swapped" if event.answer else " found another value"
    if event.f in ("swap", "delete", "range", "txn") and event.answer is not None:
        return f" answered {event.answer!r}"
    return ""
