"""What members log while a drill runs, kept window by window."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from etcdops.errors import EtcdopsError

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["MemberLogs"]


class _Mark(NamedTuple):
    """How much a member had logged at an instant, in bytes, and the SHA-256 of that."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> _Mark:
        return cls(len(content), hashlib.sha256(content).hexdigest())


_NOTHING = _Mark.of(b"")


class MemberLogs:
    """Keeps what members have logged since it was made, or since the last window was closed."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._from = self._until = self._marks()
        self._aside: dict[str, bytes] = {}

    def _marks(self) -> dict[str, _Mark]:
        members = self._cluster.record.members
        return {member.name: _Mark.of(self._cluster.runtime.log_bytes(member)) for member in members}

    def keep(self, folder: Path) -> None:
        """Write what each member has logged in this window, and between it and the one before, to `NAME.log`.

        Of one whose log cannot be read now, as its host is out of reach, there is no such file: half of a log would be
        taken for all of it.
        """
        new: dict[str, bytes | None] = {}
        for member in self._cluster.record.members:
            try:
                new[member.name] = self._new(member.name)
            except EtcdopsError:
                new[member.name] = None
        for name in {**self._aside, **new}:
            content = new.get(name, b"")
            if content is None:
                (folder / f"{name}.log").unlink(missing_ok=True)
            else:
                (folder / f"{name}.log").write_bytes(self._aside.get(name, b"") + content)

    def keep_aside(self, name: str) -> None:
        """Keep what a member has logged so far, as its log may be gone soon, with what it ran in."""
        self._aside[name] = self._aside.get(name, b"") + self._new(name)
        content = self._cluster.runtime.log_bytes(self._cluster.record.member(name))
        self._from = {**self._from, name: _Mark.of(content)}

    def _new(self, name: str) -> bytes:
        content = self._cluster.runtime.log_bytes(self._cluster.record.member(name))
        known = self._from.get(name, _NOTHING)
        # A member that was made anew in another container has a log of its own.
        return content[known.size :] if _Mark.of(content[: known.size]) == known else content

    def window_closed(self) -> None:
        """Take note that what comes from now on belongs to the next window, if there is one."""
        # What cannot be read any more, no later window has either.
        with suppress(EtcdopsError):
            self._until = self._marks()

    def window_opened(self) -> None:
        """Take note that there is a next window."""
        self._from = self._until
        self._aside.clear()
