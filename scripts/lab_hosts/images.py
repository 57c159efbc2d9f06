"""Images that are copied from this machine's Docker engine to the hosts: they reach no registry."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from etcdops.errors import EtcdopsError, SpecError
from scripts.lab_hosts.host import engine_socket
from scripts.lab_hosts.machine import ENVIRONMENT
from scripts.lab_hosts.record import HostRecord

__all__ = ["check_image", "has_image", "load", "saved"]

#: An image of some gigabytes, to several hosts at once.
_TIMEOUT_S = 600.0


def check_image(image: str, *, with_engine: bool) -> str:
    """Give the id that an image has on this machine; SpecError if it cannot be copied to hosts."""
    if not with_engine:
        raise SpecError(f"--image {image}: there is no engine in a bed of --no-engine")
    try:
        return _id(["docker"], image, dict(os.environ))
    except (EtcdopsError, OSError) as error:
        raise SpecError(
            f"--image {image}: this machine's engine does not give it: {error}",
            remedy="See `docker images`; `etcdops image.build` makes one.",
        ) from error


def has_image(host: HostRecord, image: str) -> bool:
    """Whether a host has the image that this machine has by that name."""
    try:
        return _id(_docker_of(host), image, ENVIRONMENT) == check_image(image, with_engine=True)
    except EtcdopsError:
        return False


@contextlib.contextmanager
def saved(image: str, path: Path) -> Iterator[Path]:
    """Have an image in a file while the block runs."""
    try:
        _run(["docker", "save", "--output", str(path), image], dict(os.environ))
        yield path
    finally:
        path.unlink(missing_ok=True)


def load(host: HostRecord, archive: Path) -> None:
    """Load an image from a file into a host's engine."""
    _run([*_docker_of(host), "load", "--quiet", "--input", str(archive)], ENVIRONMENT)


def _docker_of(host: HostRecord) -> list[str]:
    return ["docker", "--host", f"unix://{engine_socket(host)}"]


def _id(docker: list[str], image: str, env: dict[str, str]) -> str:
    return _run([*docker, "image", "inspect", "--format", "{{.Id}}", "--", image], env)


def _run(argv: Sequence[str], env: dict[str, str]) -> str:
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, env=env, cwd="/"
    )
    if done.returncode:
        said = done.stderr.strip().replace("\n", "; ")
        raise EtcdopsError(f"`{shlex.join(argv)}` ended with {done.returncode}: {said}")
    return done.stdout.strip()
