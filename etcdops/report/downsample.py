"""Fewer dots that show the same: no outage is hidden, and none is made up.

Dots are left out only where others of the same stream, kind and outcome stand beside them: in a cell of time and
latency, the first and the last stay. So for each stream

- a pause that lasts longer than a cell is there, from the same instant to the same instant, and no other is;
- whatever did not end well has a dot of its own outcome in its cell, and all of them stay as long as they are fewer
  than the budget; lost writes stay, however many they are;
- the counts of the dots add up to the number of operations.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from etcdops.report.points import LOST, Ints, Points
from etcdops.workload.calls import OK

__all__ = ["BUDGET", "Thinned", "thin"]

#: How many dots a page holds. A dot costs some ten bytes of it, compressed.
BUDGET = 120_000

_MS = 1_000_000
#: Cells to begin with: 1 ms, and thirty to a decade of latency.
_CELL_NS = _MS
_PER_DECADE = 30


class Thinned(NamedTuple):
    """Some of the points; `cell_ns` is the longest time within which points were put together (0: all are there)."""

    points: Points
    cell_ns: int


def thin(points: Points, budget: int = BUDGET) -> Thinned:
    """Give at most `budget` points (and all lost writes) that stand for all of them."""
    total = len(points.at)
    if total <= budget:
        return Thinned(points, 0)
    good = points.outcome == OK
    bad = int((~good).sum())
    cell_ns = 0
    if bad > budget // 2:
        points, cell_ns = _thinned(points, ~good & (points.outcome != LOST), budget // 2)
        good = points.outcome == OK
    left = max(budget - int((~good).sum()), 2)
    points, ok_ns = _thinned(points, good, left)
    return Thinned(points, max(cell_ns, ok_ns))


def _thinned(points: Points, chosen: np.ndarray[tuple[int], np.dtype[np.bool_]], budget: int) -> tuple[Points, int]:
    """Put points together among the chosen ones, in ever larger cells, until these are few enough."""
    rows = np.flatnonzero(chosen)
    if len(rows) <= budget:
        return points, 0
    part = points.take(rows)
    span = int(part.at[-1] - part.at[0]) + 1
    cell_ns, per_decade = _CELL_NS, _PER_DECADE
    while True:
        keep, counts = _cells(part, cell_ns, per_decade)
        if len(keep) <= budget or cell_ns > span:
            break
        cell_ns *= 2
        per_decade = max(per_decade * 2 // 3, 1)
    kept = part.take(keep)._replace(weight=counts)
    others = points.take(np.flatnonzero(~chosen))
    columns = zip(others.columns, kept.columns, strict=True)
    merged = points.of([np.concatenate([first, second]) for first, second in columns])
    return merged.take(np.argsort(merged.at, kind="stable")), cell_ns


def _cells(points: Points, cell_ns: int, per_decade: int) -> tuple[Ints, Ints]:
    """Give which points stay, in order, and for how many each stands."""
    level = np.floor(np.log10(np.maximum(points.took, 1)) * per_decade).astype(np.int64)
    group = (points.stream * 4 + points.outcome) * 2 + points.kind
    keys = np.stack([group, points.at // cell_ns, level, points.member])
    _, cell = np.unique(keys, axis=1, return_inverse=True)
    cell = cell.ravel()
    size = np.zeros(int(cell.max()) + 1, np.int64)
    np.add.at(size, cell, points.weight)
    # Points are in order of time, so that the first and last rows of a cell are its first and last instants.
    first = np.full(len(size), len(cell), np.int64)
    last = np.zeros(len(size), np.int64)
    rows = np.arange(len(cell))
    np.minimum.at(first, cell, rows)
    np.maximum.at(last, cell, rows)
    counts = np.zeros(len(cell), np.int64)
    counts[last] = 1
    counts[first] = np.where(first == last, size, size - 1)
    keep = np.union1d(first, last)
    return keep, counts[keep]
