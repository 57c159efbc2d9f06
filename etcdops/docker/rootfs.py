"""What an image of our own holds: etcd and its tools, the libraries that they load, and next to nothing else."""

from __future__ import annotations

import hashlib
import io
import os
import re
import struct
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, NamedTuple

from etcdops.errors import EtcdopsError, ImageError
from etcdops.hosts import LocalHost

__all__ = ["BIN_DIR", "DATA_DIR", "USER_ID", "Elf", "libraries", "listed", "read_elf", "write"]

#: Where etcd and its tools are, as in etcd's official images.
BIN_DIR = "/usr/local/bin"
#: Where a member's volume is mounted.
DATA_DIR = "/var/lib/etcd"
#: The user and the group that members run as. Docker gives a fresh volume the owner of what it is mounted over.
USER_ID = 10001

#: ELF's numbers for machines, as Docker calls them.
_MACHINES = {3: "386", 40: "arm", 62: "amd64", 183: "arm64", 243: "riscv64", 258: "loong64"}

#: What glibc loads by itself when it looks a name up; from 2.34 on, libc.so.6 has it within.
_LOOK_UP = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")

#: Without the last, a program that uses glibc would ask DNS before it looks into the container's /etc/hosts.
_FILES = {
    "/etc/passwd": f"root:x:0:0:root:/:/sbin/nologin\netcd:x:{USER_ID}:{USER_ID}:etcd:{DATA_DIR}:/sbin/nologin\n",
    "/etc/group": f"root:x:0:\netcd:x:{USER_ID}:\n",
    "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class Elf(NamedTuple):
    """A Linux program: the machine it is for, as Docker calls it, and the loader it asks for ("" if it is static)."""

    machine: str
    loader: str


def read_elf(path: str) -> Elf:
    """Tell what a program needs to run. Raises ImageError for what is no 64-bit Linux program (ELF, see elf(5))."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if head[:5] != b"\x7fELF\x02" or len(head) < 64:
                raise ImageError(
                    f"{path} cannot run in a container: it is no 64-bit program for Linux",
                    remedy="Build the image on Linux and bring it here with `docker save` and `docker load`, or use an"
                    " image that can be pulled.",
                )
            order = ">" if head[5] == 2 else "<"
            (machine,) = struct.unpack_from(f"{order}H", head, 18)
            (start,) = struct.unpack_from(f"{order}Q", head, 32)
            size, count = struct.unpack_from(f"{order}HH", head, 54)
            loader = ""
            for number in range(count):
                file.seek(start + number * size)
                kind, _, offset, _, _, length = struct.unpack_from(f"{order}IIQQQQ", file.read(size))
                if kind == 3:  # PT_INTERP
                    file.seek(offset)
                    loader = file.read(length).rstrip(b"\0").decode()
    except (OSError, struct.error, UnicodeDecodeError) as error:
        raise ImageError(f"cannot read {path}: {error}", remedy="See who owns it, and whether it is whole.") from error
    return Elf(_MACHINES.get(machine, f"ELF machine {machine}"), loader)


def libraries(programs: Sequence[str]) -> list[str]:
    """Give the paths of all that programs load: their loaders and shared libraries, at the paths where those look.

    Static programs need none. Raises ImageError when a library is missing, or a program cannot be read.
    """
    found: set[str] = set()
    for program in programs:
        loader = read_elf(program).loader
        if loader:
            found |= {loader, *_loaded(loader, program)}
    for path in sorted(found):
        if os.path.basename(path) == "libc.so.6":
            beside = (os.path.join(os.path.dirname(path), name) for name in _LOOK_UP)
            found |= {name for name in beside if os.path.exists(name)}
    return sorted(found)


def _loaded(loader: str, program: str) -> list[str]:
    """Ask the loader what it would load: it is what `ldd` asks, and is there wherever the program can run."""
    # In the container there is neither LD_LIBRARY_PATH nor LD_PRELOAD, so that what only they lead to is missing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LD_")}
    remedy = "Install what is missing, or use a static etcd: `etcd.fetch` gets an official one."
    try:
        done = LocalHost().run([loader, "--list", program], timeout_s=10.0, env=environment)
    except EtcdopsError as error:
        raise ImageError(f"cannot find out what {program} loads: {error}", remedy=remedy) from error
    text = done.stdout.decode(errors="replace")
    paths, missing = listed(text)
    if done.exit_code != 0 or missing:
        said = f"it misses {', '.join(missing)}" if missing else (done.stderr.decode(errors="replace") or text).strip()
        raise ImageError(f"cannot find out what {program} loads: {loader} says: {said}", remedy=remedy)
    return paths


def listed(text: str) -> tuple[list[str], list[str]]:
    """Give what `ldd` or `LOADER --list` has found (absolute paths, in its order, each once), and what it misses."""
    paths: dict[str, None] = {}
    missing: dict[str, None] = {}
    for line in text.splitlines():
        name, arrow, where = line.strip().partition(" => ")
        path = re.sub(r" \(0x[0-9a-f]+\)$", "", where if arrow else name)
        if path.startswith("/"):
            paths[os.path.normpath(path)] = None
        elif "not found" in path:
            missing[name] = None
    return list(paths), list(missing)


def write(
    file: IO[bytes], programs: Sequence[str], *, also: Sequence[str] = (), texts: Mapping[str, str] | None = None
) -> str:
    """Write an image's file system as a tar archive, and give its SHA-256; the same programs give the same archive.

    `programs` are absolute paths on this machine; they come into BIN_DIR under their own names. `also` are files that
    come where they are, and `texts` are made: {path: content}. Raises ImageError as `libraries` does, OSError when a
    file cannot be read or the archive not be written.
    """
    made = _FILES | dict(texts or {})
    files = {f"{BIN_DIR}/{os.path.basename(program)}": program for program in programs}
    files |= {path: path for path in (*libraries(programs), *also)}
    entries: dict[str, tuple[tarfile.TarInfo, str]] = {}
    for path, source in files.items():
        entries[path] = _entry(path, 0o755), source
    for path, text in made.items():
        entries[path] = _entry(path, 0o644, len(text)), ""
    for path in _directories([*entries, f"{DATA_DIR}/.", "/tmp/."]):
        entries[path] = _entry(path, 0o755, kind=tarfile.DIRTYPE), ""
    entries["/tmp"] = _entry("/tmp", 0o1777, kind=tarfile.DIRTYPE), ""
    entries[DATA_DIR] = _entry(DATA_DIR, 0o700, kind=tarfile.DIRTYPE, owner=USER_ID), ""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(entries):
            entry, source = entries[path]
            if source:
                with open(source, "rb") as content:
                    entry.size = os.fstat(content.fileno()).st_size
                    archive.addfile(entry, content)
            else:
                archive.addfile(entry, io.BytesIO(made.get(path, "").encode()))
    file.flush()
    file.seek(0)
    digest = hashlib.sha256()
    while block := file.read(2**20):
        digest.update(block)
    return digest.hexdigest()


def _entry(path: str, mode: int, size: int = 0, kind: bytes = tarfile.REGTYPE, owner: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.mode, entry.size, entry.type = mode, size, kind
    entry.uid = entry.gid = owner
    return entry


def _directories(paths: Iterable[str]) -> set[str]:
    """Give all directories that hold these paths, without the root."""
    found: set[str] = set()
    for path in paths:
        parent = os.path.dirname(path)
        while parent not in ("/", ""):
            found.add(parent)
            parent = os.path.dirname(parent)
    return found
