"""Talking to a member: deadlines, errors, streams and parallel calls, against a gRPC server of our own."""

from __future__ import annotations

import ast
import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import _channel
from hypothesis import given
from hypothesis import strategies as st

import etcdops
from etcdops import _proto, calls, wire
from etcdops.errors import EtcdError, Interrupted, Refused, SpecError
from etcdops.interrupts import handled
from etcdops.spec import Tls

PUT, RANGE, STATUS = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range", "/etcdserverpb.Maintenance/Status"
WATCH, KEEP_ALIVE = "/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"


def _header(revision: int) -> Any:
    return _proto.ResponseHeader(revision=revision, member_id=0xABC)


class _Member:
    """A member with what the tests need: keys "hang" and "fail" do so; `release` lets hanging calls go."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.puts = 0
        self.arrived = threading.Event()
        self.left = threading.Event()
        self.silent_left = threading.Event()

    def put(self, request: Any) -> Any:
        self.puts += 1
        self.arrived.set()
        if request.key == b"hang":
            self.release.wait(60)
        if request.key == b"fail":
            raise wire.ServerError("UNAVAILABLE", "etcdserver: leader changed")
        return _proto.PutResponse(header=_header(self.puts))

    def status(self, request: Any) -> Any:
        return _proto.StatusResponse(header=_header(7), version="3.5.1", leader=0xABC, errors=["a", "b"], dbSize=10)

    def keep_alive(self, stream: wire.ServerStream) -> Iterator[Any]:
        for request in stream:
            yield _proto.LeaseKeepAliveResponse(header=_header(1), ID=request.ID, TTL=5)

    def snapshot(self, request: Any) -> Iterator[Any]:
        for part in (b"one", b"two"):
            yield _proto.SnapshotResponse(blob=part)

    def watch(self, stream: wire.ServerStream) -> Iterator[Any]:
        """Behave as the watched key says."""
        gone = threading.Event()
        stream.on_end(gone.set)
        stream.on_end(self.left.set)
        requests = iter(stream)
        what = next(requests).create_request.key
        if what == b"silent":
            gone.wait(60)
            self.silent_left.set()
            return
        yield _proto.WatchResponse(header=_header(5), created=True)
        if what == b"compacted":
            yield _proto.WatchResponse(header=_header(5), canceled=True, compact_revision=4)
        elif what == b"denied":
            yield _proto.WatchResponse(header=_header(5), canceled=True, cancel_reason="etcdserver: permission denied")
        elif what == b"broken":
            raise wire.ServerError("UNAVAILABLE", "etcdserver: no leader")
        elif what == b"events":
            put = {"kv": {"key": b"k", "value": b"v", "mod_revision": 6}}
            delete = {"type": "DELETE", "kv": {"key": b"k", "mod_revision": 7}, "prev_kv": {"key": b"k"}}
            yield _proto.WatchResponse(header=_header(7), events=[put, delete])
            for request in requests:
                assert request.WhichOneof("request_union") == "progress_request"
                yield _proto.WatchResponse(header=_header(8))

    @property
    def handlers(self) -> dict[str, Callable[[Any], Any]]:
        return {
            PUT: self.put,
            STATUS: self.status,
            KEEP_ALIVE: self.keep_alive,
            WATCH: self.watch,
            "/etcdserverpb.Maintenance/Snapshot": self.snapshot,
        }


@pytest.fixture
def member() -> Iterator[_Member]:
    """What the server's handlers share with the test."""
    member = _Member()
    yield member
    # Handlers hold threads that the interpreter would wait for.
    member.release.set()


@pytest.fixture
def server(member: _Member) -> Iterator[wire.Server]:
    """A member of etcd, as far as the tests look."""
    server = wire.serve(member.handlers)
    yield server
    member.release.set()
    server.stop()


@pytest.fixture
def connection(server: wire.Server) -> Iterator[wire.Connection]:
    """A connection to the server."""
    with wire.Connection(_url(server)) as connection:
        yield connection


def _url(server: wire.Server) -> str:
    return f"http://127.0.0.1:{server.port}"


def test_answers_are_tuples(connection: wire.Connection) -> None:
    """An answer is read into a plain tuple, with Python's own types."""
    status = connection.status(timeout_s=20)
    assert status == (0xABC, 0, "3.5.1", 10, 0, 0xABC, 0, 0, 0, 7, ("a", "b"), False, 0)
    assert connection.put(b"k", b"v", timeout_s=20) == (1, None)


