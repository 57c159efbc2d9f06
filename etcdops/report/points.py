"""A run's operations as dots: when each was answered, how long that took, and how it ended; as columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from etcdops.errors import EtcdopsError
from etcdops.verify.files import blocks, decoded, whole
from etcdops.verify.taking import Line
from etcdops.workload.calls import FAILED, OUTCOMES, UNKNOWN
from etcdops.workload.lines import found, uncollected

__all__ = ["KINDS", "LOST", "NotOk", "Points", "counted", "mark_lost", "read_points"]

Ints = npt.NDArray[np.int64]

#: A further outcome, after those of `workload.calls`: it was acknowledged, and is gone.
LOST = 3

#: Kinds of operations as they are told apart: those that can make a revision, and all others.
KINDS = ("read", "write")

#: So many different errors are told apart; the rest are told by their code alone.
_NOTES = 200

_WRITES = re.compile(rb'^\["(?:put|delete|revoke)"')
_TXN = re.compile(rb'^\["txn".*?"(?:put|delete)"', re.DOTALL)


class NotOk(NamedTuple):
    """One operation that did not end well, as it is told: with its request as the record has it."""

    id: int
    at_ns: int
    took_ns: int
    outcome: str
    stream: str
    member: str
    request: str
    code: str
    error: str
    writes: bool


class Points(NamedTuple):
    """Operations in columns, in order of time. `stream` and `member` are numbers of `streams` and `members`.

    `at` is when the answer was in hand (or was given up), ns; `took` is the time since the operation was scheduled,
    ns, so that it holds what it had to wait for before it was sent. `outcome` is OK, FAILED, UNKNOWN or LOST, `kind` an
    index into KINDS. `note` is a number of `notes`: why it did not end well. `weight` is for how many operations
    a point stands.
    """

    streams: tuple[str, ...]
    members: tuple[str, ...]
    notes: tuple[str, ...]
    id: Ints
    at: Ints
    took: Ints
    outcome: Ints
    kind: Ints
    stream: Ints
    member: Ints
    note: Ints
    weight: Ints

    def take(self, rows: Ints) -> Points:
        """Give the points of some rows."""
        return self.of([column[rows] for column in self.columns])

    @property
    def columns(self) -> Sequence[Ints]:
        """The columns, without the names that their numbers are for."""
        return self[3:]

    def of(self, columns: Sequence[Ints]) -> Points:
        """Give points of other columns, with the same names."""
        return Points(self.streams, self.members, self.notes, *columns)

    def __bool__(self) -> bool:
        return len(self.at) > 0


class _Columns:
    def __init__(self) -> None:
        self.streams: dict[str, int] = {}
        self.members: dict[str, int] = {}
        self.notes: dict[str, int] = {"": 0}
        self.parts: list[Ints] = []
        self.not_ok: list[NotOk] = []

    def add(self, lines: Sequence[Line]) -> None:
        streams, members = self.streams, self.members
        for line in lines:
            streams.setdefault(line.stream, len(streams))
            members.setdefault(line.member, len(members))
        bad = {at: _not_ok(line) for at, line in enumerate(lines) if line.outcome != "ok"}
        columns = [
            [line.id for line in lines],
            [line.scheduled + line.late + line.took for line in lines],
            [line.late + line.took for line in lines],
            [OUTCOMES.get(line.outcome, UNKNOWN) for line in lines],
            [_writes(bytes(line.request)) for line in lines],
            [streams[line.stream] for line in lines],
            [members[line.member] for line in lines],
            [self._note(bad[at]) if at in bad else 0 for at in range(len(lines))],
        ]
        self.parts.append(np.array(columns, np.int64))
        self.not_ok += bad.values()

    def _note(self, op: NotOk) -> int:
        text = f"{op.code}: {op.error}" if op.error else op.code
        if text not in self.notes and len(self.notes) >= _NOTES:
            # The codes of gRPC are few.
            text = op.code if op.code in self.notes or len(self.notes) < _NOTES + 50 else ""
        return self.notes.setdefault(text, len(self.notes))

    def finish(self) -> Points:
        table = np.concatenate([np.empty((8, 0), np.int64), *self.parts], axis=1)
        table = table[:, np.argsort(table[1], kind="stable")]
        columns: Sequence[Ints] = [*table, np.ones(table.shape[1], np.int64)]
        return Points(tuple(self.streams), tuple(self.members), tuple(self.notes), *columns)


def _writes(request: bytes) -> bool:
    return bool(_WRITES.match(request) or _TXN.match(request))


def _not_ok(line: Line) -> NotOk:
    second: Any = msgspec.json.decode(line.second)
    return NotOk(
        line.id,
        line.scheduled + line.late + line.took,
        line.late + line.took,
        line.outcome,
        line.stream,
        line.member,
        bytes(line.request).decode(errors="replace"),
        str(line.first),
        str(second or ""),
        _writes(bytes(line.request)),
    )


_lines = msgspec.json.Decoder(Line)


def read_points(folders: Sequence[Path], problems: list[str]) -> tuple[Points, list[NotOk]]:
    """Give all operations of some windows, and those that did not end well as they are told.

    What cannot be read is added to `problems`; what comes before it in its file is there. Never raises for damage.
    """
    columns = _Columns()
    with uncollected():
        for folder in folders:
            for name in ("history.jsonl", "own.jsonl"):
                path = folder / name
                if not found(path):
                    if name == "history.jsonl":
                        problems.append(f"{path.name} is missing in {folder.name}: none of its operations are shown")
                    continue
                try:
                    for first, block in blocks(whole(path), "history"):
                        columns.add(decoded(_lines, path, first, block))
                except EtcdopsError as error:
                    problems.append(str(error))
        return columns.finish(), columns.not_ok


def mark_lost(points: Points, ids: Collection[int]) -> Points:
    """Give the same points, those of some operations marked as lost."""
    if not ids:
        return points
    lost = np.isin(points.id, list(ids))
    return points._replace(outcome=np.where(lost, LOST, points.outcome))


def counted(points: Points) -> dict[str, int]:
    """Give how many operations of each kind of end there are."""
    named = {"ok": 0, "failed": FAILED, "unknown": UNKNOWN, "lost": LOST}
    return {name: int(points.weight[points.outcome == number].sum()) for name, number in named.items()}
