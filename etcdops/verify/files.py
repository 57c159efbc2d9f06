"""A record's lines in blocks: large enough to be decoded at once, small enough that little memory is needed."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from etcdops.errors import StateError
from etcdops.workload.lines import bad_line, found, read_header

__all__ = ["Piece", "blocks", "decoded", "size_of", "whole"]

#: How much of a file is decoded at a time, bytes.
_BLOCK = 1 << 17


class Piece(NamedTuple):
    """The blocks of a record that begin at a byte of its text or after it, and before another; see `size_of`."""

    path: Path
    start: int
    end: float


def whole(path: Path) -> Piece:
    """Give all of a record."""
    return Piece(path, 0, math.inf)


def size_of(path: Path) -> int:
    """Give about how many bytes of text a record has, 0 if it cannot be read: what is wrong is told by who reads it."""
    lies = found(path)
    try:
        if lies is None or lies.suffix != ".gz":
            return os.path.getsize(path)
        with open(lies, "rb") as file:
            # The end of the file tells it, up to 4 GB (RFC 1952).
            file.seek(-4, os.SEEK_END)
            return int.from_bytes(file.read(4), "little")
    except OSError:
        return 0


def decoded(decoder: Any, path: Path, first: int, block: bytes) -> Any:
    """Give a block's lines, decoded; raises StateError, naming the line, for one that is not as it should be."""
    try:
        return decoder.decode_lines(block)
    except msgspec.MsgspecError:
        for number, line in enumerate(block.splitlines(), start=first):
            try:
                decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise bad_line(path, number, error) from error
        raise


def blocks(piece: Piece, kind: str) -> Iterator[tuple[int, bytes]]:
    """Give a record's piece in blocks of whole lines, each with the number of its first line; without the header.

    Every block of a record is in one of its pieces, if each begins where another ends.
    """
    path, start, end = piece
    lies = found(path)
    if lies is None:
        raise StateError(f"there is no record {path}", remedy="Name a run folder that a drill has written.")
    number, rest, at = 1, b"", 0
    try:
        with gzip.open(lies) if lies.suffix == ".gz" else open(lies, "rb") as file:
            while data := file.read(_BLOCK):
                block = rest + data
                cut = block.rfind(b"\n") + 1
                block, rest = block[:cut], block[cut:]
                if block and number == 1:
                    head, _, block = block.partition(b"\n")
                    read_header(lies, head, kind)
                    number = 2
                if block:
                    if at >= end:
                        return
                    if at >= start:
                        yield number, block
                    at += len(block)
                    number += block.count(b"\n")
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StateError(
            f"cannot read the record {lies}: {reason}", remedy="Name a run folder that a drill has written."
        ) from error
    if number == 1:
        read_header(lies, rest, kind)
    elif start <= at < end and _is_json(rest):
        yield number, rest + b"\n"


def _is_json(line: bytes) -> bool:
    try:
        msgspec.json.decode(line)
    except msgspec.DecodeError:
        return False
    return True
