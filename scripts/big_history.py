"""Writes a big legal history with the logs of three members, as a drill records it, and checks one: for benchmarks.

`python scripts/big_history.py write FOLDER COUNT` and `… check FOLDER`, which prints its figures as JSON: each in a
process of its own, so that the memory that it needs can be told.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from etcdops.answers import Lease
from etcdops.model import Model
from etcdops.ops import Compare, Delete, Grant, KeepAlive, Put, Range, Revoke, Txn
from etcdops.verify.recorded import Final, Observed, State
from etcdops.workload.deliveries import KIND as EVENTS
from etcdops.workload.deliveries import events_file
from etcdops.workload.encoding import Codec
from etcdops.workload.history import KIND as HISTORY
from etcdops.workload.lines import SCHEMA, Header, LineWriter

__all__ = ["check_history", "write_history"]

RUN = "bench"
MEMBERS = ("ironman", "thor", "deadpool")

#: Of a hundred operations so many of each kind; about as the profile "mixed" has them.
SHARES = {
    "put": 24,
    "get": 25,
    "get_serializable": 10,
    "range": 7,
    "delete": 6,
    "swap": 14,
    "append": 7,
    "put_leased": 3,
    "grant": 1,
    "keep_alive": 2,
    "revoke": 1,
}


class _Author:
    """Asks the model, one operation after the other, as ten clients might that take turns."""

    def __init__(self, seed: int, keys: int) -> None:
        self.chance = random.Random(seed)
        self.model = Model()
        self.keys = [f"etcdops/{RUN}/k/{number:04}".encode() for number in range(keys)]
        self.end = f"etcdops/{RUN}/k0".encode()
        self.lists = [f"etcdops/{RUN}/l/{number}".encode() for number in range(50)]
        self.leases: list[int] = []
        self.number = 0

    def value(self) -> bytes:
        return f"{RUN}/{self.number}".encode()

    def key(self) -> bytes:
        return self.keys[int(self.chance.random() * len(self.keys))]

    def put(self) -> Put:
        return Put(self.key(), self.value(), prev_kv=self.chance.random() < 0.3)

    def get(self) -> Range:
        return Range(self.key())

    def get_serializable(self) -> Range:
        return Range(self.key(), serializable=True)

    def range(self) -> Range:
        return Range(self.key(), self.end, limit=1 + int(self.chance.random() * 5))

    def delete(self) -> Delete:
        return Delete(self.key(), prev_kv=self.chance.random() < 0.3)

    def swap(self) -> Txn:
        key = self.key()
        kv = self.model.get(key)
        seen = kv.mod_revision if kv and self.chance.random() < 0.8 else 0
        compare = Compare(key, "mod_revision", "=", seen)
        return Txn((compare,), (Range(self.key()), Put(key, self.value())), (Range(key),))

    def append(self) -> Txn:
        key = self.chance.choice(self.lists)
        kv = self.model.get(key)
        last = kv.value.partition(b":")[2] if kv else b""
        listed = b",".join([*(last.split(b",")[-11:] if last else []), str(self.number).encode()])
        compare = Compare(key, "mod_revision", "=", kv.mod_revision if kv else 0)
        return Txn((compare,), (Range(key), Put(key, self.value() + b":" + listed)), (Range(key),))

    def put_leased(self) -> Put | Grant:
        return Put(self.key(), self.value(), self.chance.choice(self.leases)) if self.leases else self.grant()

    def grant(self) -> Grant:
        self.leases.append(self.number)
        return Grant(self.number, 60)

    def keep_alive(self) -> KeepAlive | Grant:
        return KeepAlive(self.chance.choice(self.leases)) if self.leases else self.grant()

    def revoke(self) -> Revoke | Grant:
        if not self.leases:
            return self.grant()
        return Revoke(self.leases.pop(self.chance.randrange(len(self.leases))))


def write_history(folder: Path, operations: int, *, keys: int = 1000, seed: int = 7) -> None:
    """Write `operations` operations, and what three members delivered of them, into a folder."""
    author = _Author(seed, keys)
    model, chance, codec = author.model, author.chance, Codec(RUN)
    kinds = [name for name, share in SHARES.items() for _ in range(share)]
    logs = [LineWriter(events_file(folder, member), Header(SCHEMA, EVENTS, RUN, member)) for member in MEMBERS]
    for log in logs:
        log.append([1, 1, 0, 1, 2])
    history = LineWriter(folder / "history.jsonl", Header(SCHEMA, HISTORY, RUN))
    now = 1_000_000
    for number in range(1, operations + 1):
        author.number = number
        request: Any = getattr(author, kinds[int(chance.random() * len(kinds))] if number < operations else "put")()
        now += 20_000 + int(chance.random() * 40_000)
        before = model.revision
        answer = Lease(request.lease, 60, before) if isinstance(request, KeepAlive) else model.apply(request)
        revision = answer if isinstance(answer, int) else answer.revision
        client, member, took = number % 10, MEMBERS[number % 3], 10_000 + int(chance.random() * 500_000)
        asked, told = codec.request(request), codec.answer(answer)
        late = 5_000
        line = [number, f"client.{client}", client, member, asked, now - 15_000, late, took, "ok", revision, told]
        history.append(line)
        if model.revision > before:
            events = [codec.event(event) for event in model.events(model.revision)]
            for log in logs:
                log.append([now + int(chance.random() * 900_000), 1, 1, model.revision, events])
            if not model.revision % 10_000:
                # The model need not remember what nobody asks for.
                model._compact(model.revision - 10)
    for file in (history, *logs):
        file.close()
    observed = Observed(
        run=RUN,
        members=MEMBERS,
        states=(State(1, ()), State(model.revision, tuple(model.span(b"\0", b"\0")))),
        base=0,
        tombstone=model.revision,
        tombstone_ns=now,
        final={member: Final(1) for member in MEMBERS},
    )
    (folder / "observed.json").write_bytes(msgspec.json.encode(observed))


def check_history(folder: Path) -> dict[str, object]:
    """Check what `write_history` wrote: seconds to read and to check it, processor seconds, and the most memory, in MB.

    The memory is what the largest process has had; how much all have had at one time is seen from outside.
    """
    # Imported here, so that it counts as it does where somebody runs a check.
    from etcdops.verify.reading import read_columns
    from etcdops.verify.witness import conclude

    observed = msgspec.json.decode((folder / "observed.json").read_bytes(), type=Observed)
    began = time.perf_counter()
    events = {member: events_file(folder, member) for member in observed.members}
    columns = read_columns(observed.run, observed.members, observed.states[0], [folder / "history.jsonl"], events)
    read = time.perf_counter()
    check = conclude(columns, observed).check
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return {
        "read_s": read - began,
        "check_s": time.perf_counter() - read,
        "processor_s": sum(usage.ru_utime + usage.ru_stime for usage in used),
        "mb": max(usage.ru_maxrss for usage in used) * 1024 / 1e6,
        "result": check.result,
        "detail": check.detail,
    }


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    if what == "write":
        write_history(Path(where), int(rest[0]))
    else:
        print(json.dumps(check_history(Path(where))))
