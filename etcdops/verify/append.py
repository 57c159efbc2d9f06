"""Whether transactions that append to lists and read them are strictly serializable, by the anomalies of Elle.

Every element is appended once, so a list that is read tells in which order the appends to it took effect, and from that
follows who had to come before whom: ww (appended after), wr (read what was appended), rw (read what was there before an
append), and real time. A cycle of these is an anomaly, named as Elle names it (Kingsbury and Alvaro, Elle: Inferring
Isolation Anomalies from Experimental Observations, 2020; Adya, Weak Consistency, 1999). No search: it is nearly linear.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import msgspec

from etcdops.verify import Result
from etcdops.verify.models import Event

__all__ = ["Anomaly", "AppendResult", "check_append"]

#: What an edge says. A path through a `_FREE` edge goes on from a place in time, or in a list, that is no transaction.
_WW, _WR, _RW, _PROCESS, _REALTIME, _FREE = "ww", "wr", "rw", "process", "realtime", ""
_DATA = (_WW, _WR, _RW)
#: Where cycles that need several edges are looked for, this many steps are made for each edge of a graph at most.
_STEPS_AN_EDGE = 50
#: So many anomalies of a kind are told.
_SHOWN = 5
#: Of a longer list only so many elements are shown.
_LONG = 8


class Anomaly(msgspec.Struct, frozen=True):
    """What must not happen: its name, why it is one, in words, and the transactions that show it."""

    name: str
    explanation: str
    events: tuple[Event, ...]


class AppendResult(msgspec.Struct, frozen=True):
    """What was found; `counts` has how many there are of each anomaly, of which the first are in `anomalies`."""

    result: Result
    detail: str
    seconds: float
    anomalies: tuple[Anomaly, ...] = ()
    counts: dict[str, int] = {}


class _Edge(NamedTuple):
    to: int
    kind: str
    why: Any


class _Lists(NamedTuple):
    """What the lists tell: who appended what, and the longest list that was read of each key."""

    writers: dict[tuple[Hashable, Hashable], int]
    longest: dict[Hashable, tuple[Any, ...]]


def check_append(events: Sequence[Event], *, clock: Callable[[], float] = time.perf_counter) -> AppendResult:
    """Give the anomalies of a history of transactions, whose arguments and answers are `("append"|"r", key, value)`.

    An element that two transactions append to one key makes the history inconclusive: nothing tells them apart.
    """
    began = clock()
    lists, twice = _lists(events)
    if twice:
        detail = f"element {twice[1]!r} is appended to key {twice[0]} more than once: nothing tells the appends apart"
        return AppendResult("inconclusive", detail, clock() - began)
    found: dict[str, list[Anomaly]] = {}
    for anomaly in (*_anomalies_of_reads(events, lists), *_anomalies_of_cycles(events, lists)):
        found.setdefault(anomaly.name, []).append(anomaly)
    answered = sum(event.outcome == "ok" for event in events)
    shown = tuple(anomaly for each in found.values() for anomaly in each[:_SHOWN])
    counts = {name: len(each) for name, each in found.items()}
    if found:
        named = ", ".join(f"{name} ({count})" for name, count in counts.items())
        return AppendResult(
            "failed", f"{named} in {answered:,} transactions that were answered", clock() - began, shown, counts
        )
    if not any(f == "r" for event in events if event.outcome == "ok" for f, _, _ in _micro(event)):
        return AppendResult("inconclusive", f"{answered:,} transactions, and none has read anything", clock() - began)
    detail = f"{answered:,} transactions that were answered are strictly serializable, as far as their reads tell"
    return AppendResult("passed", detail, clock() - began)


def _micro(event: Event) -> tuple[tuple[str, Hashable, Any], ...]:
    """Give what a transaction did: with what it read, if it was answered."""
    return event.answer if event.outcome == "ok" and event.answer is not None else event.arguments


def _lists(events: Sequence[Event]) -> tuple[_Lists, tuple[Hashable, Hashable] | None]:
    writers: dict[tuple[Hashable, Hashable], int] = {}
    longest: dict[Hashable, tuple[Any, ...]] = {}
    twice = None
    for i, event in enumerate(events):
        for f, key, value in _micro(event):
            if f == "append":
                if (key, value) in writers:
                    twice = (key, value)
                writers[key, value] = i
            elif event.outcome == "ok" and value and len(value) > len(longest.get(key, ())):
                longest[key] = value
    return _Lists(writers, longest), twice


def _named(event: Event) -> str:
    return f"T{event.line}" if event.line else f"T@{event.call}"


def _list(value: Sequence[Any] | None) -> str:
    """Give a list as it is shown: of a long one the end, which is what matters."""
    value = list(value or ())
    return repr(value) if len(value) <= _LONG else f"[{len(value) - _LONG} more, {repr(value[-_LONG:])[1:]}"


def _shown(event: Event) -> str:
    done = " ".join(
        f"append {key} {value!r}" if f == "append" else f"r {key} {_list(value)}" for f, key, value in _micro(event)
    )
    return f"{_named(event)} (process {event.process}, {event.outcome}): {done}"


# -- what single reads show


def _anomalies_of_reads(events: Sequence[Event], lists: _Lists) -> Iterator[Anomaly]:
    last: dict[tuple[int, Hashable], Hashable] = {}
    for (key, value), i in lists.writers.items():
        # In the order in which each transaction appends, so the last one stays.
        last[i, key] = value
    seen: set[tuple[Hashable, tuple[Any, ...]]] = set()
    read_alike: dict[tuple[Hashable, Hashable], list[int]] = {}
    for i, event in enumerate(events):
        if event.outcome != "ok":
            continue
        yield from _internal(event)
        for key, value in _read_then_written(event):
            read_alike.setdefault((key, value), []).append(i)
        for f, key, value in _micro(event):
            if f == "append" or not value:
                continue
            writer = lists.writers.get((key, value[-1]))
            if writer is not None and writer != i and last[writer, key] != value[-1]:
                why = f"{_named(event)} read {key} as {_named(events[writer])} had left it half-way"
                yield Anomaly("G1b", f"{why}: the last element is {value[-1]!r}", (events[writer], event))
            if (key, value) in seen:
                continue
            seen.add((key, value))
            yield from _aborted(events, lists, event, key, value)
    yield from _lost_updates(events, read_alike)
    for key, value in lists.longest.items():
        yield from _dirty_updates(events, lists, key, value)


def _internal(event: Event) -> Iterator[Anomaly]:
    known: dict[Hashable, tuple[Any, ...]] = {}
    tail: dict[Hashable, tuple[Any, ...]] = {}
    early: dict[Hashable, set[Any]] = {}
    for f, key, value in _micro(event):
        if f == "append":
            if key in known:
                known[key] += (value,)
            else:
                tail[key] = (*tail.get(key, ()), value)
            if value in early.get(key, ()):
                why = f"{_named(event)} read {value!r} in {key} before it appended it"
                yield Anomaly("future-read", why, (event,))
            continue
        got = tuple(value or ())
        wanted = known.get(key)
        own = tail.get(key, ())
        if got != wanted if wanted is not None else got[len(got) - len(own) :] != own or len(got) < len(own):
            expected = list(wanted) if wanted is not None else ["...", *own]
            why = f"{_named(event)} read {key} as {_list(got)}, and by what it had done itself it was {expected!r}"
            yield Anomaly("internal", why, (event,))
        known[key] = got
        early.setdefault(key, set()).update(got)


def _read_then_written(event: Event) -> Iterator[tuple[Hashable, Hashable]]:
    """Give (key, last element) of each first read of a key that the transaction then appends to."""
    first: dict[Hashable, Any] = {}
    done: set[Hashable] = set()
    for f, key, value in _micro(event):
        if f == "r":
            if key not in done:
                first.setdefault(key, (len(value or ()), (value or (None,))[-1]))
        elif key not in done:
            done.add(key)
            if key in first:
                yield key, first[key]


def _lost_updates(events: Sequence[Event], read_alike: dict[tuple[Hashable, Hashable], list[int]]) -> Iterator[Anomaly]:
    for (key, version), who in read_alike.items():
        if len(who) > 1:
            names = " and ".join(_named(events[i]) for i in who)
            read = f"up to {version[1]!r}" if version[0] else "empty"  # type: ignore[index]
            why = f"{names} all read {key} {read}, and appended to it: each but one has not seen another's append"
            yield Anomaly("lost-update", why, tuple(events[i] for i in who))


def _aborted(
    events: Sequence[Event], lists: _Lists, event: Event, key: Hashable, value: tuple[Any, ...]
) -> Iterator[Anomaly]:
    """Give what one list that was read shows; each list is looked at once, by whomever it was read first."""
    if len(set(value)) < len(value):
        double = next(each for each in value if value.count(each) > 1)
        why = f"{_named(event)} read element {double!r} of {key} {value.count(double)} times, and it was appended once"
        yield Anomaly("duplicate-elements", why, (event,))
    longest = lists.longest[key]
    if longest[: len(value)] != value:
        why = f"{_named(event)} read {key} as {_list(value)}, which is no beginning of {_list(longest)}"
        yield Anomaly("incompatible-order", why, (event,))
    elif value is not longest:
        # What a beginning of the longest list shows, that one shows.
        return
    for each in dict.fromkeys(value):
        writer = lists.writers.get((key, each))
        if writer is None:
            why = f"{_named(event)} read element {each!r} of {key}, which nobody appended"
            yield Anomaly("unwritten-read", why, (event,))
        elif events[writer].outcome == "failed":
            why = f"{_named(event)} read element {each!r} of {key}; {_named(events[writer])}, which appended it, failed"
            yield Anomaly("G1a", why, (events[writer], event))


def _dirty_updates(events: Sequence[Event], lists: _Lists, key: Hashable, value: tuple[Any, ...]) -> Iterator[Anomaly]:
    failed: int | None = None
    for each in dict.fromkeys(value):
        writer = lists.writers.get((key, each))
        if writer is None:
            continue
        outcome = events[writer].outcome
        if outcome == "failed":
            failed = writer
        elif outcome == "ok" and failed is not None:
            why = f"{_named(events[writer])} appended {each!r} to {key} after {_named(events[failed])}, which failed"
            yield Anomaly("dirty-update", why, (events[failed], events[writer]))
            failed = None


# -- cycles


class _Graph:
    """Who had to come before whom. Nodes from `len(events)` on are no transactions."""

    def __init__(self, events: Sequence[Event], lists: _Lists) -> None:
        self.events = events
        self.edges: list[list[_Edge]] = [[] for _ in events]
        self._data(lists)
        self._time()

    def node(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def link(self, a: int, b: int, kind: str, why: Any = None) -> None:
        if a != b:
            self.edges[a].append(_Edge(b, kind, why))

    def _data(self, lists: _Lists) -> None:
        events = self.events
        order = {key: list(dict.fromkeys(value)) for key, value in lists.longest.items()}
        following: dict[tuple[Hashable, Hashable], Hashable] = {}
        for key, elements in order.items():
            for before, after in pairwise(elements):
                following[key, before] = after
                a, b = lists.writers.get((key, before)), lists.writers.get((key, after))
                if a is not None and b is not None:
                    self.link(a, b, _WW, (key, before, after))
        unread = self._unread(lists, order)
        for i, event in enumerate(events):
            if event.outcome != "ok":
                continue
            for key, value in _external_reads(event):
                elements = order.get(key, [])
                if value and (key, value[-1]) in lists.writers:
                    self.link(lists.writers[key, value[-1]], i, _WR, (key, value[-1]))
                if value[-1:] == tuple(elements[-1:]):
                    for node in unread[key].without(i) if key in unread else ():
                        self.link(i, node, _RW, (key, None))
                    continue
                after = following.get((key, value[-1])) if value else elements[0]
                # A list that is no beginning of the longest one has no place in the order.
                writer = lists.writers.get((key, after))
                if writer is not None:
                    self.link(i, writer, _RW, (key, after))

    def _unread(self, lists: _Lists, order: dict[Hashable, list[Hashable]]) -> dict[Hashable, _Unread]:
        """Give the appends that were acknowledged, and that no list shows: they come after all that the longest has."""
        found: dict[Hashable, list[tuple[int, Hashable]]] = {}
        known = {key: set(elements) for key, elements in order.items()}
        for (key, value), i in lists.writers.items():
            if self.events[i].outcome == "ok" and value not in known.get(key, ()):
                found.setdefault(key, []).append((i, value))
        for key, appends in found.items():
            if key in order:
                last = order[key][-1]
                writer = lists.writers.get((key, last))
                for i, value in appends:
                    if writer is None:
                        break
                    self.link(writer, i, _WW, (key, last, value))
        return {key: _Unread(self, key, appends) for key, appends in found.items()}

    def _time(self) -> None:
        """Link each transaction to those that were called after it had returned, by the instants of the returns."""
        events = self.events
        ok = [i for i, event in enumerate(events) if event.outcome == "ok" and event.return_ is not None]
        by_return = sorted(ok, key=lambda i: events[i].return_ or 0)
        by_call = sorted(range(len(events)), key=lambda i: events[i].call)
        instant, at = -1, 0
        of_process: dict[int | str, int] = {}
        for i in by_call:
            event = events[i]
            while at < len(by_return) and (events[by_return[at]].return_ or 0) < event.call:
                node = self.node()
                if instant >= 0:
                    self.link(instant, node, _FREE)
                self.link(by_return[at], node, _REALTIME)
                instant, at = node, at + 1
            if instant >= 0:
                self.link(instant, i, _FREE)
            earlier = of_process.get(event.process)
            if earlier is not None and (events[earlier].return_ or 0) < event.call:
                self.link(earlier, i, _PROCESS)
            if event.outcome == "ok":
                of_process[event.process] = i


class _Unread:
    """Nodes that lead to all appends of a key that nobody read: to those up to a place, and to those from one on."""

    def __init__(self, graph: _Graph, key: Hashable, appends: Sequence[tuple[int, Hashable]]) -> None:
        self.up_to = [graph.node() for _ in appends]
        self.onward = [graph.node() for _ in appends]
        self.places: dict[int, list[int]] = {}
        for at, (i, value) in enumerate(appends):
            self.places.setdefault(i, []).append(at)
            for nodes, towards in ((self.up_to, at - 1), (self.onward, at + 1)):
                graph.link(nodes[at], i, _FREE, (key, value))
                if 0 <= towards < len(appends):
                    graph.link(nodes[at], nodes[towards], _FREE)

    def without(self, i: int) -> list[int]:
        """Give nodes that lead to all but the appends of one transaction, which stand side by side."""
        own = self.places.get(i)
        if own is None:
            return self.onward[:1]
        return self.up_to[max(0, own[0] - 1) : own[0]] + self.onward[own[-1] + 1 : own[-1] + 2]


def _external_reads(event: Event) -> Iterator[tuple[Hashable, tuple[Any, ...]]]:
    """Give what a transaction read of each key before it did anything else to it."""
    done: set[Hashable] = set()
    for f, key, value in _micro(event):
        if key not in done:
            done.add(key)
            if f == "r":
                yield key, tuple(value or ())


def components(edges: Sequence[Iterable[int]]) -> list[list[int]]:
    """Give the strongly connected components of more than one node (Tarjan, without recursion)."""
    index = [-1] * len(edges)
    low = [0] * len(edges)
    on_stack = bytearray(len(edges))
    stack: list[int] = []
    found: list[list[int]] = []
    count = 0
    for root in range(len(edges)):
        if index[root] >= 0:
            continue
        work: list[tuple[int, Iterator[int]]] = [(root, iter(edges[root]))]
        index[root] = low[root] = count
        count += 1
        stack.append(root)
        on_stack[root] = 1
        while work:
            node, following = work[-1]
            for each in following:
                if index[each] < 0:
                    index[each] = low[each] = count
                    count += 1
                    stack.append(each)
                    on_stack[each] = 1
                    work.append((each, iter(edges[each])))
                    break
                if on_stack[each] and index[each] < low[node]:
                    low[node] = index[each]
            else:
                work.pop()
                if work and low[node] < low[work[-1][0]]:
                    low[work[-1][0]] = low[node]
                if low[node] == index[node]:
                    part = []
                    while True:
                        each = stack.pop()
                        on_stack[each] = 0
                        part.append(each)
                        if each == node:
                            break
                    if len(part) > 1:
                        found.append(part)
    return found


#: What is looked for, in this order: G0, G1c, G-single-item, G-nonadjacent-item, G2-item. The kinds of edges, one that
#: has to be in the cycle, and how often: once, never twice in a row, or anyhow.
_CYCLES = (
    ((_WW,), _WW, ""),
    ((_WW, _WR), _WR, ""),
    (_DATA, _RW, "single"),
    (_DATA, _RW, "nonadjacent"),
    (_DATA, _RW, ""),
)


def _anomalies_of_cycles(events: Sequence[Event], lists: _Lists) -> Iterator[Anomaly]:
    graph = _Graph(events, lists)
    told: set[int] = set()
    for extra in ((), (_PROCESS,), (_REALTIME,)):
        kinds = {*_DATA, *extra, _FREE}
        for part in components([[e.to for e in each if e.kind in kinds] for each in graph.edges]):
            # What is a cycle already without this kind of edge has been told.
            if told.isdisjoint(part):
                yield from _classify(graph, part, extra)
                told.update(part)


def _classify(graph: _Graph, part: list[int], extra: tuple[str, ...]) -> Iterator[Anomaly]:
    """Give the anomalies of one component: a cycle of each kind, up to the first with an rw edge."""
    numbers = {node: i for i, node in enumerate(part)}
    inner = [[e._replace(to=numbers[e.to]) for e in graph.edges[node] if e.to in numbers] for node in part]
    for kinds, needed, shape in _CYCLES:
        cycle = _cycle(inner, {*kinds, *extra, _FREE}, needed, shape)
        if cycle is not None:
            name = _name_of([edge.kind for _, edge in cycle])
            yield _told(graph, name, [(part[node], edge._replace(to=part[edge.to])) for node, edge in cycle])
            if needed == _RW:
                return


def _name_of(kinds: Sequence[str]) -> str:
    """Give Elle's name of a cycle with edges of these kinds, in their order."""
    kinds = [kind for kind in kinds if kind]
    many = kinds.count(_RW)
    if many == 1:
        name = "G-single-item"
    elif many:
        adjacent = any(a == b == _RW for a, b in zip(kinds, [*kinds[1:], kinds[0]], strict=True))
        name = "G2-item" if adjacent else "G-nonadjacent-item"
    else:
        name = "G1c" if _WR in kinds else "G0"
    return name + ("-realtime" if _REALTIME in kinds else "-process" if _PROCESS in kinds else "")


