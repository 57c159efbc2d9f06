"""Ctrl-C, SIGTERM and SIGHUP: end the work at once, and never in the middle of healing.

The first signal raises Interrupted where the work is, so that every fault's `finally` heals it. Every later one only
says how long healing needs: what undoes a fault is never interrupted, and nothing is left frozen.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from etcdops.errors import Interrupted

__all__ = ["deferred", "handled", "set_note"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State:
    """What has arrived, and whether it may be raised now. Signals reach the main thread only, so one will do."""

    depth = 0
    pending = 0
    raised = False
    note: Callable[[], str] = staticmethod(lambda: "cleaning up; this takes a few seconds")


_state = _State()


@contextmanager
def handled(note: Callable[[], str] | None = None) -> Iterator[None]:
    """Turn the three signals into Interrupted inside the block; `note()` is said when more arrive.

    Outside the main thread, and inside another such block, this changes nothing: signals belong to the outermost.
    A signal that the caller's parent had set to be ignored (nohup) stays ignored.
    """
    global _state
    if threading.current_thread() is not threading.main_thread() or _installed():
        yield
        return
    _state = _State()
    if note:
        _state.note = note
    before: dict[int, Any] = {s: signal.getsignal(s) for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    for signum in before:
        signal.signal(signum, _arrived)
    try:
        yield
        _raise_pending()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold signals back inside the block, and raise one that arrived meanwhile at its end.

    For a fault's injection: between what is written in the journal and what is done there is no third state. An error
    in the block goes first: that a fault could not be healed matters more than that somebody pressed Ctrl-C. Outside
    the main thread, which no signal reaches, this changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _state.depth += 1
    try:
        yield
    finally:
        _state.depth -= 1
    _raise_pending()


def set_note(note: Callable[[], str]) -> None:
    """Set what is said when a second signal arrives."""
    _state.note = note


def _installed() -> bool:
    return any(signal.getsignal(signum) is _arrived for signum in _SIGNALS)


def _raise_pending() -> None:
    if _state.depth == 0 and _state.pending and not _state.raised:
        _state.raised = True
        raise Interrupted(_state.pending)


def _arrived(signum: int, frame: FrameType | None) -> None:
    if _state.pending and (_state.raised or _state.depth):
        _say(_state.note())
        return
    _state.pending = _state.pending or signum
    _raise_pending()


def _say(text: str) -> None:
    """Write to stderr, whose reader may be gone: healing must not end by that."""
    try:
        os.write(2, f"\n{text}\n".encode())
    except OSError:
        pass
