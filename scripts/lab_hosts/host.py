"""One host: its namespaces, kept by a process that is the host's first, and the engine and the sshd in them.

Everything of a host runs in a process namespace of its own. The kernel ends all of it when the first process ends, so a
host is switched off by one signal to one recorded process, and nothing of it can be left over.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from etcdops.errors import EtcdopsError
from etcdops.hosts import LocalHost, identify
from scripts.lab_hosts.machine import ENVIRONMENT, run, thaw_cgroups
from scripts.lab_hosts.record import BedRecord, HostRecord, Places, write_file

__all__ = [
    "Begun",
    "ask_engine",
    "begin",
    "engine_socket",
    "is_running",
    "new_key",
    "pid_of",
    "prepare",
    "sshd_answers",
    "start_engine",
    "start_sshd",
    "stop_engine",
    "stop_sshd",
    "switch_off",
    "wait_ready",
]

_LOCAL = LocalHost()

#: Parents of hosts' first processes, as far as this process has started them: only it can reap them.
_children: list[_Child] = []

#: How long a host, its engine or its sshd may take to come up or to go, in seconds.
_PATIENCE_S = 60.0

#: $1 is the host's directory, $2 its name, $3 its address with the prefix, $4 root's home directory.
#: /proc is still this machine's at first, so the first line printed is the process's id outside. "go" is said once that
#: is recorded: if whoever starts us dies before, we end, and the namespaces with us.
_BOOT = """\
set -e
read -r pid rest </proc/self/stat
echo "$pid"
read -r word && [ "$word" = go ]
mount -t tmpfs -o mode=755 lab-hosts /run
mkdir -p /run/host /run/lock /run/sshd /run/etc/upper /run/etc/work
mount --bind "$1" /run/host
mount -t overlay -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work lab-hosts /etc
mkdir -p /etc/docker
mount --bind /run/host/etc-docker /etc/docker
mount --bind /run/host/home "$4"
mount --bind /run/host/tmp /tmp
mount -t proc proc /proc
hostname "$2"
echo "$2" >/etc/hostname
cat /run/host/names >>/etc/hosts
# Without PAM, sshd turns a root away whose password is locked, whatever key it has.
[ ! -e /etc/shadow ] || sed -i 's/^root:[^:]*:/root:*:/' /etc/shadow
ip link set lo up
[ ! -e /proc/sys/net/ipv6/conf/eth0/disable_ipv6 ] || echo 1 >/proc/sys/net/ipv6/conf/eth0/disable_ipv6
ip address add "$3" dev eth0
ip link set eth0 up
echo ready
# The first process inherits orphans; who ignores SIGCHLD need not wait for them.
exec env --ignore-signal=CHLD sleep infinity </dev/null >/dev/null 2>&1
"""

_SSHD_CONFIG = """\
HostKey /run/host/host_key
AuthorizedKeysFile /run/host/authorized_keys
PidFile none
StrictModes no
UsePAM no
UseDNS no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
Subsystem sftp internal-sftp
"""


class _Child(subprocess.Popen[str]):
    """A child that is meant to outlive us, so it is no leak when we forget it."""

    def __del__(self) -> None:  # the base class warns about a child that still runs
        pass


class Begun:
    """A host that waits to be recorded, and to be told to go on."""

    def __init__(self, host: HostRecord, child: _Child, log: Path) -> None:
        self.host = host
        self._child = child
        self._log = log
        self._deadline = time.monotonic() + _PATIENCE_S
        self.pid = int(self._line())
        host.init = identify(self.pid)

    def _line(self) -> str:
        assert self._child.stdout is not None
        while time.monotonic() < self._deadline:
            if select.select([self._child.stdout], [], [], 1.0)[0]:
                if line := self._child.stdout.readline():
                    return line.strip()
                break
        said = self._log.read_text(errors="replace").strip().replace("\n", "; ")
        raise EtcdopsError(f"{self.host.name} did not come up: {said or 'it said nothing'}")

    def go(self) -> None:
        """Let the host go on; it is recorded, and has its link."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write("go\n")
            self._child.stdin.flush()

    def wait(self) -> None:
        """Wait until the host has its mounts and its address."""
        try:
            self._line()
        finally:
            self.close()

    def close(self) -> None:
        """Let go of the host; it ends if it was not told to go on."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def prepare(record: BedRecord, host: HostRecord, places: Places) -> None:
    """Write what a host has on its disk, as far as it is not there."""
    top = places.host(host)
    for name, mode in (("", 0o700), ("docker", 0o711), ("etc-docker", 0o755), ("home", 0o700), ("tmp", 0o1777)):
        (top / name).mkdir(parents=True, exist_ok=True)
        (top / name).chmod(mode)
    engine = {
        "data-root": "/run/host/docker",
        # The cgroups of containers are ours to remove by name, even when the engine had no time to.
        "cgroup-parent": f"/{record.tag}/{host.name}",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "shutdown-timeout": 5,
    }
    write_file(top / "etc-docker" / "daemon.json", json.dumps(engine), 0o644)
    write_file(top / "boot", _BOOT, 0o644)
    write_file(top / "names", "".join(f"{each.address} {each.name}\n" for each in record.hosts), 0o644)
    write_file(top / "authorized_keys", places.key.with_suffix(".pub").read_text(), 0o644)
    write_file(top / "sshd_config", f"ListenAddress {host.address}:22\n{_SSHD_CONFIG}", 0o644)
    new_key(top / "host_key", f"{host.name} of {record.tag}")


def new_key(path: Path, comment: str) -> None:
    """Make a key pair, unless it is there; never half of one."""
    if not path.with_suffix(".pub").exists():
        path.unlink(missing_ok=True)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def begin(record: BedRecord, host: HostRecord, places: Places) -> Begun:
    """Start a host's first process in namespaces of its own; it waits, and ends if we do before it is told to go."""
    top, home = places.host(host), pwd.getpwuid(0).pw_dir
    address = f"{host.address}/{record.network.prefixlen}"
    namespaces = ["--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--propagation=private"]
    log = top / "boot.log"
    with open(log, "w") as stderr:
        child = _Child(
            ["unshare", *namespaces, "sh", str(top / "boot"), str(top), host.name, address, home],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**ENVIRONMENT, "HOME": home},
            cwd="/",
            start_new_session=True,
            text=True,
            bufsize=1,
        )
    _children.append(child)
    return Begun(host, child, log)


