"""Members as processes: what they inherit, what they survive, and whom a signal can reach. Real etcd throughout."""

from __future__ import annotations

import fcntl
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme

from etcdops import inventory
from etcdops.cluster import Cluster
from etcdops.errors import BinaryError, MemberFailed, Refused, StateError
from etcdops.hosts import identify
from etcdops.member import Member
from etcdops.runtimes.process import ProcessRuntime
from etcdops.spec import ClusterSpec, MemberSpec, Timing, Tls
from etcdops.state import ClusterRecord, DataRef, Store
from tests.conftest import free_from

Wait = Callable[..., None]
Make = Callable[..., Cluster]

#: A member alone elects itself after one election timeout.
FAST = Timing(10, 100)
MARK = "ETCDOPS_CLUSTER_ID"


@pytest.fixture
def make(store: Store) -> Iterator[Make]:
    """Create clusters; whatever the test does to them, nothing of them runs afterwards."""
    made: list[Cluster] = []

    def make(name: str = "lab", size: int = 1, *, where: Store = store, **pinned: Any) -> Cluster:
        spec = ClusterSpec.of_size(name, size, timing=FAST if size == 1 else Timing(50, 500), **pinned)
        made.append(Cluster.create(spec, store=where))
        return made[-1]

    yield make
    for cluster in made:
        _end_all(cluster.runtime, str(cluster.store.root))


def _end_all(runtime: Any, state_dir: str) -> None:
    for leftover in runtime.leftovers():
        if leftover.state_dir == state_dir:
            runtime.end_leftover(leftover)


def _processes(cluster: Cluster) -> dict[str, list[int]]:
    """The processes that carry the cluster's mark, by member, whatever is recorded."""
    found: dict[str, list[int]] = {}
    for leftover in cluster.runtime.leftovers():
        if leftover.cluster_id == cluster.record.id:
            found.setdefault(leftover.member, []).append(int(leftover.ref.partition(":")[0]))
    return found


def _pid(member: Member) -> int:
    return int(member.record.ref.partition(":")[0])


