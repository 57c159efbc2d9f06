"""The process that sends the traffic. It is started by `etcdops.workload.traffic` and talks to it over pipes.

It reads a TrafficPlan from the first line of its standard input, sends by the plan's schedule, records every operation
and what the watches deliver, and writes a Progress to its standard output every 50 ms. Its commands are lines:

    stop                      stop sending, wait for the answers that are due, tell the Summary; the watches go on
    close REVISION SECONDS    wait until every watch has delivered all up to REVISION, at most so long; close the files,
                              tell Closed, and end; a third word, "compress", says to compress the files too

After "stop", "close" must come within a minute, or all is closed without it. The end of its input, or another parent
than at its start, means that nobody waits for it any more: it ends at once, whatever the members do.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec

from etcdops.errors import EtcdopsError
from etcdops.workload import lines
from etcdops.workload.deliveries import EventsWriter, ExtraWatch, events_file, extra_file
from etcdops.workload.history import HistoryWriter
from etcdops.workload.plan import Closed, Progress, Summary, TrafficPlan
from etcdops.workload.profiles import load
from etcdops.workload.sending import Sender
from etcdops.workload.watches import ALL_KEYS, MemberWatch, keep_all, until_reached

__all__ = ["main"]

_TICK_S = 0.05
#: The longest that "close" is waited for after "stop", and the longest that it may wait itself.
CLOSE_S = 60.0


class _Parent:
    """The process that started this one: commands come from it, and reports go to it."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._input = b""
        self._unsent = b""
        self._encode = msgspec.json.Encoder().encode
        # What a library may print must not get among the reports.
        self._output = os.dup(1)
        os.dup2(2, 1)

    def read_plan(self) -> TrafficPlan:
        """Wait for the plan; end this process if none comes."""
        while b"\n" not in self._input:
            data = os.read(0, 65536)
            if not data:
                os._exit(0)
            self._input += data
        line, _, self._input = self._input.partition(b"\n")
        return msgspec.json.decode(line, type=TrafficPlan)

    def listen(self, command: Callable[[list[str]], None], gone: Callable[[], None]) -> None:
        """Call `command` with the words of each, and `gone` when the parent has gone."""
        os.set_blocking(0, False)
        loop = asyncio.get_running_loop()

        def take() -> None:
            *whole, self._input = self._input.split(b"\n")
            for line in whole:
                command(line.decode().split())

        def readable() -> None:
            try:
                data = os.read(0, 65536)
            except BlockingIOError:
                return
            if not data:
                loop.remove_reader(0)
                gone()
            self._input += data
            take()

        loop.add_reader(0, readable)
        take()

    def is_gone(self) -> bool:
        """Tell whether this process has another parent now. (A copy of our input's pipe may outlive the parent.)"""
        return os.getppid() != self._pid

    def tell(self, message: Progress | Summary | Closed) -> None:
        """Report; a Progress that finds the pipe full is dropped, for the next one says more. The others wait."""
        waits = not isinstance(message, Progress)
        os.set_blocking(self._output, waits)
        if waits or not self._unsent:
            self._unsent += self._encode(message) + b"\n"
        try:
            while self._unsent:
                # A full pipe may take a part of a long line; the rest must follow before anything else.
                self._unsent = self._unsent[os.write(self._output, self._unsent) :]
        except (BlockingIOError, BrokenPipeError):
            pass


class _Recording:
    """The files of a run, and who fills them."""

    def __init__(self, plan: TrafficPlan) -> None:
        self.plan = plan
        self.history = HistoryWriter(plan.output, plan.run)
        self.events: list[EventsWriter] = []
        self.watches: dict[str, MemberWatch] = {}
        self.profile = load(plan.profile, plan.setting)
        self.sender = Sender(plan, self.history, self.profile)
        if plan.watch_from:
            members = list(plan.endpoints)
            for member in members:
                self._watch(member, None)
            for number, extra in enumerate(self.profile.watches() if plan.clients else ()):
                self._watch(members[number % len(members)], extra)

    def _watch(self, member: str, extra: ExtraWatch | None) -> None:
        plan, folder = self.plan, Path(self.plan.output).parent
        path = extra_file(folder, member, extra.name) if extra else events_file(folder, member)
        writer = EventsWriter(path, plan.run, member, extra)
        self.events.append(writer)
        watch = MemberWatch(
            plan.endpoints[member],
            plan.tls,
            writer,
            plan.watch_from,
            life_s=plan.max_s + 2 * CLOSE_S,
            span=(extra.key, extra.range_end) if extra else ALL_KEYS,
            filters=extra.filters if extra else (),
        )
        self.watches[f"{member}/{extra.name}" if extra else member] = watch

    def flush(self) -> None:
        """Write what is held back."""
        self.history.flush()
        for writer in self.events:
            writer.flush()

    def close(self, compress: bool) -> None:
        """Close the files; a second time does nothing."""
        writers: list[HistoryWriter | EventsWriter] = [self.history, *self.events]
        for writer in writers:
            writer.close()
            if compress:
                lines.compress(writer.path)


class _Close(NamedTuple):
    """What "close" says."""

    revision: int = 0
    timeout_s: float = 0.0
    compress: bool = False


async def _serve(plan: TrafficPlan, parent: _Parent) -> None:
    recording = _Recording(plan)
    sender = recording.sender
    closing: asyncio.Future[_Close] = asyncio.get_running_loop().create_future()

    def end_now() -> None:
        sender.abandon()
        recording.flush()
        os._exit(0)

    def close(how: _Close) -> None:
        sender.stop()
        if not closing.done():
            closing.set_result(how)

    def command(words: list[str]) -> None:
        if words[0] == "stop":
            sender.stop()
        else:
            close(_Close(int(words[1]), min(CLOSE_S, float(words[2])), "compress" in words))

    def end_by_itself() -> None:
        close(_Close())

    parent.listen(command, end_now)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, end_by_itself)
    loop.call_later(plan.max_s, end_by_itself)

    async def report() -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            recording.flush()
            parent.tell(Progress(time.monotonic_ns(), sender.counts(), sender.kinds()))
            if parent.is_gone():
                end_now()

    async def send() -> None:
        parent.tell(await sender.run())
        await asyncio.wait({closing}, timeout=CLOSE_S)
        end_by_itself()
        how = closing.result()
        await until_reached(recording.watches, how.revision, how.timeout_s)

    # All but the sending end only by an error, such as a disk without room for the record.
    reporting = loop.create_task(report())
    sending = loop.create_task(send())
    watching = loop.create_task(keep_all(recording.watches))
    tasks = {reporting, sending, watching}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        watching.cancel()
        await asyncio.wait({watching})
        sender.abandon()
        recording.close(closing.done() and closing.result().compress)
    parent.tell(Closed({name: watch.seen for name, watch in recording.watches.items()}))


def main() -> NoReturn:
    """Send the traffic that the parent's plan asks for, and end the process."""
    parent = _Parent()
    # The terminal's Ctrl-C and hang-up are for the parent: it ends this process when it wants the record closed.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        plan = parent.read_plan()
        # Should all else hang, the kernel ends this process.
        signal.setitimer(signal.ITIMER_REAL, plan.max_s + plan.deadline_s + 2 * CLOSE_S + 10)
        asyncio.run(_serve(plan, parent))
        code = 0
    except (EtcdopsError, msgspec.MsgspecError) as error:
        print(f"etcdops traffic: {error}", file=sys.stderr)
        code = 1
    except Exception:
        traceback.print_exc()
        code = 1
    # Not by way of gRPC's own clean-up, which may wait for members that do not answer.
    sys.stderr.flush()
    os._exit(code)
