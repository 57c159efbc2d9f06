"""Files for a container, as the archive that `docker cp -` unpacks: with the owner that the container's user is."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping

from etcdops.errors import Refused

__all__ = ["archive"]


def archive(files: Mapping[str, str], user: str) -> bytes:
    """Give a tar archive of local files (by their path in the container), readable by the container's user alone.

    `user` is what the image says: "", a number, or two with a colon. Raises Refused for a name, whose number only the
    image knows.
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
            with open(source, "rb") as file:
                content = file.read()
            entry = _entry(path, uid, gid)
            entry.size, entry.mode = len(content), 0o400
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _entry(path: str, uid: str, gid: str) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(path.lstrip("/"))
    entry.uid, entry.gid = int(uid or 0), int(gid or 0)
    return entry
