"""Hashing and writing what comes in, in a thread of its own, while the next of it is received."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from etcdops.snapshots.trailer import Trailer

__all__ = ["Sink"]

#: Pieces are handed over together: to do so with each by itself would cost more than to hash it.
_BATCH_BYTES = 2**20
_BATCHES_WAITING = 4


class Sink:
    """Takes the pieces of a snapshot, and has each hashed and written in order; memory is bounded.

    `close` waits for that, and gives what is known of the trailer. What `write` raises is raised by the next `put`, or
    by `close`. Leaving the `with` block ends the thread, whatever was left to be written.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._trailer = Trailer()
        self._batch: list[bytes] = []
        self._size = 0
        self._queue: queue.Queue[list[bytes] | None] = queue.Queue(_BATCHES_WAITING)
        self._broke: Exception | None = None
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name="etcdops-sink", daemon=True)

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._dropped = True
        if self._thread.is_alive():
            self._queue.put(None)
        self._thread.join()

    def put(self, piece: bytes) -> None:
        """Take the next piece; waits while too much is left to be written."""
        self._batch.append(piece)
        self._size += len(piece)
        if self._size >= _BATCH_BYTES:
            self._hand_over()

    def close(self) -> Trailer:
        """Wait until everything is written, and give what is known of the trailer."""
        self._hand_over()
        self._queue.put(None)
        self._thread.join()
        self._raise()
        return self._trailer

    def _hand_over(self) -> None:
        self._raise()
        self._queue.put(self._batch)
        self._batch, self._size = [], 0

    def _raise(self) -> None:
        if self._broke:
            raise self._broke

    def _work(self) -> None:
        # To the end, in any case: the one who puts must never wait for ever.
        while (batch := self._queue.get()) is not None:
            if self._broke or self._dropped:
                continue
            try:
                data = b"".join(batch)
                self._trailer.feed(data)
                self._write(data)
            except Exception as error:
                self._broke = error
