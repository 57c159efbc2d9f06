"""What a failed check is about, as a picture: the operations that it names, when each began and ended, as SVG."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import msgspec

from etcdops.errors import EtcdopsError
from etcdops.report.loading import LoadedRun
from etcdops.verify import Check
from etcdops.verify.describing import describe_answer, describe_request
from etcdops.verify.files import blocks, whole
from etcdops.workload.encoding import Codec, key_prefix, value_prefix
from etcdops.workload.history import Operation, operation_of
from etcdops.workload.lines import found

__all__ = ["Counterexample", "counterexamples", "fetch_operations", "named_operations"]

_NAMED = re.compile(r"\boperations? (\d+)")
_CULPRIT = re.compile(r"no order of its operations explains operation (\d+)")
#: So many operations of a picture are drawn, the last ones: what is wrong shows at its end.
_SHOWN = 14
#: So many failed checks have a picture; the search's first, since it has the fewest operations.
_PICTURES = 4
_FIRST = ("linearizability search", "acknowledged writes", "revision witness")


class Counterexample(NamedTuple):
    """A failed check, in words and as a picture ("" where it names no operation that is in the record).

    In `words` keys and values stand without what all those of the run begin with.
    """

    check: Check
    words: str
    picture: str
    operations: tuple[Operation, ...]


def named_operations(detail: str) -> list[int]:
    """Give the numbers of the operations that a check's detail names, in its order."""
    return list(dict.fromkeys(int(number) for number in _NAMED.findall(detail)))


def counterexamples(run: LoadedRun, problems: list[str]) -> list[Counterexample]:
    """Give every failed check of a run, the first few with a picture of the operations that they name."""
    failed = [check for check in run.verdict.checks if check.result == "failed"]
    failed.sort(key=lambda check: _FIRST.index(check.name) if check.name in _FIRST else len(_FIRST))
    wanted = {number for check in failed[:_PICTURES] for number in named_operations(check.detail)}
    known: dict[int, Operation] = {}
    if wanted:
        try:
            known = fetch_operations([window for window, _ in run.windows], wanted, run.verdict.run)
        except EtcdopsError as error:
            problems.append(str(error))
    pictures = []
    for place, check in enumerate(failed):
        named = [known[number] for number in named_operations(check.detail) if number in known]
        culprit = _CULPRIT.search(check.detail)
        picture = ""
        if place < _PICTURES and named:
            picture = draw(
                sorted(named, key=lambda op: op.call_ns)[-_SHOWN:],
                run.info.began_ns,
                run.verdict.run,
                culprit=int(culprit[1]) if culprit else 0,
                title=check.name,
            )
        pictures.append(Counterexample(check, _short(check.detail, run.verdict.run), picture, tuple(named)))
    return pictures


def fetch_operations(folders: Sequence[Path], wanted: Collection[int], run: str) -> dict[int, Operation]:
    """Give some operations of a run by their numbers; raises StateError for a record that cannot be read."""
    numbers, codec = set(wanted), Codec(run)
    fetched: dict[int, Operation] = {}
    for folder in folders:
        for path in (folder / "history.jsonl", folder / "own.jsonl"):
            if not found(path):
                continue
            for _, block in blocks(whole(path), "history"):
                for line in block.splitlines():
                    # Its number is the first thing in a line: only the few that are wanted are decoded.
                    digits = line[1 : line.find(b",")]
                    if digits.isdigit() and int(digits) in numbers:
                        op = operation_of(codec, msgspec.json.decode(line))
                        fetched[op.id] = op
    return fetched


_WIDTH, _LEFT, _ROW, _TOP = 760, 12, 46, 12


def draw(operations: Sequence[Operation], began_ns: int, run: str, *, culprit: int = 0, title: str = "") -> str:
    """Give operations as bars from their call to their return, one below the other.

    Instants are drawn evenly apart, whatever lies between them: their order is what matters. One of unknown outcome
    has no end. `culprit` is the number of the one that nothing explains.
    """
    unknown = {op.id for op in operations if op.outcome == "unknown"}
    instants = sorted({t for op in operations for t in (op.call_ns, op.return_ns)})
    step = (_WIDTH - 2 * _LEFT) / max(len(instants), 2)
    place = {t: _LEFT + index * step for index, t in enumerate(instants)}
    height = _TOP + _ROW * len(operations) + 20
    label = f"{title}: {len(operations)} operations, from call to return"
    parts = [
        f'<svg class="counterexample" viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">',
    ]
    for row, op in enumerate(operations):
        y = _TOP + row * _ROW
        left = place[op.call_ns]
        right = _WIDTH - _LEFT if op.id in unknown else place[op.return_ns]
        kind = "culprit" if op.id == culprit else op.outcome
        text = _text(op, run)
        short = text if len(text) <= 104 else f"{text[:103]}…"
        when = f"called {(op.call_ns - began_ns) / 1e9:.6f} s, returned {(op.return_ns - began_ns) / 1e9:.6f} s"
        mark = "✗ " if op.id == culprit else ""
        parts.append(
            f'<g class="{kind}"><title>{escape(f"{text}; {when}")}</title>'
            f'<text x="{_LEFT}" y="{y + 14}">{escape(mark + short)}</text>'
            f'<rect x="{left:.1f}" y="{y + 21}" width="{max(right - left, 3):.1f}" height="11" rx="3"/>'
        )
        if op.id in unknown:
            parts.append(f'<path d="M{_WIDTH - _LEFT - 1},{y + 18}l8,8.5l-8,8.5z"/>')
        parts.append("</g>")
    for t in (instants[0], instants[-1]):
        anchor = "start" if t == instants[0] else "end"
        x = _LEFT if t == instants[0] else _WIDTH - _LEFT
        parts.append(
            f'<text class="instant" x="{x}" y="{height - 6}" text-anchor="{anchor}">{(t - began_ns) / 1e9:.6f} s</text>'
        )
    return "".join([*parts, "</svg>"])


def _text(op: Operation, run: str) -> str:
    ended = {
        "ok": f"revision {op.revision}: {describe_answer(op.answer)}",
        "failed": f"failed: {op.code}",
        "unknown": f"unknown: {op.code}",
    }[op.outcome]
    return _short(f"{op.id}  {op.stream} via {op.member}:  {describe_request(op.request)}  →  {ended}", run)


def _short(text: str, run: str) -> str:
    """Leave out what all keys and values of a run begin with."""
    return text.replace(key_prefix(run), "").replace(value_prefix(run), "")
