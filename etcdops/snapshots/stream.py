"""A member's snapshot as it comes over the wire, watched by a thread that says how far it is and sees it stall."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from etcdops.errors import EtcdError, SnapshotError

if TYPE_CHECKING:
    from etcdops.spec import Tls

__all__ = ["SnapshotStream"]

#: How much may be on the way to us that we have not read.
_WINDOW_BYTES = 2**20

#: The call's own deadline. What ends a call that hangs is that it stalls.
_LONGEST_S = 86_400.0

#: How often the thread looks.
_LOOK_S = 0.25


class SnapshotStream:
    """The snapshot of the member at `url`, as an iterator of its pieces, 32 KiB each.

    `on_look(received, silent_s)` is called a few times a second, from a thread. When no byte has come for `stall_s`
    seconds, SnapshotError is raised; EtcdError when the call fails. Memory is bounded, whatever the size. Leaving the
    `with` block ends the call.
    """

    def __init__(self, url: str, tls: Tls | None, *, stall_s: float, on_look: Callable[[int, float], None]) -> None:
        from etcdops import wire

        self._url = url
        self._stall_s = stall_s
        self._on_look = on_look
        self._connection = wire.Connection(url, tls, window_bytes=_WINDOW_BYTES)
        self._received = 0
        self._last = time.monotonic()
        # While a piece is being written, it is not the member that is slow.
        self._waiting = False
        self._stalled = False
        self._broke: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="etcdops-snapshot", daemon=True)

    def __enter__(self) -> SnapshotStream:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._connection.close()
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        try:
            self._wait()
            for piece in self._connection.snapshot(timeout_s=_LONGEST_S):
                self._waiting = False
                self._received += len(piece)
                yield piece
                self._wait()
        except EtcdError:
            if self._broke:
                raise self._broke from None
            if not self._stalled:
                raise
            raise SnapshotError(
                f"{self._url} has sent nothing for {self._stall_s:.0f} s, after {self._received} bytes of a snapshot",
                remedy="Look at `status` and `logs`: it may be frozen, or its disk stuck. `--member NAME` takes the"
                " snapshot from another one.",
            ) from None

    def _wait(self) -> None:
        self._last = time.monotonic()
        self._waiting = True

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            silent_s = time.monotonic() - self._last if self._waiting else 0.0
            if silent_s > self._stall_s:
                self._stalled = True
                # Ends the call under way.
                self._connection.close()
                return
            try:
                self._on_look(self._received, silent_s)
            except Exception as error:
                # Whoever iterates raises it: in a thread it would only be printed, and nobody would watch any more.
                self._broke = error
                self._connection.close()
                return
