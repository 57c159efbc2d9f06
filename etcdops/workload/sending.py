"""Sending: every operation of a plan at its instant, and what became of each into the record."""

from __future__ import annotations

import asyncio
import gc
import time
from array import array
from heapq import heappop, heappush

from etcdops.errors import EtcdError
from etcdops.model import Answer
from etcdops.ops import KeepAlive, Put, Range
from etcdops.wire import AsyncConnection
from etcdops.workload.history import (
    FAILOVER_READ,
    PINNED,
    PREPARE,
    HistoryWriter,
    Operation,
    Outcome,
    Request,
    key_prefix,
    value_prefix,
)
from etcdops.workload.plan import Counts, Summary, Tally, TrafficPlan
from etcdops.workload.profiles import Client, Profile
from etcdops.workload.requests import call_of, only_reads

__all__ = ["Sender"]

# Waking up costs more than sending: at high rates what falls due within this time goes out together, late by no more.
_PAUSE_MIN_S = 0.002
# A slow schedule, too, must notice soon that it is to stop.
_PAUSE_MAX_S = 0.05
_LEAD_NS = 20_000_000
# So many operations go out before answers are looked at again, when the schedule has run ahead.
_BURST = 64
_PREPARE_S = 10.0
_SECOND = 1_000_000_000
_MS = 1_000_000


class _Processes:
    """Numbers of clients in Jepsen's sense: each has one operation at a time, and none after an unknown outcome."""

    def __init__(self) -> None:
        self._free: list[int] = []
        self._made = 0

    def take(self) -> int:
        """Give the lowest that is free."""
        if self._free:
            return heappop(self._free)
        self._made += 1
        return self._made - 1

    def give_back(self, process: int) -> None:
        """Let it be used again."""
        heappush(self._free, process)


class _Stream:
    """One stream: where its next operation goes, and what has become of those before."""

    __slots__ = ("at", "bound", "client", "counts", "members", "name", "prefix", "tries")

    def __init__(
        self, name: str, plan: TrafficPlan, members: tuple[str, ...], bound: int, client: Client | None = None
    ) -> None:
        self.name = name
        self.members = members
        self.prefix = key_prefix(plan.run, name)
        self.counts = Counts()
        self.client = client
        #: How many of its operations may be unanswered.
        self.bound = bound
        #: The member that the next operation begins with.
        self.at = 0
        #: Seconds that one try may take.
        self.tries = plan.deadline_s if len(members) == 1 else plan.try_deadline_s


class _Schedule:
    """Streams that take turns at one rate."""

    def __init__(self, streams: list[_Stream], rate: int) -> None:
        self.streams = streams
        self._rate = rate * len(streams)
        self._tick = 0
        self.due_ns = 0

    def begin(self, began_ns: int) -> None:
        """Set the instant of the first operation."""
        self._began_ns = self.due_ns = began_ns

    def turn(self) -> _Stream:
        """Give the stream whose turn it is, and go on to the next instant."""
        stream = self.streams[self._tick % len(self.streams)]
        self._tick += 1
        self.due_ns = self._began_ns + self._tick * _SECOND // self._rate
        return stream


class _Try:
    """A call under way: what its record will hold besides its end."""

    __slots__ = ("attempt", "call_ns", "id", "member", "process", "request", "scheduled_ns", "stream")

    def __init__(
        self, number: int, stream: _Stream, process: int, member: str, request: Request, due: int, attempt: int
    ) -> None:
        self.id = number
        self.stream = stream
        self.process = process
        self.member = member
        self.request = request
        self.scheduled_ns = due
        self.call_ns = 0
        self.attempt = attempt


