"""Another machine as a host: commands over SSH, and a few things about files and ports that commands tell."""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from etcdops.errors import CommandMissing, EtcdopsError, HostUnreachable, StateError
from etcdops.hosts import Completed
from etcdops.remote.connection import Connected, answers, connect
from etcdops.remote.inventory import HostSpec
from etcdops.remote.quoting import command_line
from etcdops.remote.sessions import Session, Sessions

__all__ = ["FREE_SPACE", "SSHHost", "free_space_in"]

_LOOK_S = 20.0

#: For so long a host that was found dead is not waited for again, but only asked in passing whether it answers now; and
#: how long that takes at most. Where only a connection would tell, what was found holds for a shorter while.
_DEAD_S, _PASSING_S, _HOLDS_S = 20.0, 0.5, 5.0

_ABSENT = 44
_READ = f'[ -e "$1" ] || exit {_ABSENT}; if [ "$2" = 1 ]; then exec cat -- "$1"; fi; exec tail -c "+$2" -- "$1"'
#: A script that tells the free space where `$1` is or will be, for `free_space_in` to read.
FREE_SPACE = 'p=$1; while [ ! -e "$p" ]; do p=$(dirname -- "$p"); done; exec df -Pk -- "$p"'
_EMPTY = '[ -e "$1" ] || exit 0; [ -d "$1" ] || exit 1; [ -z "$(ls -A -- "$1")" ]'
_DF = re.compile(rb"\s\d+\s+\d+\s+(-?\d+)\s+(?:\d+%|-)\s")
_DF_TYPE = re.compile(rb"\s(\S+)\s+\d+\s+\d+\s+-?\d+\s+(?:\d+%|-)\s")
_LISTENING = re.compile(rb"^\s*\d+: [0-9A-F]+:([0-9A-F]{4}) [0-9A-F]+:[0-9A-F]{4} 0A ", re.MULTILINE)


def free_space_in(told: bytes) -> int | None:
    """Give the free space, in bytes, that FREE_SPACE has told; None where it has told none."""
    found = _DF.findall(told)
    return int(found[-1]) * 1024 if found else None


