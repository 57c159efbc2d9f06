"""Quantities as people read and write them."""

from __future__ import annotations

from etcdops.errors import SpecError

__all__ = ["parse_bytes", "size_text"]

_UNITS = {"": 1, "B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def size_text(count: float) -> str:
    """Give a number of bytes as people read it."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def parse_bytes(text: str, name: str) -> int:
    """Give the number of bytes that the text of a flag called `name` says: digits, and B, KiB, MiB, GiB or nothing.

    Raises SpecError for anything else, decimal units among it: MB means two things.

    >>> parse_bytes("32MiB", "quota"), parse_bytes("2 GiB", "quota"), parse_bytes("4096", "quota")
    (33554432, 2147483648, 4096)
    """
    number = text.strip().rstrip("BKMGi").rstrip()
    unit = text.strip()[len(number) :].strip()
    if not (number.isascii() and number.isdigit() and len(number) <= 15) or unit not in _UNITS:
        raise SpecError(
            f"--{name} {text!r} is not a size", remedy="Give bytes, or a number with KiB, MiB or GiB: 32MiB."
        )
    return int(number) * _UNITS[unit]
