"""Quantities as people read them."""

from __future__ import annotations

__all__ = ["size_text"]


def size_text(count: float) -> str:
    """Give a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
