"""A run as it lies in its files: each part is read when it is looked at, and the columns without the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from etcdops.verify.columns import Columns
from etcdops.verify.reading import read_columns
from etcdops.verify.recorded import Observed, Recorded, State
from etcdops.workload.deliveries import ExtraDeliveries, read_deliveries
from etcdops.workload.history import Operation, read_history

__all__ = ["read_operations", "read_recorded"]

_T = TypeVar("_T")


class _Later(Sequence[_T]):
    """A sequence that is read when it is first looked at."""

    def __init__(self, read: Callable[[], list[_T]]) -> None:
        self._read = read

    @cached_property
    def _all(self) -> list[_T]:
        return self._read()

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, at: Any) -> Any:
        return self._all[at]

    def __iter__(self) -> Iterator[_T]:
        return iter(self._all)


class _Kept(Recorded):
    """A run in its files."""

    histories: Sequence[Path]
    events: Mapping[str, Path]

    @cached_property
    def columns(self) -> Columns:
        base = self.base or State(0, ())
        return read_columns(self.observed.run, self.observed.members, base, self.histories, self.events)

    def _replace(self, **changes: Any) -> Recorded:  # type: ignore[override]  # it is none of these files any more
        return Recorded(*self)._replace(**changes)


def read_recorded(
    observed: Observed, histories: Sequence[Path], events: Mapping[str, Path], extra: Sequence[ExtraDeliveries] = ()
) -> Recorded:
    """Give a run whose records are read when they are needed: the columns as one, operations and deliveries if at all.

    Whatever looks at them raises StateError as `read_columns` does.
    """
    deliveries = {member: _Later(partial(read_deliveries, path)) for member, path in events.items()}
    kept = _Kept(observed, _Later(partial(read_operations, histories)), deliveries, extra)
    kept.histories, kept.events = histories, events
    return kept


def read_operations(histories: Sequence[Path]) -> list[Operation]:
    """Give all operations of some files, in the order in which they ended; raises as `read_history`."""
    found = [operation for path in histories for operation in read_history(path)]
    return sorted(found, key=lambda operation: operation.return_ns)
