"""Requests that read, by their text."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from etcdops.verify.shapes import CODES, LOCAL, PLAIN, Shapes

__all__ = ["Reads"]

#: So many different reads are remembered as they are written.
_REMEMBERED = 100_000


_decode = msgspec.json.Decoder().decode


class Reads:
    """Requests that read, by how they are written: the same are asked again and again."""

    def __init__(self, shapes: Shapes, key_of: Callable[[str], int]) -> None:
        self._shapes, self._key_of = shapes, key_of
        #: Of one key: its number, and the flags of an operation that reads it.
        self.gets: dict[bytes, tuple[int, int]] = {}
        #: Of a range: its bounds' numbers, its limit, and the flags; None for what is not plain.
        self.spans: dict[bytes, tuple[int, int, int, int] | None] = {}

    def learn(self, raw: bytes) -> None:
        """Remember a request."""
        if len(self.gets) + len(self.spans) > _REMEMBERED:
            self.gets.clear()
            self.spans.clear()
        request = _decode(raw)
        flags = CODES["range"] | PLAIN | (LOCAL if len(request) > 5 and request[5] else 0)
        if len(request) > 6 or any(request[4:5]):
            self.spans[raw] = None
        elif any(request[2:3]):
            bound = self._shapes.bound
            limit = request[3] if len(request) > 3 else 0
            self.spans[raw] = (bound(request[1]), bound(request[2], True), limit, flags) if limit >= 0 else None
        elif any(request[3:4]):
            self.spans[raw] = None
        else:
            self.gets[raw] = self._key_of(request[1]), flags