def _cycle(edges: list[list[_Edge]], allowed: set[str], needed: str, shape: str) -> list[tuple[int, _Edge]] | None:
    """Give a short cycle of allowed edges through one of the needed kind; None if there is none."""
    within = allowed - {_RW} if shape else allowed
    part_of: dict[int, int] = {}
    if not shape:
        for i, part in enumerate(components([[e.to for e in each if e.kind in allowed] for each in edges])):
            part_of.update(dict.fromkeys(part, i))
    steps = _STEPS_AN_EDGE * sum(map(len, edges)) + 10_000
    for node, each in enumerate(edges):
        for edge in each:
            if edge.kind != needed or (not shape and part_of.get(node, -1) != part_of.get(edge.to, -2)):
                continue
            if shape == "nonadjacent":
                path, made = _alternating(edges, edge.to, node, allowed)
            else:
                path, made = _shortest(edges, edge.to, node, within)
            steps -= made
            if path is not None:
                return [(node, edge), *path]
            if steps < 0:
                return None
    return None


def _shortest(
    edges: list[list[_Edge]], start: int, goal: int, allowed: set[str]
) -> tuple[list[tuple[int, _Edge]] | None, int]:
    """Give the shortest path, as (node, edge that leaves it), and how many edges were looked at."""
    came: dict[int, tuple[int, _Edge] | None] = {start: None}
    queue, made = deque([start]), 0
    while queue:
        node = queue.popleft()
        if node == goal:
            path = []
            step = came[node]
            while step is not None:
                path.append(step)
                step = came[step[0]]
            return path[::-1], made
        for edge in edges[node]:
            made += 1
            if edge.kind in allowed and edge.to not in came:
                came[edge.to] = (node, edge)
                # To go on from a place in time is no step.
                (queue.appendleft if edge.kind == _FREE else queue.append)(edge.to)
    return None, made


