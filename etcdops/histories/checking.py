"""Checks histories that others have recorded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from etcdops.errors import SpecError
from etcdops.histories.jepsen import read_jepsen
from etcdops.verify import Result
from etcdops.verify.append import check_append
from etcdops.verify.models import MODELS, Event
from etcdops.verify.search import Budget, search

__all__ = ["EXIT_CODES", "FOREIGN_MODELS", "FORMATS", "Flaw", "ForeignResult", "check_foreign"]

#: The forms of histories that are read.
FORMATS = ("jepsen",)
#: What a history can be checked against.
FOREIGN_MODELS = (*MODELS, "append")
#: The exit code of `check` for each verdict.
EXIT_CODES: dict[Result, int] = {"passed": 0, "failed": 1, "inconclusive": 6}


class Flaw(msgspec.Struct, frozen=True):
    """What is wrong with a history: "not-linearizable" or a name of Elle's, why, and the lines that show it."""

    name: str
    explanation: str
    lines: tuple[int, ...]


class ForeignResult(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict over a file. `states` is how many configurations were explored, 0 where nothing is searched."""

    schema: Literal[1] = 1
    file: str
    model: str
    verdict: Result
    detail: str
    operations: int
    acknowledged: int
    unknown: int
    seconds: float
    states: int = 0
    flaws: tuple[Flaw, ...] = ()

    @property
    def exit_code(self) -> int:
        """What a command that gives this verdict ends with."""
        return EXIT_CODES[self.verdict]


def check_foreign(
    path: str | Path, *, model: str = "register", format: str = "jepsen", budget: Budget | None = None
) -> ForeignResult:
    """Give the verdict over a history that somebody else has recorded.

    `model` is "register" (read, write, compare-and-swap, delete), "mutex", or "append" for transactions that append to
    lists. A search that runs out of its budget is inconclusive, and so is a history without one answer. Raises
    SpecError for a model or format that is not known and for a file that holds no such history, Refused for one that
    cannot be read.
    """
    if format not in FORMATS:
        raise SpecError(f"the format {format!r} is not known", remedy=f"Choose {' or '.join(FORMATS)}.")
    if model not in FOREIGN_MODELS:
        raise SpecError(f"the model {model!r} is not known", remedy=f"Choose {', '.join(FOREIGN_MODELS)}.")
    events = read_jepsen(path)
    _must_fit(path, events, model)
    acknowledged = sum(event.outcome == "ok" for event in events)
    verdict: Result = "inconclusive"
    detail, seconds, states = "no operation has an answer", 0.0, 0
    flaws: tuple[Flaw, ...] = ()
    if acknowledged and model == "append":
        found = check_append(events)
        verdict, detail, seconds = found.result, found.detail, found.seconds
        flaws = tuple(Flaw(each.name, each.explanation, _lines(each.events)) for each in found.anomalies)
    elif acknowledged:
        searched = search(events, model, budget=budget, fewest=True)
        verdict, detail, seconds, states = searched.result, searched.detail, searched.seconds, searched.states
        if verdict == "failed":
            flaws = (Flaw("not-linearizable", searched.explanation, _lines(searched.counterexample)),)
            detail += _without_failed_compares(events, model, budget)
    return ForeignResult(
        file=str(path),
        model=model,
        verdict=verdict,
        detail=detail,
        operations=len(events),
        acknowledged=acknowledged,
        unknown=sum(event.outcome == "unknown" for event in events),
        seconds=round(seconds, 6),
        states=states,
        flaws=flaws,
    )


def _lines(events: Sequence[Event]) -> tuple[int, ...]:
    return tuple(event.line for event in events)


def _must_fit(path: str | Path, events: list[Event], model: str) -> None:
    for event in events:
        fits = "append" if event.f == "txn" else "mutex" if event.f in ("acquire", "release") else "register"
        if fits != model:
            raise SpecError(
                f"{path}, line {event.line}: {event.f} is no operation of the model {model}",
                remedy=f"--model {fits} has it.",
            )


def _without_failed_compares(events: list[Event], model: str, budget: Budget | None) -> str:
    """Say so if only compare-and-swaps that found another value are in the way: not everybody counts these."""
    others = [event for event in events if not (event.f == "cas" and event.answer is False)]
    if len(others) == len(events) or search(others, model, budget=budget, explain=False).result != "passed":
        return ""
    return "; without the compare-and-swaps that found another value, which Knossos leaves out, it passes"