def _state_letter(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


def _port(url: str) -> int:
    return int(url.rpartition(":")[2])


def _edit(cluster: Cluster, change: Callable[[dict[str, Any]], object]) -> None:
    """Change cluster.json as another program would."""
    path = cluster.store.cluster_dir(cluster.name) / "cluster.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def _with_ref(cluster: Cluster, member: str, ref: str) -> None:
    cluster.save(cluster.record.with_member(msgspec.structs.replace(cluster.record.member(member), ref=ref)))


@contextmanager
def _script(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process in a session of its own; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=20)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


# -- survival

UP = """
import sys
from etcdops.cluster import Cluster
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
cluster = Cluster.create(ClusterSpec.of_size("lab", 1, timing=Timing(10, 100)), store=Store(sys.argv[1]))
cluster.up()
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ends", ["exits", "is killed"])
def test_members_outlive_their_command_and_go_on_logging(store: Store, wait_until: Wait, ends: str) -> None:
    """A member goes on after the command that started it has exited, or its process group was killed; and it still
    serves, and can log: its output never went through a pipe of the command's."""
    with _script(UP, store.root) as command:
        assert _line(command) == "up"
        if ends == "is killed":
            os.killpg(command.pid, signal.SIGKILL)
        command.communicate(timeout=20)
    cluster = Cluster.attach("lab", store=store)
    try:
        gone_at = datetime.now(timezone.utc)
        assert cluster.status().verdict == "healthy"
        client = cluster.client()
        for value in "abc":
            client.put("k", value)
        client.compact(client.get_response("k").header.revision)
        wait_until(
            lambda: any("compact" in line.text for line in cluster.members[0].logs(since=gone_at)),
            what="a line that the member logged about its compaction",
        )
    finally:
        cluster.purge()


def test_nothing_open_is_handed_to_members(make: Make, tmp_path: Path) -> None:
    """A lock that the caller holds on an inheritable descriptor, as `flock` in a shell does, ends with the caller."""
    cluster = make()
    with open(tmp_path / "lock", "w") as lock:
        os.set_inheritable(lock.fileno(), True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        cluster.up()
    with open(tmp_path / "lock", "w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    pid = _pid(cluster.members[0])
    opened = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    assert str(tmp_path / "lock") not in opened
    assert cluster.record.members[0].log in opened
    assert os.getsid(pid) == pid


def test_the_callers_settings_do_not_reach_members(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """ETCD_… would change the member, proxies its traffic; all else of the environment is passed on, with our mark."""
    evil = "http://127.0.0.1:9"
    for name in ("http_proxy", "HTTPS_PROXY", "ALL_PROXY", "no_proxy", "ETCD_DATA_DIR", "ETCD_FORCE_NEW_CLUSTER"):
        monkeypatch.setenv(name, evil)
    monkeypatch.setenv("ETCDOPS_WHATEVER", "x")
    monkeypatch.setenv("ETCD_UNSUPPORTED_ARCH", "arm64")
    monkeypatch.setenv("KEPT", "yes")
    cluster = make()
    cluster.up()
    assert cluster.client().put("k", "v")
    raw = Path(f"/proc/{_pid(cluster.members[0])}/environ").read_text()
    has = dict(entry.split("=", 1) for entry in raw.split("\0") if entry)
    assert evil not in has.values()
    assert not [name for name in has if name.lower().endswith("_proxy")]
    assert {name for name in has if name.startswith("ETCD_")} == {"ETCD_UNSUPPORTED_ARCH"}
    assert {name: value for name, value in has.items() if name.startswith("ETCDOPS_")} == {
        MARK: cluster.record.id,
        "ETCDOPS_CLUSTER": "lab",
        "ETCDOPS_MEMBER": "ironman",
        "ETCDOPS_STATE": str(cluster.store.root),
    }
    assert has["KEPT"] == "yes"


# -- whom a signal can reach


def test_a_dead_child_that_nobody_reaped_is_stopped(store: Store, wait_until: Wait) -> None:
    """A member whose parent lives on without asking how it ended stays in the process table: as dead, and replaceable.

    The parent here is another process, which can alone remove the zombie and does not."""
    with _script(UP, store.root) as parent:
        assert _line(parent) == "up"
        cluster = Cluster.attach("lab", store=store)
        try:
            member = cluster.members[0]
            old = _pid(member)
            os.kill(old, signal.SIGKILL)
            wait_until(lambda: member.state() == "stopped")
            assert _state_letter(old) == "Z"
            assert cluster.status().verdict == "down"
            assert cluster.up() == ["ironman"]
            assert _state_letter(old) == "Z"
            assert _pid(member) != old
            assert cluster.status().verdict == "healthy"
        finally:
            cluster.purge()


def test_our_own_dead_child_is_stopped_and_removed(make: Make, wait_until: Wait) -> None:
    """A member that was killed behind our back, being our own child, is seen to be stopped and leaves no zombie."""
    cluster = make()
    cluster.up()
    [member] = cluster.members
    os.kill(_pid(member), signal.SIGKILL)
    wait_until(lambda: member.state() == "stopped")
    assert not os.path.exists(f"/proc/{_pid(member)}")


@pytest.mark.parametrize("whose", ["a stranger's", "a member's"])
def test_a_process_that_started_at_another_time_is_never_signalled(make: Make, whose: str) -> None:
    """A recorded process id that another process has now is nobody's: whatever is done does not reach that process."""
    cluster = make()
    cluster.up()
    [member] = cluster.members
    stranger = subprocess.Popen(["sleep", "120"])
    try:
        victim = stranger.pid if whose == "a stranger's" else _pid(member)
        pid, started, boot = identify(victim).split(":")
        _with_ref(cluster, "ironman", f"{pid}:{int(started) + 1}:{boot}")
        record, runtime = cluster.record, cluster.runtime
        assert isinstance(runtime, ProcessRuntime)
        assert runtime.state(record.members[0]) == "stopped"
        runtime.stop(record, ["ironman"], timeout_s=1.0)
        runtime.kill(record.members[0])
        for act in (runtime.pause, runtime.resume):
            with pytest.raises(MemberFailed, match="member ironman does not run"):
                act(record.members[0])
        assert _state_letter(victim) in "SR"
        # Its mark, which no stranger has, finds the member itself again.
        assert cluster.down() == ["ironman"]
        assert stranger.poll() is None
        assert _processes(cluster) == {}
    finally:
        stranger.kill()
        stranger.wait(10)


@pytest.mark.parametrize("ref", ["", "garbage", "-1:1:1", "0:0:0"])
def test_a_damaged_reference_refers_to_nobody(make: Make, ref: str) -> None:
    """A reference that is none does no harm, and the member is found all the same."""
    cluster = make()
    cluster.up()
    pid = _pid(cluster.members[0])
    _edit(cluster, lambda d: d["members"][0].update(ref=ref))
    assert cluster.members[0].state() == "stopped"
    assert cluster.up() == []
    assert _pid(cluster.members[0]) == pid


# -- references that were not recorded


def test_members_whose_start_was_not_recorded_are_taken_up(make: Make) -> None:
    """With every reference erased, members are seen by their mark: by status, by up, which starts none, and by down."""
    cluster = make(size=3)
    cluster.up()
    running = _processes(cluster)
    assert {name: len(pids) for name, pids in running.items()} == {"ironman": 1, "thor": 1, "deadpool": 1}

    def forget(document: dict[str, Any]) -> None:
        for member in document["members"]:
            member.update(ref="", wanted="stopped")

    _edit(cluster, forget)
    other = Cluster.attach("lab", store=cluster.store)
    assert other.status().verdict == "healthy"
    assert [member.record.ref for member in other.members] == [""] * 3
    assert other.up() == []
    assert {member.name: [_pid(member)] for member in other.members} == running
    _edit(cluster, forget)
    assert sorted(other.down()) == ["deadpool", "ironman", "thor"]
    assert _processes(cluster) == {}


DIES = """
import os, signal, sys
from etcdops.cluster import Cluster
from etcdops.spec import ClusterSpec, Timing
from etcdops.state import Store
cluster = Cluster.create(ClusterSpec.of_size("lab", 3, timing=Timing(50, 500)), store=Store(sys.argv[1]))
Store.save = lambda store, record: os.kill(os.getpid(), signal.SIGKILL)
cluster.up()
"""


@pytest.mark.parametrize("then", ["up", "start", "down", "purge"])
def test_killed_between_starting_members_and_recording_them(store: Store, then: str) -> None:
    """A command that dies at the worst moment leaves members that the next one takes up: never two on the same data."""
    with _script(DIES, store.root) as command:
        assert command.wait(60) == -signal.SIGKILL
    cluster = Cluster.attach("lab", store=store)
    try:
        assert [member.record.ref for member in cluster.members] == [""] * 3
        running = _processes(cluster)
        assert {name: len(pids) for name, pids in running.items()} == {"ironman": 1, "thor": 1, "deadpool": 1}
        if then == "up":
            assert cluster.up() == []
        elif then == "start":
            cluster.member("thor").start()
        if then in ("up", "start"):
            assert _processes(cluster) == running
            assert [_pid(cluster.member("thor"))] == running["thor"]
        elif then == "down":
            assert len(cluster.down()) == 3
            assert _processes(cluster) == {}
        else:
            cluster.purge()
            assert _processes(cluster) == {}
            assert store.names() == []
    finally:
        _end_all(cluster.runtime, str(store.root))


def test_an_interrupt_during_the_start_leaves_nobody(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C right after the members were started, before that is recorded, ends them again."""
    cluster = make(size=3)
    save = Store.save

    def interrupted(store: Store, record: ClusterRecord) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cluster.up()
    monkeypatch.setattr(Store, "save", save)
    assert _processes(cluster) == {}
    assert [member.wanted for member in cluster.record.members] == ["stopped"] * 3


def test_all_are_started_or_none(make: Make) -> None:
    """When a later member cannot be started (here: its log is a directory), those before it are ended again."""
    cluster = make(size=3)
    Path(cluster.record.member("deadpool").log).mkdir(parents=True)
    with pytest.raises(StateError, match=r"cannot write .*/deadpool\.log: Is a directory"):
        cluster.runtime.start(cluster.record, cluster.record.spec.names)
    assert _processes(cluster) == {}


# -- stopping and freezing


@pytest.fixture
def stubborn(make: Make, tmp_path: Path) -> tuple[ProcessRuntime, ClusterRecord]:
    """A runtime and the record of seven running members that ignore SIGTERM."""
    program = tmp_path / "bin" / "etcd"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ntrap '' TERM\necho ready\nexec sleep 120\n")
    program.chmod(0o755)
    cluster = make(size=7)
    runtime = cluster.runtime
    assert isinstance(runtime, ProcessRuntime)
    record = msgspec.structs.replace(cluster.record, binary=str(program.parent))
    record = runtime.start(record, record.spec.names)
    deadline = time.monotonic() + 20
    while not all(runtime.log_bytes(member) for member in record.members):
        assert time.monotonic() < deadline
    return runtime, record


def test_a_member_that_does_not_end_is_killed(stubborn: tuple[ProcessRuntime, ClusterRecord]) -> None:
    """After its time, which is that of all members together, stop kills."""
    runtime, record = stubborn
    began = time.monotonic()
    runtime.stop(record, record.spec.names, timeout_s=1.5)
    took = time.monotonic() - began
    assert [runtime.state(member) for member in record.members] == ["stopped"] * 7
    # One after the other would be 10.5 s and more.
    assert 1.4 < took < 10.4


def test_a_frozen_member_can_be_stopped_and_killed(make: Make) -> None:
    """A frozen member is let go to end in an orderly way; SIGKILL needs no such thing."""
    cluster = make()
    cluster.up()
    [member] = cluster.members
    member.pause()
    before = datetime.now(timezone.utc)
    member.stop()
    assert member.state() == "stopped"
    assert any("closed etcd server" in line.text for line in member.logs(since=before))
    member.start()
    member.pause()
    member.kill()
    assert member.state() == "stopped"
    assert not any("closed etcd server" in line.text for line in list(member.logs())[-3:])


def test_freezing_is_seen_to_be_done(make: Make) -> None:
    """After pause the process is stopped, after resume it runs, each when called again too; neither works on nobody."""
    cluster = make()
    cluster.up()
    [member] = cluster.members
    for _ in range(2):
        member.pause()
        assert _state_letter(_pid(member)) == "T"
        assert member.state() == "paused"
    for _ in range(2):
        member.resume()
        assert _state_letter(_pid(member)) in "SR"
        assert member.state() == "running"
    member.kill()
    for act in (member.pause, member.resume):
        with pytest.raises(MemberFailed, match="member ironman does not run") as caught:
            act()
        assert caught.value.remedy


def test_a_killed_member_can_be_started_at_once(make: Make) -> None:
    """As soon as kill returns, the member's ports are its own again, time after time."""
    cluster = make()
    cluster.up()
    [member] = cluster.members
    for _ in range(8):
        member.kill()
        assert cluster.runtime.occupied_ports(cluster.record, ["ironman"]) == {}
        member.start(wait_s=0)


def test_what_a_person_would_type(make: Make, wait_until: Wait) -> None:
    """The plain commands that are shown do what they are shown for, also when they are typed."""
    cluster = make()
    cluster.up()
    [member] = cluster.members
    shown = {
        action: cluster.runtime.by_hand(action, cluster.record, member.record)
        for action in ("start", "stop", "kill", "pause", "resume")
    }
    assert shown["stop"] == f"kill -TERM {_pid(member)}"
    for action, state in (("pause", "paused"), ("resume", "running"), ("kill", "stopped")):
        subprocess.run(["sh", "-c", shown[action]], check=True)
        wait_until(lambda: member.state() == state)  # noqa: B023
    by_hand = subprocess.Popen(shlex.split(shown["start"]), stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: cluster.status().members[0].health == "stopped" and _serves(member))
    finally:
        by_hand.kill()
        by_hand.wait(10)


@contextmanager
def _relayed(port: int) -> Iterator[tuple[str, list[tuple[socket.socket, socket.socket]]]]:
    """Give a URL that leads to a port, and the connections that were made; the first leads nowhere once it stands."""
    made: list[tuple[socket.socket, socket.socket]] = []

    def pass_on(source: socket.socket, sink: socket.socket, *, swallow: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not swallow:
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, far = listener.accept()[0], socket.create_connection(("127.0.0.1", port))
                made.append((near, far))
                if len(made) == 1:
                    # Each side's first word, so that both take the connection for one that works.
                    far.sendall(near.recv(65536))
                    near.sendall(far.recv(65536))
                for source, sink in ((near, far), (far, near)):
                    ways = {"swallow": len(made) == 1}
                    threads.append(threading.Thread(target=pass_on, args=(source, sink), kwargs=ways, daemon=True))
                    threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threads = [threading.Thread(target=accept, daemon=True)]
        threads[0].start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for each in chain.from_iterable(made):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for each in chain.from_iterable(made):
                each.close()


def test_a_connection_that_leads_nowhere_is_not_relied_on(make: Make) -> None:
    """A member that serves is found to serve, also where the first connection to it stands and gives no answer."""
    cluster = make()
    cluster.up()
    with _relayed(_port(cluster.endpoints[0])) as (url, made):
        _edit(cluster, lambda record: record["members"][0].update(client_url=url))
        cluster.wait_serving(["ironman"], timeout_s=20)
        assert len(made) > 1


def _serves(member: Member) -> bool:
    try:
        return member.status(timeout_s=0.5).leader != 0
    except Exception:  # whatever it is, it does not serve yet
        return False


# -- ports


def _ports(record: ClusterRecord) -> list[int]:
    return [_port(url) for member in record.members for url in (member.client_url, member.peer_url)]


def test_chosen_ports_are_free_and_stay_free(make: Make) -> None:
    """Free ports are chosen, all different, outside the range from which outgoing connections take theirs."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for name in ("a", "b"):
        ports = _ports(make(name, 7).record)
        assert len(set(ports)) == 14
        assert [port for port in ports if low <= port <= high] == []


def test_the_range_of_outgoing_connections_is_heeded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel's range covers the usual ports, others are chosen; where it covers all, the usual ones."""
    monkeypatch.delenv("ETCDOPS_PORTS")
    runtime = ProcessRuntime()
    read = runtime.host.read

    def place(text: bytes) -> set[int]:
        monkeypatch.setattr(
            runtime.host, "read", lambda path, offset=0: text if path.endswith("_port_range") else read(path, offset)
        )
        members = runtime.place(ClusterSpec.of_size("lab", 7), "1", str(store.root))
        return {_port(url) for member in members for url in (member.client_url, member.peer_url)}

    assert all(10_000 <= port < 15_000 for port in place(b"15000\t65535\n"))
    assert all(20_000 <= port < 32_000 for port in place(b"1024\t65535\n"))
    assert all(20_000 <= port < 32_000 for port in place(b""))


def test_a_stopped_clusters_ports_are_not_given_to_another(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ports that a cluster of this state directory has are not chosen again, although nothing listens there now."""
    rotations = iter([0, 0, 50])

    def sample(population: list[int], count: int) -> list[int]:
        by = next(rotations)
        return [*population[by:], *population[:by]]

    monkeypatch.setattr(random, "sample", sample)
    one = make("one", 3)
    two = make("two", 3)
    assert set(_ports(one.record)).isdisjoint(_ports(two.record))
    assert next(rotations, None) is None


def test_pinned_ports_are_used(make: Make) -> None:
    """With a first port, members listen exactly where that puts them."""
    base = free_from(2)
    cluster = make(base_port=base)
    cluster.up()
    assert _ports(cluster.record) == [base, base + 1]
    assert cluster.client().put("k", "v")


def test_a_pinned_port_in_use_is_refused(make: Make, store: Store) -> None:
    """A pinned port that something else has is named, and no cluster is recorded."""
    base = free_from(6)
    with (
        socket.create_server(("127.0.0.1", base + 3)),
        pytest.raises(Refused, match=f"port {base + 3} on local is in use") as caught,
    ):
        make(size=3, base_port=base)
    assert f"sport = :{base + 3}" in caught.value.remedy
    assert store.names() == []
    assert not store.cluster_dir("lab").exists()


@pytest.mark.parametrize("which", ["client", "peer"])
def test_a_stopped_members_port_that_was_taken_is_refused(make: Make, which: str) -> None:
    """When something else took a stopped member's port, up says which port of which member, and starts nobody."""
    cluster = make(size=3)
    cluster.up()
    cluster.down()
    before = cluster.record
    thor = before.member("thor")
    port = _port(thor.client_url if which == "client" else thor.peer_url)
    with socket.create_server(("127.0.0.1", port)):
        for act in (cluster.up, cluster.member("thor").start):
            with pytest.raises(Refused, match=f"something else listens on port {port} of thor") as caught:
                act()
            assert "nothing was started" in caught.value.remedy
            assert _processes(cluster) == {}
    assert cluster.record == before
    assert len(cluster.up()) == 3


# -- data


def test_data_is_where_the_record_says(make: Make, tmp_path: Path) -> None:
    """A member's data is a recorded reference with a generation: another reference is other data, and back again."""
    cluster = make()
    cluster.up()
    cluster.client().put("k", "first")
    cluster.down()
    first = cluster.record.members[0].data
    assert first.generation == 1
    second = DataRef(str(tmp_path / "elsewhere" / "ironman-g2"), 2)
    shutil.copytree(first.place, second.place)

    def use(data: DataRef) -> None:
        cluster.save(cluster.record.with_member(msgspec.structs.replace(cluster.record.members[0], data=data)))
        cluster.up()
        command = Path(f"/proc/{_pid(cluster.members[0])}/cmdline").read_text().split("\0")
        assert f"--data-dir={data.place}" in command

    use(second)
    cluster.client().put("k", "second")
    cluster.down()
    use(first)
    assert cluster.client().get("k")[0] == b"first"
    cluster.down()
    use(second)
    assert cluster.client().get("k")[0] == b"second"
    assert any(second.place in line for line in cluster.contents())
    cluster.purge()
    assert not Path(second.place).exists()


def test_data_of_an_earlier_cluster_is_not_taken_over(make: Make, store: Store) -> None:
    """Where something is in the place of a new member's data, the cluster is refused and the data untouched."""
    place = store.cluster_dir("lab") / "members" / "thor-g1"
    (place / "member").mkdir(parents=True)
    with pytest.raises(Refused, match=f"{place} on local is not empty") as caught:
        make(size=3)
    assert caught.value.remedy
    assert (place / "member").exists()
    assert store.names() == []


def test_without_room_nothing_is_created(make: Make, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without room for the members' logs is refused, with how much there is and how much is needed."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**30, 0, 100 * 2**20))
    with pytest.raises(Refused, match=r"has 100 MiB of free space on local, and the members need 480 MiB") as caught:
        make(size=3)
    assert "ETCDOPS_STATE_DIR" in caught.value.remedy
    assert store.names() == []


def test_a_binary_that_is_gone_is_named(make: Make, tmp_path: Path) -> None:
    """A cluster whose etcd was removed says which it was created with; nothing is started."""
    cluster = make(size=3)
    gone = msgspec.structs.replace(cluster.record, binary=str(tmp_path / "gone"))
    cluster.save(gone)
    with pytest.raises(BinaryError, match=f"cannot start ironman: cannot run {tmp_path}/gone/etcd on local") as caught:
        cluster.up()
    assert gone.etcd_version in caught.value.remedy
    assert caught.value.exit_code == 3
    assert cluster.record == gone


# -- several clusters


def test_two_clusters_side_by_side(make: Make, tmp_path: Path) -> None:
    """Clusters share nothing, whether in one state directory or, with the same name, in two."""
    here, beside, elsewhere = make("lab"), make("other"), make("lab", where=Store(tmp_path / "elsewhere"))
    clusters = (here, beside, elsewhere)
    for cluster in clusters:
        cluster.up()
        cluster.client().put("mine", cluster.record.id)
    assert len({port for cluster in clusters for port in _ports(cluster.record)}) == 6
    here.members[0].kill()
    here.purge()
    for cluster in (beside, elsewhere):
        assert cluster.status().verdict == "healthy"
        assert cluster.client().get("mine")[0] == cluster.record.id.encode()
    assert here.store.names() == ["other"]


def test_a_name_that_is_taken(make: Make) -> None:
    """A second cluster of the same name is refused; the first is untouched, running or not."""
    first = make()
    record = first.record
    for _ in range(2):
        with pytest.raises(Refused, match=r"there already is a cluster 'lab' in "):
            make(size=3)
        assert first.record == record
        first.up()
        record = first.record
    assert first.status().verdict == "healthy"


# -- temporary clusters


def test_a_temporary_cluster_in_a_directory_of_the_users(store: Store) -> None:
    """Where the caller gives the place, that stays, and all of the cluster goes."""
    spec = ClusterSpec.of_size("tmp", 1, timing=FAST)
    with Cluster.create(spec, temporary=True, store=store) as cluster:
        assert store.names() == ["tmp"]
        assert cluster.record.owner == identify(os.getpid())
    assert store.root.is_dir()
    assert not store.cluster_dir("tmp").exists()


MAKES = """
import sys
from etcdops.cluster import Cluster
from etcdops.spec import ClusterSpec, Timing
with Cluster.create(ClusterSpec.of_size("forgotten", 1, timing=Timing(10, 100)), temporary=True) as cluster:
    print(cluster.store.root, cluster.record.id, flush=True)
    sys.stdin.read()
"""


def test_the_leftover_of_a_maker_that_was_killed_is_found_and_removed() -> None:
    """A temporary cluster whose maker was killed is a leftover; while the maker lives, it is not."""
    with _script(MAKES) as maker:
        root, cluster_id = _line(maker).split()
        [alive] = [found for found in inventory.find_clusters() if found.id == cluster_id]
        maker.kill()
        maker.wait(10)
    [found] = [found for found in inventory.find_clusters() if found.id == cluster_id]
    try:
        assert (alive.name, alive.state) == ("forgotten", "up")
        assert (found.name, found.state, found.members, found.state_dir) == (
            "forgotten",
            "leftover",
            ("ironman",),
            root,
        )
        assert any("ironman" in line for line in found.deletes)
    finally:
        inventory.remove(found)
    assert cluster_id not in {each.id for each in inventory.find_clusters()}
    assert not Path(root).exists()


# -- a start that fails halfway


def _issue(directory: Path) -> None:
    """Make an authority's certificate, ca.pem, and a pair for members and clients alike, pair.pem and pair.key."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.private_key_pem.write_to_path(str(directory / "pair.key"))
    (directory / "pair.pem").write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))


def test_tls_by_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """PEM files may be named from the working directory, although members run in another; all speaks TLS then."""
    _issue(tmp_path)
    monkeypatch.chdir(tmp_path)
    members = (MemberSpec("ironman", cert="pair.pem", key="pair.key"),)
    spec = ClusterSpec("tls", members, timing=FAST, tls=Tls("ca.pem", "pair.pem", "pair.key"))
    with Cluster.create(spec, store=store, temporary=True) as cluster:
        monkeypatch.chdir("/")
        assert cluster.endpoints[0].startswith("https://127.0.0.1:")
        cluster.client().put("k", "v")
        assert cluster.status().verdict == "healthy"
        cluster.members[0].kill()
        cluster.members[0].start()
        assert cluster.client().get("k")[0] == b"v"
        assert Cluster.ensure_up(cluster.record.spec, store=store).started == []


def test_of_an_existing_cluster_only_what_was_started_is_stopped(make: Make) -> None:
    """What ran before goes on, what was started is stopped again, data and record are as before."""
    cluster = make(size=3)
    cluster.up()
    cluster.client().put("k", "v")
    for name in ("thor", "deadpool"):
        cluster.member(name).stop()
    thor = cluster.record.member("thor")
    before, survivor = cluster.record, _processes(cluster)
    # A log line of long ago, which is not why it dies now.
    with open(thor.log, "a") as log:
        log.write('{"level":"fatal","ts":"2020-01-01T00:00:00Z","msg":"old news"}\n')
    hidden = Path(f"{thor.data.place}-hidden")
    Path(thor.data.place).rename(hidden)
    Path(thor.data.place).mkdir()
    (Path(thor.data.place) / "member").write_text("a file where etcd wants a directory")
    with pytest.raises(MemberFailed, match="member thor died:\n") as caught:
        cluster.up()
    assert "not a directory" in str(caught.value)
    assert "old news" not in str(caught.value)
    assert thor.log in caught.value.remedy
    assert _processes(cluster) == survivor
    assert {m.name: m.wanted for m in cluster.record.members} == {m.name: m.wanted for m in before.members}
    shutil.rmtree(thor.data.place)
    hidden.rename(thor.data.place)
    assert sorted(cluster.up()) == ["deadpool", "thor"]
    assert cluster.client().get("k")[0] == b"v"


def test_a_member_wanted_running_stays_so_when_it_cannot_start(make: Make, wait_until: Wait) -> None:
    """What should run is not forgotten because it could not be started: that is how a dead run is healed later."""
    cluster = make()
    cluster.up()
    os.kill(_pid(cluster.members[0]), signal.SIGKILL)
    wait_until(lambda: cluster.members[0].state() == "stopped")
    before = cluster.record
    assert before.members[0].wanted == "running"
    with (
        socket.create_server(("127.0.0.1", _port(before.members[0].peer_url))),
        pytest.raises(Refused, match="something else listens"),
    ):
        cluster.up()
    assert cluster.record == before
    data = Path(before.members[0].data.place)
    data.rename(f"{data}-hidden")
    data.write_text("")
    with pytest.raises(StateError, match=re.escape(f"cannot make {data}")):
        cluster.up()
    assert cluster.record.members[0].wanted == "running"


# -- nothing piles up


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _zombies() -> list[str]:
    mine = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(") ")[2].split()
        except OSError:
            continue
        if fields[0] == "Z" and int(fields[1]) == os.getpid():
            mine.append(entry.parent.name)
    return mine


def test_nothing_piles_up(make: Make) -> None:
    """Starting, looking, killing and stopping again and again leaves no descriptor, thread, zombie or file behind."""
    cluster = make()

    def round_trip(count: int) -> None:
        for _ in range(count):
            cluster.up()
            cluster.status()
            cluster.client().close()
            Cluster.attach("lab", store=cluster.store).members[0].kill()
            cluster.up()
            cluster.members[0].pause()
            cluster.status()
            cluster.down()

    zombies = set(_zombies())
    round_trip(2)
    files, threads = _open_files(), threading.active_count()
    round_trip(4)
    assert threading.active_count() <= threads
    # gRPC keeps a few of its own, but not a few for each round.
    assert _open_files() <= files + 3
    assert set(_zombies()) <= zombies
    assert sorted(entry.name for entry in cluster.store.cluster_dir("lab").iterdir()) == ["cluster.json", "members"]


def test_described_for_people(make: Make) -> None:
    """What a member runs as, and where its data is, before and after its start."""
    cluster = make()

    def described() -> str:
        return cluster.runtime.described(cluster.record, cluster.record.members[0])

    place = cluster.record.members[0].data.place
    assert described() == f"ironman: stopped, data {place}"
    cluster.up()
    assert described() == f"ironman: process {_pid(cluster.members[0])}, data {place}"
