"""The process that sends the traffic. It is started by `etcdops.workload.traffic` and talks to it over pipes.

It reads a TrafficPlan from the first line of its standard input, sends by the plan's schedule, appends every operation
to the record and writes a Progress to its standard output every 50 ms. The line "stop" makes it stop sending, wait for
the answers that are due and end with a Summary. The end of its input, or another parent than at its start, means that
nobody waits for it any more: it ends at once, whatever the members do.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
import traceback
from array import array
from collections.abc import Callable
from typing import NoReturn

import msgspec

from etcdops.errors import EtcdError, EtcdopsError
from etcdops.wire import AsyncConnection
from etcdops.workload.history import FAILOVER_READ, PINNED, HistoryWriter, Op, Operation, Outcome, key_prefix
from etcdops.workload.plan import Counts, Progress, Summary, TrafficPlan

__all__ = ["main"]

_TICK_S = 0.05
# Waking up costs more than sending: at high rates what falls due within this time goes out together, late by no more.
_PAUSE_MIN_S = 0.002
# A slow schedule, too, must notice soon that it is to stop.
_PAUSE_MAX_S = 0.05
_LEAD_NS = 20_000_000
# So many operations go out before answers are looked at again, when the schedule has run ahead.
_BURST = 64
_SECOND = 1_000_000_000
_MS = 1_000_000


class _Stream:
    """One stream: where its next operation goes, and what has become of those before."""

    __slots__ = ("at", "counts", "members", "name", "op", "prefix", "tries")

    def __init__(self, name: str, plan: TrafficPlan) -> None:
        pinned = name.startswith(PINNED)
        self.name = name
        self.op: Op = "get" if name == FAILOVER_READ else "put"
        self.members = (name[len(PINNED) :],) if pinned else tuple(plan.endpoints)
        self.prefix = key_prefix(plan.run, name)
        self.counts = Counts()
        #: The member that the next operation begins with.
        self.at = 0
        #: Seconds that one try may take.
        self.tries = plan.deadline_s if pinned else plan.try_deadline_s


class _Try:
    """A call under way: what its record will hold besides its end."""

    __slots__ = ("attempt", "call_ns", "id", "key", "member", "scheduled_ns", "stream", "value")

    def __init__(self, number: int, stream: _Stream, member: str, key: str, value: str, due: int, attempt: int) -> None:
        self.id = number
        self.stream = stream
        self.member = member
        self.key = key
        self.value = value
        self.scheduled_ns = due
        self.call_ns = 0
        self.attempt = attempt


class _Sender:
    """Sends a plan's operations and records them."""

    def __init__(self, plan: TrafficPlan, writer: HistoryWriter) -> None:
        self._plan = plan
        self._writer = writer
        self._streams = tuple(_Stream(name, plan) for name in plan.streams)
        self._connections: dict[str, AsyncConnection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: dict[int, _Try] = {}
        self._next_id = 1
        self._late_ns = array("q")
        # What the reading stream reads: the key that was acknowledged last, absent until there is one.
        self._read_key = key_prefix(plan.run, FAILOVER_READ) + "none"
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None
        self.began_ns = 0
        self.ended_ns = 0

    def stop(self) -> None:
        """Stop sending."""
        self._stopped.set()

    async def run(self) -> Summary:
        """Send until stopped, and give the summary when all answers are in or overdue."""
        plan = self._plan
        self._connections = {member: AsyncConnection(url, plan.tls) for member, url in plan.endpoints.items()}
        # Open the connections before the schedule begins, so that the first operations do not pay for it. A member that
        # does not answer now is sent to all the same.
        key, timeout_s = self._read_key.encode(), min(1.0, plan.deadline_s)
        calls = (connection.range(key, timeout_s=timeout_s) for connection in self._connections.values())
        await asyncio.gather(*calls, return_exceptions=True)
        # What exists now stays: the collector need not look at it, and looks less often at what comes and goes.
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000, 50, 1000)
        cpu_s = time.process_time()
        await self._send_all()
        self.ended_ns = time.monotonic_ns()
        cpu_s = time.process_time() - cpu_s
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=plan.deadline_s + 1)
        if self._failure is not None:
            raise self._failure
        complete = not self._under_way
        self.abandon()
        late = sorted(self._late_ns)
        return Summary(
            streams=self.counts(),
            began_ns=self.began_ns,
            ended_ns=self.ended_ns,
            late_p99_ms=late[int(0.99 * (len(late) - 1))] / _MS if late else 0.0,
            late_max_ms=late[-1] / _MS if late else 0.0,
            cpu_s=cpu_s,
            complete=complete,
        )

    async def _send_all(self) -> None:
        streams, total_rate = self._streams, self._plan.rate * len(self._streams)
        stopped = self._stopped
        self.began_ns = time.monotonic_ns() + _LEAD_NS
        tick = 0
        while not stopped.is_set():
            due_ns = self.began_ns + tick * _SECOND // total_rate
            now_ns = time.monotonic_ns()
            burst = 0
            while due_ns <= now_ns and burst < _BURST:
                self._send(streams[tick % len(streams)], due_ns)
                tick += 1
                burst += 1
                due_ns = self.began_ns + tick * _SECOND // total_rate
            pause_s = max(_PAUSE_MIN_S, (due_ns - now_ns) / _SECOND) if burst < _BURST else 0.0
            await asyncio.sleep(min(_PAUSE_MAX_S, pause_s))

    def _send(self, stream: _Stream, due_ns: int) -> None:
        """Start one scheduled operation, or record that the bound of calls in flight forbids it."""
        counts = stream.counts
        if counts.in_flight >= self._plan.bound:
            now_ns = time.monotonic_ns()
            number, key, value = self._name(stream)
            member = stream.members[stream.at]
            counts.failed += 1
            counts.not_sent += 1
            self._writer.append(
                Operation(
                    id=number,
                    stream=stream.name,
                    member=member,
                    op=stream.op,
                    key=key,
                    value=value,
                    scheduled_ns=due_ns,
                    call_ns=now_ns,
                    return_ns=now_ns,
                    outcome="failed",
                    code="NOT_SENT",
                    error=f"{counts.in_flight} operations of this stream were in flight",
                )
            )
            return
        counts.in_flight += 1
        task = asyncio.get_running_loop().create_task(self._operate(stream, due_ns))
        self._tasks.add(task)
        task.add_done_callback(self._operated)

    def _operated(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self.stop()

    async def _operate(self, stream: _Stream, due_ns: int) -> None:
        """Try one operation on the stream's members, in order, until one acknowledges it or its time is over."""
        members = stream.members
        first = stream.at
        end_ns = 0
        for attempt in range(1, len(members) + 1):
            at = (first + attempt - 1) % len(members)
            number, key, value = self._name(stream)
            one = _Try(number, stream, members[at], key, value, due_ns, attempt)
            self._under_way[number] = one
            stream.counts.sent += 1
            one.call_ns = now_ns = time.monotonic_ns()
            if attempt == 1:
                end_ns = now_ns + int(self._plan.deadline_s * _SECOND)
                self._late_ns.append(now_ns - due_ns)
            good = await self._try(one, min(stream.tries, (end_ns - now_ns) / _SECOND))
            if good:
                break
            # Only the first of those that fail on a member moves the stream on.
            if stream.at == at:
                stream.at = (at + 1) % len(members)
            if time.monotonic_ns() >= end_ns:
                break
        stream.counts.in_flight -= 1

    async def _try(self, one: _Try, timeout_s: float) -> bool:
        """Make one call and record it; tell whether it was acknowledged."""
        connection = self._connections[one.member]
        key = one.key.encode()
        try:
            if one.stream.op == "put":
                revision = (await connection.put(key, one.value.encode(), timeout_s=timeout_s)).revision
                return_ns = time.monotonic_ns()
                self._read_key = one.key
            else:
                answer = await connection.range(key, timeout_s=timeout_s)
                return_ns = time.monotonic_ns()
                revision = answer.revision
                one.value = answer.kvs[0].value.decode() if answer.kvs else ""
        except EtcdError as error:
            return_ns = time.monotonic_ns()
            definite = error.definite or one.stream.op == "get"
            self._record(one, return_ns, "failed" if definite else "unknown", code=error.code, error=error.text)
            return False
        counts = one.stream.counts
        counts.last_ok_call_ns = max(counts.last_ok_call_ns, one.call_ns)
        counts.last_ok_return_ns = max(counts.last_ok_return_ns, return_ns)
        self._record(one, return_ns, "ok", revision=revision)
        return True

    def _name(self, stream: _Stream) -> tuple[int, str, str]:
        """Give the number, key and value of the stream's next call."""
        number = self._next_id
        self._next_id += 1
        if stream.op == "get":
            return number, self._read_key, ""
        return number, f"{stream.prefix}{number:08d}", f"{self._plan.run}/{number}"

    def _record(
        self, one: _Try, return_ns: int, outcome: Outcome, *, revision: int = 0, code: str = "", error: str = ""
    ) -> None:
        del self._under_way[one.id]
        counts = one.stream.counts
        if outcome == "ok":
            counts.ok += 1
        elif outcome == "failed":
            counts.failed += 1
        else:
            counts.unknown += 1
        self._writer.append(
            Operation(
                id=one.id,
                stream=one.stream.name,
                member=one.member,
                op=one.stream.op,
                key=one.key,
                value=one.value,
                scheduled_ns=one.scheduled_ns,
                call_ns=one.call_ns,
                return_ns=return_ns,
                outcome=outcome,
                revision=revision,
                attempt=one.attempt,
                code=code,
                error=error,
            )
        )

    def abandon(self) -> None:
        """Record the calls that are under way as ended without an answer: a write of them may yet be applied."""
        now_ns = time.monotonic_ns()
        for one in list(self._under_way.values()):
            outcome: Outcome = "failed" if one.stream.op == "get" else "unknown"
            self._record(one, now_ns, outcome, code="ABANDONED", error="the traffic ended before the answer came")

    def counts(self) -> dict[str, Counts]:
        """Give every stream's counts."""
        return {stream.name: stream.counts for stream in self._streams}


class _Parent:
    """The process that started this one: commands come from it, and reports go to it."""

    def __init__(self) -> None:
        self._pid = os.getppid()
        self._input = b""
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

    def listen(self, stop: Callable[[], None], gone: Callable[[], None]) -> None:
        """Call `stop` when told to stop, and `gone` when the parent has gone."""
        os.set_blocking(0, False)
        loop = asyncio.get_running_loop()

        def readable() -> None:
            try:
                data = os.read(0, 65536)
            except BlockingIOError:
                return
            if not data:
                loop.remove_reader(0)
                gone()
            self._input += data
            if b"stop\n" in self._input:
                stop()

        loop.add_reader(0, readable)
        if b"stop\n" in self._input:
            stop()

    def is_gone(self) -> bool:
        """Tell whether this process has another parent now. (A copy of our input's pipe may outlive the parent.)"""
        return os.getppid() != self._pid

    def tell(self, message: Progress | Summary) -> None:
        """Report; a report that finds the pipe full is dropped, for the next one says more. The summary waits."""
        os.set_blocking(self._output, isinstance(message, Summary))
        try:
            # A pipe takes a line of this size (PIPE_BUF at most) whole or not at all.
            os.write(self._output, self._encode(message) + b"\n")
        except (BlockingIOError, BrokenPipeError):
            pass


async def _serve(plan: TrafficPlan, parent: _Parent) -> None:
    writer = HistoryWriter(plan.output)
    sender = _Sender(plan, writer)

    def end_now() -> None:
        sender.abandon()
        writer.flush()
        os._exit(0)

    parent.listen(sender.stop, end_now)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, sender.stop)
    loop.call_later(plan.max_s, sender.stop)

    async def report() -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            writer.flush()
            parent.tell(Progress(time.monotonic_ns(), sender.counts()))
            if parent.is_gone():
                end_now()

    reporting = loop.create_task(report())
    sending = loop.create_task(sender.run())
    try:
        # The report ends only by an error, such as a disk without room for the record.
        await asyncio.wait({reporting, sending}, return_when=asyncio.FIRST_COMPLETED)
        if reporting.done():
            reporting.result()
        summary = sending.result()
    finally:
        sender.abandon()
        writer.close()
    parent.tell(summary)


def main() -> NoReturn:
    """Send the traffic that the parent's plan asks for, and end the process."""
    parent = _Parent()
    # The terminal's Ctrl-C and hang-up are for the parent: it ends this process when it wants the record closed.
    for ignored in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    try:
        plan = parent.read_plan()
        # Should all else hang, the kernel ends this process.
        signal.setitimer(signal.ITIMER_REAL, plan.max_s + plan.deadline_s + 10)
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
