"""Failure drills: steady state, fault under traffic, checks, heal, steady state.

A drill is one file here, with one function under `@drill`; its command, its listing and its tests come from this
registry. `run` runs one:

    >>> with Cluster.create() as cluster:
    ...     verdict = run("failed-leader", cluster, how="freeze", rate=20, baseline_s=0.5)
    ...     print(verdict.verdict, verdict.writes.lost)
    passed 0
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from etcdops.errors import SpecError

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.report.verdict import Verdict
    from etcdops.state import ClusterRecord

__all__ = ["Choice", "Drill", "Number", "all_drills", "drill", "find", "run"]

_NOT_DRILLS = ("disks", "engine", "leadership", "listing", "member_logs", "own", "restores", "scene", "window")


class Choice(NamedTuple):
    """An option of a drill: its flag's name, the values that it takes (the first is the default) and what they mean."""

    name: str
    values: tuple[str, ...]
    help: str

    def tell(self, value: str) -> str:
        """Say what was chosen, and what there is."""
        return f"--{self.name} {value}, of: {self.help}"


class Number(NamedTuple):
    """An option of a drill that is a whole number, or one with a fraction where the default has one."""

    name: str
    default: float
    least: float
    most: float
    help: str

    @property
    def values(self) -> tuple[str, ...]:
        """The default, as a flag would have it."""
        return (f"{self.default:g}",)

    def tell(self, value: str) -> str:
        """Say what was chosen, and what it means."""
        return f"--{self.name} {value}: {self.help}"

    def parse(self, drill: str, given: str) -> str:
        """Give the value as it is kept; raise SpecError unless it is a number in the range."""
        kind = int if isinstance(self.default, int) else float
        try:
            value = kind(given)
        except ValueError:
            value = None
        if value is None or not self.least <= value <= self.most:
            raise SpecError(
                f"--{self.name} {given!r} is not offered by {drill}: {self.least:g} to {self.most:g} are",
                remedy=f"Leave it out for {self.default:g}.",
            )
        return f"{value:g}"


class Drill(NamedTuple):
    """A registered drill. `about` is its first line, `text` all that its author says about it.

    `profile` is the traffic that it has unless another is asked for, `minimum` how many writes must have been
    acknowledged before, during and after the fault for its verdict to count. One that `destroys` data is refused where
    keys of others would go with it. `takes_s` is about how many seconds it takes on processes with its defaults, for a
    plan. `traffic(**options)` gives what else of a TrafficPlan it sets, such as `hold_s`.
    """

    name: str
    about: str
    text: str
    min_voters: int
    choices: tuple[Choice | Number, ...]
    needs: Callable[..., str | None]
    fits: Callable[[ClusterRecord], str | None]
    steps: int
    takes_s: float
    profile: str
    minimum: tuple[int, int, int]
    destroys: bool
    traffic: Callable[..., dict[str, Any]]
    body: Callable[..., None]

    def options(self, given: dict[str, str | None]) -> dict[str, str]:
        """Give every option of this drill with the value that was given, or its default; raise SpecError for others."""
        values = {}
        for choice in self.choices:
            value = given.get(choice.name) or choice.values[0]
            if isinstance(choice, Number):
                value = choice.parse(self.name, value)
            elif value not in choice.values:
                raise SpecError(
                    f"--{choice.name} {value!r} is not known to {self.name}",
                    remedy=f"Choose one of {', '.join(choice.values)}.",
                )
            values[choice.name] = value
        unknown = sorted(set(given) - set(values))
        if unknown:
            has = ", ".join(f"--{name}" for name in values) or "none"
            raise SpecError(
                f"{self.name} has no option {', '.join(f'--{name}' for name in unknown)}",
                remedy=f"Of the options that only some drills have, it has {has}.",
            )
        return values


_drills: dict[str, Drill] = {}


def drill(
    *,
    min_voters: int,
    steps: int,
    takes_s: float,
    choices: tuple[Choice | Number, ...] = (),
    needs: Callable[..., str | None] = lambda runtime, **options: None,
    fits: Callable[[ClusterRecord], str | None] = lambda record: None,
    profile: str = "mixed",
    minimum: tuple[int, int, int] = (10, 1, 10),
    destroys: bool = False,
    traffic: Callable[..., dict[str, Any]] = lambda **options: {},
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a drill, named as its module is with dashes.

    `needs(runtime, **options)` gives the reason why a runtime cannot do it, or None, and `fits(record)` why it cannot
    be done to a cluster that there is. `steps` is how many steps it
    announces, 0 where that depends. The function takes a Scene and the options by name, as text. See Drill for the
    rest.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        text = (body.__doc__ or "").strip()
        name = body.__name__.replace("_", "-")
        about = text.partition("\n")[0]
        _drills[name] = Drill(
            name,
            about,
            text,
            min_voters,
            choices,
            needs,
            fits,
            steps,
            takes_s,
            profile,
            minimum,
            destroys,
            traffic,
            body,
        )
        return body

    return register


def all_drills() -> list[Drill]:
    """Give every drill there is, by name."""
    for module in pkgutil.iter_modules(__path__):
        if module.name not in _NOT_DRILLS:
            importlib.import_module(f"{__name__}.{module.name}")
    return [_drills[name] for name in sorted(_drills)]


def find(name: str) -> Drill:
    """Give a drill by its name; raise SpecError if there is none."""
    for candidate in all_drills():
        if candidate.name == name:
            return candidate
    raise SpecError(f"there is no drill {name!r}", remedy=f"Choose one of {', '.join(d.name for d in all_drills())}.")


def run(name: str, cluster: Cluster, **options: Any) -> Verdict:
    """Run a drill on a cluster and give its verdict; see `etcdops.drills.engine.run` for the options and errors."""
    from etcdops.drills import engine

    return engine.run(find(name), cluster, **options)
