"""Files for a container, as the archive that `docker cp -` unpacks: with the owner that the container's user is."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from etcdops.errors import EtcdopsError, Refused

if TYPE_CHECKING:
    from etcdops.remote.host import SSHHost

__all__ = ["archive", "names_in", "receive"]

_COPY_S = 3600.0


def archive(files: Mapping[str, str], user: str, *, links: Mapping[str, str] | None = None) -> bytes:
    """Give a tar archive of local files (by their path in the container), readable by the container's user alone.

    For a local path of "" it is an empty file. `links` are symbolic links to files in the same directory, which come
    last: who finds one finds the whole file behind it. `user` is what the image says: "", a number, or two with a
    colon. Raises Refused for a name, whose number only the image knows.
    """
    uid, _, gid = user.partition(":")
    if not (uid or "0").isdigit() or not (gid or "0").isdigit():
        raise Refused(
            f"the image runs etcd as {user!r}, a name; files with secrets need its number",
            remedy="Use an image whose USER is a number, such as one from `image.build`.",
        )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for directory in sorted({path.rpartition("/")[0] for path in files}):
            entry = _entry(directory, uid, gid)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, source in files.items():
            content = Path(source).read_bytes() if source else b""
            entry = _entry(path, uid, gid)
            entry.size, entry.mode = len(content), 0o400
            tar.addfile(entry, io.BytesIO(content))
        for path, target in (links or {}).items():
            entry = _entry(path, uid, gid)
            entry.type, entry.linkname = tarfile.SYMTYPE, target.rpartition("/")[2]
            tar.addfile(entry)
    return buffer.getvalue()


def names_in(content: bytes) -> list[str]:
    """Give the names, without their directories, of the files with content in an archive from `docker cp`."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [entry.name.rpartition("/")[2] for entry in tar.getmembers() if entry.isfile() and entry.size]


def receive(host: SSHHost, argv: Sequence[str], target: str) -> None:
    """Write the one file of the archive that a command on a host gives to `target`, a file of this machine.

    Raises EtcdopsError when the command fails, or gives no such archive.
    """
    part = f"{target}.{os.getpid()}.tar"
    try:
        with open(part, "w+b") as file:
            done = host.stream(argv, on_data=lambda piece: _write(file, piece), timeout_s=_COPY_S)
            file.seek(0)
            try:
                with tarfile.open(fileobj=file) as tar:
                    entry = tar.next()
                    content = tar.extractfile(entry) if entry else None
                    if done.exit_code != 0 or content is None:
                        raise tarfile.TarError("no file in it")
                    with content, open(target, "wb") as copy:
                        shutil.copyfileobj(content, copy, 2**20)
            except tarfile.TarError as error:
                said = done.stderr.decode(errors="replace").strip() or str(error)
                raise EtcdopsError(f"{shlex.join(argv)} on {host.name} gave no file: {said}") from error
    finally:
        os.unlink(part)


def _write(file: IO[bytes], piece: bytes) -> None:
    file.write(piece)


def _entry(path: str, uid: str, gid: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.uid, entry.gid = int(uid or 0), int(gid or 0)
    return entry
