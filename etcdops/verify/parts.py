"""Operations in columns as a part of a history: what one process has read, with numbers of its own for everything."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from etcdops.verify.shapes import ABSENT, TARGETS, UNSAID, Ints
from etcdops.workload.history import Operation

__all__ = ["Part", "Translation"]


class Part(NamedTuple):
    """What was taken of a history. Keys, values, members, streams and bounds are in the order of their numbers.

    The tables are those of `Builder` and `Shapes`, `counts` is how many operations came of each file.
    """

    keys: list[Any]
    values: list[Any]
    members: list[str]
    streams: list[str]
    bounds: list[Any]
    kvs: list[Ints]
    operations: list[Ints]
    states: list[Ints]
    events: list[Ints]
    compares: list[Ints]
    spans: list[Ints]
    granted: list[Ints]
    attempts: list[Ints]
    general: dict[int, Operation]
    failed: dict[int, Operation]
    counts: dict[Path, int]


class Translation(NamedTuple):
    """What numbers of a part are in the whole: by number, and, of what is counted through, from which on."""

    keys: Ints
    values: Ints
    members: Ints
    streams: Ints
    bounds: Ints
    kvs: int
    operations: int
    states: int

    def value(self, numbers: Ints) -> Ints:
        """Give values' numbers; what is less than 0 is the same everywhere."""
        return _translated(self.values, numbers)

    def row(self, rows: Ints) -> Ints:
        """Give rows of the table of keys; ABSENT stays."""
        return np.where(rows == ABSENT, ABSENT, rows.astype(np.int64) + self.kvs)

    def key_said(self, numbers: Ints) -> Ints:
        """Give keys' numbers; UNSAID stays."""
        assert UNSAID < 0
        return _translated(self.keys, numbers)

    def operand(self, targets: Ints, operands: Ints) -> Ints:
        """Give what is compared with, which may be a value's number."""
        values = targets == TARGETS.index("value")
        if np.any(values):
            operands = operands.copy()
            operands[values] = self.value(operands[values])
        return operands


def _translated(by_number: Ints, numbers: Ints) -> Ints:
    if not len(by_number):
        return numbers
    return np.where(numbers < 0, numbers, by_number[np.maximum(numbers, 0)])
