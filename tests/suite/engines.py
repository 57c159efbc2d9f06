"""Docker engines of the tests' own: a real one that they may stop and fill, sockets that pretend, and partial PATHs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import socketserver
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CommandLine

#: What is written by the docker command where there is no plugin for Compose (docker/cli, cli-plugins/manager).
_NO_PLUGIN = """#!/bin/sh
value=
for word do
    case $word in
    --host | --context) value=1 ;;
    -*) value= ;;
    compose) [ "$value" ] || { echo "docker: 'compose' is not a docker command." >&2 && exit 1; } ;;
    *) [ "$value" ] || break && value= ;;
    esac
done
exec %s "$@"
"""


def tools(directory: Path, *, plugin: bool = True, v1: bool = True, docker: bool = True) -> str:
    """Give a PATH with docker, its Compose plugin and `docker-compose`, or some of them, and nothing else."""
    directory.mkdir(parents=True)
    real = shutil.which("docker")
    assert real
    if docker and plugin:
        (directory / "docker").symlink_to(real)
    elif docker:
        write_program(directory / "docker", _NO_PLUGIN % real)
    if v1:
        compose = shutil.which("docker-compose")
        if compose is None:
            pytest.skip("there is no docker-compose (Compose v1) here")
        (directory / "docker-compose").symlink_to(compose)
    return str(directory)


def write_program(path: Path, text: str) -> None:
    """Write a program that can be run."""
    path.write_text(text)
    path.chmod(0o755)


class Inside(CommandLine):
    """A command line in the network namespace of an engine, on whose loopback its members are published."""

    def __init__(self, cwd: Path, engine: OwnEngine) -> None:
        super().__init__(cwd, "compose")
        cwd.mkdir(parents=True, exist_ok=True)
        self._engine = engine
        self.env["DOCKER_HOST"] = engine.address

    def argv(self, *args: str, program: str = "etcdops") -> list[str]:
        """Give the argv of a command."""
        return self._engine.inside(*super().argv(*args, program=program))


class OwnEngine:
    """A Docker engine in namespaces of its own, with its data in memory: what is done to it harms nobody.

    There is room for three clusters at a time: seven networks, and 1.5 GB.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"unix://{directory}/sock"
        self.data = directory / "data"
        self.data.mkdir()
        script = 'mount -t tmpfs -o size=1500m tmpfs "$0" && ip link set lo up && echo ready && exec sleep 3600'
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", script, str(self.data)], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == "ready\n"
        self._daemon: subprocess.Popen[bytes] | None = None

    def inside(self, *argv: str, mount: bool = False) -> list[str]:
        """Give the argv that runs a command where the engine is."""
        where = f"/proc/{self._holder.pid}/ns"
        # Whoever runs it may have a PATH without it.
        nsenter = shutil.which("nsenter") or "nsenter"
        return [nsenter, f"--net={where}/net", *([f"--mount={where}/mnt"] if mount else []), *argv]

    def start(self) -> None:
        """Start the engine, and wait until it answers."""
        options = ["--host", self.address, "--data-root", str(self.data), "--exec-root", str(self.directory / "exec")]
        options += ["--pidfile", str(self.directory / "pid")]
        options += ["--default-address-pool", "base=10.123.0.0/21,size=24"]
        with open(self.directory / "log", "ab") as log:
            self._daemon = subprocess.Popen(
                self.inside("dockerd", *options, mount=True), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 40
        while self._try("version").returncode:
            assert self._daemon.poll() is None, self._told()
            assert time.monotonic() < deadline, self._told()
            time.sleep(0.05)

    def _told(self) -> str:
        return (self.directory / "log").read_text()[-3000:]

    def stop(self) -> None:
        """Stop the engine, and with it all containers, as a restart of its service does."""
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGTERM)
            self._daemon.wait(60)
            self._daemon = None

    def _try(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = ["docker", "--host", self.address, *arguments]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60)

    def docker(self, *arguments: str) -> str:
        """Run a docker command, and give what it wrote."""
        done = self._try(*arguments)
        assert done.returncode == 0, (arguments, done.stderr)
        return done.stdout.strip()

    def all_of(self, kind: str) -> set[str]:
        """Give the names of all containers, networks that are not the engine's own, or volumes."""
        if kind == "container":
            return set(self.docker("ps", "--all", "--format", "{{.Names}}").split())
        only = ["--filter", "type=custom"] if kind == "network" else []
        return set(self.docker(kind, "ls", *only, "--format", "{{.Name}}").split())

    def everything(self) -> set[str]:
        """Give the names of everything that was made on it."""
        return set().union(*map(self.all_of, ("container", "network", "volume")))

    def clear(self) -> None:
        """Remove everything that was made on it."""
        for kind, remove in (
            ("container", ["rm", "-fv"]),
            ("network", ["network", "rm"]),
            ("volume", ["volume", "rm"]),
        ):
            if names := self.all_of(kind):
                self.docker(*remove, *names)

    def load(self, image: str) -> None:
        """Copy an image from this machine's engine."""
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saving:
            subprocess.run(["docker", "--host", self.address, "load"], stdin=saving.stdout, check=True, timeout=60)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room on its disk inside the block."""
        script = 'dd if=/dev/zero of="$0"/filling bs=1M; dd if=/dev/zero of="$0"/more bs=1k; true'
        subprocess.run(self.inside("sh", "-c", script, str(self.data), mount=True), capture_output=True, timeout=60)
        try:
            yield
        finally:
            remove = self.inside("rm", str(self.data / "filling"), str(self.data / "more"), mount=True)
            subprocess.run(remove, check=True, timeout=60)

    def end(self) -> None:
        """End it with all that runs on it. The namespaces go with their last process."""
        try:
            if self._daemon is not None:
                self.clear()
        finally:
            self.stop()
            self._holder.kill()
            self._holder.communicate()


@contextmanager
def own_engine(image: str) -> Iterator[OwnEngine]:
    """Give an engine that nothing else uses, with an image on it; skips where this machine cannot have one."""
    lacking = [name for name in ("dockerd", "unshare", "nsenter", "ip", "mount") if shutil.which(name) is None]
    if os.geteuid() or lacking:
        pytest.skip(f"an engine of our own needs root, and {', '.join(lacking) or 'what is here'}")
    # The path of a socket may hold 107 characters.
    engine = OwnEngine(Path(tempfile.mkdtemp(prefix="dk-")))
    try:
        engine.start()
        engine.load(image)
        yield engine
    finally:
        engine.end()
        shutil.rmtree(engine.directory)


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def _serving(path: Path, handler: Callable[..., Any]) -> Iterator[str]:
    with _Unix(str(path), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join(10)


@contextmanager
def old_engine(path: Path) -> Iterator[str]:
    """Give the address of a socket that answers as Docker 17.12 would with nothing on it."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"Version": "17.12.1-ce", "ApiVersion": "1.35", "MinAPIVersion": "1.12", "Arch": "amd64"}'
            if "/version" not in self.path:
                body = b'{"Volumes": []}' if "/volumes" in self.path else b"[]"
            self.send_response(200)
            self.send_header("Api-Version", "1.35")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_HEAD = do_GET

        def address_string(self) -> str:
            return "a client"

        def log_message(self, format: str, *args: object) -> None:
            return

    with _serving(path, Answer) as address:
        yield address


@contextmanager
def hung_engine(path: Path) -> Iterator[str]:
    """Give the address of a socket that takes connections, and never answers."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(100)
        yield f"unix://{path}"
