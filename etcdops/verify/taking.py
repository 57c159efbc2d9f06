"""What those share who take the operations of a block of lines: a line, what a key was, and where rows go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from etcdops.verify.shapes import Shapes

__all__ = ["Kv", "Line", "Taker"]


class Line(msgspec.Struct, array_like=True, gc=False):
    """A line of a history; see `workload.history.line_of`."""

    id: int
    stream: str
    process: msgspec.Raw
    member: str
    request: msgspec.Raw
    scheduled: int
    late: int
    took: int
    outcome: str
    first: Any
    second: msgspec.Raw
    attempt: int = 1


#: What a key was: key, value, created, modified, version, lease.
Kv = tuple[str, str, int, int, int, int]


class Taker(Protocol):
    """Where rows go."""

    shapes: Shapes

    key_of: Callable[[Any], int]
    value_of: Callable[[Any], int]
    values_of: Callable[[Sequence[Any]], list[int]]

    def rows(self, kvs: Sequence[Kv]) -> int:
        """Add rows for what keys were, and give the first."""

    def take_other(self, number: int, line: Line) -> int:
        """Take an operation of whatever kind and outcome, and give its flags."""