def is_running(ref: str) -> bool:
    """Whether the process with that reference lives."""
    return bool(ref) and _LOCAL.process_state(ref) != "gone"


def pid_of(host: HostRecord) -> int:
    """Give the id of a host's first process; EtcdopsError if the host is off."""
    if not is_running(host.init):
        raise EtcdopsError(
            f"{host.name} is switched off", remedy=f"Switch it on: scripts/lab-hosts power-on {host.name}"
        )
    return int(host.init.partition(":")[0])


def switch_off(record: BedRecord, host: HostRecord) -> None:
    """End everything that runs on a host, at once, as a loss of power does; what it has on disk stays."""
    if is_running(host.init):
        _LOCAL.send_signal(host.init, signal.SIGKILL)
        # Of containers that are paused.
        thaw_cgroups(f"{record.tag}/{host.name}")
        if not _LOCAL.wait_gone(host.init, _PATIENCE_S):
            raise EtcdopsError(
                f"{host.name}: process {host.init} still is there {_PATIENCE_S:.0f} s after it was killed"
            )
    _children[:] = [child for child in _children if child.poll() is None]
    host.init = host.engine = host.sshd = ""


def _spawn(host: HostRecord, argv: Sequence[str], log: str) -> str:
    """Start a process on a host, in a session of its own, as an orphan of the host; give its reference."""
    pid = pid_of(host)
    script = 'log=$1; shift; setsid "$@" </dev/null >>"$log" 2>&1 & echo $!'
    inside = run([*_enter(pid), "sh", "-c", script, "sh", f"/run/host/{log}", *argv])[1]
    for outside in _processes(pid):
        with contextlib.suppress(OSError):
            if _inside(outside) == inside.strip():
                return identify(outside)
    raise EtcdopsError(f"{host.name}: {argv[0]} ended at once; its last words: {_last_words(host, log)}")


