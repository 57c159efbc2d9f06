"""The verdict of a run: what `-o json` prints, and what `verdict.json` in the run's folder holds."""

from __future__ import annotations

from pathlib import Path

import msgspec

from etcdops.state import replace_file
from etcdops.verify import Check
from etcdops.verify.acknowledged import Writes
from etcdops.verify.recorded import Figure
from etcdops.workload.outage import Outage

__all__ = ["EXIT_CODES", "PAGE", "ClusterInfo", "Event", "FaultInfo", "Verdict", "worst", "worst_of", "write"]

#: What a run's page, and any other that is made of runs, is called in its folder.
PAGE = "index.html"

#: The exit code of each verdict, worst last in `worst`'s order.
EXIT_CODES = {"passed": 0, "aborted": 3, "inconclusive": 6, "deviated": 1, "stuck": 7}


class ClusterInfo(msgspec.Struct, frozen=True):
    """On what the drill ran. `known_bad` says what this version of etcd is known to do wrong that checks may find."""

    name: str
    runtime: str
    etcd_version: str
    members: tuple[str, ...]
    known_bad: tuple[str, ...] = ()


class FaultInfo(msgspec.Struct, frozen=True):
    """What was broken: the fault, of which member, and when it began and was healed, in ms since the run began."""

    kind: str
    member: str
    inject_ms: float
    heal_ms: float


class Event(msgspec.Struct, frozen=True):
    """One event of the timeline, in ms since the run began."""

    t_ms: float
    event: str
    member: str
    detail: str


class Verdict(msgspec.Struct, frozen=True):
    """How a run ended.

    `verdict` is "passed", "deviated" (a check failed), "inconclusive" (too little was seen), "aborted" (the steady
    state was not met; nothing was touched) or "stuck" (healing failed; the checks say how to recover). `report` is the
    path of the page for people. `fault` is the first of `faults`; `figures` are what the drill has measured besides
    the outage. `profile` is what the traffic did.
    """

    schema: int
    run: str
    drill: str
    verdict: str
    seed: int
    cluster: ClusterInfo
    fault: FaultInfo | None
    outage: Outage | None
    writes: Writes
    checks: tuple[Check, ...]
    timeline: tuple[Event, ...]
    report: str
    profile: str = ""
    faults: tuple[FaultInfo, ...] = ()
    figures: tuple[Figure, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 passed, 1 deviated, 3 aborted, 6 inconclusive, 7 stuck."""
        return EXIT_CODES[self.verdict]

    @property
    def folder(self) -> Path:
        """The run's folder, which keeps everything."""
        return Path(self.report).parent

    def check(self, name: str) -> Check:
        """Give the check called `name`; KeyError if there was none."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)


def worst(verdicts: list[Verdict]) -> Verdict:
    """Give the worst of several: stuck, then deviated, inconclusive, aborted, passed."""
    order = list(EXIT_CODES)
    return max(verdicts, key=lambda verdict: order.index(verdict.verdict))


def worst_of(words: list[str]) -> str:
    """Give the worst of several verdicts by their words, in the same order."""
    return max(words, key=list(EXIT_CODES).index)


def write(verdict: Verdict, folder: Path) -> None:
    """Write `verdict.json`."""
    replace_file(folder / "verdict.json", msgspec.json.format(msgspec.json.encode(verdict), indent=2) + b"\n")
