"""Small runs for tests of checkers: of every kind by seed, and written by hand, operation by operation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from random import Random
from typing import Any

from msgspec.structs import replace

import tests.unit.log_mutations  # noqa: F401  # registers its mutations
from etcdops.answers import Event
from etcdops.histories.generated import Settings, generate
from etcdops.model import Answer, Model
from etcdops.ops import Put
from etcdops.verify.members_agree import MemberHash
from etcdops.verify.recorded import Final, Observed, Recorded, State
from etcdops.workload.deliveries import Delivery
from etcdops.workload.encoding import Request
from etcdops.workload.history import Operation
from tests.unit.faulty import FAULTS
from tests.unit.mutations import MUTATIONS

#: How many times as many cases as usual are tried.
SCALE = int(os.environ.get("ETCDOPS_TEST_HISTORIES", "1"))


def small(seed: int, **changes: Any) -> Settings:
    """Settings of a run that the oracle can judge; they differ by seed in much."""
    third = seed % 3
    settings = Settings(
        seed=seed,
        operations=5 + seed % 3,
        keys=1 + third,
        clients=2 + seed // 3 % 3,
        members=1 + seed // 2 % 3,
        unknown=0.15,
        failed=0.05,
        foreign=0.1,
        base_keys=(0, 2, 1)[third],
        fault=0.05 * (seed % 2),
        # Of those that pause for long, leases end.
        think_ms=(400, 5, 1)[third],
        latency_ms=(2, 2, 5)[third],
        lag_ms=(3, 3, 20)[seed // 5 % 3],
        reopen=0.1,
        tick_ns=(1, 1_000_000)[seed // 4 % 2],
    )
    return replace(settings, **changes)


def mutated(seeds: range) -> Iterator[tuple[str, int, Recorded]]:
    """Give every mutation of the run of each seed: its name, the seed, and the changed run."""
    for seed in seeds:
        recorded = generate(small(seed))
        for number, (name, change) in enumerate(MUTATIONS.items()):
            changed = change(recorded, Random(seed * 1009 + number))
            if changed is not None:
                yield name, seed, changed


def faulty(seeds: range) -> Iterator[tuple[str, int, Recorded]]:
    """Give a run of each seed on each faulty store."""
    for seed in seeds:
        for name, store in FAULTS.items():
            yield name, seed, generate(small(seed, mix=store.mix, keys=3), store)


class Scripted:
    """A run on a cluster of one member, "thor", written by hand; times are milliseconds.

    What is done takes effect on the model at once, in the order of the script; what is false is then said in a change
    of the operation or of `log`.
    """

    def __init__(self, base: Model | None = None) -> None:
        self.model = base or Model()
        self.base = State(self.model.revision, tuple(self.model.span(b"\0", b"\0")))
        self.history: list[Operation] = []
        #: What the watch delivers: (ms, events of a revision).
        self.log: list[tuple[int, tuple[Event, ...]]] = []

    def do(self, request: Any, call: int, end: int, **changes: Any) -> Answer:
        """Have a client do something that takes effect now."""
        before = self.model.revision
        answer: Answer = self.model.apply(request)
        self.say(request, call, end, **{"answer": answer, **changes})
        if self.model.revision > before:
            self.log.append((end, self.model.events(self.model.revision)))
        return answer

    def say(self, request: Request, call: int, end: int, answer: Any, **changes: Any) -> None:
        """Have a client say that it did something."""
        revision = 0 if answer is None else answer if isinstance(answer, int) else answer.revision
        number = len(self.history) + 1
        op = Operation(
            number, "s", number, "thor", request, call * 10**6, call * 10**6, end * 10**6, "ok", revision, answer
        )
        self.history.append(replace(op, **changes))

    def unknown(self, request: Any, call: int, end: int, *, applied: bool = True) -> None:
        """Have a client do something without learning what became of it."""
        self.say(request, call, end, None, outcome="unknown", code="DEADLINE_EXCEEDED")
        if applied:
            self.happen(request, end)

    def happen(self, request: Any, at: int) -> None:
        """Have somebody else do something."""
        before = self.model.revision
        self.model.apply(request)
        if self.model.revision > before:
            self.log.append((at, self.model.events(self.model.revision)))

    def recorded(self, end: int = 1000) -> Recorded:
        """End the run."""
        self.do(Put(b"etcdops/run1/tombstone", value(len(self.history) + 1)), end, end)
        revision = self.model.revision
        final = State(revision, tuple(self.model.span(b"\0", b"\0")))
        deliveries = [Delivery(0, 1, "opened", self.base.revision, self.base.revision + 1)]
        deliveries += [
            Delivery(at * 10**6, 1, "events", events[-1].kv.mod_revision, events=events)
            for at, events in self.log
            if events
        ]
        observed = Observed(
            run="run1",
            members=("thor",),
            states=(self.base, final),
            base=0,
            tombstone=revision,
            tombstone_ns=end * 10**6,
            final={"thor": Final(1)},
            hashes={"thor": MemberHash(1, revision, 0)},
            ids={"thor": 1},
            watched=("thor",),
            until_ns=end * 10**6,
        )
        return Recorded(observed, sorted(self.history, key=lambda op: op.return_ns), {"thor": deliveries})


def key(name: str) -> bytes:
    """Give a key of the scripted run."""
    return b"etcdops/run1/k/" + name.encode()


def value(number: int) -> bytes:
    """Give the value that the operation `number` of the scripted run writes."""
    return b"run1/%d" % number