def _alternating(
    edges: list[list[_Edge]], start: int, goal: int, allowed: set[str]
) -> tuple[list[tuple[int, _Edge]] | None, int]:
    """Give the shortest path without two rw edges in a row, and none at its ends: such an edge closes the cycle."""
    first = (start, True)
    came: dict[tuple[int, bool], tuple[tuple[int, bool], _Edge] | None] = {first: None}
    queue, made = deque([first]), 0
    while queue:
        state = queue.popleft()
        node, after_rw = state
        if node == goal and not after_rw:
            path = []
            step = came[state]
            while step is not None:
                path.append((step[0][0], step[1]))
                step = came[step[0]]
            return path[::-1], made
        for edge in edges[node]:
            made += 1
            if edge.kind not in allowed or (edge.kind == _RW and after_rw):
                continue
            following = (edge.to, after_rw if edge.kind == _FREE else edge.kind == _RW)
            if following not in came:
                came[following] = (state, edge)
                queue.append(following)
    return None, made


def _told(graph: _Graph, name: str, cycle: list[tuple[int, _Edge]]) -> Anomaly:
    """Put a cycle into words; what lies between two transactions belongs to the first of the edges there."""
    events = graph.events
    first = next(i for i, (node, _) in enumerate(cycle) if node < len(events))
    cycle = cycle[first:] + cycle[:first]
    steps: list[tuple[int, _Edge, int, Any]] = []
    for node, edge in cycle:
        if node < len(events):
            steps.append((node, edge, edge.to, edge.why))
        else:
            start, opened, _, why = steps[-1]
            steps[-1] = (start, opened, edge.to, edge.why or why)
    lines = [_shown(events[node]) for node in dict.fromkeys(step[0] for step in steps)]
    lines += [
        f"{_named(events[a])} came before {_named(events[b])}: {_why(events, a, e, b, w)}" for a, e, b, w in steps
    ]
    return Anomaly(name, "\n".join(lines), tuple(events[node] for node in dict.fromkeys(step[0] for step in steps)))


def _why(events: Sequence[Event], a: int, edge: _Edge, b: int, why: Any) -> str:
    one, other = _named(events[a]), _named(events[b])
    if edge.kind == _WW:
        key, before, after = why
        return f"{other} appended {after!r} to {key} after {one} had appended {before!r} (ww)"
    if edge.kind == _WR:
        return f"{other} read {why[1]!r} in {why[0]}, which {one} had appended (wr)"
    if edge.kind == _RW:
        return f"{one} read {why[0]} without {why[1]!r}, which {other} appended (rw)"
    if edge.kind == _PROCESS:
        return f"process {events[a].process} did one after the other (process)"
    return f"{one} had returned at {events[a].return_}, before {other} was called at {events[b].call} (realtime)"
