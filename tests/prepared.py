"""Runs commands in processes that have imported etcdops' modules beforehand: a short command does little else.

One process, the server, imports them once; each command is a fork of it: a process of its own, with streams,
environment, working directory, exit code and signals of its own. A shell gets at it by small programs of the same names
that stand first on its PATH (`Server.programs`). What happens before the program's `main` is not
repeated for each: what a test has to say about that (start-up, its imports, Python's own settings) it says of a
command that it starts itself.
"""

from __future__ import annotations

import array
import io
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

#: What Python and gRPC read from the environment when they start: with others than the server has, a command is run
#: without it.
_EARLY = ("GRPC_", "LANG", "LC_", "LD_", "MALLOC_", "PYTHON", "TZ")

_LARGEST = 100_000

#: What stands for a program in a shell: it gives its request and its streams to the server, and ends as the command
#: does. With another early environment than the server's it is the program itself.
_STANDS_IN = """#!{python} -ISE
import array, json, os, socket, sys
program, early = {program!r}, {early!r}
if {{name: value for name, value in os.environ.items() if name.startswith({prefixes!r})}} != early:
    os.execv(program, [program, *sys.argv[1:]])
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, {room})
server.connect({address!r})
request = json.dumps([[program, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
server.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
code = int(server.recv(100) or "1")
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class _Request(NamedTuple):
    argv: list[str]
    cwd: str
    env: dict[str, str]


class Server:
    """The server, as a test's process sees it: started with the first command, ended by `close`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._early: dict[str, str] = {}
        # The path of a socket may hold 107 characters.
        self._address = f"/tmp/prepared-{os.getpid()}-{id(self):x}"

    def run(
        self, argv: list[str], cwd: str, env: dict[str, str], stdin: str | None, timeout_s: float
    ) -> subprocess.CompletedProcess[str] | None:
        """Run a command as subprocess.run does, its output captured; None where it has to be run without this.

        Raises subprocess.TimeoutExpired, once the command has been killed.
        """
        request = json.dumps(_Request(argv, cwd, env)).encode()
        if not hasattr(os, "pidfd_open") or len(request) > _LARGEST:
            return None
        control = self._control or self._start()
        if _early(env) != self._early:
            return None
        ours, theirs = socket.socketpair()
        given, told, complained = (os.pipe() for _ in range(3))
        streams = [given[0] if stdin is not None else 0, told[1], complained[1], theirs.fileno()]
        try:
            control.sendmsg([request], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))])
        finally:
            theirs.close()
            for each in (given[0], told[1], complained[1]):
                os.close(each)
        with (
            ours,
            open(given[1], "wb", buffering=0) as into,
            open(told[0], "rb", buffering=0) as out,
            open(complained[0], "rb", buffering=0) as err,
        ):
            return _follow(argv, (ours, into, out, err), (stdin or "").encode(), timeout_s)

    def _start(self) -> socket.socket:
        self._control, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        self._control.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGEST)
        self._early = _early(os.environ)
        with theirs:
            argv = [sys.executable, "-m", "tests.prepared", str(theirs.fileno()), self._address]
            root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            self._process = subprocess.Popen(argv, cwd=root, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        return self._control

    def programs(self, directory: Path) -> None:
        """Write programs that stand for `etcdops` and `invoke` in a shell, and have the server run them."""
        if not hasattr(os, "pidfd_open"):
            return
        if not self._control:
            self._start()
        # It listens once it answers.
        own = Path(sys.executable).parent
        assert self.run([str(own / "etcdops"), "--version"], "/", dict(os.environ), "", 60)
        for name in ("etcdops", "invoke"):
            path = directory / name
            path.write_text(
                _STANDS_IN.format(
                    python=sys.executable,
                    program=str(own / name),
                    early=self._early,
                    prefixes=_EARLY,
                    room=2 * _LARGEST,
                    address=self._address,
                )
            )
            path.chmod(0o755)

    def close(self) -> None:
        """End the server."""
        if self._control and self._process:
            self._control.close()
            self._process.wait(20)
        self._control = self._process = None


def _early(env: Any) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_EARLY)}


