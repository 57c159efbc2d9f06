"""Which operations of common shapes were answered as the model answers: all of them at once.

Only "this one is right" is said here. Whatever is not proven, the model judges, and it alone says what is wrong.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from etcdops.verify.columns import Columns, Ints
from etcdops.verify.log import Log
from etcdops.verify.shapes import ABSENT, EFFECT, FAILS, HOLDS, OLD, PLAIN, TARGETS

__all__ = ["count_live", "prove"]

Flags = npt.NDArray[np.bool_]

_AT_ONCE = 1 << 18


def prove(columns: Columns, log: Log, owned: Ints, *, compacted: bool, lenient: bool = False) -> Flags:
    """Tell of each operation whether it is proven to be right (W2, or W4 for what a member served by itself).

    `owned` are the revisions that operations own. With `compacted` no read of an old revision is proven, for it may
    have had to be refused. `lenient` as for Log.follows.
    """
    ops, rows = columns.operations, columns.rows
    flags = ops.flags
    fit: Flags = (flags & PLAIN) != 0
    fit &= (ops.revision >= log.base) & (ops.revision <= log.end)
    fit &= np.where((flags & EFFECT) != 0, (owned == ops.revision) & (owned > 0), owned == 0)
    if len(log.rows.key) == log.based:
        # The model is quick on an empty log, of which there are no rows to look at.
        fit[:] = False
        return fit
    if compacted:
        fit &= (flags & OLD) == 0
    _states(rows.states, log, fit)
    _events(rows.events, ops.revision, log, fit, flags, lenient)
    _compares(rows.compares, log, fit, flags)
    _spans(rows.spans, rows.states, log, fit)
    return fit


def _parts(table: list[Ints]) -> list[list[Ints]]:
    """Give a table in parts, so that what is worked out from it stays small."""
    return [[column[at : at + _AT_ONCE] for column in table] for at in range(0, len(table[0]), _AT_ONCE)]


def _known(at: Ints, log: Log) -> Flags:
    known: Flags = (at >= log.base) & (at <= log.end)
    return known


def _states(table: list[Ints], log: Log, fit: Flags) -> None:
    for number, at, key, kv in _parts(table):
        found = log.find(key, at)
        lived = (found >= 0) & (log.rows.version[found] > 0)
        same = log.kvs.same(np.where(lived, log.row_kv[found], ABSENT), kv)
        fit[number[~(same & _known(at, log))]] = False


def _events(table: list[Ints], revision: Ints, log: Log, fit: Flags, flags: Ints, lenient: bool) -> None:
    count = np.bincount(table[0], minlength=len(fit))
    here = np.flatnonzero(fit & ((flags & EFFECT) != 0))
    place = revision[here] - log.base - 1
    fit[here[np.diff(log.start)[place] != count[here]]] = False
    follows = log.follows(lenient=lenient)
    for number, nth, key, value, lease in _parts(table):
        good = fit[number]
        row = np.where(good, log.start[np.where(good, revision[number] - log.base - 1, 0)] + nth, 0)
        row = np.minimum(row, len(log.rows.key) - 1)
        rows = log.rows
        put = rows.version[row] != 0
        same = np.where(value == ABSENT, ~put, put & (rows.value[row] == value) & (rows.lease[row] == lease))
        same &= (rows.key[row] == key) & (row >= log.based)
        same &= follows[np.maximum(row - log.based, 0)]
        fit[number[~same]] = False


def _compares(table: list[Ints], log: Log, fit: Flags, flags: Ints) -> None:
    broken = np.zeros(len(fit), bool)
    for number, at, key, target, sign, operand in _parts(table):
        found = log.find(key, at)
        rows = log.rows
        lived = (found >= 0) & (rows.version[found] > 0)
        of_value = target == TARGETS.index("value")
        columns = (rows.version, rows.created, rows.modified, rows.lease, rows.value)
        held = np.choose(target, [np.where(lived | of_value, column[found], 0) for column in columns])
        # What does not exist has 0 for everything but its value, with which nothing compares.
        holds = np.choose(sign, [held == operand, held != operand, held < operand, held > operand])
        holds &= lived | ~of_value
        broken[number[~holds]] = True
        fit[number[~_known(at, log)]] = False
    fit &= ~(broken & ((flags & HOLDS) != 0)) & ~(~broken & ((flags & FAILS) != 0))


def _spans(table: list[Ints], states: list[Ints], log: Log, fit: Flags) -> None:
    number, at, low, high, count, length, first = table
    if not len(number):
        return
    high = np.maximum(low, high)
    # The keys that are listed lie in the range, in order; all of them live, by what is known of their states.
    listed = np.repeat(first, length) + (np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length))
    span = np.repeat(np.arange(len(number)), length)
    key = states[2][listed]
    wrong = (key < low[span]) | (key >= high[span])
    wrong[1:] |= (span[1:] == span[:-1]) & (key[1:] <= key[:-1])
    fit[number[span[wrong]]] = False
    # So many live in the range; and up to the last that is listed, if a limit cut the list, exactly those.
    cut = (length > 0) & (length < count)
    last = np.zeros_like(first)
    last[cut] = states[2][first[cut] + length[cut] - 1]
    lived = count_live(log, np.append(at, at[cut]), np.append(low, low[cut]), np.append(high, last[cut] + 1))
    fit[number[lived[: len(number)] != count]] = False
    fit[number[cut][lived[len(number) :] != length[cut]]] = False
    fit[number[~_known(at, log)]] = False


def count_live(log: Log, at: Ints, low: Ints, high: Ints) -> Ints:
    """Give how many keys from rank `low` to below `high` existed at each revision.

    Births and deaths of keys, in the order of revisions, go through a wavelet matrix (Claude, Navarro and Ordóñez,
    2015), a level at a time, and all questions with them: (births + deaths + questions) times the bits of a key's rank.
    """
    rows = log.rows
    before = log.before
    lived = (before >= 0) & (rows.version[before] > 0)
    lives = rows.version > 0
    turns = np.flatnonzero(lived != lives)
    when = np.where(turns < log.based, log.base, rows.modified[turns])
    key, weight = rows.key[turns], np.where(lives[turns], 1, -1)
    until = np.searchsorted(when, at, side="right")
    return _below(key, weight, until, high, len(log.keys)) - _below(key, weight, until, low, len(log.keys))


def _below(key: Ints, weight: Ints, until: Ints, bound: Ints, most: int) -> Ints:
    """Give the sum of the weights of those of the first `until` keys that are below each bound."""
    first, last = np.zeros_like(until), until.copy()
    total = np.zeros_like(until)
    for bit in reversed(range(most.bit_length())):
        ones = (key >> bit) & 1
        zeros = np.concatenate(([0], np.cumsum(1 - ones)))
        weights = np.concatenate(([0], np.cumsum(weight * (1 - ones))))
        up = ((bound >> bit) & 1).astype(bool)
        total += np.where(up, weights[last] - weights[first], 0)
        first, last = (np.where(up, zeros[-1] + at - zeros[at], zeros[at]) for at in (first, last))
        order = np.argsort(ones, kind="stable")
        key, weight = key[order], weight[order]
    return total
