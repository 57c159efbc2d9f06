"""WHERE commands run and files live: this machine here, others in `etcdops.remote`.

Runtimes and everything above them reach processes and files through a Host alone, so that nothing above assumes that
a member is local.
"""

from __future__ import annotations

import errno
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from etcdops.errors import CommandMissing, EtcdopsError, Refused, StateError
from etcdops.interrupts import deferred

__all__ = ["Completed", "Host", "KeepsProcesses", "LocalHost", "MarkedProcess", "boot_id", "identify"]


class Completed(NamedTuple):
    """How a command ended."""

    exit_code: int
    stdout: bytes
    stderr: bytes


class MarkedProcess(NamedTuple):
    """A process that carries our mark in its environment: its reference, and the variables of ours that it carries."""

    ref: str
    environment: dict[str, str]
    command: tuple[str, ...]


class Host(Protocol):
    """A machine that can run commands and holds files: this one (`LocalHost`), or one that is reached by SSH."""

    name: str

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        stdin: bytes | Iterator[bytes] = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command to its end and give how it ended and what it wrote; see `LocalHost.run`."""

    def run_each(self, commands: Sequence[Sequence[str]], *, timeout_s: float) -> list[Completed]:
        """Run several commands at the same time, and give how each ended."""

    def read(self, path: str, offset: int = 0) -> bytes:
        """Give a file's content from `offset` on; b"" if there is none."""

    def make_dir(self, path: str) -> None:
        """Make a directory that only its owner can read, and its parents."""

    def is_empty(self, path: str) -> bool:
        """Whether there is nothing at `path`, or only an empty directory."""

    def remove(self, path: str) -> None:
        """Remove a directory with all that is in it; a missing one is no error."""

    def free_bytes(self, path: str) -> int:
        """Give the free space, in bytes, of the file system that `path` will be on."""

    def file_system(self, path: str) -> str:
        """Give the type of the file system that holds `path`, such as "ext4"; "" where that cannot be told."""

    def port_in_use(self, port: int) -> bool:
        """Whether something listens on a port: of loopback here, of any address on another machine."""


class KeepsProcesses(Host, Protocol):
    """A host that also keeps processes which outlive the command that starts them. `SSHHost` is none.

    A process is referred to by its id, its start time and the boot it belongs to, as one string: a process that has
    taken over the id of a dead one is never mistaken for it.
    """

    def spawn(self, argv: Sequence[str], *, log: str, env: Mapping[str, str]) -> str:
        """Start a process that outlives us, in a session of its own, writing to `log`; give its reference."""

    def process_state(self, ref: str) -> str:
        """Give "running", "paused" (stopped by a signal) or "gone" (a zombie is gone)."""

    def send_signal(self, ref: str, signum: int) -> bool:
        """Send a signal to exactly that process; False if it is gone."""

    def wait_gone(self, ref: str, timeout_s: float) -> bool:
        """Wait until a process is gone; False if it still is there after `timeout_s` seconds."""

    def marked(self, mark: str) -> Iterator[MarkedProcess]:
        """Give the live processes that carry the environment variable `mark`."""


def boot_id() -> str:
    """Name this boot of the machine: process ids and start times mean nothing after it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()[:8]
    except OSError:
        return "0"


def identify(pid: int) -> str:
    """Give the reference of a live process, or "" if there is none with that id.

    On Linux the start time is the kernel's own count of clock ticks since boot. psutil's creation time is derived
    from the wall clock, and moves when that is set: our members would be taken for strangers.
    """
    stat = _stat(pid)
    if stat is not None:
        return "" if stat.over else f"{pid}:{stat.started}:{boot_id()}"
    if os.path.isdir("/proc/self"):
        return ""
    return _identify_elsewhere(pid)


def _identify_elsewhere(pid: int) -> str:
    import psutil

    try:
        process = psutil.Process(pid)
        return "" if process.status() == psutil.STATUS_ZOMBIE else f"{pid}:{process.create_time()}:0"
    except psutil.Error:
        return ""


class _Stat(NamedTuple):
    """What the kernel says of a process: its state's letter, start time (clock ticks since boot), live threads."""

    state: str
    started: str
    threads: int

    @property
    def over(self) -> bool:
        """Whether it has ended, and has let go of its files and ports.

        A process is shown as a zombie as soon as its first thread has ended; while others are still ending, the
        sockets that they share stay open, and a successor cannot listen there.
        """
        return self.state in "ZX" and self.threads <= 1


