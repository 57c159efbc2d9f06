"""Real servers on loopback for snapshots that are kept elsewhere: OpenSSH's, a store that speaks S3, and a bad line."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from etcdops.hosts import LocalHost
from etcdops.ports import free_ports

__all__ = ["Line", "S3Server", "SshServer", "bad_line", "s3_server", "ssh_server", "tls_line"]

_STARTS_S = 30.0


def _program(name: str) -> str:
    """Give the path of a program; without it, skip the test, or fail where CI has to have it."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed")
    return str(found)


@contextmanager
def _running(argv: list[str], log: Path, answers: Callable[[], bool]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; it answers at its beginning."""
    with open(log, "wb") as file:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, cwd=log.parent)
    try:
        deadline = time.monotonic() + _STARTS_S
        while not answers():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait(10)


def _connects(port: int) -> bool:
    with suppress(OSError), closing(socket.create_connection(("127.0.0.1", port), 1)) as connection:
        connection.settimeout(5)
        return connection.recv(4) == b"SSH-"
    return False


class SshServer(NamedTuple):
    """An sshd on loopback, and what a client of it has in its home directory."""

    port: int
    home: Path
    host_key: str

    def url(self, directory: Path, port: int = 0) -> str:
        """Give the URL of a directory, by this port or another."""
        return f"sftp://127.0.0.1:{port or self.port}{directory}"

    def know(self, *ports: int, key: str = "") -> None:
        """Write known_hosts: the server's key, or another, at these ports."""
        lines = [f"[127.0.0.1]:{port} {key or self.host_key}\n" for port in ports]
        (self.home / ".ssh" / "known_hosts").write_text("".join(lines))


@contextmanager
def ssh_server(directory: Path, *, commands: bool = False, **settings: object) -> Iterator[SshServer]:
    """Run OpenSSH's server for the user who runs us, with keys of its own, and SFTP alone, or `commands` as well.

    `settings` are further ones of sshd_config.
    """
    sshd, keygen = _program("sshd"), _program("ssh-keygen")
    home = directory / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for path in (directory / "host_key", home / ".ssh" / "id_ed25519"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=30)
    shutil.copy(home / ".ssh" / "id_ed25519.pub", directory / "authorized_keys")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    [port] = free_ports(LocalHost(), 1, ())
    config = {
        "ListenAddress": f"127.0.0.1:{port}",
        "HostKey": directory / "host_key",
        "AuthorizedKeysFile": directory / "authorized_keys",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
        **({} if commands else {"ForceCommand": "internal-sftp"}),
        **settings,
    }
    (directory / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))
    argv = [sshd, "-D", "-e", "-f", str(directory / "sshd_config")]
    with _running(argv, directory / "sshd.log", lambda: _connects(port)):
        server = SshServer(port, home, (directory / "host_key.pub").read_text().rsplit(" ", 1)[0])
        server.know(port)
        yield server


class S3Server(NamedTuple):
    """A SeaweedFS on loopback with a bucket `backups`, and the environment of a client of it."""

    port: int
    env: dict[str, Any]


@contextmanager
def s3_server(directory: Path) -> Iterator[S3Server]:
    """Run a store that speaks S3, and checks signatures."""
    weed = _program("weed")
    identity = {
        "name": "tester",
        "credentials": [{"accessKey": "tester", "secretKey": "loopback-only"}],
        "actions": ["Admin", "Read", "List", "Write"],
    }
    (directory / "data").mkdir()
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = free_ports(LocalHost(), 8, ())
    names = ("s3", "s3.port.grpc", "master", "master.port.grpc", "volume", "volume.port.grpc", "filer")
    flags = [
        f"-{name if '.' in name else f'{name}.port'}={port}"
        for name, port in zip((*names, "filer.port.grpc"), ports, strict=True)
    ]
    argv = [
        *(weed, "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={directory / 'data'}", *flags),
        *("-s3", f"-s3.config={directory / 's3.json'}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=50"),
        *("-master.volumeSizeLimitMB=64", "-master.telemetry=false"),
    ]
    env = {
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "loopback-only",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "2",
    }

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            with error:
                return error.code == 403
        except OSError:
            return False

    try:
        with _running(argv, directory / "weed.log", answers):
            _make_bucket(f"http://127.0.0.1:{ports[0]}")
            yield S3Server(ports[0], env)
    finally:
        Path(f"/tmp/seaweedfs-s3-grpc-{ports[1]}.sock").unlink(missing_ok=True)


def _make_bucket(endpoint: str) -> None:
    import s3fs

    fs = s3fs.S3FileSystem(key="tester", secret="loopback-only", endpoint_url=endpoint, skip_instance_cache=True)
    deadline = time.monotonic() + _STARTS_S
    while True:
        try:
            fs.mkdir("backups")
            break
        except OSError:
            # It answers before it can write.
            assert time.monotonic() < deadline
            time.sleep(0.1)


class Line:
    """A port that passes all on to another, and spoils what goes there: held or cut after so many bytes, or slow.

    `limit` is how many bytes pass; `then` is what happens at that: "cut" ends every connection, and takes none any
    more, "hold" lets nothing more through. `pause_s` is waited for each 64 KiB.
    """

    def __init__(
        self,
        target: int,
        *,
        limit: int = sys.maxsize,
        then: str = "cut",
        pause_s: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self._target = target
        self._left = limit
        self._then = then
        self._pause_s = pause_s
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        #: How many bytes have passed towards the server.
        self.passed = 0
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._run(self._accept)

    def _run(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if self._tls:
                    try:
                        near = self._tls.wrap_socket(near, server_side=True)
                    except OSError:
                        near.close()
                        continue
                far = socket.create_connection(("127.0.0.1", self._target), 5)
                far.settimeout(None)
                self._open += [near, far]
                self._run(self._pass, near, far, True)
                self._run(self._pass, far, near, False)

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if counted and not self._let_through(len(data)):
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def _let_through(self, count: int) -> bool:
        with self._lock:
            self._left -= count
        if self._left < 0:
            if self._then == "cut":
                self._cut()
                return False
            self._over.wait(60)
            return False
        self.passed += count
        if self._pause_s:
            self._over.wait(self._pause_s)
        return True

    def _cut(self) -> None:
        for each in (self._listening, *self._open):
            # A close alone would not wake up who reads from it.
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End every connection, and the port."""
        self._over.set()
        self._cut()
        for thread in self._threads:
            thread.join(10)
        for each in (self._listening, *self._open):
            each.close()


@contextmanager
def bad_line(target: int, *, limit: int = sys.maxsize, then: str = "cut", pause_s: float = 0.0) -> Iterator[Line]:
    """Give a port that leads to another, and spoils what goes there."""
    line = Line(target, limit=limit, then=then, pause_s=pause_s)
    try:
        yield line
    finally:
        line.close()


@contextmanager
def tls_line(target: int, certificate: trustme.LeafCert) -> Iterator[int]:
    """Give a port that speaks TLS with a certificate, and passes on to another what is in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    line = Line(target, tls=context)
    try:
        yield line.port
    finally:
        line.close()
