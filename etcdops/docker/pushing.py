"""An image of this machine's Docker engine, put onto hosts that have it not: no registry is needed.

It is saved and compressed once, and sent to all hosts at the same time: with zstd where all have that, which is several
times as fast, else with gzip. A host that has the image, by its id, is left alone, but for the name, should that be
lacking or lead elsewhere. All are looked at before anything is sent.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

from etcdops.docker.engine import Engine
from etcdops.docker.local_images import Image
from etcdops.docker.on_host import HostEngine
from etcdops.docker.problems import for_another
from etcdops.errors import ImageError, Refused
from etcdops.remote.checking import placed, unfit
from etcdops.remote.facts import FULL_BYTES, Asked, look
from etcdops.remote.fan_out import Outcome, fan_out, told_together
from etcdops.remote.files import pieces_of
from etcdops.remote.host import SSHHost
from etcdops.units import size_text

__all__ = ["Pushed", "push"]

_LOOK_S = 30.0

#: How slow a way to a host may be, in bytes per second, and how long loading may take besides.
_SLOWEST = 200_000
_BESIDES_S = 300.0

#: What a host lacks for members, and an image can do without.
_FOR_MEMBERS = ("compose-missing", "compose-too-old")


class Source(Engine):
    """The engine here, whose images are to be had elsewhere."""

    without_image = "`image.build{version}` makes one from the etcd at hand; `image.list` shows what is here."


class _There(NamedTuple):
    """What a host has already: the image, and the program zstd (older engines cannot unpack that themselves)."""

    image: bool
    zstd: bool = False


class Pushed(NamedTuple):
    """What came of an image on a host: its id there, and how many bytes were sent for it (0: it was there)."""

    id: str
    sent: int


def push(
    engine: Engine, image: Image, hosts: Sequence[SSHHost], *, progress: Callable[[str], None]
) -> dict[str, Outcome[Pushed]]:
    """Put an image onto hosts, and give what came of it on each: an error where it was sent, and is not there now.

    Raises Refused, before anything is sent anywhere, where one of them cannot be reached, has no engine, an engine for
    another architecture, or no room.
    """
    there = fan_out(hosts, lambda host: _look(host, image), timeout_s=60.0)
    if errors := [seen.error for seen in there.values() if seen.error is not None]:
        message, remedy = told_together((str(error), error.remedy) for error in errors)
        raise Refused(message, remedy=f"{remedy} Nothing was sent to any host.".strip())
    lacking = [host for host in hosts if not there[host.name].checked().image]
    named = [host for host in hosts if host not in lacking]
    result = fan_out(named, lambda host: _name(host, image), timeout_s=60.0)
    if not lacking:
        return {host.name: result[host.name] for host in hosts}
    with tempfile.TemporaryDirectory(prefix="etcdops-push-") as directory:
        zstd = all(there[host.name].checked().zstd for host in lacking) and bool(shutil.which("zstd"))
        progress(f"compressing {image.reference} with {'zstd' if zstd else 'gzip'}")
        file = _saved(engine, image, directory, zstd=zstd)
        size = os.path.getsize(file)
        progress(f"sending {size / 1e6:.0f} MB to {', '.join(host.name for host in lacking)}")
        limit_s = _BESIDES_S + size / _SLOWEST
        result |= fan_out(lacking, lambda host: _send(host, image, file, limit_s, zstd=zstd), timeout_s=limit_s + 60.0)
    return {host.name: result[host.name] for host in hosts}


def _look(host: SSHHost, image: Image) -> _There:
    """Give what a host has; raises where it could not have the image."""
    facts, _ = placed(host.spec)
    seen = look(host, facts, Asked(image.id, quick=True))
    if problem := unfit(each for each in seen.findings if each.code not in _FOR_MEMBERS):
        raise problem
    if facts.architecture != image.architecture:
        raise ImageError(
            for_another(image.reference, image.architecture, f"of {host.name}", facts.architecture),
            remedy=f"`image.build` on a machine with {facts.architecture} makes one for it.",
        )
    if facts.images:
        return _There(image=True)
    free, needed = facts.disk_free_bytes or 0, image.size + FULL_BYTES
    if free < needed:
        raise Refused(
            f"{host.name}: {size_text(free)} are free where Docker keeps everything, and {image.reference} needs"
            f" {size_text(needed)}",
            remedy="See `docker system df` there; `docker image prune` makes room.",
        )
    return _There(image=False, zstd=host.run(["sh", "-c", "command -v zstd"], timeout_s=_LOOK_S).exit_code == 0)


def _name(host: SSHHost, image: Image) -> Pushed:
    HostEngine(host).run("image", "tag", image.id, image.reference)
    return Pushed(image.id, 0)


def _saved(engine: Engine, image: Image, directory: str, *, zstd: bool) -> str:
    """Save an image to a compressed file, and give its path."""
    archive = os.path.join(directory, "image.tar")
    # The shell opens the file: a docker command that is a snap sees another /tmp than ours.
    argv = ["sh", "-c", 'exec "$@" >"$0"', archive, *engine.argv("save", image.reference)]
    engine.checked(("save",), engine.host.run(argv, timeout_s=_BESIDES_S))
    if zstd:
        packed = engine.host.run(["zstd", "-q", "-T0", "--rm", archive], timeout_s=_BESIDES_S)
        if packed.exit_code == 0:
            return f"{archive}.zst"
        said = packed.stderr.decode(errors="replace").strip() or f"exit code {packed.exit_code}"
        raise ImageError(f"cannot compress {image.reference} with zstd: {said}", remedy="Nothing was sent to any host.")
    with open(archive, "rb") as plain, gzip.open(f"{archive}.gz", "wb", compresslevel=1) as compressed:
        shutil.copyfileobj(plain, compressed, 2**20)
    os.unlink(archive)
    return f"{archive}.gz"


def _send(host: SSHHost, image: Image, file: str, timeout_s: float, *, zstd: bool) -> Pushed:
    engine = HostEngine(host)
    argv = engine.argv("load")
    # Should what unpacks fail half-way, loading does: the archive is cut short.
    unpacking = ["sh", "-c", 'zstd -dcq | "$@"', "sh", *argv] if zstd else argv
    engine.checked(("load",), host.run(unpacking, stdin=pieces_of(file), timeout_s=timeout_s))
    there = engine.run("image", "inspect", "--format", "{{.Id}}", image.reference).strip()
    if there != image.id:
        raise ImageError(f"{image.reference} on {host.name} is {there[:19]} after it was sent, not {image.id[:19]}")
    return Pushed(there, os.path.getsize(file))
