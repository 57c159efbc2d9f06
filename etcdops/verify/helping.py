"""A process that reads a part of a long history while we read the rest, as one of Python uses one processor."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, cast

from etcdops.errors import StateError
from etcdops.verify.files import Piece, size_of, whole
from etcdops.verify.parts import Part

__all__ = ["Helper", "shared"]

#: A history of less text, in bytes, is read sooner than a process has begun.
_WORTH = 24_000_000

#: How long it takes to read the events of a run, in terms of its history; see `scripts/bench witness`.
_EVENTS = 0.5

#: More would wait for us: what they give is put together one after the other.
_MOST = 3


class _Job(NamedTuple):
    run: str
    members: list[str]
    pieces: list[Piece]


class _Ended(NamedTuple):
    """What came of it: a part, or the message and the remedy of a StateError."""

    part: Part | None
    message: str
    remedy: str


def shared(histories: Sequence[Path]) -> tuple[list[Piece], list[list[Piece]]]:
    """Give the pieces of a run's histories that we read, and those for each process beside us, in order."""
    sizes = [size_of(path) for path in histories]
    total = sum(sizes)
    helpers = min(_processors() - 1, _MOST) if total >= _WORTH else 0
    if helpers < 1:
        return [whole(path) for path in histories], []
    # We read the events, too.
    ours = max(0.0, (1 + _EVENTS) / (helpers + 1) - _EVENTS)
    cuts = [int(total * (ours + (1 - ours) * count / helpers)) for count in range(helpers)]
    ends = [*cuts, math.inf]
    own, *rest = [_cut(histories, sizes, *span) for span in zip([0, *cuts], ends, strict=True)]
    return own, rest


def _cut(histories: Sequence[Path], sizes: Sequence[int], start: int, end: float) -> list[Piece]:
    """Give what lies between two bytes of several files, one behind the other."""
    found, before = [], 0
    for path, size in zip(histories, sizes, strict=True):
        low, high = max(0, start - before), end - before
        # One without a byte, or that cannot be read, is in the piece in which it would begin.
        if low < max(size, 1) and high > 0:
            found.append(Piece(path, low, high if high < size else math.inf))
        before += size
    return found


def _processors() -> int:
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Helper:
    """A process that reads pieces of a history, from when the block begins; it does not outlive the block.

    `part` waits for what it has read. None means that there is no such process, or that it died: whoever asked reads
    `pieces` himself. Raises StateError as the reading does.
    """

    def __init__(self, run: str, members: Sequence[str], pieces: Sequence[Piece]) -> None:
        self.pieces = list(pieces)
        self._job = _Job(run, list(members), self.pieces)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Helper:
        # A session of its own: Ctrl-C is ours, and we end it. From "/", as no file of the directory that we happen to
        # be in is to be imported instead of a library.
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "etcdops.verify.helping"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(_search())},
                start_new_session=True,
            )
            with cast(IO[bytes], self._process.stdin) as told:
                pickle.dump(self._job, told)
        except OSError:
            self.__exit__(None, None, None)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            cast(IO[bytes], self._process.stdout).close()
            self._process = None

    def part(self) -> Part | None:
        """Give what was read."""
        if self._process is None:
            return None
        try:
            ended: _Ended = pickle.load(cast(IO[bytes], self._process.stdout))
        except (EOFError, OSError, pickle.UnpicklingError):
            return None
        if ended.message:
            raise StateError(ended.message, remedy=ended.remedy)
        return ended.part


def _search() -> list[str]:
    """Give where libraries are looked for: first where this one is."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [str(Path(__file__).resolve().parents[2]), *(os.path.abspath(path) for path in given if path)]


def main() -> None:
    """Read what is told on standard input, and write what came of it to standard output."""
    from etcdops.verify.reading import Reader
    from etcdops.workload.lines import uncollected

    job: _Job = pickle.load(sys.stdin.buffer)
    with uncollected():
        try:
            reader = Reader(job.run, job.members)
            reader.read_pieces(job.pieces)
            ended = _Ended(reader.part(), "", "")
        except StateError as error:
            ended = _Ended(None, str(error), error.remedy)
        pickle.dump(ended, sys.stdout.buffer, protocol=5)


if __name__ == "__main__":
    # Under its own name, so that what is written can be read by whoever imported it.
    from etcdops.verify import helping

    helping.main()