class Sender:
    """Sends a plan's operations and records them."""

    def __init__(self, plan: TrafficPlan, writer: HistoryWriter, profile: Profile) -> None:
        self._plan = plan
        self._writer = writer
        self._profile = profile
        everywhere = tuple(plan.endpoints)
        probes = [
            _Stream(name, plan, (name[len(PINNED) :],) if name.startswith(PINNED) else everywhere, plan.bound)
            for name in plan.streams
        ]
        clients = [
            _Stream(name, plan, (everywhere[i % len(everywhere)],), plan.client_bound, profile.client(i))
            for i, name in enumerate(plan.client_streams)
        ]
        self._streams = (*probes, *clients)
        self._schedules = [_Schedule(probes, plan.rate)]
        if clients:
            self._schedules.append(_Schedule(clients, plan.client_rate))
        self._processes = _Processes()
        self._connections: dict[str, AsyncConnection] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._under_way: dict[int, _Try] = {}
        self._next_id = plan.first_id
        self._late_ns = array("q")
        # What the reading stream reads: the key that was acknowledged last, absent until there is one.
        self._read_key = (key_prefix(plan.run, FAILOVER_READ) + "none").encode()
        self._stopped = asyncio.Event()
        self._failure: BaseException | None = None
        self._kinds: dict[str, Tally] = {}
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
        key, timeout_s = self._read_key, min(1.0, plan.deadline_s)
        calls = (connection.range(key, timeout_s=timeout_s) for connection in self._connections.values())
        await asyncio.gather(*calls, return_exceptions=True)
        if plan.clients:
            await self._prepare()
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
            kinds=self.kinds(),
        )

    async def _prepare(self) -> None:
        """Write what the profile needs to be there, one after the other, through the members in turn."""
        members = tuple(self._plan.endpoints)
        stream = _Stream(PREPARE, self._plan, members, 1)
        for number, request in enumerate(self._profile.prepare(self._next_id), start=self._next_id):
            if self._stopped.is_set():
                return
            # Nothing is written twice: what fails is not there, and a profile can do with a little less.
            self._next_id = number + 1
            one = self._begin(stream, number, request, time.monotonic_ns(), 1, members[stream.at])
            if await self._try(one, _PREPARE_S):
                self._profile.prepared(number, (time.monotonic_ns() - one.call_ns) / _SECOND)
            else:
                stream.at = (stream.at + 1) % len(members)

    async def _send_all(self) -> None:
        stopped, schedules = self._stopped, self._schedules
        self.began_ns = time.monotonic_ns() + _LEAD_NS
        for schedule in schedules:
            schedule.begin(self.began_ns)
        while not stopped.is_set():
            now_ns = time.monotonic_ns()
            burst = 0
            for schedule in schedules:
                sent = 0
                while schedule.due_ns <= now_ns and sent < _BURST:
                    due_ns = schedule.due_ns
                    self._send(schedule.turn(), due_ns)
                    sent += 1
                burst = max(burst, sent)
            due_ns = min(schedule.due_ns for schedule in schedules)
            pause_s = max(_PAUSE_MIN_S, (due_ns - now_ns) / _SECOND) if burst < _BURST else 0.0
            await asyncio.sleep(min(_PAUSE_MAX_S, pause_s))

    def _send(self, stream: _Stream, due_ns: int) -> None:
        """Start one scheduled operation, or record that the bound of calls in flight forbids it."""
        counts = stream.counts
        if stream.client is not None and stream.client.closed and counts.in_flight:
            return
        request = self._request(stream, due_ns)
        if request is None:
            return
        if counts.in_flight >= stream.bound:
            self._refuse(stream, request, due_ns)
            return
        counts.in_flight += 1
        number = self._next_id
        self._next_id += 1
        task = asyncio.get_running_loop().create_task(self._operate(stream, number, request, due_ns))
        self._tasks.add(task)
        task.add_done_callback(self._operated)

    def _operated(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = error
            self.stop()

    def _request(self, stream: _Stream, due_ns: int) -> Request | None:
        """Give what the stream asks next, with the next number; None if it has to wait."""
        number = self._next_id
        if stream.client is not None:
            return stream.client.next(number, (due_ns - self.began_ns) / _SECOND)
        if stream.name == FAILOVER_READ:
            return Range(self._read_key)
        return Put(f"{stream.prefix}{number:08d}".encode(), f"{value_prefix(self._plan.run)}{number}".encode())

    def _refuse(self, stream: _Stream, request: Request, due_ns: int) -> None:
        now_ns = time.monotonic_ns()
        number = self._next_id
        self._next_id += 1
        process = self._processes.take()
        counts = stream.counts
        one = _Try(number, stream, process, stream.members[stream.at], request, due_ns, 1)
        one.call_ns = now_ns
        self._under_way[number] = one
        counts.not_sent += 1
        error = f"{counts.in_flight} operations of this stream were in flight"
        self._record(one, now_ns, "failed", code="NOT_SENT", error=error)

    async def _operate(self, stream: _Stream, number: int, request: Request, due_ns: int) -> None:
        """Try one operation on the stream's members, in order, until one acknowledges it or its time is over."""
        members = stream.members
        first = stream.at
        end_ns = 0
        for attempt in range(1, len(members) + 1):
            at = (first + attempt - 1) % len(members)
            if attempt > 1:
                number = self._next_id
                again = self._request(stream, due_ns)
                assert again is not None
                request = again
                self._next_id += 1
            one = self._begin(stream, number, request, due_ns, attempt, members[at])
            now_ns = one.call_ns
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

    def _begin(self, stream: _Stream, number: int, request: Request, due_ns: int, attempt: int, member: str) -> _Try:
        one = _Try(number, stream, self._processes.take(), member, request, due_ns, attempt)
        self._under_way[number] = one
        stream.counts.sent += 1
        one.call_ns = time.monotonic_ns()
        return one

    async def _try(self, one: _Try, timeout_s: float) -> bool:
        """Make one call and record it; tell whether it was acknowledged."""
        connection = self._connections[one.member]
        request = one.request
        answer: Answer
        try:
            if isinstance(request, KeepAlive):
                answer = await connection.lease_keep_alive(request.lease, timeout_s=timeout_s)
            else:
                answer = await connection.call(call_of(request), timeout_s=timeout_s)
            return_ns = time.monotonic_ns()
        except EtcdError as error:
            return_ns = time.monotonic_ns()
            outcome: Outcome = "failed" if error.definite or only_reads(request) else "unknown"
            self._record(one, return_ns, outcome, code=error.code, error=error.text)
            return False
        counts = one.stream.counts
        counts.last_ok_call_ns = max(counts.last_ok_call_ns, one.call_ns)
        counts.last_ok_return_ns = max(counts.last_ok_return_ns, return_ns)
        if one.stream.client is None and isinstance(request, Put):
            self._read_key = request.key
        self._record(one, return_ns, "ok", answer=answer)
        return True

    def _record(
        self,
        one: _Try,
        return_ns: int,
        outcome: Outcome,
        *,
        answer: Answer | None = None,
        code: str = "",
        error: str = "",
    ) -> None:
        del self._under_way[one.id]
        stream = one.stream
        operation = Operation(
            id=one.id,
            stream=stream.name,
            process=one.process,
            member=one.member,
            request=one.request,
            scheduled_ns=one.scheduled_ns,
            call_ns=one.call_ns,
            return_ns=return_ns,
            outcome=outcome,
            revision=0 if answer is None else answer if isinstance(answer, int) else answer.revision,
            answer=answer,
            attempt=one.attempt,
            code=code,
            error=error,
        )
        kind = operation.kind
        tally = self._kinds.get(kind)
        if tally is None:
            tally = self._kinds[kind] = Tally()
        counts = stream.counts
        if outcome == "unknown":
            counts.unknown += 1
            tally.unknown += 1
        else:
            self._processes.give_back(one.process)
            if outcome == "ok":
                counts.ok += 1
                tally.ok += 1
            else:
                counts.failed += 1
                tally.failed += 1
        self._writer.append(operation)
        if stream.client is not None:
            at_s = (return_ns - self.began_ns) / _SECOND
            stream.client.ended(one.id, one.request, outcome, answer, at_s)

    def abandon(self) -> None:
        """Record the calls that are under way as ended without an answer: a write of them may yet be applied."""
        now_ns = time.monotonic_ns()
        for one in list(self._under_way.values()):
            outcome: Outcome = "failed" if only_reads(one.request) else "unknown"
            self._record(one, now_ns, outcome, code="ABANDONED", error="the traffic ended before the answer came")

    def counts(self) -> dict[str, Counts]:
        """Give every stream's counts."""
        return {stream.name: stream.counts for stream in self._streams}

    def kinds(self) -> dict[str, Tally]:
        """Give the counts of every kind of operation."""
        return self._kinds
