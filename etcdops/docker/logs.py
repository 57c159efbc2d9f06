"""Containers' logs, by offset: what Docker gives by time only."""

from __future__ import annotations

from etcdops.docker.engine import Engine

__all__ = ["ContainerLogs"]

#: How much of a line Docker keeps in one piece, in bytes.
_PIECE = 16 * 1024


class ContainerLogs:
    """Reads containers' logs, and of each only what is new since it was last read."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._read: dict[str, _Log] = {}

    def read(self, container: str, offset: int) -> bytes:
        """Give what a container has written, from `offset` on; b"" if there is no such container."""
        if not container:
            return b""
        log = self._read.setdefault(container, _Log())
        log.extend(self._fetch(container, log.last))
        return bytes(log.content[offset:]) + log.unfinished[max(offset - len(log.content), 0) :]

    def _fetch(self, container: str, since: bytes) -> list[bytes]:
        after = ["--since", since.decode()] if since else []
        done = self._engine.try_run("logs", "--timestamps", *after, container, timeout_s=60.0)
        if done.exit_code != 0:
            if b"No such container" in done.stderr:
                return []
            self._engine.checked(["logs", container], done)
        # etcd writes to stderr alone, but a loader that cannot run it may say so on either.
        lines = (done.stdout + done.stderr).splitlines(keepends=True)
        return sorted(lines, key=_time) if done.stdout else lines


class _Log:
    def __init__(self) -> None:
        self.content = bytearray()
        #: What is there of a line whose end is not written yet.
        self.unfinished = b""
        #: The time of the last line, as Docker wrote it, and how many lines bear it.
        self.last = b""
        self._same = 0

    def extend(self, lines: list[bytes]) -> None:
        """Add lines that begin with their times; those of the last time that is known already come first again."""
        known = self._same
        self.unfinished = b""
        for line in lines:
            time, _, text = line.partition(b" ")
            if time == self.last and known > 0:
                known -= 1
                continue
            text = _joined(time + b" ", text)
            if not text.endswith(b"\n"):
                self.unfinished = text
                continue
            self.content += text
            self._same = self._same + 1 if time == self.last else 1
            self.last = time


def _joined(stamp: bytes, text: bytes) -> bytes:
    """Give a line without the times in its midst: Docker keeps a long one in pieces, each with the time of the first.

    (`defaultBufSize` in moby/daemon/logger/copier.go.)
    """
    pieces, rest = [text[:_PIECE]], text[_PIECE:]
    while rest.startswith(stamp):
        rest = rest[len(stamp) :]
        pieces.append(rest[:_PIECE])
        rest = rest[_PIECE:]
    return b"".join([*pieces, rest])


def _time(line: bytes) -> bytes:
    return line.partition(b" ")[0]
