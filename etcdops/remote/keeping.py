"""What a second operator needs, kept on a host: in a volume for each version, which the engine there writes and reads.

A version is in a volume of its own, whose name has its number. It is written whole before the one before it goes, so
that a cut connection leaves the old one or both. Files get there, and back, through a container that is created for it
and never started; they come as its input, and belong to root alone.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from etcdops.docker.compose import project_of
from etcdops.docker.engine import LABEL
from etcdops.errors import EtcdopsError, StateError
from etcdops.remote.kept import LARGEST_BYTES

if TYPE_CHECKING:
    from etcdops.docker.on_host import HostEngine
    from etcdops.state import ClusterRecord

__all__ = ["ROLE", "Version", "keep", "read", "versions_on"]

#: What the label says of such a volume, and of a container through which it is written or read.
ROLE = "operators"

_AT = "/etcdops-kept"
_READ_S = 30.0

#: The end of such a volume's name: no member's can be so, for want of a dot.
_NAMED = re.compile(r".+_operators\.g(?P<serial>[1-9]\d{0,8})\.(?P<digest>[0-9a-f]{12})")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]{0,254}")
_ID = re.compile(r"[0-9a-f]{6,64}")


_COLUMNS = "{{.Name}}" + "".join(
    f'\t{{{{json (.Label "{LABEL}{name}")}}}}' for name in ("cluster", "cluster-id", "host", "image")
)


class Version(NamedTuple):
    """A version that is on a host: its volume, which one it is, and of which cluster, as its labels say.

    `host` is what the host is called here, `called` what its cluster calls it. `digest` is the beginning of
    `etcdops.remote.kept.digest`.
    """

    host: str
    volume: str
    serial: int
    digest: str
    cluster: str
    cluster_id: str
    called: str
    image: str


def versions_on(engine: HostEngine, cluster_id: str = "") -> list[Version]:
    """Give the versions that there are on a host, of one cluster or of all, the newest first."""
    filters = [f"role={ROLE}", f"cluster-id={cluster_id}" if cluster_id else "cluster-id"]
    words = [word for each in filters for word in ("--filter", f"label={LABEL}{each}")]
    found = []
    for line in engine.run("volume", "ls", *words, "--format", _COLUMNS).splitlines():
        volume, *values = line.split("\t")
        cluster, id_, called, image = map(json.loads, values)
        named = _NAMED.fullmatch(volume)
        # Anybody there can give a volume these labels; what has other words in them is nobody's of ours.
        if named and _IMAGE.fullmatch(image) and _ID.fullmatch(id_) and cluster.isprintable():
            found.append(
                Version(engine.host.name, volume, int(named["serial"]), named["digest"], cluster, id_, called, image)
            )
    return sorted(found, key=lambda each: each.serial, reverse=True)


def keep(engine: HostEngine, record: ClusterRecord, files: Mapping[str, bytes], serial: int, digest: str) -> Version:
    """Write a version to a host, and remove those before it."""
    name = engine.host.name
    image = record.image_id or record.image
    project = project_of(record.spec.name, record.id)
    volume = f"{project}_operators.g{serial}.{digest[:12]}"
    labels = {
        "cluster": record.spec.name,
        "cluster-id": record.id,
        "role": ROLE,
        "state-dir": record.state_dir,
        "uid": str(os.getuid()),
        "host": name,
        "image": image,
    }
    flags = [word for key, value in labels.items() for word in ("--label", f"{LABEL}{key}={value}")]
    engine.run("volume", "create", *flags, volume)
    helper = _helper(engine, flags, volume, image)
    try:
        engine.run("cp", "-", f"{helper}:/", stdin=_archive(files))
    finally:
        engine.remove([helper])
    for each in versions_on(engine, record.id):
        if each.serial < serial:
            engine.remove_volume(each.volume)
    return Version(name, volume, serial, digest[:12], record.spec.name, record.id, name, image)


def read(engine: HostEngine, version: Version) -> dict[str, bytes]:
    """Give the files of a version; raises StateError for what was not written by `keep`, and changes nothing."""
    flags = ["--label", f"{LABEL}cluster-id={version.cluster_id}", "--label", f"{LABEL}role={ROLE}"]
    helper = _helper(engine, flags, version.volume, version.image, read_only=True)
    got = bytearray()
    size = 0

    def take(piece: bytes) -> None:
        nonlocal size
        size += len(piece)
        if size <= LARGEST_BYTES:
            got.extend(piece)

    try:
        done = engine.ssh.stream(engine.argv("cp", f"{helper}:{_AT}/.", "-"), on_data=take, timeout_s=_READ_S)
    finally:
        engine.remove([helper])
    where = f"the volume {version.volume} on {version.host}"
    if version.volume not in engine.named("volume", role=ROLE, cluster_id=version.cluster_id):
        # It went meanwhile, for a newer one; and who mounts what is not there makes it.
        engine.try_run("volume", "rm", version.volume)
        raise StateError(f"{where} is gone: a newer version has taken its place", remedy="Type this again.")
    if done.exit_code != 0:
        raise EtcdopsError(f"cannot read {where}: {done.stderr.decode(errors='replace').strip()}")
    if size > LARGEST_BYTES:
        raise StateError(f"{where} holds more than {LARGEST_BYTES:,} bytes: that was not kept there by etcdops")
    return _files(bytes(got), where)


def _helper(engine: HostEngine, flags: list[str], volume: str, image: str, *, read_only: bool = False) -> str:
    mount = f"{volume}:{_AT}{':ro' if read_only else ''}"
    words = ["--pull", "never", "--network", "none", *flags, "--volume", mount, "--entrypoint", "never"]
    return engine.run("create", *words, image, "started").strip()


def _archive(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        directory = tarfile.TarInfo(_AT.lstrip("/"))
        directory.type, directory.mode = tarfile.DIRTYPE, 0o700
        tar.addfile(directory)
        for name, content in files.items():
            entry = tarfile.TarInfo(f"{_AT.lstrip('/')}/{name}")
            entry.size, entry.mode = len(content), 0o600
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _files(archive: bytes, where: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for entry in tar:
                name = entry.name.removeprefix("./")
                if entry.isdir() and name in ("", "."):
                    continue
                content = tar.extractfile(entry) if entry.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
                if content is None or "/" in name or entry.size > LARGEST_BYTES:
                    raise StateError(f"{where} holds {name[:80]!a}, which is no file of ours")
                found[name] = content.read()
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise StateError(f"{where} cannot be read: {error}") from error
    return found
