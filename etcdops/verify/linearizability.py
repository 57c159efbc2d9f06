"""The search for a linearization, over a run of our own: what it says when the revision witness has failed.

Where the witness passes, its order is a linearization, and a search can add nothing. Where it fails, the cause may be
in the answers, or in revisions, events and the record alone. If even the answers about one key, without any revision,
have no order, then it is the store that is wrong, and a few operations show it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from etcdops.ops import Delete, Put, Txn
from etcdops.verify import Check
from etcdops.verify.columns import OK
from etcdops.verify.describing import describe, some
from etcdops.verify.models import Event, Register
from etcdops.verify.recorded import Recorded
from etcdops.verify.registers import keys_of, registers_of
from etcdops.verify.search import Budget, SearchResult, search
from etcdops.verify.unknown import CompleteLog
from etcdops.verify.witness import Part, Witness
from etcdops.workload.encoding import key_prefix, value_prefix
from etcdops.workload.history import Operation

__all__ = ["BUDGET", "NAME", "check_search"]

NAME = "linearizability search"

#: For all keys together. The configurations end a search before the seconds do, so that it ends alike everywhere.
BUDGET = Budget(seconds=4.0, states=300_000)

#: So many keys are searched, those first that the witness named first.
_KEYS = 10
#: So many operations of a counterexample are told, the last ones: what is wrong shows at its end.
_SHOWN = 12


def check_search(recorded: Recorded, found: Witness, *, budget: Budget = BUDGET) -> Check | None:
    """Give what a search says of each key that the failed witness `found` names; None where that did not fail.

    It fails with a counterexample if the answers about one of these keys have no order. Otherwise it is inconclusive:
    they have one, key by key, or a key has operations that the search does not know, or the budget was used up.
    """
    part = found.part
    if found.check.result != "failed" or part is None:
        return None
    named = _named(recorded, found, part)
    registers = registers_of(recorded.history, set(named).__contains__)
    base = {kv.key: kv.value for kv in recorded.base.kvs} if recorded.base else {}
    explained, doubts = [], [f"{_text(key)} is no register: see operation {n}" for key, n in registers.unfit.items()]
    left = budget
    for key in named:
        if key not in registers.found:
            continue
        for log, operations in _ways(recorded, part, key, registers.found[key]):
            result = search([event for _, event in operations], Register(base.get(key)), log=log, budget=left)
            left = Budget(seconds=max(0.0, left.seconds - result.seconds), states=max(0, left.states - result.states))
            if result.result == "failed":
                return Check(NAME, "failed", _in_words(recorded, key, base.get(key), operations, result))
        if result.result == "passed":
            explained.append(_text(key))
        else:
            doubts.append(result.detail)
    said = []
    if explained:
        said.append(
            f"the answers about {some(explained)} have an order, each key by itself: what the {found.check.name} has"
            " found is in revisions, in events, or between keys"
        )
    return Check(NAME, "inconclusive", "; ".join([*said, *doubts[:_SHOWN]]) or "no key of the run is concerned")


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _named(recorded: Recorded, found: Witness, part: Part) -> list[bytes]:
    """Give the run's keys of which the witness's findings are, in their order."""
    prefix = key_prefix(recorded.observed.run).encode()
    ids = {number for each in part.findings.kept for number in each.operations} | set(found.lost)
    by_id = {op.id: op for op in recorded.history if op.id in ids}

    def all_keys() -> Iterator[bytes]:
        for each in part.findings.kept:
            for number in each.operations:
                if number in by_id:
                    yield from keys_of(by_id[number])
            if part.log.base < each.revision <= part.log.newest:
                yield from (event.kv.key for event in part.log.events(each.revision))
        for number in found.lost:
            yield from keys_of(by_id[number])

    return [key for key in dict.fromkeys(all_keys()) if key.startswith(prefix)][:_KEYS]


def _ways(
    recorded: Recorded, part: Part, key: bytes, operations: Sequence[tuple[Operation, Event]]
) -> Iterator[tuple[CompleteLog | None, Sequence[tuple[Operation, Event]]]]:
    """Give how to search a key: by the stronger rule about unknown writes if the log is complete, and by the other.

    With the log, what was answered beyond its end is left out, since it may rest on writes that are not in it. Only
    where that is so can the weaker rule find more.
    """
    findings, log = part.findings, part.log
    inside = [one for one in operations if one[0].outcome != "ok" or one[0].revision <= log.end]
    whole = not findings.counts["W0"] and not findings.doubts and not log.holes
    known = _logged(part, key, inside) if whole and 0 < recorded.observed.tombstone <= log.end else None
    if known is not None:
        yield known, inside
    if known is None or len(inside) < len(operations):
        yield None, operations


def _logged(part: Part, key: bytes, operations: Sequence[tuple[Operation, Event]]) -> CompleteLog | None:
    """Give what the log says of the unknown writes of a key, None if there are none or it cannot tell them apart."""
    log = part.log
    written = [_value_of(op.request) for op, _ in operations]
    unknown = [(place, written[place]) for place, (op, _) in enumerate(operations) if op.outcome == "unknown"]
    # Values tell which write it was; a delete has none, and one that two operations write tells nothing.
    if not unknown or any(value is None or written.count(value) > 1 for _, value in unknown):
        return None
    number = log.number(key)
    rows = np.flatnonzero(log.rows.key[log.based :] == number) + log.based
    revisions: dict[bytes, int] = {}
    for row in rows.tolist():
        if log.rows.version[row] > 0:
            revisions.setdefault(log.values[log.rows.value[row]], int(log.rows.modified[row]))
    places = {place: revisions[value] for place, value in unknown if value in revisions}
    return CompleteLog(places, [(revision, _told(part, revision)) for revision in places.values()])


def _value_of(request: object) -> bytes | None:
    """Give the one value that a write may leave behind, None if it may leave another, or none."""
    if isinstance(request, Put):
        return request.value
    if isinstance(request, Txn):
        writes = [each for each in (*request.success, *request.failure) if isinstance(each, (Put, Delete))]
        values = {each.value if isinstance(each, Put) else None for each in writes}
        return values.pop() if len(values) == 1 else None
    return None


def _told(part: Part, revision: int) -> int:
    """Give the first instant at which anybody was told of a revision, or of a later one."""
    ops, messages = part.columns.operations, part.columns.events.messages
    far = np.iinfo(np.int64).max
    answered = ops.back[(ops.outcome == OK) & (ops.revision >= revision)].min(initial=far)
    return int(min(answered, messages.t_ns[messages.newest >= revision].min(initial=far)))


def _in_words(
    recorded: Recorded,
    key: bytes,
    before: bytes | None,
    operations: Sequence[tuple[Operation, Event]],
    result: SearchResult,
) -> str:
    assert result.unexplained is not None
    origin_ns = min(op.call_ns for op in recorded.history)
    known = {(event.process, event.call): op for op, event in operations}
    held, writer, events = _since_known(before, result.counterexample, result.unexplained)
    shorter = search(events, Register(held), budget=Budget(seconds=1.0, states=100_000))
    if shorter.result != "failed":
        held, writer, shorter = before, None, result
    after = "while it was absent" if held is None else f"while it held {_text(held)!r}"
    if writer:
        after = f"once {describe(known[writer.process, writer.call], origin_ns)} was the last to write it"
    shown = [known[event.process, event.call] for event in shorter.counterexample]
    last = shorter.unexplained
    assert last is not None
    number = known[last.process, last.call].id
    earlier = f"{len(shown) - _SHOWN} earlier ones; " if len(shown) > _SHOWN else ""
    said = (
        f"{_text(key)}: no order of its operations explains operation {number} ({result.mode}). "
        f"These have none even by themselves, {after}: {earlier}"
        f"{'; '.join(describe(op, origin_ns) for op in shown[-_SHOWN:])}. "
        f"When operation {number} had been answered, {shorter.explanation.rpartition(': ')[2]}"
    )
    run = recorded.observed.run
    return said.replace(key_prefix(run), "").replace(value_prefix(run), "") + (
        f" (Keys are shown without {key_prefix(run)}, values without {value_prefix(run)}.)"
    )


def _since_known(
    before: bytes | None, events: Sequence[Event], unexplained: Event
) -> tuple[bytes | None, Event | None, Sequence[Event]]:
    """Give what follows the last instant at which nothing was under way and the value was known.

    Before it come that value, and the write that left it there, None if there was none.

    It is known if one write alone can have been the last: after the return of each other one, another was called. Then
    every order of the operations before ends with it, and what comes after has an order if and only if all have.
    """
    end = math.inf if unexplained.return_ is None else unexplained.return_
    ordered = [event for event in sorted(events, key=lambda event: event.call) if event.call <= end]
    held, writer, since = before, None, ordered
    for place in range(1, len(ordered)):
        earlier = ordered[:place]
        ends = [math.inf if event.outcome != "ok" else event.return_ or 0 for event in earlier]
        if max(ends) >= ordered[place].call or ordered[place].call > unexplained.call:
            continue
        writes = [(event, effect[0]) for event in earlier if (effect := _effect(event)) is not None]
        begun = max((event.call for event, _ in writes), default=0)
        last = [(event, value) for event, value in writes if (event.return_ or 0) >= begun]
        if len(last) <= 1:
            writer, held = last[0] if last else (None, before)
            since = ordered[place:]
    return held, writer, since


def _effect(event: Event) -> tuple[bytes | None] | None:
    """Give the value that an answered operation left behind, None if it left what there was."""
    if event.f in ("write", "swap"):
        return (event.arguments[0],)
    if event.f == "delete":
        return (None,) if event.answer != 0 else None
    if event.f != "txn":
        return None
    succeeded, _ = event.answer
    _, then, otherwise = event.arguments
    for each in reversed(then if succeeded else otherwise):
        if each[0] != "read":
            return (each[2] if each[0] == "put" else None,)
    return None