def _enter(pid: int) -> list[str]:
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--pid", "--uts", "--ipc", "--wd=/", "--"]


def _inside(pid: int) -> str:
    """Give the id that a process has in its own namespace."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.startswith("NSpid:"))


def _processes(pid: int) -> Iterator[int]:
    """Give the ids, outside, of all processes in the process namespace of a host's first."""
    namespace = os.readlink(f"/proc/{pid}/ns/pid")
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.readlink(f"/proc/{entry}/ns/pid") == namespace:
                yield int(entry)


def _last_words(host: HostRecord, log: str) -> str:
    path = Path(f"/proc/{host.init.partition(':')[0]}/root/run/host/{log}")
    try:
        return "; ".join(path.read_text(errors="replace").strip().splitlines()[-5:]) or "none"
    except OSError:
        return "none"


def start_engine(host: HostRecord) -> None:
    """Start a host's Docker engine, unless it runs; `wait_ready` waits until it answers."""
    if not is_running(host.engine):
        host.engine = _spawn(host, ["dockerd"], "dockerd.log")


def start_sshd(host: HostRecord) -> None:
    """Start a host's sshd, unless it runs."""
    if not is_running(host.sshd):
        host.sshd = _spawn(
            host,
            [str(shutil.which("sshd", path=ENVIRONMENT["PATH"])), "-D", "-e", "-f", "/run/host/sshd_config"],
            "sshd.log",
        )


def stop_engine(host: HostRecord) -> None:
    """Stop a host's engine in an orderly way, and all of its containers with it."""
    if is_running(host.engine):
        _LOCAL.send_signal(host.engine, signal.SIGTERM)
        if not _LOCAL.wait_gone(host.engine, _PATIENCE_S):
            raise EtcdopsError(f"{host.name}: dockerd still runs {_PATIENCE_S:.0f} s after SIGTERM")
    host.engine = ""


def stop_sshd(host: HostRecord) -> None:
    """End a host's sshd with all of its sessions; what was started through them and is detached goes on."""
    if is_running(host.sshd):
        _LOCAL.send_signal(host.sshd, signal.SIGKILL)
        _LOCAL.wait_gone(host.sshd, _PATIENCE_S)
    # Within a host, every sshd is the host's own; each session is served by one or two processes.
    for pid in _processes(pid_of(host)):
        ref = identify(pid)
        with contextlib.suppress(OSError):
            if ref and os.path.basename(os.readlink(f"/proc/{pid}/exe")).startswith("sshd"):
                _LOCAL.send_signal(ref, signal.SIGKILL)
    host.sshd = ""


def engine_socket(host: HostRecord) -> str:
    """Give the path, from outside, of the socket that a host's engine listens on."""
    return f"/proc/{pid_of(host)}/root/run/docker.sock"


class _Connection(http.client.HTTPConnection):
    """HTTP to an engine's socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def ask_engine(host: HostRecord, path: str) -> Any:
    """Give what a host's engine answers to a GET, as data; None if it does not answer."""
    try:
        with contextlib.closing(_Connection(engine_socket(host))) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            return json.loads(answer.read()) if answer.status == 200 else None
    except (OSError, EtcdopsError, http.client.HTTPException, ValueError):
        return None


def sshd_answers(host: HostRecord, timeout_s: float = 2.0) -> bool:
    """Whether sshd answers at a host's address."""
    try:
        with socket.create_connection((host.address, 22), timeout_s) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_ready(host: HostRecord, *, engine: bool, sshd: bool) -> None:
    """Wait until a host's engine and sshd answer; EtcdopsError, with their last words, if they do not."""
    if engine:
        _wait_for(host, "dockerd", host.engine, lambda: ask_engine(host, "/version") is not None)
    if sshd:
        _wait_for(host, "sshd", host.sshd, lambda: sshd_answers(host, 0.5))


def _wait_for(host: HostRecord, name: str, ref: str, answers: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not answers():
        if not is_running(ref) or time.monotonic() > deadline:
            ended = "does not answer" if is_running(ref) else "ended"
            raise EtcdopsError(f"{host.name}: {name} {ended}; its last words: {_last_words(host, f'{name}.log')}")
        time.sleep(0.05)
