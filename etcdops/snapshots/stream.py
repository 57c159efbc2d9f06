"""A member's snapshot as it comes over the wire: read by a thread, so that who writes it down can see it stall."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

from etcdops.errors import SnapshotError

if TYPE_CHECKING:
    from etcdops.spec import Tls

__all__ = ["SnapshotStream"]

#: Pieces come in 32 KiB; to hand over each by itself would cost more than to copy it.
_BATCH_BYTES = 2**20
_BATCHES_WAITING = 4

#: How much may be on the way to us that we have not read.
_WINDOW_BYTES = 2**20

#: The call's own deadline. What ends a call that hangs is that it stalls.
_LONGEST_S = 86_400.0

#: How often the one who waits looks.
_LOOK_S = 0.25


class SnapshotStream:
    """The snapshot of the member at `url`, as an iterator of large pieces, and of b"" while it waits for the next.

    When no byte has come for `stall_s` seconds, SnapshotError is raised; EtcdError when the call fails. Memory is
    bounded, whatever the size. Leaving the `with` block ends the call.
    """

    def __init__(self, url: str, tls: Tls | None, *, stall_s: float) -> None:
        from etcdops import wire

        self._url = url
        self._stall_s = stall_s
        self._connection = wire.Connection(url, tls, window_bytes=_WINDOW_BYTES)
        self._queue: queue.Queue[bytes | Exception | None] = queue.Queue(_BATCHES_WAITING)
        self._over = threading.Event()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._read, name="etcdops-snapshot", daemon=True)

    @property
    def silent_s(self) -> float:
        """For how many seconds nothing has come."""
        return time.monotonic() - self._last

    def __enter__(self) -> SnapshotStream:
        self._last = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._connection.close()
        self._thread.join()

    def __iter__(self) -> Iterator[bytes]:
        received = 0
        while True:
            try:
                piece = self._queue.get(timeout=_LOOK_S)
            except queue.Empty:
                if self.silent_s > self._stall_s:
                    raise SnapshotError(
                        f"{self._url} has sent nothing for {self.silent_s:.0f} s, after {received} bytes of a snapshot",
                        remedy="Look at `status` and `logs`: it may be frozen, or its disk stuck. `--member NAME` takes"
                        " the snapshot from another one.",
                    ) from None
                yield b""
                continue
            if piece is None:
                return
            if isinstance(piece, Exception):
                raise piece
            received += len(piece)
            yield piece

    def _read(self) -> None:
        end: Exception | None = None
        batch: list[bytes] = []
        size = 0
        try:
            for blob in self._connection.snapshot(timeout_s=_LONGEST_S):
                self._last = time.monotonic()
                batch.append(blob)
                size += len(blob)
                if size >= _BATCH_BYTES:
                    self._put(b"".join(batch))
                    batch, size = [], 0
            self._put(b"".join(batch))
        except Exception as error:
            # Whoever iterates raises it.
            end = error
        self._put(end)

    def _put(self, piece: bytes | Exception | None) -> None:
        while not self._over.is_set():
            try:
                self._queue.put(piece, timeout=_LOOK_S)
            except queue.Full:
                # The one who writes is slow, which is not the member's fault.
                self._last = time.monotonic()
                continue
            return
