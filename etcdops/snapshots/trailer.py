"""The SHA-256 that ends a snapshot: its last 32 bytes are the hash of all before them."""

from __future__ import annotations

import hashlib

__all__ = ["TRAILER_BYTES", "Trailer", "fits"]

#: The length of the hash.
TRAILER_BYTES = 32

#: A database is made of pages, and those are of this size or of multiples of it.
_SECTOR_BYTES = 512


def fits(size: int) -> bool:
    """Whether a file of this size can be a snapshot: whole pages and a hash, as etcd's own tools look at it."""
    return size > TRAILER_BYTES and size % _SECTOR_BYTES == TRAILER_BYTES


class Trailer:
    """Looks at a snapshot piece by piece, and knows at its end whether its trailer is right.

    >>> trailer = Trailer()
    >>> for piece in (b"data", hashlib.sha256(b"data").digest()):
    ...     trailer.feed(piece)
    >>> trailer.right, trailer.size
    (True, 36)
    """

    def __init__(self) -> None:
        self._body = hashlib.sha256()
        # What may turn out to be the trailer is held back.
        self._held = b""
        #: How many bytes have been seen.
        self.size = 0

    def feed(self, piece: bytes) -> None:
        """Look at the next piece."""
        self.size += len(piece)
        if len(piece) >= TRAILER_BYTES:
            self._body.update(self._held)
        else:
            piece = self._held + piece
        self._body.update(memoryview(piece)[:-TRAILER_BYTES])
        self._held = piece[-TRAILER_BYTES:]

    @property
    def right(self) -> bool:
        """Whether the last 32 bytes so far are the SHA-256 of those before."""
        return self._body.digest() == self._held

    @property
    def sha256(self) -> str:
        """The SHA-256 of all so far, the trailer included, in hexadecimal."""
        whole = self._body.copy()
        whole.update(self._held)
        return whole.hexdigest()
