"""Runs that a simulated etcd gave, whose truth is known: they are legal, whatever random choices made them.

The store is the reference model. Clients call members in logical time; every request takes effect at one instant
between its call and its return, or, where its outcome is unknown, later, or never. Members apply what is agreed late,
each for itself, answer serializable reads from what they have applied, and deliver it to a watch.

    >>> recorded = generate(Settings(seed=7, operations=50))
    >>> len(recorded.history), recorded.observed.tombstone > 1
    (51, True)
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import msgspec

from etcdops.answers import Lease
from etcdops.errors import EtcdError
from etcdops.histories.requests import MIXED, Requests, foreign_request
from etcdops.histories.simulated import SimulatedMember
from etcdops.model import Answer, Model
from etcdops.ops import Grant, KeepAlive, Op, Put, Revoke, served_locally
from etcdops.verify.members_agree import MemberHash
from etcdops.verify.recorded import Fault, Final, Observed, Recorded, State
from etcdops.workload.encoding import key_prefix, value_prefix
from etcdops.workload.history import DRILL, Operation

__all__ = ["Settings", "generate"]

_NAMES = ("thor", "hulk", "ironman", "hawkeye", "vision", "falcon", "wasp")
_MS = 1_000_000
_S = 1_000_000_000


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What to simulate; equal settings give equal runs.

    Probabilities are per operation, but `foreign` and `fault` per operation that is called, `reopen` per delivery.
    Times are logical: `think_ms` is the mean pause of a client between operations, `latency_ms` the mean of each half
    of a call, `lag_ms` that of members behind the leader. All stamps are rounded down to `tick_ns`, so that a coarse
    one makes equal stamps. `base_keys` is how many keys a used cluster holds at the start; 0 is a new cluster.
    """

    seed: int = 0
    run: str = "run1"
    operations: int = 100
    clients: int = 4
    members: int = 3
    keys: int = 4
    mix: Mapping[str, float] = msgspec.field(default_factory=lambda: MIXED)
    unknown: float = 0.05
    failed: float = 0.02
    foreign: float = 0.05
    fault: float = 0.0
    reopen: float = 0.02
    think_ms: float = 5.0
    latency_ms: float = 2.0
    lag_ms: float = 3.0
    tick_ns: int = 1
    base_keys: int = 5


def generate(settings: Settings, store: type[Model] = Model) -> Recorded:
    """Give a legal run; with another `store` than the reference model, one that has whatever faults that one has."""
    return _Simulation(settings, store).run()


