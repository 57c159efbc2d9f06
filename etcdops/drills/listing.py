"""All drills as a list: what each needs, its options, where it runs, and how its last run ended."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from etcdops import runtimes
from etcdops.drills import Choice, Drill, Number, all_drills
from etcdops.report.past import PastRun, newest_runs

if TYPE_CHECKING:
    from etcdops.state import Store

__all__ = ["Listed", "Option", "listing", "needs_text", "when_text"]


class Option(msgspec.Struct, frozen=True):
    """An option of a drill. `values` are those that it takes, none for a number from `least` to `most`."""

    name: str
    help: str
    default: str
    values: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None


class Lack(msgspec.Struct, frozen=True):
    """What a runtime cannot do: the drill with its options at their defaults ("" as `option`), or with one of them."""

    runtime: str
    option: str
    value: str
    reason: str


class Listed(msgspec.Struct, frozen=True):
    """A drill. `lacks` says with what it cannot run where; `last` is its newest run here, None if there was none."""

    name: str
    about: str
    min_voters: int
    destroys: bool
    profile: str
    options: tuple[Option, ...]
    lacks: tuple[Lack, ...]
    last: PastRun | None


def listing(store: Store) -> list[Listed]:
    """Give every drill there is, by name, with its newest run from a state directory. Changes nothing."""
    past = newest_runs(store)
    return [
        Listed(
            drill.name,
            drill.about,
            drill.min_voters,
            drill.destroys,
            drill.profile,
            tuple(map(_option, drill.choices)),
            tuple(_lacks(drill)),
            past.get(drill.name),
        )
        for drill in all_drills()
    ]


def _option(choice: Choice | Number) -> Option:
    if isinstance(choice, Number):
        return Option(choice.name, choice.help, choice.values[0], least=choice.least, most=choice.most)
    return Option(choice.name, choice.help, choice.values[0], choice.values)


def _lacks(drill: Drill) -> list[Lack]:
    """Try the defaults, and each value of each option beside them."""
    defaults = drill.options({})
    tried = [("", "", defaults)]
    for choice in drill.choices:
        tried += [(choice.name, value, {**defaults, choice.name: value}) for value in choice.values[1:]]
    found = []
    for name in runtimes.names():
        runtime = runtimes.get(name)
        for option, value, options in tried:
            if reason := drill.needs(runtime, **options):
                found.append(Lack(name, option, value, reason))
                if not option:
                    break
    return found


def needs_text(listed: Listed) -> str:
    """Say what a drill needs, in a few words: voters, a runtime that can do it, and leave to destroy data."""
    said = [f"{listed.min_voters} voter{'s' * (listed.min_voters != 1)}"]
    for lack in listed.lacks:
        said.append(f"--{lack.option} {lack.value} not by {lack.runtime}" if lack.option else f"not by {lack.runtime}")
    if listed.destroys:
        said.append("destroys data")
    return ", ".join(said)


def when_text(run: PastRun | None) -> str:
    """Say how a run ended and when it began, in this machine's time; a dash for none."""
    if run is None:
        return "-"
    try:
        began = f" {datetime.fromisoformat(run.began).astimezone():%Y-%m-%d %H:%M}"
    except ValueError:
        began = ""
    return run.verdict + began
