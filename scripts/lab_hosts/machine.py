"""What this machine has to have, commands that are run on it, and the cgroups that engines leave."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from etcdops.errors import CommandMissing, EtcdopsError, Refused

__all__ = ["ENVIRONMENT", "demand", "remove_cgroups", "run", "thaw_cgroups"]

#: All that hosts and commands see of the caller's environment: no proxy, and no Docker host or context.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
}

_PROGRAMS = {
    "ip": "iproute2",
    "iptables": "iptables",
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "mount": "mount",
}
_ENGINE_PROGRAMS = {"docker": "docker.io", "dockerd": "docker.io"}

#: Numbers of capabilities(7): without these, no namespace can be made or given an address.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}


def demand(*, with_engine: bool) -> None:
    """Raise Refused, saying what is missing, unless hosts can be made here and now."""
    if not sys.platform.startswith("linux"):
        raise Refused(f"hosts are made of Linux network namespaces, and this is {sys.platform}")
    if os.geteuid() != 0:
        raise Refused(
            f"making namespaces, links and filter rules takes root, and this is user {os.geteuid()}",
            remedy="Run it as root: sudo scripts/lab-hosts ...",
        )
    effective = _effective_capabilities()
    if lacking := [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]:
        raise Refused(
            f"root lacks {' and '.join(lacking)} here, as in most containers: no namespace can be made",
            remedy="Run it on the machine itself, or in a privileged container.",
        )
    wanted = {**_PROGRAMS, **(_ENGINE_PROGRAMS if with_engine else {})}
    if missing := [name for name in wanted if shutil.which(name, path=ENVIRONMENT["PATH"]) is None]:
        packages = sorted({wanted[name] for name in missing})
        raise CommandMissing(
            f"not installed here: {', '.join(missing)}",
            remedy=f"Install them; on Debian: apt-get install {' '.join(packages)}",
        )


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def run(argv: Sequence[str], *, timeout_s: float = 30, stdin: str = "", check: bool = True) -> tuple[int, str]:
    """Run a command; give its exit code and what it printed. EtcdopsError when it fails, unless `check` is off."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, timeout=timeout_s, env=ENVIRONMENT, cwd="/"
        )
    except FileNotFoundError:
        raise CommandMissing(f"there is no command {argv[0]!r} on this machine") from None
    except subprocess.TimeoutExpired:
        raise EtcdopsError(f"`{shlex.join(argv)}` did not end within {timeout_s:.0f} s") from None
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip().replace("\n", "; ")
        raise EtcdopsError(f"`{shlex.join(argv)}` ended with {done.returncode}: {said or 'it said nothing'}")
    return done.returncode, done.stdout


def _cgroups(name: str) -> list[Path]:
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [Path(fields[1], name) for fields in mounts if fields[2] in ("cgroup", "cgroup2")]


def thaw_cgroups(name: str) -> None:
    """Thaw whatever is frozen in the cgroup `name` and below it: in version 1, what is frozen cannot even be killed."""
    for top in _cgroups(name):
        for state in top.glob("**/freezer.state"):
            with contextlib.suppress(OSError):  # it may go at any time
                state.write_text("THAWED")


def remove_cgroups(name: str, *, timeout_s: float = 10) -> None:
    """Remove the cgroup `name`, and all below it, from every hierarchy; its processes are gone already."""
    deadline = time.monotonic() + timeout_s
    for top in _cgroups(name):
        while top.is_dir():
            for directory, _, _ in os.walk(top, topdown=False):
                try:
                    os.rmdir(directory)
                except OSError as error:
                    # The kernel lets go of one a little after its last process.
                    if time.monotonic() > deadline:
                        raise EtcdopsError(f"cannot remove the cgroup {directory}: {error.strerror}") from error
            if top.is_dir():
                time.sleep(0.02)