class _Simulation:
    def __init__(self, settings: Settings, store: type[Model]) -> None:
        self._settings = settings
        self._store = store
        self._rng = rng = Random(settings.seed)
        self._due: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._scheduled = 0
        self._now = 1_000_000.0 * _MS
        self._model, self._base = self._used_cluster()
        self._members = {
            name: SimulatedMember(name, self._base, rng, settings.lag_ms * _MS, settings.reopen)
            for name in _NAMES[: settings.members]
        }
        self._requests = Requests(rng, settings.run, settings.mix, settings.keys)
        self._lease_ends: dict[int, float] = {}
        self._history: list[Operation] = []
        self._faults: list[Fault] = []
        self._called = 0
        self._busy = settings.clients
        self._processes = settings.clients
        self._foreign_writes = 0
        self._tombstone = self._tombstone_ns = 0

    def _used_cluster(self) -> tuple[Model, State]:
        """Give the store as the run finds it, which may hold keys of others, some of them attached to leases."""
        rng, store = self._rng, Model()
        if self._settings.base_keys:
            store.apply(Grant(7, 60))
            for number in range(self._settings.base_keys * 2):
                request = foreign_request(rng, self._settings.run, number)
                if isinstance(request, Put) and rng.random() < 0.2:
                    request = request._replace(lease=7)
                store.apply(request)
        base = State(store.revision, tuple(store.span(b"\0", b"\0")))
        return self._store.at(base.revision, base.kvs, store.leases), base

    # -- time

    def _at(self, instant: float, action: Callable[..., None], *args: Any) -> None:
        self._scheduled += 1
        heapq.heappush(self._due, (instant, self._scheduled, action, args))

    def _after(self, mean_ms: float, action: Callable[..., None], *args: Any) -> None:
        self._at(self._now + self._rng.expovariate(1.0) * mean_ms * _MS, action, *args)

    def _stamp(self, instant: float) -> int:
        tick = self._settings.tick_ns
        return int(instant) // tick * tick

    def run(self) -> Recorded:
        settings = self._settings
        if self._base.kvs and any(kv.lease for kv in self._base.kvs):
            self._after(settings.think_ms * settings.operations, self._expire, 7)
        for member in self._members.values():
            self._after(settings.lag_ms, self._open_watch, member)
        for process in range(settings.clients):
            self._after(settings.think_ms, self._call, process)
        while self._due:
            self._now, _, action, args = heapq.heappop(self._due)
            action(*args)
        self._history.sort(key=lambda op: op.return_ns)
        return Recorded(
            self._observe(), self._history, {name: member.deliveries for name, member in self._members.items()}
        )

    # -- clients

    def _call(self, process: int) -> None:
        """Call a member, or end the run if all has been called and has returned."""
        settings, rng = self._settings, self._rng
        if self._called == settings.operations:
            self._busy -= 1
            if not self._busy:
                self._after(settings.latency_ms, self._close)
            return
        self._called += 1
        number = self._called
        if rng.random() < settings.foreign:
            self._after(settings.latency_ms, self._write_foreign)
        if rng.random() < settings.fault:
            self._after(settings.latency_ms, self._kill, rng.choice(list(self._members.values())))
        request = self._requests.make(number, self._model)
        member = rng.choice(list(self._members.values()))
        effect = self._now + rng.expovariate(1.0) * settings.latency_ms * _MS
        end = effect + rng.expovariate(1.0) * settings.latency_ms * _MS
        op = Operation(
            id=number,
            stream=f"client-{process % settings.clients}",
            process=process,
            member=member.name,
            request=request,
            scheduled_ns=self._stamp(self._now - rng.expovariate(1.0) * _MS),
            call_ns=self._stamp(self._now),
            return_ns=self._stamp(end),
            outcome="ok",
        )
        self._next_call(op, end, self._decide(op, member, effect, end))

    def _decide(self, op: Operation, member: SimulatedMember, effect: float, end: float) -> bool:
        """Arrange what becomes of an operation; tell whether the client will know."""
        settings, rng = self._settings, self._rng
        fate = rng.random()
        known = op.may_write or isinstance(op.request, Grant)
        if fate < settings.failed:
            self._record(op, "failed", "RESOURCE_EXHAUSTED", "etcdserver: too many requests")
        elif fate < settings.failed + settings.unknown or member.dead:
            self._record(op, "unknown" if known else "failed", "DEADLINE_EXCEEDED", "Deadline Exceeded")
            if known and not member.dead and rng.random() < 0.7:
                late = rng.choice((effect, effect, end + rng.expovariate(1.0) * settings.latency_ms * 4 * _MS))
                self._at(late, self._apply_unheard, op)
            return not known
        else:
            self._at(effect, self._serve, op, member, member.lives)
        return True

    def _next_call(self, op: Operation, end: float, heard: bool) -> None:
        process = op.process
        if not heard:
            # As Jepsen has it: who does not know what became of its operation never does another.
            process = self._processes = self._processes + 1
        self._at(end + self._rng.expovariate(1.0) * self._settings.think_ms * _MS, self._call, process)

    def _record(
        self, op: Operation, outcome: Any, code: str = "", error: str = "", answer: Answer | None = None
    ) -> None:
        revision = 0 if answer is None else answer if isinstance(answer, int) else answer.revision
        self._history.append(
            msgspec.structs.replace(op, outcome=outcome, code=code, error=error, answer=answer, revision=revision)
        )

    def _serve(self, op: Operation, member: SimulatedMember, life: int) -> None:
        request = op.request
        if member.dead or member.lives != life:
            self._record(
                op, "unknown" if op.may_write or isinstance(request, Grant) else "failed", "UNAVAILABLE", "EOF"
            )
            return
        try:
            if isinstance(request, KeepAlive):
                ttl_s = self._model.leases.get(request.lease, 0)
                self._renew(request.lease, ttl_s)
                answer: Answer = Lease(request.lease, ttl_s, member.model.revision)
            elif served_locally(request):
                answer = member.model.evaluate(request)[0]
            else:
                answer = self._apply(request)
                member.catch_up(self._model)
                self._deliver_soon(member)
        except EtcdError as error:
            self._record(op, "failed", error.code, error.text)
        else:
            self._record(op, "ok", answer=answer)

    def _apply_unheard(self, op: Operation) -> None:
        assert not isinstance(op.request, KeepAlive)
        try:
            self._apply(op.request)
        except EtcdError:
            return

    # -- the store

    def _apply(self, request: Op) -> Answer:
        """Have a request agreed, and let the members know."""
        before = self._model.revision
        answer = self._model.apply(request)
        if isinstance(answer, Lease):
            self._renew(answer.lease_id, answer.ttl_s)
        if self._model.revision > before:
            for member in self._members.values():
                self._apply_soon(member)
        return answer

    def _renew(self, lease: int, ttl_s: int) -> None:
        if ttl_s:
            end = self._now + ttl_s * _S + self._rng.expovariate(1.0) * 100 * _MS
            self._lease_ends[lease] = end
            self._at(end, self._expire, lease)

    def _expire(self, lease: int) -> None:
        """End a lease, unless it was revoked or renewed meanwhile, or the run is over."""
        if lease in self._model.leases and self._lease_ends.get(lease, 0.0) <= self._now and not self._tombstone:
            self._apply(Revoke(lease))

    def _write_foreign(self) -> None:
        self._foreign_writes += 1
        self._apply(foreign_request(self._rng, self._settings.run, 100 + self._foreign_writes))

    def _close(self) -> None:
        """Write the tombstone, which is recorded as all else is; traffic has ended by then, but not what is late."""
        for member in self._members.values():
            if member.dead:
                self._restart(member, self._faults_of(member))
        run, number = self._settings.run, self._called + 1
        request = Put((key_prefix(run) + "tombstone").encode(), (value_prefix(run) + str(number)).encode())
        answer = self._apply(request)
        now = self._stamp(self._now)
        member = next(iter(self._members.values()))
        member.catch_up(self._model)
        self._deliver_soon(member)
        op = Operation(number, DRILL, 0, member.name, request, now, now, now, "ok")
        self._record(op, "ok", answer=answer)
        self._tombstone, self._tombstone_ns = self._model.revision, self._stamp(self._now)

    # -- members

    def _apply_soon(self, member: SimulatedMember) -> None:
        if not member.applying and not member.dead:
            member.applying = True
            self._after(member.lag_ms, self._apply_some, member)

    def _apply_some(self, member: SimulatedMember) -> None:
        member.applying = False
        if member.dead:
            return
        behind = self._model.revision - member.model.revision
        if behind > 0:
            member.catch_up(self._model, self._rng.randint(1, behind))
            self._apply_soon(member)
            self._deliver_soon(member)

    def _deliver_soon(self, member: SimulatedMember) -> None:
        if not member.delivering:
            member.delivering = True
            self._after(self._settings.latency_ms, self._deliver, member)

    def _deliver(self, member: SimulatedMember) -> None:
        member.delivering = False
        if member.deliver(self._stamp(self._now)):
            self._after(self._settings.latency_ms, self._open_watch, member)

    def _open_watch(self, member: SimulatedMember) -> None:
        if not member.dead and not member.watching:
            member.open_watch(self._stamp(self._now))
            self._deliver_soon(member)

    def _kill(self, member: SimulatedMember) -> None:
        """Kill a member, unless another one is dead, or the run is over."""
        if self._tombstone or any(other.dead for other in self._members.values()):
            return
        now = self._stamp(self._now)
        member.kill(now)
        self._faults.append(Fault("kill", member.name, now, now, 0, 0))
        self._after(self._settings.think_ms * 4, self._restart, member, len(self._faults) - 1)

    def _faults_of(self, member: SimulatedMember) -> int:
        return max(at for at, fault in enumerate(self._faults) if fault.member == member.name)

    def _restart(self, member: SimulatedMember, fault: int) -> None:
        if member.dead and self._faults[fault].heal_ns == 0:
            now = self._stamp(self._now)
            self._faults[fault] = msgspec.structs.replace(self._faults[fault], healing_ns=now, heal_ns=now)
            member.restart(self._model)
            self._apply_soon(member)
            self._after(self._settings.lag_ms, self._open_watch, member)

    # -- the end

    def _observe(self) -> Observed:
        settings, model = self._settings, self._model
        final = State(self._tombstone, tuple(model.span(b"\0", b"\0", self._tombstone)))
        checksum = MemberHash(model.hash(self._tombstone), self._tombstone, 0)
        return Observed(
            run=settings.run,
            members=tuple(self._members),
            states=(self._base, final),
            base=0,
            tombstone=self._tombstone,
            tombstone_ns=self._tombstone_ns,
            final={name: Final(1) for name in self._members},
            hashes=dict.fromkeys(self._members, checksum),
            faults=tuple(self._faults),
            ids={name: number for number, name in enumerate(self._members, start=1)},
            watched=tuple(self._members),
            until_ns=self._stamp(self._now),
        )
