"""What is said while something takes long: how far it is, every two seconds, and that it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from etcdops.units import size_text

__all__ = ["EVERY_S", "Pace", "heartbeat"]

#: How often something is said.
EVERY_S = 2.0


class Pace:
    """Says how many bytes are done, at most every two seconds; call it as often as you like."""

    def __init__(self, progress: Callable[[str], None], doing: str, total: int = 0) -> None:
        self._progress = progress
        self._doing = doing
        self._total = total
        self._began = self._said = time.monotonic()

    def __call__(self, done: int, *, note: str = "") -> None:
        """Say it if it is time to; `note` is added."""
        at = time.monotonic()
        if at - self._said < EVERY_S:
            return
        self._said = at
        rate = done / (at - self._began)
        told = f"{self._doing}: {size_text(done)}"
        if self._total:
            told += f" of about {size_text(max(self._total, done))}"
        told += f", {size_text(rate)}/s"
        if self._total > done and rate:
            told += f", {(self._total - done) / rate:.0f} s left"
        self._progress(f"{told}{note}")


@contextmanager
def heartbeat(progress: Callable[[str], None], doing: str) -> Iterator[None]:
    """Say every two seconds that `doing` goes on, from a thread, while the block waits for it."""
    over = threading.Event()
    broke: list[Exception] = []
    began = time.monotonic()

    def beat() -> None:
        while not over.wait(EVERY_S):
            try:
                progress(f"{doing}: {time.monotonic() - began:.0f} s so far")
            except Exception as error:
                broke.append(error)
                return

    thread = threading.Thread(target=beat, name="etcdops-heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if broke:
        raise broke[0]
