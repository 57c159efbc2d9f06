"""`ctl` where this machine has no etcdctl: the one in the cluster's client container.

A second choice: files of the caller's are out of its reach, and Docker stands between it and the caller's signals. On
the way of a `ctl`, so it imports next to nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys

from etcdops.errors import BinaryError

__all__ = ["docker_path", "exec_argv"]


def exec_argv(cluster_id: str, engine: str, arguments: list[str], environment: dict[str, str]) -> list[str]:
    """Give the argv that runs etcdctl with these arguments in the client container of a cluster.

    The caller's own ETCDCTL_… variables go with it. Raises BinaryError when there is no such container, or no docker.
    """
    docker = ["docker", *(["--host" if "://" in engine else "--context", engine] if engine else [])]
    filters = [f"label=io.etcdops.cluster-id={cluster_id}", "label=io.etcdops.role=client", "status=running"]
    try:
        done = subprocess.run(
            [*docker, "ps", "--quiet", *(word for each in filters for word in ("--filter", each))],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BinaryError(f"there is no etcdctl here, and docker cannot be asked for one: {error}") from error
    found = done.stdout.split()
    if not found:
        raise BinaryError(
            f"there is no etcdctl here, and no client container runs that has one. {done.stderr.strip()}".strip(),
            remedy="`up-env` starts the client container; `etcd.fetch` gets an etcdctl for this machine.",
        )
    terminal = ["--tty"] if all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout)) else []
    passed = [word for name in environment if name.startswith("ETCDCTL_") for word in ("--env", name)]
    return [*docker, "exec", "--interactive", *terminal, *passed, found[0], "etcdctl", *arguments]


def docker_path() -> str:
    """Give the path of the docker command; raises BinaryError without one."""
    import shutil

    path = shutil.which("docker")
    if path is None:
        raise BinaryError("there is no etcdctl here, and no docker either", remedy="`etcd.fetch` gets an etcdctl.")
    return os.path.abspath(path)
