"""Failure drills: steady state, fault under traffic, checks, heal, steady state.

A drill is one file here, with one function under `@drill`; its command, its listing and its tests come from this
registry. `run` runs one:

    >>> with Cluster.create() as cluster:
    ...     verdict = run("failed-leader", cluster, how="stop", baseline_s=0.5)
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

__all__ = ["Choice", "Drill", "all_drills", "drill", "find", "run"]

_NOT_DRILLS = ("engine", "leadership", "scene")


class Choice(NamedTuple):
    """An option of a drill: its flag's name, the values that it takes (the first is the default) and what they mean."""

    name: str
    values: tuple[str, ...]
    help: str


class Drill(NamedTuple):
    """A registered drill. `about` is its first line, `text` all that its author says about it."""

    name: str
    about: str
    text: str
    min_voters: int
    choices: tuple[Choice, ...]
    needs: Callable[..., str | None]
    steps: int
    body: Callable[..., None]

    def options(self, given: dict[str, str | None]) -> dict[str, str]:
        """Give every option of this drill with the value that was given, or its default; raise SpecError for others."""
        values = {}
        for choice in self.choices:
            value = given.get(choice.name) or choice.values[0]
            if value not in choice.values:
                raise SpecError(
                    f"--{choice.name} {value!r} is not known to {self.name}",
                    remedy=f"Choose one of {', '.join(choice.values)}.",
                )
            values[choice.name] = value
        unknown = sorted(set(given) - set(values))
        if unknown:
            raise SpecError(f"{self.name} has no option {', '.join(unknown)}")
        return values


_drills: dict[str, Drill] = {}


def drill(
    *,
    min_voters: int,
    steps: int,
    choices: tuple[Choice, ...] = (),
    needs: Callable[..., str | None] = lambda runtime: None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a drill, named as its module is with dashes.

    `needs(runtime, **options)` gives the reason why a runtime cannot do it, or None. `steps` is how many steps it
    announces. The function takes a Scene and the options by name.
    """

    def register(body: Callable[..., None]) -> Callable[..., None]:
        text = (body.__doc__ or "").strip()
        name = body.__name__.replace("_", "-")
        _drills[name] = Drill(name, text.partition("\n")[0], text, min_voters, choices, needs, steps, body)
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
