"""Clusters that somebody else runs: etcd started by hand, with nothing of etcdops in it, and ended by process id."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path

from etcdops import wire
from etcdops.binaries import find
from etcdops.errors import EtcdError
from etcdops.spec import Tls


def free_ports(count: int) -> list[int]:
    """Give ports of 127.0.0.1 that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _problem(connection: wire.Connection) -> str:
    try:
        connection.range(b"health", timeout_s=1.0)
    except EtcdError as error:
        return str(error)
    return ""


class ByHand:
    """A cluster of members that are called `names`, whose data and logs are in `directory`.

    `advertise` is what members tell clients, by name, where that is not where they listen. With `server` (a
    certificate, its key and an authority) clients speak TLS; with `mutual` they need a certificate.
    """

    def __init__(
        self,
        directory: Path,
        names: list[str],
        *,
        token: str = "byhand",
        server: tuple[str, str, str] | None = None,
        mutual: bool = False,
        binary: str = "",
    ) -> None:
        self.directory = directory
        self.names = names
        self.binary = binary or find(offline=True).etcd
        self.advertise: dict[str, str] = {}
        self.server = server
        self.mutual = mutual
        self.token = token
        ports = free_ports(2 * len(names))
        scheme = "https" if server else "http"
        self.client = {name: f"{scheme}://127.0.0.1:{ports[2 * i]}" for i, name in enumerate(names)}
        self.peer = {name: f"http://127.0.0.1:{ports[2 * i + 1]}" for i, name in enumerate(names)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, join: str = "") -> None:
        """Start these members, or all; `join` is the --initial-cluster of one that joins an existing cluster."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(self.names):
            if name not in (names or self.names):
                continue
            initial = join or ",".join(f"{each}={self.peer[each]}" for each in self.names)
            argv = [self.binary, "--name", name, "--data-dir", str(self.directory / f"d{i}"), "--logger", "zap"]
            argv += ["--listen-client-urls", self.client[name], "--listen-peer-urls", self.peer[name]]
            argv += ["--advertise-client-urls", self.advertise.get(name, self.client[name])]
            argv += ["--initial-advertise-peer-urls", self.peer[name], "--initial-cluster", initial]
            argv += ["--initial-cluster-token", self.token, "--heartbeat-interval", "50", "--election-timeout", "500"]
            argv += ["--initial-cluster-state", "existing" if join else "new"]
            if self.server:
                argv += ["--cert-file", self.server[0], "--key-file", self.server[1]]
                argv += ["--trusted-ca-file", self.server[2], "--client-cert-auth"] if self.mutual else []
            with open(self.directory / f"{i}.log", "ab") as log:
                self.processes[name] = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait(self, *names: str, tls: Tls | None = None, timeout_s: float = 30.0) -> None:
        """Wait until a linearizable read succeeds through these members, or all."""
        deadline = time.monotonic() + timeout_s
        for name in names or self.names:
            with wire.Connection(self.client[name], tls) as connection:
                while problem := _problem(connection):
                    assert time.monotonic() < deadline, f"{name} does not serve: {problem}"
                    time.sleep(0.05)

    def stop(self, *names: str) -> None:
        """End these members, or all, and wait until they have."""
        chosen = [self.processes[name] for name in names or self.processes]
        for process in chosen:
            process.kill()
        for process in chosen:
            process.wait(timeout=20)

    def alive(self) -> dict[str, int]:
        """Give the process ids of the members that run."""
        return {name: process.pid for name, process in self.processes.items() if process.poll() is None}

    def stamps(self, tls: Tls | None = None) -> dict[str, tuple[int, int, int]]:
        """Give each running member's id, revision and applied entries: what a write, or any change, would move."""
        found = {}
        for name in self.alive():
            with wire.Connection(self.client[name], tls) as connection:
                status = connection.status(timeout_s=20)
                found[name] = (status.member_id, status.revision, status.raft_applied_index)
        return found
