"""Work that may hang, done in a thread and watched: how far it is, whether it still moves, and that it can be ended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from etcdops.errors import SnapshotError
from etcdops.snapshots.pace import EVERY_S, Pace

__all__ = ["Stopped", "Work", "watch"]

T = TypeVar("T")

#: How often the watcher looks.
_LOOK_S = 0.1

#: How long what is stopped may take to tidy up, before its connection is cut and after that.
_GRACE_S = 5.0
_END_S = 1.0


class Stopped(Exception):
    """The work is not wanted any more."""


class Work:
    """What the thread says of its work, and what it learns: call `moved` for every piece."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        self._progress = progress
        self._stopped = False
        #: Whether something has been, or may have been, changed at the far end or here.
        self.changing = False
        self.begin("connecting")

    def begin(self, doing: str, total: int = 0) -> None:
        """Say what is done from here on, and how many bytes there are to it."""
        self.doing = doing
        self.done = 0
        self.pace = Pace(self._progress, doing, total)
        self.moved(0)

    def moved(self, count: int) -> None:
        """Say that so many bytes more are done, or, with 0, that it goes on; raise Stopped if it should not."""
        if self._stopped:
            raise Stopped
        self.done += count
        self.last = time.monotonic()

    def stop(self) -> None:
        """Have it end at the next piece."""
        self._stopped = True


def watch(
    work: Callable[[Work], T], *, where: str, stall_s: float, progress: Callable[[str], None], abort: Callable[[], None]
) -> T:
    """Do the work in a thread, and give what it gives, or raise what it raises.

    `progress` is told every two seconds how far it is. When nothing has moved for `stall_s` seconds, `abort` is called
    and SnapshotError raised. On an interruption it may tidy up first, for a few seconds.
    """
    state = Work(progress)
    over = threading.Event()
    outcome: list[Any] = []
    broke: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(work(state))
        except BaseException as error:
            broke.append(error)
        finally:
            over.set()

    stalled = False
    threading.Thread(target=run, name="etcdops-transfer", daemon=True).start()
    try:
        while not over.wait(_LOOK_S):
            silent_s = time.monotonic() - state.last
            if silent_s > stall_s:
                stalled = True
                raise SnapshotError(
                    f"nothing has moved for {stall_s:.0f} s while {state.doing} ({where}), after {state.done} bytes",
                    remedy="Look at the network and at the other end, and do it again. --stall SECONDS waits longer.",
                )
            state.pace(state.done, note=f"; nothing for {silent_s:.0f} s" if silent_s > EVERY_S else "")
    except BaseException:
        state.stop()
        if stalled or not over.wait(_GRACE_S):
            abort()
            over.wait(_END_S)
        raise
    if broke:
        raise broke[0]
    found: T = outcome[0]
    return found
