"""The task `check`: verifies a recorded history again, offline."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import task

from etcdops.errors import SpecError
from etcdops.tasks.common import HELP, command, emit, emit_json, flag, output_of, say, whole_number

if TYPE_CHECKING:
    from etcdops.histories.checking import ForeignResult

__all__ = ["check"]

_FOREIGN = "A history of Jepsen's is checked by: check --format jepsen FILE."


@task(
    positional=["run"],
    help={
        "run": "a run's id or its folder; with --format, the file to check",
        "format": "whose history it is: jepsen (EDN, JSON or its text log, also gzipped)",
        "model": "what it has to be like: register (the default), mutex, or append for lists",
        "budget-s": "give up, inconclusive, when the search has taken so many seconds (default: 60)",
        "budget-states": "the same for configurations, some 150 bytes each (default: 5000000)",
        "output": HELP["output"],
    },
)
@command
def check(
    c: Context,
    run: str,
    format: str | None = None,
    model: str | None = None,
    budget_s: str | None = None,
    budget_states: str | None = None,
    output: str | None = None,
) -> None:
    """Verify a recorded run again, offline: check 20260102-030405-failed-leader-1a2b

    Every check is made anew from the run's folder, and gives the verdict that the drill gave. With `--format jepsen
    FILE` it is told whether a history that Jepsen recorded is linearizable. Needs no cluster, and changes nothing.
    Exits 0 when all passed, 1 when a check failed (no order of the operations explains every answer), and 6 when that
    could not be decided.
    """
    out = output_of(c, output)
    if not run:
        raise SpecError("no run is given", remedy=f"Name a run. {_FOREIGN}")
    given = flag(c, "format", format)
    if not given:
        _check_run(run, out)
        return
    _check_foreign(
        run,
        given,
        flag(c, "model", model) or "register",
        _at_least_one(flag(c, "budget_s", budget_s) or "60", "budget-s"),
        _at_least_one(flag(c, "budget_states", budget_states) or "5000000", "budget-states"),
        out,
    )


def _check_run(run: str, out: str) -> None:
    from etcdops.report.assembling import recheck_beside, stored_verdict
    from etcdops.report.finding import find_run
    from etcdops.report.terminal import verdict_text

    if os.path.isfile(run):
        raise SpecError(f"{run} is a file, and not a run's folder: of what format is it?", remedy=_FOREIGN)
    folder = find_run(run)
    before = stored_verdict(folder)
    verdict = recheck_beside(folder, before)
    if out == "json":
        emit_json(verdict)
    else:
        emit(verdict_text(verdict))
    if before is None:
        say(f"{verdict.run} had come to no verdict of its own")
    elif before.verdict != verdict.verdict:
        say(f"the drill itself came to another verdict: {before.verdict}")
    raise Exit(code=verdict.exit_code)


def _at_least_one(text: str, name: str) -> int:
    number = whole_number(text, name)
    if number < 1:
        raise SpecError(f"--{name} {number} is not offered: 1 and more are")
    return number


def _check_foreign(file: str, format: str, model: str, budget_s: int, budget_states: int, out: str) -> None:
    from etcdops.histories.checking import check_foreign
    from etcdops.verify.search import Budget

    budget = Budget(seconds=float(budget_s), states=budget_states)
    result = check_foreign(file, model=model, format=format, budget=budget)
    if out == "json":
        emit_json(result)
    else:
        emit(_text(result))
    if result.exit_code:
        raise Exit(code=result.exit_code)


def _text(result: ForeignResult) -> str:
    lines = [f"{result.file}: {result.verdict.upper()} ({result.model})", f"  {result.detail}"]
    counts = f"{result.operations:,} operations, {result.acknowledged:,} acknowledged, {result.unknown:,} unknown"
    searched = f", {result.states:,} states" if result.states else ""
    lines.append(f"  {counts}; {1000 * result.seconds:,.0f} ms{searched}")
    for flaw in result.flaws:
        lines.append(f"  {flaw.name}")
        lines += [f"    {line}" for line in flaw.explanation.splitlines()]
    return "\n".join(lines)