class SSHHost:
    """A machine that is reached by SSH.

    It runs commands and holds files, as `etcdops.hosts.Host` says; processes that outlive a command it does not keep.
    The connection is made when it is first needed, used for everything, and made anew if it has ended since. Its user's
    login shell has to be a POSIX one. Methods raise HostUnreachable when there is no connection, ConnectionLost when it
    ends meanwhile; neither `timeout_s` nor a host that has died makes them wait for ever. `connect_timeout_s` is as for
    `etcdops.remote.connection.connect`; only the first of several calls to a host that is dead waits that long.
    """

    def __init__(
        self, spec: HostSpec, *, connect_timeout_s: float | None = None, accept_new_host_keys: bool = False
    ) -> None:
        self.spec = spec
        self.name = spec.name
        self._connect_timeout_s = connect_timeout_s
        self._accept_new = accept_new_host_keys
        self._lock = threading.Lock()
        self._connected: Connected | None = None
        self._sessions: Sessions | None = None
        self._dead: tuple[HostUnreachable, float] | None = None

    def __repr__(self) -> str:
        return f"<SSHHost {self.name}>"

    def __enter__(self) -> SSHHost:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- the connection

    def connect(self) -> Connected:
        """Give the connection, made now if there is none that is alive."""
        with self._lock:
            if self._connected is None or not self._connected.alive:
                if self._connected is not None:
                    self._connected.close()
                    self._connected = None
                self._connected = self._connect()
                self._sessions = Sessions(self._connected.transport, self.name)
            return self._connected

    def _connect(self) -> Connected:
        if self._dead is not None:
            error, found = self._dead
            gone_s = time.monotonic() - found
            answering = answers(self.spec, _PASSING_S) if gone_s < _DEAD_S else True
            if answering is False or (answering is None and gone_s < _HOLDS_S):
                raise HostUnreachable(str(error), host=error.host, kind=error.kind, remedy=error.remedy)
        self._dead = None
        began = time.monotonic()
        try:
            return connect(self.spec, timeout_s=self._connect_timeout_s, accept_new=self._accept_new)
        except HostUnreachable as error:
            # One that says no, says so at once.
            if error.kind == "unreachable" and time.monotonic() - began > _PASSING_S:
                self._dead = (error, time.monotonic())
            raise

    def close(self) -> None:
        """Let go of the connection. The next call makes another."""
        connected, self._connected = self._connected, None
        if connected is not None:
            connected.close()

    def abort(self) -> None:
        """Cut the connection, whoever uses it or waits for it; that fails then. Waits for nothing itself."""
        connected = self._connected
        if connected is not None:
            connected.cut()

    def round_trip_s(self) -> float:
        """Give how long a message there and back takes, in seconds; the shortest of three."""
        transport = self.connect().transport
        took = []
        for _ in range(3):
            began = time.perf_counter()
            # Every server answers a request that it does not know.
            transport.global_request("keepalive@openssh.com", wait=True)
            took.append(time.perf_counter() - began)
        return min(took)

    # -- commands

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        env: Mapping[str, str] | None = None,
        stdin: bytes | Iterator[bytes] = b"",
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command to its end and give how it ended and what it wrote; as `LocalHost.run`.

        `env` is the whole environment, that of the user's login without it; it can be seen by everybody on the host,
        as arguments can, so secrets go by `stdin`. Raises CommandMissing when there is no such command, EtcdopsError
        when it takes longer than `timeout_s` seconds; it is ended then, with all of its process group.
        """
        if on_line is None:
            return self._run(argv, timeout_s, env=env, stdin=stdin)
        lines = _Lines(on_line)
        done = self._run(argv, timeout_s, env=env, stdin=stdin, on_data=lines.take)
        lines.finish()
        return done._replace(stdout=bytes(lines.all))

    def stream(
        self,
        argv: Sequence[str],
        *,
        on_data: Callable[[bytes], None],
        timeout_s: float,
        stdin: bytes | Iterator[bytes] = b"",
    ) -> Completed:
        """Run a command as `run` does, and hand each piece of its stdout over as it comes instead of keeping it."""
        return self._run(argv, timeout_s, stdin=stdin, on_data=on_data)

    def run_each(self, commands: Sequence[Sequence[str]], *, timeout_s: float) -> list[Completed]:
        """Run several commands at the same time, and give how each ended; raises as `run` does.

        When it raises, those that have not ended are ended.
        """
        if not commands:
            return []
        begun: list[Session] = []
        with ThreadPoolExecutor(len(commands), thread_name_prefix=f"ssh-{self.name}") as pool:
            futures = [pool.submit(self._run, argv, timeout_s, begun=begun) for argv in commands]
            try:
                return [future.result() for future in futures]
            except BaseException:
                for future in futures:
                    future.cancel()
                for session in begun:
                    session.end()
                raise

    def _run(
        self,
        argv: Sequence[str],
        timeout_s: float,
        *,
        env: Mapping[str, str] | None = None,
        stdin: bytes | Iterator[bytes] = b"",
        on_data: Callable[[bytes], None] | None = None,
        begun: list[Session] | None = None,
    ) -> Completed:
        mark = f"etcdops-{secrets.token_hex(8)}"
        line = command_line(argv, env=env, mark=mark, stdin=stdin != b"")
        self.connect()
        assert self._sessions
        session = Session(self._sessions, argv, line, mark=mark)
        if begun is not None:
            begun.append(session)
        done = session.run(timeout_s=timeout_s, stdin=stdin, on_data=on_data)
        if done is None:
            raise CommandMissing(f"there is no command {argv[0]!r} on {self.name}")
        return done

    def script(self, text: str, *arguments: str, timeout_s: float = _LOOK_S) -> Completed:
        """Run a script of ours with arguments that it finds in `$1` and so on, and are never part of its text."""
        return self.run(["sh", "-c", text, "sh", *arguments], timeout_s=timeout_s)

    # -- files

    def read(self, path: str, offset: int = 0) -> bytes:
        """Give a file's content from `offset` on; b"" if there is none."""
        done = self.script(_READ, path, str(offset + 1))
        if done.exit_code == _ABSENT:
            return b""
        return self._checked(done, "read", path).stdout

    def make_dir(self, path: str) -> None:
        """Make a directory that only its owner can read, and its parents."""
        self._checked(self.run(["mkdir", "-p", "-m", "700", "--", path], timeout_s=_LOOK_S), "make", path)

    def is_empty(self, path: str) -> bool:
        """Whether there is nothing at `path`, or only an empty directory."""
        return self.script(_EMPTY, path).exit_code == 0

    def remove(self, path: str) -> None:
        """Remove a directory with all that is in it; a missing one is no error."""
        self._checked(self.run(["rm", "-rf", "--", path], timeout_s=600.0), "remove", path)

    def free_bytes(self, path: str) -> int:
        """Give the free space, in bytes, of the file system that `path` will be on."""
        done = self._checked(self.script(FREE_SPACE, path), "ask for the free space at", path)
        free = free_space_in(done.stdout)
        if free is None:
            raise EtcdopsError(f"cannot tell the free space at {path} on {self.name}: {done.stdout!r}")
        return free

    def file_system(self, path: str) -> str:
        """Give the type of the file system that holds `path`, such as "ext4"; "" where that cannot be told."""
        done = self.run(["df", "-PT", "--", path], timeout_s=_LOOK_S)
        found = _DF_TYPE.search(done.stdout)
        return found[1].decode(errors="replace") if found and done.exit_code == 0 else ""

    def _checked(self, done: Completed, act: str, path: str) -> Completed:
        if done.exit_code:
            said = done.stderr.decode(errors="replace").strip() or f"exit code {done.exit_code}"
            raise StateError(
                f"cannot {act} {path} on {self.name}: {said}", remedy="Free some space there, or see who owns it."
            )
        return done

    def put(
        self,
        source: str | Path | Iterator[bytes],
        path: str,
        *,
        mode: int = 0o600,
        timeout_s: float = 3600.0,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> str:
        """Copy a local file, or pieces of bytes, to `path` there, and give its SHA-256; see `etcdops.remote.files`."""
        from etcdops.remote import files

        return files.put(self, source, path, mode=mode, timeout_s=timeout_s, progress=progress)

    def get(
        self,
        path: str,
        target: str | Path,
        *,
        timeout_s: float = 3600.0,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> str:
        """Copy a file from there to `target` here, and give its SHA-256; see `etcdops.remote.files`."""
        from etcdops.remote import files

        return files.get(self, path, target, timeout_s=timeout_s, progress=progress)

    # -- ports

    def listening_ports(self) -> set[int]:
        """Give the TCP ports on which something listens, at whatever address. Raises EtcdopsError where /proc has none.

        What Docker publishes without its userland proxy is not among them.
        """
        done = self.script("cat /proc/net/tcp; cat /proc/net/tcp6 2>/dev/null; exit 0")
        if b"local_address" not in done.stdout:
            raise EtcdopsError(f"cannot tell which ports are in use on {self.name}: it has no /proc/net/tcp")
        return {int(port, 16) for port in _LISTENING.findall(done.stdout)}

    def port_in_use(self, port: int) -> bool:
        """Whether something listens on a port, at whatever address."""
        return port in self.listening_ports()

    def forward(self, port: int, *, address: str = "127.0.0.1") -> AbstractContextManager[int]:
        """Give a loopback port here that leads to a port there, until the block ends; see `etcdops.remote.forward`."""
        from etcdops.remote.forwarding import forward

        self.connect()
        return forward(lambda: self.connect().transport, self.name, port, address)


class _Lines:
    """Cuts what comes into lines."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self.all = bytearray()
        self._on_line = on_line
        self._rest = b""

    def take(self, data: bytes) -> None:
        """Take the next piece."""
        self.all += data
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._on_line(line.decode(errors="replace"))

    def finish(self) -> None:
        """Hand over a last line that has no end."""
        if self._rest:
            self._on_line(self._rest.decode(errors="replace"))
