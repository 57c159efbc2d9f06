"""The transactions that are most of all, many at a time: write one key if it is as it was seen, and read one before.

What the profiles "mixed" and "append" write: compare a key's revision, then read and put, or else read. Every part is
checked while the text is decoded; whatever is not exactly this is left to who takes all transactions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np

from etcdops.verify.shapes import ABSENT, CODES, EFFECT, FAILS, HOLDS, PLAIN, SIGNS, TARGETS, WRITES
from etcdops.verify.taking import Kv, Line, Taker

__all__ = ["take_swaps"]

_Compare = tuple[str, Literal["mod_revision"], Literal["=", "!=", "<", ">"], int]
_Read = tuple[Literal["range"], str]
_Put = tuple[Literal["put"], str, str]
_Swap = tuple[Literal["txn"], tuple[_Compare], tuple[_Read, _Put], tuple[_Read]]
_Shown = tuple[int, Literal["range"], tuple[int, int, list[Kv]]]
_Done = tuple[int, Literal["put"], None]

_swaps = msgspec.json.Decoder(list[_Swap])
_answers: dict[bytes, msgspec.json.Decoder[Any]] = {
    b"[1,": msgspec.json.Decoder(list[tuple[int, tuple[_Shown, _Done]]]),
    b"[0,": msgspec.json.Decoder(list[tuple[int, tuple[_Shown]]]),
}

#: How many arrays one is of, and what else it holds: a cheap look before the text is decoded.
_ARRAYS, _COMPARED = 8, b',"mod_revision",'

_TARGET = TARGETS.index("mod_revision")
_SIGNS = {name: number for number, name in enumerate(SIGNS)}
_FLAGS = {
    b"[1,": CODES["txn"] | PLAIN | HOLDS | EFFECT | WRITES,
    b"[0,": CODES["txn"] | PLAIN | FAILS | WRITES,
}


def take_swaps(
    taker: Taker, lines: Sequence[Line], first: int, flags: list[int], places: list[int], raws: list[bytes]
) -> tuple[list[int], list[bytes]]:
    """Take those transactions that are swaps; give the places and requests of the others, in order.

    `flags` gets those of what is taken. The first line's operation has the number `first`.
    """
    chosen: dict[bytes, tuple[list[int], list[bytes], list[bytes]]] = {start: ([], [], []) for start in _answers}
    left: list[tuple[int, bytes]] = []
    for at, raw in zip(places, raws, strict=True):
        if raw.count(b"[") == _ARRAYS and _COMPARED in raw:
            second = bytes(lines[at].second)
            group = chosen.get(second[:3])
            if group is not None:
                group[0].append(at)
                group[1].append(raw)
                group[2].append(second)
                continue
        left.append((at, raw))
    for start, (some, asked, told) in chosen.items():
        if some:
            left += _take(taker, lines, first, flags, start, some, asked, told)
    left.sort()
    return [at for at, _ in left], [raw for _, raw in left]


def _take(
    taker: Taker,
    lines: Sequence[Line],
    first: int,
    flags: list[int],
    start: bytes,
    places: list[int],
    raws: list[bytes],
    seconds: list[bytes],
) -> list[tuple[int, bytes]]:
    """Take swaps of which all were done, or none; give those that are not as they should be."""
    try:
        swaps = _swaps.decode(b"[" + b",".join(raws) + b"]")
        answers = _answers[start].decode(b"[" + b",".join(seconds) + b"]")
    except msgspec.MsgspecError:
        return list(zip(places, raws, strict=True))
    done = start == b"[1,"
    left: list[tuple[int, bytes]] = []
    kvs: list[Kv] = []
    rows: list[tuple[int, int, str, str, int, str, str, str, int]] = []
    for at, raw, swap, (_, results) in zip(places, raws, swaps, answers, strict=True):
        _, ((key, _, sign, operand),), ((_, read), (_, put, value)), ((_, other),) = swap
        revision = lines[at].first
        before = revision - 1 if done else revision
        shown, _, (count, more, listed) = results[0]
        good = shown == before and not more and count == len(listed) <= 1 and key and read and put and other
        if not good or (done and results[1][0] != revision):
            left.append((at, raw))
            continue
        seen = read if done else other
        rows.append((at, before, key, sign, operand, seen, put, value, len(kvs) if listed else ABSENT))
        kvs += listed
        flags[at] = _FLAGS[start]
    if not rows:
        return left
    taken, at_revision, keys, signs, operands, looks, puts, values, found = zip(*rows, strict=True)
    shapes, key_of = taker.shapes, taker.key_of
    number = np.array(taken, np.int64) + first
    then = np.array(at_revision, np.int64)
    none = np.zeros(len(rows), np.int64)
    sign_numbers = [_SIGNS[sign] for sign in signs]
    shapes.compares.add_all(number, then, [*map(key_of, keys)], none + _TARGET, sign_numbers, operands)
    if done:
        shapes.events.add_all(number, none, [*map(key_of, puts)], taker.values_of(values), none)
    row = taker.rows(kvs)
    seen_rows = np.array(found, np.int64)
    shapes.states.add_all(number, then, [*map(key_of, looks)], np.where(seen_rows == ABSENT, ABSENT, seen_rows + row))
    return left
