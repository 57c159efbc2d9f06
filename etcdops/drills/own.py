"""What a drill itself asks of the cluster, while its traffic runs or after it: recorded as the traffic is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from etcdops import wire
from etcdops.answers import KeyValue
from etcdops.errors import EtcdError
from etcdops.ops import Delete, Put, Range
from etcdops.verify.recorded import State
from etcdops.workload.encoding import Request, key_prefix, value_prefix
from etcdops.workload.history import DRILL, HistoryWriter, Operation, Outcome
from etcdops.workload.requests import call_of

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["FIRST_ID", "OwnClient", "whole_state"]

#: Ids from here on are the drill's own, those below the traffic's.
FIRST_ID = 1_000_000_000

#: The drill's own operations, one at a time, as Jepsen counts processes; the traffic's begin at 0.
_PROCESS = 1_000_000

#: Keys that one range may bring, so that no message grows too large.
_PAGE = 2_000


class OwnClient:
    """Asks members, one call at a time, and appends each operation to `own.jsonl` in the window's folder.

    Nothing that etcd answers is raised: the operation has its outcome. Threads may share it. Ids begin with `first`:
    two that write to one store, or to one restored from it, must have none in common.
    """

    def __init__(self, cluster: Cluster, run: str, path: Path, *, first: int = FIRST_ID) -> None:
        self._cluster = cluster
        self._run = run
        self._writer = HistoryWriter(path, run)
        self._connections: dict[str, wire.Connection] = {}
        self._next = first
        self._process = _PROCESS
        self._lock = threading.Lock()

    def key(self, name: str) -> bytes:
        """Give the run's own key of that name: all are under one prefix, and go when the run ends."""
        return f"{key_prefix(self._run, 'drill')}{name}".encode()

    def put(self, key: bytes, *, through: str, timeout_s: float = 1.0, text: str = "") -> Operation:
        """Write `key` once, with a value that begins with the operation's own id, so that no two are equal."""
        return self._ask(lambda number: Put(key, self._value(number, text)), through, timeout_s)

    def get(
        self, key: bytes, range_end: bytes = b"", *, through: str, timeout_s: float = 1.0, serializable: bool = False
    ) -> Operation:
        """Read `key`, or all of `[key, range_end)`."""
        return self._ask(lambda _: Range(key, range_end, serializable=serializable), through, timeout_s)

    def delete(self, key: bytes, range_end: bytes = b"", *, through: str, timeout_s: float = 1.0) -> Operation:
        """Delete `key`, or all of `[key, range_end)`."""
        return self._ask(lambda _: Delete(key, range_end), through, timeout_s)

    def ask(self, request: Request, *, through: str, timeout_s: float = 1.0) -> Operation:
        """Ask anything else."""
        return self._ask(lambda _: request, through, timeout_s)

    def connection(self, member: str) -> wire.Connection:
        """Give a connection to a member, as it is recorded now."""
        record = self._cluster.record
        url = record.member(member).client_url
        found = self._connections.get(url)
        if found is None:
            found = self._connections[url] = wire.Connection(url, record.spec.tls)
        return found

    def close(self) -> None:
        """Close the record and all connections."""
        self._writer.close()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def __enter__(self) -> OwnClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _value(self, number: int, text: str) -> bytes:
        return f"{value_prefix(self._run)}{number}{':' if text else ''}{text}".encode()

    def _ask(self, make: Callable[[int], Request], member: str, timeout_s: float) -> Operation:
        with self._lock:
            number = self._next
            self._next += 1
            request = make(number)
            reads = not Operation(number, "", 0, "", request, 0, 0, 0, "ok").may_write
            outcome: Outcome = "ok"
            answer, revision, code, text = None, 0, "", ""
            connection = self.connection(member)
            call = call_of(request)
            began = time.monotonic_ns()
            try:
                answer = connection.call(call, timeout_s=timeout_s)
                ended = time.monotonic_ns()
                revision = answer if isinstance(answer, int) else answer.revision
            except EtcdError as error:
                ended = time.monotonic_ns()
                outcome = "failed" if reads or error.definite else "unknown"
                code, text = error.code, error.text
            operation = Operation(
                id=number,
                stream=DRILL,
                process=self._process,
                member=member,
                request=request,
                scheduled_ns=began,
                call_ns=began,
                return_ns=ended,
                outcome=outcome,
                revision=revision,
                answer=answer,
                code=code,
                error=text,
            )
            if outcome == "unknown":
                self._process += 1
            self._writer.append(operation)
            self._writer.flush()
            return operation


def whole_state(connection: wire.Connection, revision: int = 0, *, timeout_s: float = 10.0) -> State:
    """Read every key there is through one member, linearizably, at one revision (0: the newest). Raises EtcdError."""
    kvs: list[KeyValue] = []
    start = b"\0"
    while True:
        page = connection.range(start, b"\0", limit=_PAGE, revision=revision, timeout_s=timeout_s)
        revision = revision or page.revision
        kvs += page.kvs
        if not page.more:
            return State(revision, tuple(kvs))
        start = kvs[-1].key + b"\0"