def test_deadline(connection: wire.Connection) -> None:
    """A member that does not answer ends the call at its deadline; what it did is unknown."""
    with pytest.raises(EtcdError) as caught:
        connection.put(b"hang", b"", timeout_s=0.2)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert not caught.value.definite
    assert caught.value.endpoint == connection.endpoint


def test_no_call_without_deadline(connection: wire.Connection, member: _Member) -> None:
    """None, gRPC's "for ever", is not accepted as a deadline."""
    with pytest.raises(TypeError):
        connection.put(b"k", b"", timeout_s=None)  # type: ignore[arg-type]
    assert member.puts == 0


def test_server_error_keeps_its_words(connection: wire.Connection) -> None:
    """The server's code and text arrive as they are, in the message too."""
    with pytest.raises(EtcdError) as caught:
        connection.put(b"fail", b"", timeout_s=20)
    assert str(caught.value) == f"{connection.endpoint}: UNAVAILABLE: etcdserver: leader changed"


def test_a_failed_call_is_not_repeated(connection: wire.Connection, server: wire.Server, member: _Member) -> None:
    """A call that breaks off is an unknown outcome at once: nobody sends it again."""
    pending = connection.start(calls.put(b"hang", b""), timeout_s=30)
    assert member.arrived.wait(10)
    server.stop()
    again = wire.serve(member.handlers, f"127.0.0.1:{server.port}")
    try:
        with pytest.raises(EtcdError) as caught:
            pending.result()
        assert caught.value.code in ("UNAVAILABLE", "CANCELLED")
        assert not caught.value.definite
        assert connection.status(timeout_s=10).version == "3.5.1"
        assert member.puts == 1
    finally:
        again.stop()


