"""This machine as a host: commands, processes told apart by more than their ids, files and ports. No etcd."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from etcdops.errors import EtcdopsError, Interrupted, StateError
from etcdops.hosts import Completed, LocalHost, boot_id, identify

Wait = Callable[..., None]
SLEEP = ["sleep", "120"]


@pytest.fixture
def host() -> LocalHost:
    """This machine."""
    return LocalHost()


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A child of the test's own, that the host under test did not start and nobody reaps before the end."""
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture
def spawn(host: LocalHost, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Spawn processes that are gone at the end."""
    refs = []

    def spawn(*argv: str, **env: str) -> str:
        ref = host.spawn(argv or SLEEP, log=str(tmp_path / "log"), env={"PATH": os.environ["PATH"], **env})
        refs.append(ref)
        return ref

    yield spawn
    for ref in refs:
        host.send_signal(ref, signal.SIGKILL)
        assert host.wait_gone(ref, 10)


def _pid(ref: str) -> int:
    return int(ref.partition(":")[0])


def _state_letter(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]


# -- commands


def test_a_command_gives_what_it_wrote_and_how_it_ended(host: LocalHost) -> None:
    """Output is bytes as written, both streams apart; any exit code is an answer and no error."""
    done = host.run(["sh", "-c", "printf 'out\\377'; echo err >&2; exit 7"], timeout_s=10)
    assert done == (7, b"out\xff", b"err\n")


def test_a_command_ended_by_a_signal(host: LocalHost) -> None:
    """Death by a signal is 128 + its number, as shells report it."""
    assert host.run(["sh", "-c", "kill -9 $$"], timeout_s=10).exit_code == 137


def test_a_command_has_no_input_and_the_given_environment(host: LocalHost) -> None:
    """A command finds its input at its end, and with `env` it sees that alone."""
    assert host.run(["cat"], timeout_s=10).stdout == b""
    assert host.run(["/usr/bin/env"], timeout_s=10, env={"ONLY": "this"}).stdout == b"ONLY=this\n"


def test_much_output_is_not_cut(host: LocalHost) -> None:
    """Ten megabytes arrive whole."""
    assert len(host.run(["head", "-c", "10000000", "/dev/zero"], timeout_s=30).stdout) == 10_000_000


def test_a_command_that_takes_too_long_is_ended(host: LocalHost) -> None:
    """After its time a command is killed, and the error has the command and the host."""
    with pytest.raises(EtcdopsError, match="`sleep 120` did not end within 0 s on local"):
        host.run(SLEEP, timeout_s=0.2)


def test_a_command_that_is_not_there(host: LocalHost) -> None:
    """A command that cannot be found is named."""
    with pytest.raises(EtcdopsError, match="there is no command 'no-such-command' on local"):
        host.run(["no-such-command"], timeout_s=5)


_SIGNALLED_IN_A_FORK = """
import os, signal, sys
from etcdops.errors import Interrupted
from etcdops.hosts import LocalHost
from etcdops.interrupts import handled

left = [signal.SIGINT]
os.register_at_fork(after_in_parent=lambda: left and os.kill(os.getpid(), left.pop()))
host, sleep = LocalHost(), ["sleep", sys.argv[2]]
try:
    with handled():
        host.run(sleep, timeout_s=60) if sys.argv[1] == "run" else host.run_each([sleep, sleep], timeout_s=60)
except Interrupted:
    print("interrupted")
"""


@pytest.mark.parametrize("way", ["run", "run_each"])
def test_a_signal_that_arrives_as_a_command_begins_is_not_lost(host: LocalHost, way: str) -> None:
    """Python drops what is raised in its hooks around a fork; the command is ended, and the signal is raised."""
    seconds = "59.0625" if way == "run" else "59.03125"
    done = subprocess.run(
        [sys.executable, "-c", _SIGNALLED_IN_A_FORK, way, seconds], capture_output=True, text=True, timeout=50
    )
    assert (done.stdout, done.stderr, done.returncode) == ("interrupted\n", "", 0)
    assert not [each for each in psutil.process_iter() if _arguments(each) == ["sleep", seconds]]


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return [] if process.status() == psutil.STATUS_ZOMBIE else process.cmdline()
    except psutil.Error:
        return []


@pytest.mark.parametrize("how", ["late", "missing", "interrupted"])
def test_commands_side_by_side_end_together(
    host: LocalHost, monkeypatch: pytest.MonkeyPatch, wait_until: Wait, how: str
) -> None:
    """When one takes too long, cannot be found, or somebody presses Ctrl-C, none of the others goes on."""
    # Told apart from all other commands by how long they sleep.
    length = f"120.{os.getpid()}"
    commands = [["true"], ["sleep", length], ["sleep", length]]
    expected: type[BaseException] = EtcdopsError
    if how == "missing":
        commands.append(["no-such-command"])
    if how == "interrupted":
        expected, ended = Interrupted, host._ended

        def interrupted(argv: Sequence[str], *others: Any) -> Completed:
            if argv == ["true"]:
                return ended(argv, *others)
            raise Interrupted(signal.SIGINT)

        monkeypatch.setattr(host, "_ended", interrupted)
    try:
        with pytest.raises(expected):
            host.run_each(commands, timeout_s=0.5 if how == "late" else 30)
        wait_until(lambda: not _asleep(length), what="the end of all")
    finally:
        for pid in _asleep(length):
            os.kill(pid, signal.SIGKILL)


def _asleep(length: str) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.cmdline()[1:] == [length]:
                found.append(process.pid)
    return found


# -- starting processes

REPORT = """
import os, sys
# Python itself sets LC_CTYPE where there is no locale.
names = sorted(set(os.environ) - {"LC_CTYPE"})
print(os.getpid(), os.getsid(0), os.getcwd(), names, sorted(os.listdir("/proc/self/fd")), flush=True)
print("to stderr", file=sys.stderr, flush=True)
"""


def test_a_spawned_process_has_nothing_of_ours(
    host: LocalHost, spawn: Callable[..., str], tmp_path: Path, wait_until: Wait
) -> None:
    """It has a session, an environment and a directory of its own, and no file of ours but its log, whatever is open.

    A shell's `flock` works through an inherited descriptor: a member that held it would keep the lock for its life.
    """
    with open(tmp_path / "ours", "w") as ours:
        os.set_inheritable(ours.fileno(), True)
        ref = spawn(sys.executable, "-c", REPORT, ONLY="this")
        assert host.wait_gone(ref, 20)
    log = (tmp_path / "log").read_text()
    pid = _pid(ref)
    # The fourth descriptor is that with which it lists them.
    assert f"{pid} {pid} / ['ONLY', 'PATH'] ['0', '1', '2', '3']\n" in log
    assert "to stderr\n" in log
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) == 0o600


def test_a_log_is_continued(host: LocalHost, spawn: Callable[..., str], tmp_path: Path) -> None:
    """What an earlier process wrote stays in the log."""
    for word in ("one", "two"):
        assert host.wait_gone(spawn("echo", word), 10)
    assert (tmp_path / "log").read_text() == "one\ntwo\n"


PARENT = """
import os, sys
from etcdops.hosts import LocalHost
code = "until [ -e go ]; do sleep 0.05; done; echo after; echo error >&2"
ref = LocalHost().spawn(["sh", "-c", f"cd {sys.argv[1]}; {code}"], log=f"{sys.argv[1]}/log", env=dict(os.environ))
print(ref, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("ends", ["exits", "is killed"])
def test_a_spawned_process_writes_to_its_log_after_its_parent_is_gone(
    host: LocalHost, tmp_path: Path, wait_until: Wait, ends: str
) -> None:
    """Nothing between the process and its log dies with the command that started it, and neither does the process."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdout is not None
    ref = parent.stdout.readline().strip()
    try:
        if ends == "is killed":
            # With its whole process group, as a terminal that closes would.
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate(timeout=20)
        assert host.process_state(ref) == "running"
        (tmp_path / "go").touch()
        assert host.wait_gone(ref, 20)
    finally:
        host.send_signal(ref, signal.SIGKILL)
    assert (tmp_path / "log").read_text() == "after\nerror\n"


def test_what_cannot_be_run_is_named(host: LocalHost, tmp_path: Path) -> None:
    """A missing program, a directory, and a file that is no program are errors with the path and the reason."""
    (tmp_path / "text").write_text("hello")
    (tmp_path / "text").chmod(0o755)
    for path, reason in (("none", "No such file"), (".", "Permission denied"), ("text", "Exec format error")):
        with pytest.raises(EtcdopsError, match=f"cannot run {tmp_path / path} on local: {reason}"):
            host.spawn([str(tmp_path / path)], log=str(tmp_path / "log"), env={})


def test_a_log_that_cannot_be_written_is_named(host: LocalHost, tmp_path: Path) -> None:
    """Nothing is started without its log."""
    with pytest.raises(StateError, match=f"cannot write {tmp_path}: Is a directory"):
        host.spawn(SLEEP, log=str(tmp_path), env={})


# -- telling processes apart


def test_a_process_runs_is_frozen_and_is_gone(host: LocalHost, spawn: Callable[..., str]) -> None:
    """The three states, as the kernel has them."""
    ref = spawn()
    assert host.process_state(ref) == "running"
    assert host.send_signal(ref, signal.SIGSTOP)
    _until(lambda: host.process_state(ref) == "paused")
    assert not host.wait_gone(ref, 0.05)
    assert host.send_signal(ref, signal.SIGKILL)
    assert host.wait_gone(ref, 10)
    assert host.process_state(ref) == "gone"
    assert not host.send_signal(ref, signal.SIGTERM)


def _until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_zombie_is_gone(host: LocalHost, child: subprocess.Popen[bytes]) -> None:
    """A process that has ended counts as gone, although its parent (here: this test) has not asked how it ended."""
    ref = identify(child.pid)
    assert host.process_state(ref) == "running"
    os.kill(child.pid, signal.SIGKILL)
    _until(lambda: _state_letter(child.pid) == "Z")
    assert host.process_state(ref) == "gone"
    assert host.wait_gone(ref, 0)
    assert not host.send_signal(ref, signal.SIGTERM)
    assert identify(child.pid) == ""


HALF_DEAD = """
import ctypes, socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=time.sleep, args=(120,)).start()
print(server.getsockname()[1], flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def test_a_process_is_there_until_its_last_thread_has_ended(
    host: LocalHost, spawn: Callable[..., str], tmp_path: Path
) -> None:
    """A process that is shown as a zombie while one of its threads lives still holds its ports, and is not gone.

    Every process of many threads is so for a moment when it is killed; one that is started in its place at that
    moment finds its ports taken.
    """
    ref = spawn(sys.executable, "-c", HALF_DEAD)
    _until(lambda: _state_letter(_pid(ref)) == "Z")
    port = int((tmp_path / "log").read_text())
    assert host.port_in_use(port)
    assert host.process_state(ref) != "gone"
    assert not host.wait_gone(ref, 0.05)
    assert host.send_signal(ref, signal.SIGKILL)
    assert host.wait_gone(ref, 10)
    assert not host.port_in_use(port)


def test_ports_are_free_when_a_process_is_gone(host: LocalHost, spawn: Callable[..., str], tmp_path: Path) -> None:
    """As soon as a killed process of many threads is called gone, its successor can listen where it did."""
    many = "import threading, time\nfor _ in range(30): threading.Thread(target=time.sleep, args=(120,)).start()\n"
    for number in range(10):
        ref = spawn(sys.executable, "-c", many + HALF_DEAD.replace("ctypes.CDLL(None).pthread_exit(None)", ""))
        _until(lambda: len((tmp_path / "log").read_text().splitlines()) > number)  # noqa: B023
        port = int((tmp_path / "log").read_text().split()[-1])
        assert host.port_in_use(port)
        host.send_signal(ref, signal.SIGKILL)
        assert host.wait_gone(ref, 10)
        assert not host.port_in_use(port)


@pytest.mark.parametrize("other", ["start", "boot"])
def test_a_recycled_id_is_never_signalled(host: LocalHost, child: subprocess.Popen[bytes], other: str) -> None:
    """A process that has our id but another start time, or is of another boot, is not ours: no signal reaches it."""
    pid, started, boot = identify(child.pid).split(":")
    ref = f"{pid}:{int(started) - 1}:{boot}" if other == "start" else f"{pid}:{started}:00000000"
    assert host.process_state(ref) == "gone"
    assert not host.send_signal(ref, signal.SIGKILL)
    assert host.wait_gone(ref, 0)
    assert child.poll() is None


def test_without_pidfds_the_start_time_is_checked_too(
    host: LocalHost, child: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a kernel without them, the right process is signalled and a wrong one is not."""

    def missing(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    pid, started, boot = identify(child.pid).split(":")
    assert not host.send_signal(f"{pid}:{int(started) + 1}:{boot}", signal.SIGKILL)
    assert child.poll() is None
    assert host.send_signal(f"{pid}:{started}:{boot}", signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL


@pytest.mark.parametrize(
    "ref", ["", ":", "0", "-1:2:3", "0:0:0", "abc", "x:1:2", "1", "1:1:1", "²:1:1", "9" * 30, "9" * 5000]
)
def test_what_is_no_reference_refers_to_nothing(host: LocalHost, ref: str) -> None:
    """A damaged reference is that of a process that is gone; above all it is not 0 or -1, which are many processes."""
    assert host.process_state(ref) == "gone"
    assert not host.send_signal(ref, signal.SIGTERM)
    assert host.wait_gone(ref, 0)


def test_identities(child: subprocess.Popen[bytes]) -> None:
    """A reference is the id, the kernel's count of ticks at the start, and the boot; it does not change."""
    ref = identify(child.pid)
    ticks = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(") ")[2].split()[19])
    assert ref == f"{child.pid}:{ticks}:{boot_id()}"
    assert identify(child.pid) == ref
    assert identify(2**22 + 1) == ""
    assert Path("/proc/sys/kernel/random/boot_id").read_text().startswith(boot_id())


def test_a_misleading_name_does_not_mislead(host: LocalHost, spawn: Callable[..., str], tmp_path: Path) -> None:
    """A program may be called so that its line in /proc looks like that of a zombie."""
    program = tmp_path / "a) Z 1 ("
    shutil.copy(shutil.which("sleep") or "", program)
    ref = spawn(str(program), "120")
    _until(lambda: "a) Z 1 (" in Path(f"/proc/{_pid(ref)}/comm").read_text())
    assert host.process_state(ref) == "running"
    assert ref == identify(_pid(ref))


def test_any_host_object_reaps_what_another_started(host: LocalHost, spawn: Callable[..., str]) -> None:
    """No zombie stays behind when a process is started through one object and ended through another."""
    ref = spawn()
    other = LocalHost()
    assert other.send_signal(ref, signal.SIGKILL)
    assert other.wait_gone(ref, 10)
    # Reaped by whoever looks after it has wholly ended.
    _until(lambda: other.process_state(ref) == "gone" and not os.path.exists(f"/proc/{_pid(ref)}"))


def test_marked_processes(host: LocalHost, spawn: Callable[..., str]) -> None:
    """Those that carry the mark are found, with our variables and no others; the dead and the unmarked are not."""
    mark = f"ETCDOPS_TEST_{os.getpid()}"
    live = spawn(*SLEEP, **{mark: "1", "ETCDOPS_MEMBER": "thor", "SECRET": "x"})
    dead = spawn(*SLEEP, **{mark: "2"})
    spawn(*SLEEP, OTHER="1")
    host.send_signal(dead, signal.SIGKILL)
    assert host.wait_gone(dead, 10)
    found = list(host.marked(mark))
    assert found == [(live, {mark: "1", "ETCDOPS_MEMBER": "thor"}, tuple(SLEEP))]


# -- files


def test_files(host: LocalHost, tmp_path: Path) -> None:
    """Reading, making and removing, where something is and where nothing is."""
    path = tmp_path / "a" / "b"
    assert host.read(str(path)) == b""
    assert host.is_empty(str(path))
    assert host.free_bytes(str(path)) > 0
    host.make_dir(str(path))
    host.make_dir(str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert host.is_empty(str(path))
    (path / "file").write_bytes(b"0123456789")
    assert not host.is_empty(str(path))
    assert not host.is_empty(str(path / "file"))
    assert host.read(str(path / "file"), 4) == b"456789"
    assert host.read(str(path / "file"), 40) == b""
    host.remove(str(path))
    host.remove(str(path))
    assert not path.exists()


def test_files_that_cannot_be_had_are_named(host: LocalHost, tmp_path: Path) -> None:
    """Each refusal by the system becomes an error with the path and the reason."""
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(StateError, match=f"cannot read {tmp_path}: Is a directory"):
        host.read(str(tmp_path))
    with pytest.raises(StateError, match=f"cannot make {file}: File exists"):
        host.make_dir(str(file))
    with pytest.raises(StateError, match=f"cannot make {file}/x: Not a directory"):
        host.make_dir(str(file / "x"))
    with pytest.raises(EtcdopsError, match=f"cannot remove {file} on local: Not a directory"):
        host.remove(str(file))


# -- ports


LISTENERS = {
    "loopback": lambda: socket.create_server(("127.0.0.1", 0)),
    "every IPv4 address": lambda: socket.create_server(("0.0.0.0", 0)),
    "every address": lambda: socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True),
}


@pytest.mark.parametrize("where", LISTENERS)
def test_a_port_that_somebody_listens_on_is_in_use(host: LocalHost, where: str) -> None:
    """Whether at this very address, or at all of them, of either family."""
    if where == "every address" and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with LISTENERS[where]() as server:
        port = server.getsockname()[1]
        assert host.port_in_use(port)
    assert not host.port_in_use(port)


def test_a_port_that_is_held_without_listening_is_in_use(host: LocalHost) -> None:
    """Nothing can listen where something is bound, even if it does not listen itself."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        assert host.port_in_use(taken.getsockname()[1])


def test_a_port_whose_connections_are_closing_is_free(host: LocalHost) -> None:
    """A server that closed its connections can be started again at once: etcd listens there all the same."""
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as client:
        served, _ = server.accept()
        served.close()  # first, so that the server's side waits
        server.close()
        client.recv(1)
    assert not host.port_in_use(port)


def test_ports_are_taken_from_the_range_that_is_named(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """ETCDOPS_PORTS names the ports that members may get; what is no range is refused."""
    from etcdops.errors import SpecError
    from etcdops.ports import free_ports

    monkeypatch.setenv("ETCDOPS_PORTS", "31000-31009")
    assert set(free_ports(host, 3, {31000, 31001})) <= set(range(31002, 31010))
    monkeypatch.setenv("ETCDOPS_PORTS", "31000")
    with pytest.raises(SpecError, match="ETCDOPS_PORTS=31000 is no range of ports"):
        free_ports(host, 3, ())
