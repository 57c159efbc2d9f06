"""A game day: several drills one after the other on one cluster, with one report.

The word is that of Jesse Robbins and of https://sre.google/ and AWS's Well-Architected guides: a day on which a team
breaks its own system on purpose, by a plan, and watches what happens.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from etcdops import drills
from etcdops.drills import Drill, engine
from etcdops.errors import EtcdopsError, Refused, SpecError
from etcdops.report.index import Listed, list_runs, write_index
from etcdops.report.verdict import EXIT_CODES, Verdict, worst_of
from etcdops.state import replace_file

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.state import Store

__all__ = ["GameDay", "Planned", "Played", "choose", "estimate", "play", "refuse", "shuffled", "why_not_on"]

#: What a drill is said to have come to that was refused before anything was touched: as one that was aborted.
REFUSED = "aborted"


class Planned(msgspec.Struct, frozen=True):
    """A drill of a game day, with its options; `takes_s` is about how many seconds it takes, `known` where from."""

    drill: str
    options: dict[str, str]
    takes_s: float
    known: str

    def __str__(self) -> str:
        given = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.drill}:{given}" if given else self.drill


class Played(msgspec.Struct, frozen=True):
    """What came of a drill: its run and verdict, or why there was no run."""

    drill: str
    options: dict[str, str]
    verdict: str
    run: str = ""
    said: str = ""


class GameDay(msgspec.Struct, frozen=True):
    """A game day, as `game-day.json` keeps it. `verdict` is the worst; `left_out` are those not come to, and `why`."""

    schema: int
    id: str
    cluster: str
    seed: int
    command: str
    began: str
    verdict: str
    played: tuple[Played, ...]
    left_out: tuple[str, ...]
    why: str
    report: str

    @property
    def exit_code(self) -> int:
        """That of the worst verdict: 0 passed, 1 deviated, 3 aborted, 6 inconclusive, 7 stuck."""
        return EXIT_CODES[self.verdict]


def choose(words: Sequence[str]) -> list[tuple[Drill, dict[str, str]]]:
    """Give the drills that some words name, each as `DRILL` or `DRILL:OPTION=VALUE,…`; all drills where there are none.

    Those that destroy data come last if nobody has said otherwise. Raises SpecError for what no drill is called or has.
    """
    if not words:
        return [(each, {}) for each in sorted(drills.all_drills(), key=lambda each: each.destroys)]
    found = []
    for word in words:
        name, colon, given = word.partition(":")
        drill = drills.find(name)
        options: dict[str, str] = {}
        for part in given.split(",") if colon else ():
            option, equals, value = part.partition("=")
            if not option or not equals or not value:
                raise SpecError(f"{word!r} is no drill with options", remedy="Write `failed-leader:how=freeze`.")
            options[option] = value
        drill.options(dict(options))
        found.append((drill, options))
    return found


def refuse(
    chosen: Iterable[tuple[Drill, dict[str, str]]], why_not: Callable[[Drill, dict[str, str]], str], *, named: bool
) -> tuple[list[tuple[Drill, dict[str, str]]], list[str]]:
    """Give the drills that can run, and of the others why not, by `why_not`; raises Refused where one was `named`."""
    fit, others = [], []
    for drill, options in chosen:
        if reason := why_not(drill, options):
            others.append(f"{drill.name}: {reason}")
        else:
            fit.append((drill, options))
    if others and (named or not fit):
        raise Refused(
            f"not every drill can run here: {'; '.join(others)}",
            remedy="Leave them out; nothing was started. `drill.list` shows what each needs.",
        )
    return fit, others


def shuffled(chosen: Sequence[tuple[Drill, dict[str, str]]], seed: int) -> list[tuple[Drill, dict[str, str]]]:
    """Give the drills in an order that the seed alone decides."""
    order = list(chosen)
    random.Random(seed).shuffle(order)
    return order


def estimate(chosen: Sequence[tuple[Drill, dict[str, str]]], store: Store) -> list[Planned]:
    """Give the plan: each drill with what its newest finished run here took, or else what it takes on processes."""
    took = _took(store)
    return [
        Planned(drill.name, options, took[drill.name], "its last run here")
        if drill.name in took
        else Planned(drill.name, options, drill.takes_s, "on processes, as a rule")
        for drill, options in chosen
    ]


class _Timed(msgspec.Struct):
    t_ms: float


class _Timeline(msgspec.Struct):
    timeline: tuple[_Timed, ...] = ()


def _took(store: Store) -> dict[str, float]:
    found: dict[str, float] = {}
    for run in list_runs(store.runs):
        if run.verdict not in ("passed", "deviated") or run.drill in found:
            continue
        try:
            ended = msgspec.json.decode((Path(run.folder) / "verdict.json").read_bytes(), type=_Timeline)
        except (OSError, msgspec.MsgspecError):
            continue
        if ended.timeline:
            found[run.drill] = max(each.t_ms for each in ended.timeline) / 1000
    return found


def play(
    cluster: Cluster,
    plan: Sequence[Planned],
    *,
    seed: int | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda text: None,
    ended: Callable[[Verdict], None] = lambda verdict: None,
    shown: Callable[[str], dict[str, Any]] = lambda drill: {},
    **traffic: Any,
) -> GameDay:
    """Run the drills of a plan, and give what came of each; the report is written after each, and holds what there is.

    Drill number n of the plan, from 0, has the seed `seed` + n. It ends at the first that is stuck, as what comes after
    would be about a cluster that is not whole. `traffic` is as for `drills.run`; `ended` is called with each verdict,
    and `shown` with each drill's name for arguments that show it.
    Raises Interrupted (and KeyboardInterrupt) once the drill under way is healed and the report is written.
    """
    if not plan:
        raise SpecError("a game day needs a drill", remedy="Name one, or none for all.")
    seed = secrets.randbelow(2**31) if seed is None else seed
    began = datetime.now(timezone.utc)
    id_ = f"{began.astimezone():%Y%m%d-%H%M%S}-game-day-{secrets.token_hex(2)}"
    folder = cluster.store.root / "game-days" / id_
    folder.mkdir(parents=True)
    played: list[Played] = []
    why = ""

    def written() -> GameDay:
        day = GameDay(
            schema=1,
            id=id_,
            cluster=cluster.name,
            seed=seed,
            command=command,
            began=began.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            verdict=worst_of([each.verdict for each in played] or [REFUSED]),
            played=tuple(played),
            left_out=tuple(map(str, plan[len(played) :])),
            why=why,
            report=str(folder / "index.html"),
        )
        _write(day, cluster, folder)
        return day

    for number, planned in enumerate(plan):
        say(f"drill {number + 1} of {len(plan)}: {planned}")
        options: dict[str, Any] = {**traffic, **shown(planned.drill), **planned.options}
        try:
            verdict = drills.run(planned.drill, cluster, seed=seed + number, say=say, **options)
        except Refused as error:
            say(f"{planned.drill} was refused: {error}")
            played.append(Played(planned.drill, planned.options, REFUSED, said=str(error)))
            written()
            continue
        except (EtcdopsError, KeyboardInterrupt) as error:
            why = f"{planned.drill} did not come to its end: {str(error) or 'interrupted'}"
            written()
            raise
        played.append(Played(planned.drill, planned.options, verdict.verdict, verdict.run))
        ended(verdict)
        if verdict.verdict == "stuck":
            why = f"{planned.drill} is stuck: the cluster is not whole"
            break
        written()
    return written()


def why_not_on(cluster: Cluster) -> Callable[[Drill, dict[str, str]], str]:
    """Give what tells why a drill cannot run on a cluster that there is; "" if it can."""

    def why_not(drill: Drill, options: dict[str, str]) -> str:
        try:
            engine.refuse(drill, cluster, drill.options(dict(options)))
        except Refused as error:
            return str(error)
        return ""

    return why_not


def _write(day: GameDay, cluster: Cluster, folder: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(day), indent=2) + b"\n"
    replace_file(folder / "game-day.json", text)
    known: dict[str, Listed] = {each.run: each for each in list_runs(cluster.store.runs)}
    # In the order in which they ran.
    runs = [known[each.run] for each in day.played if each.run in known]
    lines = [f"{each.drill} was refused: {each.said}" for each in day.played if not each.run]
    if day.left_out:
        lines.append(f"Not come to: {', '.join(day.left_out)}. {day.why}".strip())
    write_index(
        runs, folder / "index.html", title=f"Game day on {cluster.name}: {day.verdict}", lines=lines, again=day.command
    )