def _stat(pid: int) -> _Stat | None:
    """Give what proc(5) says of a process, or None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            content = file.read()
    except OSError:
        return None
    # The command name is in brackets and may hold anything, brackets and spaces included.
    fields = content[content.rindex(b")") + 2 :].split()
    return _Stat(fields[0].decode(), fields[19].decode(), int(fields[17]))


def _pid_of(ref: str) -> int:
    """Give the process id in a reference; 0, which is never signalled, for what is no reference."""
    pid = ref.partition(":")[0]
    return int(pid) if pid.isascii() and pid.isdigit() and len(pid) < 20 else 0


class _Detached(subprocess.Popen[bytes]):
    """A child that is meant to outlive us, so it is no leak when we forget it."""

    def __del__(self) -> None:  # the base class warns about a child that still runs
        pass


#: Members that this process started and has not reaped, whichever LocalHost did: only their parent can.
_children: dict[int, _Detached] = {}


def _reap(pid: int) -> None:
    child = _children.get(pid)
    if child is not None and child.poll() is not None:
        _children.pop(pid, None)


def _unusable(act: str, path: str, error: OSError) -> StateError:
    return StateError(
        f"cannot {act} {path}: {error.strerror or error}",
        remedy="Free some space, or see who owns it.",
    )


def _end_group(command: Any) -> None:
    """Kill a command of ours and what it started; it may be over."""
    try:
        command.kill_group()
    except OSError:
        return


def _not_ours(pid: int) -> Refused:
    return Refused(
        f"not allowed to signal process {pid}: it belongs to another user",
        remedy="Do it as the user who started the cluster.",
    )


class LocalHost:
    """This machine.

    >>> host = LocalHost()
    >>> host.run(["echo", "hello"], timeout_s=5).stdout
    b'hello\\n'
    """

    name = "local"

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        stdin: bytes | Iterator[bytes] = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command to its end and give how it ended and what it wrote.

        `env` is the whole environment, the caller's own without it. `stdin` may come in pieces, which are asked for as
        they are needed, in another thread; that must not fail. `on_line` is called with each line of stdout as it
        comes. Raises CommandMissing when there is no such command, EtcdopsError when it takes longer than `timeout_s`
        seconds; it is ended then.
        """
        deadline = time.monotonic() + timeout_s
        return self._ended(argv, self._begun(argv, env, stdin, on_line), timeout_s, deadline)

    def run_each(self, commands: Sequence[Sequence[str]], *, timeout_s: float) -> list[Completed]:
        """Run several commands at the same time, and give how each ended; raises as `run` does.

        When it raises, those that have not ended are ended.
        """
        deadline = time.monotonic() + timeout_s
        running: list[tuple[Sequence[str], Any]] = []
        ended: list[Completed] = []
        try:
            for argv in commands:
                # Held back, so that what has begun is known when a signal is raised; see `_begun`.
                with deferred():
                    running.append((argv, self._begin(argv, None, b"", None)))
            for argv, command in running:
                ended.append(self._ended(argv, command, timeout_s, deadline))
        except BaseException:
            for _, command in running[len(ended) :]:
                _end_group(command)
            raise
        return ended

    def _begun(self, *arguments: Any) -> Any:
        """Begin a command as `_begin` does; a signal that arrives meanwhile is raised once it is ended again.

        Around a fork Python runs hooks of its own, of the logging module among others, and drops what is raised there:
        the signal would be lost, and no other one is ever raised.
        """
        begun = []
        try:
            with deferred():
                begun.append(self._begin(*arguments))
        except BaseException:
            for command in begun:
                _end_group(command)
            raise
        return begun[0]

    def _begin(
        self,
        argv: Sequence[str],
        env: Mapping[str, str] | None,
        stdin: bytes | Iterator[bytes],
        on_line: Callable[[str], None] | None,
    ) -> Any:
        # Set before gRPC can be imported: forking with its channels open has crashed one command in four otherwise.
        os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
        import sh

        options: dict[str, Any] = {
            "_bg": True,
            "_bg_exc": False,
            "_return_cmd": True,
            "_ok_code": list(range(256)),
            "_tty_out": False,
            "_in": stdin,
            # A session of its own: Ctrl-C reaches us, and we decide what becomes of it.
            "_new_session": True,
            "_out_bufsize": 1 if on_line else 2**16,
            "_err_bufsize": 2**16,
        }
        if env is not None:
            options["_env"] = dict(env)
        if on_line is not None:
            options |= {"_out": lambda line: on_line(line.rstrip("\n")), "_tee": True}
        try:
            with warnings.catch_warnings():
                # From 3.12 on, Python warns of every fork beside other threads. What sh does between fork and exec
                # waits for none of them.
                warnings.simplefilter("ignore", DeprecationWarning)
                return sh.Command(argv[0])(*argv[1:], **options)
        except sh.CommandNotFound:
            raise CommandMissing(f"there is no command {argv[0]!r} on {self.name}") from None

    def _ended(self, argv: Sequence[str], command: Any, timeout_s: float, deadline: float) -> Completed:
        import sh

        # sh's own time limits look at the clock ten times a second, and may lose the last of the output.
        late = threading.Event()

        def end() -> None:
            late.set()
            _end_group(command)

        limit = threading.Timer(max(deadline - time.monotonic(), 0.001), end)
        limit.daemon = True
        limit.start()
        try:
            command.wait()
        except sh.SignalException as error:
            if not late.is_set():
                return Completed(128 - int(error.exit_code), error.stdout, error.stderr)
        except BaseException:
            _end_group(command)
            raise
        finally:
            limit.cancel()
        if late.is_set():
            raise EtcdopsError(f"`{shlex.join(argv)}` did not end within {timeout_s:.0f} s on {self.name}")
        return Completed(command.exit_code, command.stdout, command.stderr)

    def spawn(self, argv: Sequence[str], *, log: str, env: Mapping[str, str]) -> str:
        """Start a process that outlives us, in a session of its own, writing to `log`; give its reference.

        The log is the process's own file from its first instant, never a pipe of ours, so it can write after we are
        gone. Nothing else that we have open is handed on: a lock that a shell holds on an inherited descriptor would
        stay held for as long as the member runs.
        """
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise _unusable("write", log, error) from error
        try:
            child = _Detached(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=dict(env),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            raise EtcdopsError(f"cannot run {argv[0]} on {self.name}: {error.strerror or error}") from error
        finally:
            os.close(descriptor)
        _children[child.pid] = child
        return identify(child.pid) or f"{child.pid}:gone:{boot_id()}"

    def process_state(self, ref: str) -> str:
        """Give "running", "paused" (stopped by a signal) or "gone" (a zombie is gone)."""
        pid = _pid_of(ref)
        if not pid:
            return "gone"
        _reap(pid)
        if identify(pid) != ref:
            return "gone"
        stat = _stat(pid)
        if stat is None:
            return "gone" if os.path.isdir("/proc/self") else "running"
        return "paused" if stat.state in "Tt" else "running"

    def send_signal(self, ref: str, signum: int) -> bool:
        """Send a signal to exactly that process; False if it is gone.

        A pidfd pins the process while its start time is compared, so not even an id that is reused between the two
        can be hit.
        """
        if self.process_state(ref) == "gone":
            return False
        pid = _pid_of(ref)
        try:
            descriptor = os.pidfd_open(pid)
        except OSError as error:
            if error.errno == errno.ESRCH:
                return False
            return self._kill_without_pidfd(pid, ref, signum)
        except AttributeError:
            return self._kill_without_pidfd(pid, ref, signum)
        try:
            if self.process_state(ref) == "gone":
                return False
            signal.pidfd_send_signal(descriptor, signum)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise _not_ours(pid) from error
        finally:
            os.close(descriptor)
        return True

    def _kill_without_pidfd(self, pid: int, ref: str, signum: int) -> bool:
        if self.process_state(ref) == "gone":
            return False
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return False
        except PermissionError as error:
            raise _not_ours(pid) from error
        return True

    def marked(self, mark: str) -> Iterator[MarkedProcess]:
        """Give the live processes of ours that carry the environment variable `mark`."""
        import psutil

        for process in psutil.process_iter():
            try:
                ref = identify(process.pid)
                environment = process.environ()
                # Looked at again, lest the environment be that of a process which took the id over in between.
                if mark in environment and ref and ref == identify(process.pid):
                    ours = {key: value for key, value in environment.items() if key.startswith("ETCDOPS_")}
                    yield MarkedProcess(ref, ours, tuple(process.cmdline()))
            except (psutil.Error, OSError):
                continue

    def read(self, path: str, offset: int = 0) -> bytes:
        """Give a file's content from `offset` on; b"" if there is none."""
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise _unusable("read", path, error) from error

    def make_dir(self, path: str) -> None:
        """Make a directory that only its owner can read, and its parents."""
        try:
            Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise _unusable("make", path, error) from error

    def is_empty(self, path: str) -> bool:
        """Whether there is nothing at `path`, or only an empty directory."""
        try:
            return not os.listdir(path)
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def remove(self, path: str) -> None:
        """Remove a directory with all that is in it; a missing one is no error."""
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise EtcdopsError(f"cannot remove {path} on {self.name}: {error.strerror or error}") from error

    def free_bytes(self, path: str) -> int:
        """Give the free space, in bytes, of the file system that `path` will be on."""
        place = os.path.abspath(path)
        while not os.path.exists(place):
            place = os.path.dirname(place)
        return shutil.disk_usage(place).free

    def file_system(self, path: str) -> str:
        """Give the type of the file system that holds `path`, such as "ext4"; "" where that cannot be told."""
        import psutil

        # Of several that are mounted at one place, the last is the one that is seen.
        mounted = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
        place = Path(os.path.realpath(path))
        return next((mounted[str(each)] for each in (place, *place.parents) if str(each) in mounted), "")

    def port_in_use(self, port: int) -> bool:
        """Whether something listens on a loopback port, or holds it so that nothing else can."""
        with socket.socket() as probe:
            # As etcd does: a port whose connections are still closing can be taken over.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                return True
        return False

    def wait_gone(self, ref: str, timeout_s: float) -> bool:
        """Wait until a process is gone; False if it still is there after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        pause_s = 0.001
        while self.process_state(ref) != "gone":
            if time.monotonic() > deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, 0.02)
        return True