class _Silent(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Ends every call well, and answers none."""

    def service(self, handler_call_details: Any) -> Any:
        return grpc.stream_stream_rpc_method_handler(lambda requests, context: iter(()))


def test_a_call_that_ends_well_without_an_answer() -> None:
    """gRPC then gives None for the answer: it is an error whose outcome is unknown, for each kind of connection."""
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((_Silent(),))
    url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()

    async def put() -> None:
        async with wire.AsyncConnection(url) as connection:
            await connection.put(b"k", b"v", timeout_s=20)

    try:
        with wire.Connection(url) as connection, pytest.raises(EtcdError) as caught:
            connection.status(timeout_s=20)
        with pytest.raises(EtcdError) as also:
            asyncio.run(put())
    finally:
        server.stop(0).wait(10)
    for error in (caught.value, also.value):
        assert (error.code, error.definite, error.endpoint) == ("UNAVAILABLE", False, url)


def test_cancelled_call(connection: wire.Connection) -> None:
    """A pending call can be given up."""
    pending = connection.start(calls.put(b"hang", b""), timeout_s=30)
    pending.cancel()
    with pytest.raises(EtcdError, match="CANCELLED"):
        pending.result()


def test_closed_connection(connection: wire.Connection) -> None:
    """On a closed connection every kind of call is an EtcdError, a definite one: nothing was sent."""
    connection.close()
    for act in (
        lambda: connection.put(b"k", b"", timeout_s=1),
        lambda: connection.start(calls.status(), timeout_s=1),
        lambda: connection.watch(b"k", timeout_s=1),
        lambda: next(connection.snapshot(timeout_s=1)),
        lambda: connection.lease_keep_alive(1, timeout_s=1),
    ):
        with pytest.raises(EtcdError) as caught:
            act()
        assert caught.value.definite


def test_ask_all(connection: wire.Connection, server: wire.Server, member: _Member) -> None:
    """Every member is asked at once; each answer or error stands under its name, whatever happens to the others."""
    gone = wire.serve({})
    gone.stop()
    with (
        wire.Connection(_url(server)) as silent,
        wire.Connection(_url(gone)) as refused,
        wire.Connection(_url(server)) as closed,
    ):
        closed.close()
        everyone = {"good": connection, "refused": refused, "closed": closed}
        answers = wire.ask_all(everyone, calls.status(), timeout_s=20)
        hanging = wire.ask_all({"a": silent, "b": connection}, calls.put(b"hang", b""), timeout_s=0.3)
    assert not isinstance(answers["good"], EtcdError)
    assert answers["good"].member_id == 0xABC
    refusal, closure = answers["refused"], answers["closed"]
    assert isinstance(refusal, EtcdError)
    assert refusal.definite
    assert isinstance(closure, EtcdError)
    for error in hanging.values():
        assert isinstance(error, EtcdError)
        assert error.code == "DEADLINE_EXCEEDED"


def test_back_after_restart(connection: wire.Connection, server: wire.Server, member: _Member) -> None:
    """The same connection reaches a member that came back on its port, without gRPC's long back-off."""
    connection.status(timeout_s=20)
    server.stop()
    with pytest.raises(EtcdError):
        connection.status(timeout_s=0.5)
    again = wire.serve(member.handlers, f"127.0.0.1:{server.port}")
    try:
        for _ in range(20):
            try:
                assert connection.status(timeout_s=1).version == "3.5.1"
                break
            except EtcdError:
                # Calls fail at once during the back-off; the member may need it to be over.
                threading.Event().wait(0.1)
        else:
            pytest.fail("the connection never came back")
    finally:
        again.stop()


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "grpc_proxy"])
def test_proxies_are_ignored(server: wire.Server, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment, here one that is dead, does not come between us and a member."""
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")

    async def ask() -> int:
        async with wire.AsyncConnection(_url(server)) as connection:
            return (await connection.put(b"k", b"", timeout_s=20)).revision

    with wire.Connection(_url(server)) as connection:
        assert connection.status(timeout_s=20).version == "3.5.1"
    assert asyncio.run(ask()) == 1


def test_lease_keep_alive(connection: wire.Connection) -> None:
    """One renewal is one request and one answer on a stream that is then closed."""
    assert connection.lease_keep_alive(9, timeout_s=20)[:2] == (9, 5)


def test_snapshot(connection: wire.Connection) -> None:
    """A snapshot is yielded in pieces."""
    assert list(connection.snapshot(timeout_s=20)) == [b"one", b"two"]


def test_watch_delivers(connection: wire.Connection, member: _Member) -> None:
    """A watch gives what the server sent, tells progress when asked, and ends quietly when cancelled."""
    with connection.watch(b"events", timeout_s=30) as watch:
        assert watch.revision == 5
        batch = next(watch)
        assert batch.revision == 7
        assert [(event.kind, event.kv.key, event.kv.mod_revision) for event in batch.events] == [
            ("put", b"k", 6),
            ("delete", b"k", 7),
        ]
        assert batch.events[0].prev_kv is None
        assert batch.events[1].prev_kv is not None
        watch.request_progress()
        assert next(watch) == (8, ())
        threading.Timer(0.1, watch.cancel).start()
        assert list(watch) == []
    assert member.left.wait(10)


@pytest.mark.parametrize(
    ("key", "code"),
    [(b"denied", "CANCELLED"), (b"broken", "UNAVAILABLE"), (b"ended", "UNAVAILABLE"), (b"compacted", "OUT_OF_RANGE")],
)
def test_watch_ends_in_an_error(connection: wire.Connection, key: bytes, code: str) -> None:
    """A watch that the server cancels, breaks off or simply ends is an EtcdError, never silence."""
    with connection.watch(key, timeout_s=30) as watch, pytest.raises(EtcdError) as caught:
        next(watch)
    assert caught.value.code == code


def test_compacted_watch(connection: wire.Connection) -> None:
    """A watch from a compacted revision says from where on there is history."""
    with (
        connection.watch(b"compacted", timeout_s=30, start_revision=1) as watch,
        pytest.raises(wire.Compacted) as caught,
    ):
        next(watch)
    assert caught.value.compact_revision == 4
    assert caught.value.definite


def test_unconfirmed_watch(connection: wire.Connection, member: _Member) -> None:
    """A watch that the server does not confirm is given up in time, and the server's side is let go."""
    with pytest.raises(EtcdError, match="did not confirm") as caught:
        connection.watch(b"silent", timeout_s=30, open_timeout_s=0.2)
    assert caught.value.code == "DEADLINE_EXCEEDED"
    assert member.silent_left.wait(10)


def test_watch_deadline(connection: wire.Connection) -> None:
    """A watch lives no longer than its deadline."""
    with connection.watch(b"events", timeout_s=0.5) as watch:
        next(watch)
        with pytest.raises(EtcdError) as caught:
            next(watch)
    assert caught.value.code == "DEADLINE_EXCEEDED"


def test_watch_on_a_server_that_dies(connection: wire.Connection, server: wire.Server) -> None:
    """A watch ends in an error when its member dies, and when its connection is closed."""
    with connection.watch(b"events", timeout_s=30) as watch:
        next(watch)
        server.stop()
        with pytest.raises(EtcdError):
            next(watch)


def test_async_calls(server: wire.Server) -> None:
    """The asyncio connection answers and fails as the blocking one does."""

    async def act() -> None:
        async with wire.AsyncConnection(_url(server)) as connection:
            assert await connection.put(b"k", b"", timeout_s=20) == (1, None)
            assert (await connection.call(calls.status(), timeout_s=20)).revision == 7
            assert (await connection.lease_keep_alive(9, timeout_s=20)).ttl_s == 5
            with pytest.raises(EtcdError, match="leader changed") as caught:
                await connection.put(b"fail", b"", timeout_s=20)
            assert not caught.value.definite
            with pytest.raises(EtcdError, match="DEADLINE_EXCEEDED"):
                await connection.put(b"hang", b"", timeout_s=0.2)
            with pytest.raises(EtcdError) as caught:
                await connection.range(b"k", timeout_s=20)
            assert caught.value.code == "UNIMPLEMENTED"
            task = asyncio.ensure_future(connection.put(b"hang", b"", timeout_s=30))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        with pytest.raises(EtcdError, match="closed") as caught:
            await connection.put(b"k", b"", timeout_s=20)
        assert caught.value.definite
        with pytest.raises(EtcdError, match="closed"):
            await connection.watch(b"k", timeout_s=20)
        with pytest.raises(EtcdError, match="closed"):
            await connection.lease_keep_alive(9, timeout_s=20)

    asyncio.run(act())


def test_async_refused() -> None:
    """Without anyone listening, a call fails at once and for certain."""
    gone = wire.serve({})
    gone.stop()

    async def act() -> None:
        async with wire.AsyncConnection(_url(gone)) as connection:
            for _ in range(3):
                with pytest.raises(EtcdError) as caught:
                    await connection.put(b"k", b"", timeout_s=20)
                assert caught.value.definite

    asyncio.run(act())


def test_async_watch(server: wire.Server, member: _Member) -> None:
    """The asyncio watch delivers, ends and fails as the blocking one does."""

    async def act() -> None:
        async with wire.AsyncConnection(_url(server)) as connection:
            async with await connection.watch(b"events", timeout_s=30) as watch:
                assert watch.revision == 5
                assert [event.kind for event in (await watch.__anext__()).events] == ["put", "delete"]
                await watch.request_progress()
                assert await watch.__anext__() == (8, ())
                asyncio.get_running_loop().call_later(0.1, watch.cancel)
                assert [batch async for batch in watch] == []
            for key, code in [(b"denied", "CANCELLED"), (b"broken", "UNAVAILABLE"), (b"ended", "UNAVAILABLE")]:
                async with await connection.watch(key, timeout_s=30) as watch:
                    with pytest.raises(EtcdError) as caught:
                        await watch.__anext__()
                    assert caught.value.code == code
            async with await connection.watch(b"compacted", timeout_s=30) as watch:
                with pytest.raises(wire.Compacted):
                    await watch.__anext__()
            async with await connection.watch(b"events", timeout_s=0.5) as watch:
                await watch.__anext__()
                with pytest.raises(EtcdError, match="DEADLINE_EXCEEDED"):
                    await watch.__anext__()
            with pytest.raises(EtcdError, match="did not confirm"):
                await connection.watch(b"silent", timeout_s=30, open_timeout_s=0.2)
            assert await asyncio.to_thread(member.silent_left.wait, 10)
            async with await connection.watch(b"events", timeout_s=30) as watch:
                await watch.__anext__()
                reading = asyncio.ensure_future(watch.__anext__())
                await asyncio.sleep(0.1)
                reading.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await reading

    asyncio.run(act())


@pytest.mark.parametrize("url", ["127.0.0.1:2379", "ftp://h:1", "http://", "http://h:1/v3", "unix:///tmp/s", ""])
def test_not_a_client_url(url: str) -> None:
    """What is not http://HOST:PORT or https://HOST:PORT is refused, before anything is sent."""
    with pytest.raises(SpecError, match="not a client URL"):
        wire.Connection(url)


def test_https_needs_certificates(tmp_path: Path) -> None:
    """https without certificates, or with files that are not there, is refused and names what is missing."""
    with pytest.raises(SpecError, match="no certificates"):
        wire.Connection("https://127.0.0.1:2379")
    missing = tmp_path / "ca.pem"
    with pytest.raises(SpecError, match=str(missing)):
        wire.Connection("https://127.0.0.1:2379", Tls(ca=str(missing), client_cert="c", client_key="k"))


def test_one_alarm_at_a_time(connection: wire.Connection) -> None:
    """An alarm is disarmed by name and member: there is no call that clears them all."""
    for member_id, kind in [(0, "NOSPACE"), (1, "NONE"), (1, "nospace")]:
        with pytest.raises(SpecError, match="no one alarm"):
            connection.alarm_disarm(member_id, kind, timeout_s=1)


def test_server_refuses_a_taken_address(server: wire.Server) -> None:
    """Two servers never share a port."""
    with pytest.raises(Refused, match=str(server.port)):
        wire.serve({}, f"127.0.0.1:{server.port}")


def test_txn_reads_nested_answers() -> None:
    """A transaction's answer holds one result for each operation, of the operation's own kind."""

    def txn(request: Any) -> Any:
        assert request.compare[0].target == _proto.Compare.VALUE
        assert [op.WhichOneof("request") for op in request.success] == [
            "request_put",
            "request_range",
            "request_delete_range",
            "request_txn",
        ]
        kv = _proto.KeyValue(key=b"k", mod_revision=2)
        return _proto.TxnResponse(
            header=_header(9),
            succeeded=True,
            responses=[
                {"response_put": {"header": {"revision": 8}, "prev_kv": kv}},
                {"response_range": {"kvs": [kv], "count": 3, "more": True}},
                {"response_delete_range": {"deleted": 1, "prev_kvs": [kv]}},
                {"response_txn": {"responses": [{"response_put": {}}]}},
            ],
        )

    server = wire.serve({"/etcdserverpb.KV/Txn": txn})
    with wire.Connection(_url(server)) as connection:
        result = connection.txn(
            [calls.compare(b"k", "value", "=", b"v")],
            [calls.op_put(b"k", b"w"), calls.op_range(b"k", limit=1), calls.op_delete(b"k"), calls.op_txn()],
            timeout_s=20,
        )
    server.stop()
    put, read, deleted, nested = result.results
    assert (result.revision, result.succeeded) == (9, True)
    assert put.prev_kv.mod_revision == 2
    assert (read.count, read.more, read.kvs[0].key) == (3, True, b"k")
    assert (deleted.deleted, deleted.prev_kvs[0].key) == (1, b"k")
    assert nested.results == ((0, None),)


@given(st.binary(min_size=1, max_size=4), st.binary(min_size=1, max_size=6))
def test_prefix_end(prefix: bytes, key: bytes) -> None:
    """A key lies in [prefix, prefix_end) exactly when it begins with the prefix."""
    end = wire.prefix_end(prefix)
    inside = prefix <= key and (end == b"\0" or key < end)
    assert inside == key.startswith(prefix)


def test_prefix_end_at_the_top() -> None:
    """Prefixes that end in 0xff have an end too."""
    assert wire.prefix_end(b"a\xff") == b"b"
    assert wire.prefix_end(b"\xff") == b"\0"


def test_hex_id() -> None:
    """IDs look as they do in etcdctl."""
    assert wire.hex_id(0x8E9E05C52164694D) == "8e9e05c52164694d"
    assert wire.hex_id(0xAB) == "ab"


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_one_module_imports_grpc() -> None:
    """Only wire/channel.py imports grpc, so that what gRPC reads on import is always set before."""
    package = Path(str(etcdops.__file__)).parent
    found = {str(path.relative_to(package)) for path in package.rglob("*.py") if "grpc" in _imports(path)}
    assert found == {"wire/channel.py"}


@pytest.mark.parametrize(("given", "kept"), [(None, "0"), ("1", "1")])
def test_fork_support_is_off(given: str | None, kept: str) -> None:
    """gRPC's fork handlers are off before grpc is imported, unless the user has chosen otherwise."""
    code = """
import os, sys
seen = []
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "grpc":
            seen.append(os.environ.get("GRPC_ENABLE_FORK_SUPPORT"))
sys.meta_path.insert(0, Watch())
import etcdops.wire
print(*seen)
"""
    environment = {**os.environ}
    environment.pop("GRPC_ENABLE_FORK_SUPPORT", None)
    if given is not None:
        environment["GRPC_ENABLE_FORK_SUPPORT"] = given
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == [kept]


def test_ctrl_c_while_a_call_begins_leaves_a_connection_that_can_be_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal in the middle of gRPC's setting up of a call is held back until that is done."""
    begin = _channel._run_channel_spin_thread

    def interrupted(state: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        begin(state)

    monkeypatch.setattr(_channel, "_run_channel_spin_thread", interrupted)
    connection = wire.Connection("http://127.0.0.1:1")
    with pytest.raises(Interrupted), handled():
        connection.status(timeout_s=1.0)
    closing = threading.Thread(target=connection.close, daemon=True)
    closing.start()
    closing.join(10.0)
    assert not closing.is_alive()
