"""Signals: the first ends the work, none ends the healing, and none is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from etcdops.errors import HealFailed, Interrupted, MemberFailed
from etcdops.interrupts import deferred, handled, set_note

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.fixture(autouse=True)
def outside() -> Iterator[list[int]]:
    """Signals that arrive where nothing of ours handles them; without this they would end the tests."""
    seen: list[int] = []
    before = {signum: signal.signal(signum, lambda signum, frame: seen.append(signum)) for signum in SIGNALS}
    yield seen
    for signum, handler in before.items():
        signal.signal(signum, handler)


def _ended(work: Callable[[], object], note: Callable[[], str] | None = None) -> Interrupted:
    """Do `work` as a command does, and give the Interrupted that ends it."""
    with pytest.raises(Interrupted) as caught, handled(note):
        work()
    return caught.value


def _signal(signum: int = signal.SIGINT) -> None:
    signal.raise_signal(signum)


def _signal_and_fail() -> None:
    """A signal that is held back, and then an error before it can be raised."""
    with deferred():
        _signal(signal.SIGTERM)
        raise MemberFailed("thor died")


@pytest.mark.parametrize("signum", SIGNALS)
def test_the_first_signal_ends_the_work(outside: list[int], signum: int) -> None:
    """Each of the three raises Interrupted where the work is, with the exit code that shells report."""
    after = []

    def work() -> None:
        _signal(signum)
        after.append("the work went on")

    ended = _ended(work)
    assert (ended.signum, ended.exit_code) == (signum, 128 + signum)
    assert isinstance(ended, KeyboardInterrupt)
    assert after == []
    assert outside == []


def test_afterwards_signals_are_the_callers_again(outside: list[int]) -> None:
    """Behind the block, ended well or not, the handlers that were there before are back, and nothing is pending."""
    with handled():
        pass
    _ended(_signal)
    for signum in SIGNALS:
        _signal(signum)
    assert outside == SIGNALS
    with handled():
        pass


def test_later_signals_say_how_long_healing_needs(outside: list[int], capfd: pytest.CaptureFixture[str]) -> None:
    """While what was broken is healed, each further signal is answered with a note, and healing goes on to its end."""
    healed = []

    def work() -> None:
        try:
            _signal()
        finally:
            _signal()
            _signal(signal.SIGTERM)
            healed.append("all")

    assert _ended(work, lambda: "healing needs up to 30 s").signum == signal.SIGINT
    assert healed == ["all"]
    assert capfd.readouterr().err == "\nhealing needs up to 30 s\n" * 2


def test_the_note_can_be_set_by_who_knows(capfd: pytest.CaptureFixture[str]) -> None:
    """The note is that of the innermost who set it, and is forgotten with the block."""

    def work() -> None:
        try:
            _signal()
        finally:
            _signal()

    def knows() -> None:
        set_note(lambda: "inner")
        work()

    _ended(knows, lambda: "outer")
    _ended(work)
    assert capfd.readouterr().err == "\ninner\n\ncleaning up; this takes a few seconds\n"


def test_a_signal_is_held_back_where_it_would_do_harm() -> None:
    """Inside `deferred`, nested or not, the work goes on; the signal is raised at the outermost end, once."""
    done = []

    def work() -> None:
        with deferred():
            with deferred():
                _signal(signal.SIGTERM)
                done.append("injected")
            done.append("recorded")
        done.append("more work")

    assert _ended(work).signum == signal.SIGTERM
    assert done == ["injected", "recorded"]


def test_healing_inside_deferred_is_not_interrupted_again() -> None:
    """Once a signal has ended the work, the blocks that heal run to their end."""
    done = []

    def work() -> None:
        try:
            _signal()
        finally:
            with deferred():
                _signal()
                done.append("one")
            with deferred():
                done.append("two")

    _ended(work)
    assert done == ["one", "two"]


def test_an_error_while_healing_goes_before_the_signal() -> None:
    """That a fault could not be healed is what a person must learn, also when Ctrl-C was pressed meanwhile."""

    def work() -> None:
        with deferred():
            _signal()
            raise HealFailed("deadpool is still frozen")

    with pytest.raises(HealFailed), handled():
        work()


def test_a_signal_is_not_lost_with_an_error_that_is_handled() -> None:
    """When the error that went before is dealt with, the signal still ends the work: at the end of it at the latest."""
    done = []

    def work() -> None:
        with pytest.raises(MemberFailed):
            _signal_and_fail()
        done.append("dealt with")

    assert _ended(work).signum == signal.SIGTERM
    assert done == ["dealt with"]


def test_a_signal_after_one_that_was_held_back_ends_the_work_at_once() -> None:
    """Work that goes on after an error inside `deferred` can be interrupted, and not only answered with a note."""
    done = []

    def work() -> None:
        with pytest.raises(MemberFailed):
            _signal_and_fail()
        _signal(signal.SIGINT)
        done.append("unstoppable")

    assert _ended(work).signum == signal.SIGTERM
    assert done == []


def test_signals_belong_to_the_outermost_block(outside: list[int]) -> None:
    """A block inside another changes nothing, neither at its begin nor at its end."""

    def work() -> None:
        with handled():
            pass
        _signal(signal.SIGHUP)

    _ended(work)
    assert outside == []


def test_an_ignored_signal_stays_ignored() -> None:
    """Under nohup, a terminal that closes does not end the work."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with handled():
        _signal(signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_change_nothing(outside: list[int]) -> None:
    """Signals reach the main thread alone: a block elsewhere neither takes them over nor holds them back."""
    inside, leave = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with handled(), deferred():
            inside.set()
            leave.wait(20)

    thread = threading.Thread(target=elsewhere)

    def work() -> None:
        thread.start()
        assert inside.wait(20)
        _signal()

    try:
        _ended(work)
    finally:
        leave.set()
        thread.join(20)
    assert outside == []


HEALS = """
import os, signal, sys
from etcdops.interrupts import handled
try:
    with handled():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            sys.stdout.write("healing\\n")
            sys.stdout.flush()
            {body}
            sys.stdout.write("healed\\n")
except KeyboardInterrupt:
    pass
"""


def _start(body: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, "-c", HEALS.format(body=body)], stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "healing\n"
    return process


def _healed(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.read() == "healed\n" and process.wait(20) == 0


def test_a_reader_that_is_gone_does_not_end_the_healing() -> None:
    """The note may have no one to read it (`2>&1 | head`): what heals goes on all the same."""
    with _start("os.close(2); signal.raise_signal(signal.SIGINT)") as process:
        assert _healed(process)