def _follow(
    argv: list[str], streams: tuple[socket.socket, Any, Any, Any], stdin: bytes, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Write and read what a command reads and writes until it and all that hold its output have ended."""
    each: Any
    ours, into, out, err = streams
    deadline = time.monotonic() + timeout_s
    read: dict[Any, bytes] = {out: b"", err: b"", ours: b""}
    with selectors.DefaultSelector() as waiting:
        for stream in read:
            waiting.register(stream, selectors.EVENT_READ)
        if stdin:
            os.set_blocking(into.fileno(), False)
            waiting.register(into, selectors.EVENT_WRITE)
        else:
            into.close()
        while waiting.get_map():
            ready = waiting.select(max(deadline - time.monotonic(), 0))
            if not ready and time.monotonic() >= deadline:
                # Its end of `ours` closes with this one, for which the server kills the command.
                raise subprocess.TimeoutExpired(argv, timeout_s, read[out], read[err])
            for key, _ in ready:
                each = key.fileobj
                if each is into:
                    try:
                        stdin = stdin[os.write(into.fileno(), stdin) :]
                    except BrokenPipeError:
                        stdin = b""
                    if not stdin:
                        waiting.unregister(into)
                        into.close()
                    continue
                piece = each.recv(4096) if each is ours else each.read(65536)
                read[each] += piece
                if not piece:
                    waiting.unregister(each)
    assert read[ours], f"the server of prepared commands died under {argv}"
    return subprocess.CompletedProcess(argv, json.loads(read[ours]), _text(read[out]), _text(read[err]))


def _text(written: bytes) -> str:
    return io.TextIOWrapper(io.BytesIO(written)).read()


# -- in the server's process


def _serve(control: socket.socket, listener: socket.socket) -> tuple[_Request, list[int]] | None:
    """Fork for each request; give it in the fork, and None in the server when there will be no more."""
    import gc

    # What is never looked at again is never copied either.
    gc.collect()
    gc.freeze()
    with selectors.DefaultSelector() as waiting:
        waiting.register(control, selectors.EVENT_READ)
        waiting.register(listener, selectors.EVENT_READ)
        asking: set[socket.socket] = set()
        running: dict[socket.socket, tuple[int, int]] = {}
        while True:
            for key, _ in waiting.select():
                where: Any = key.fileobj
                if where is listener:
                    shell, _ = listener.accept()
                    asking.add(shell)
                    waiting.register(shell, selectors.EVENT_READ, shell)
                elif where is control or where in asking:
                    request, descriptors, _, _ = socket.recv_fds(where, 2 * _LARGEST, 4)
                    asking.discard(where)
                    if not request:
                        if where is control:
                            return None
                        waiting.unregister(where)
                        where.close()
                        continue
                    pid = os.fork()
                    if pid == 0:
                        for other in (*running, *asking, control, listener, *({where} - {control})):
                            other.close()
                        return _Request(*json.loads(request)), descriptors
                    for each in {*descriptors[:3]}:
                        os.close(each)
                    answers = where
                    if where is control:
                        answers = socket.socket(fileno=descriptors[3])
                        waiting.register(answers, selectors.EVENT_READ, answers)
                    running[answers] = (pid, os.pidfd_open(pid))
                    waiting.register(running[answers][1], selectors.EVENT_READ, answers)
                elif (answers := key.data) in running:
                    pid, ended = running.pop(answers)
                    if where is answers:
                        os.kill(pid, signal.SIGKILL)
                    _, status = os.waitpid(pid, 0)
                    try:
                        answers.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode())
                    except OSError:
                        pass
                    for watched in (answers, ended):
                        waiting.unregister(watched)
                    answers.close()
                    os.close(ended)


def _become(request: _Request, descriptors: list[int]) -> None:
    """Make this process what one would be that had been started with the request."""
    for number, descriptor in enumerate(descriptors[:3]):
        os.dup2(descriptor, number)
    for descriptor in {*descriptors} - {0, 1, 2}:
        os.close(descriptor)
    os.chdir(request.cwd)
    os.environ.clear()
    os.environ.update(request.env)
    sys.argv = request.argv
    sys.path[0] = os.path.dirname(request.argv[0])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        was = getattr(sys, name)
        stream = io.TextIOWrapper(
            open(number, "rb" if number == 0 else "wb", closefd=False),  # noqa: SIM115  # for as long as we run
            encoding=was.encoding,
            errors=was.errors,
            line_buffering=number == 2,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _main() -> None:
    # What the commands import sooner or later.
    import cryptography.x509
    import fabric
    import invoke.main
    import jinja2
    import psutil
    import rich.console
    import rich.table
    import sh

    import etcdops.cluster
    import etcdops.drills.engine
    import etcdops.facts
    import etcdops.logs
    import etcdops.operations.gate
    import etcdops.operations.methods
    import etcdops.overview
    import etcdops.rendering
    import etcdops.report.html
    import etcdops.report.page
    import etcdops.runtimes.attached
    import etcdops.runtimes.compose
    import etcdops.runtimes.process
    import etcdops.runtimes.remote
    import etcdops.snapshots.saving
    import etcdops.status
    import etcdops.tasks.program
    import etcdops.tls
    import etcdops.waiting
    from etcdops.cli import main
    from etcdops.drills import all_drills

    all_drills()
    etcdops.rendering.compiled("report.html.j2", tuple(sorted(etcdops.report.html.FILTERS.items())), escape=True)
    etcdops.rendering.compiled("verdict.md.j2", tuple(sorted(etcdops.report.page.FILTERS.items())), escape=False)

    programs = {"etcdops": main, "invoke": invoke.main.program.run}
    del cryptography, fabric, jinja2, psutil, rich, sh, etcdops
    with (
        socket.socket(fileno=int(sys.argv[1])) as control,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        listener.bind(sys.argv[2])
        listener.listen(16)
        begun = _serve(control, listener)
        if not begun:
            os.unlink(sys.argv[2])
    if begun:
        _become(*begun)
        programs[os.path.basename(sys.argv[0])]()


if __name__ == "__main__":
    _main()
