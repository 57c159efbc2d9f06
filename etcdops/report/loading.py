"""A run as its page shows it, from its folder alone: also one that was killed, is damaged, or is of an older release.

Reading a run to verify it (`assembling.recheck`) refuses what is damaged. Here the opposite is asked for: whatever can
still be read is shown, and what cannot be is said.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, Union, get_args, get_origin

import msgspec

from etcdops.errors import EtcdopsError, SpecError, StateError
from etcdops.report.disks import DISKS, Disks
from etcdops.report.journal import Entry
from etcdops.report.judged import load_observed, windows
from etcdops.report.runinfo import RunInfo
from etcdops.report.verdict import Verdict
from etcdops.verify.recorded import Claim, Fault, Observed

__all__ = ["LoadedRun", "load_run", "members_in", "read_leniently"]

_T = TypeVar("_T", bound=msgspec.Struct)


def members_in(named: str) -> list[str]:
    """Give the members that an event, or a fault, names: one, none, or several of which the same is told."""
    return [name for name in named.split(", ") if name]


class LoadedRun(NamedTuple):
    """All that is shown of a run but its operations.

    `finished` is whether it came to a verdict of its own; `problems` say what could not be read of it. `windows` are
    the folders of its windows, each with what was observed in it (None where it was never closed).
    """

    folder: Path
    info: RunInfo
    verdict: Verdict
    finished: bool
    entries: tuple[Entry, ...]
    windows: tuple[tuple[Path, Observed | None], ...]
    problems: tuple[str, ...]
    disks: Disks = Disks()

    @property
    def members(self) -> tuple[str, ...]:
        """Every member of whom something is known, those of the run first."""
        seen = [member for _, each in self.windows if each for member in each.members]
        noted = [name for entry in self.entries for name in members_in(entry.member)]
        return tuple(name for name in dict.fromkeys([*self.info.members, *seen, *noted]) if name)

    @property
    def claims(self) -> list[Claim]:
        """What members said of their leader, in order of time."""
        return sorted(claim for _, each in self.windows if each for claim in each.claims)

    @property
    def faults(self) -> list[Fault]:
        """What was broken, in order of time. Of a run that was killed, what its journal tells: healed when it ended."""
        told = [fault for _, each in self.windows if each for fault in each.faults]
        known = {(fault.member, fault.inject_ns // 1_000_000_000) for fault in told}
        told += [
            each for each in _journaled(self.entries) if (each.member, each.inject_ns // 1_000_000_000) not in known
        ]
        return sorted(told, key=lambda fault: fault.inject_ns)


def load_run(folder: Path) -> LoadedRun:
    """Give what a run's folder holds, as far as it can be read. Raises SpecError for a folder that is no run's."""
    if not any((folder / name).exists() for name in ("run.json", "verdict.json", "journal.jsonl")):
        raise SpecError(
            f"{folder} is no run folder: it has neither run.json nor verdict.json nor a journal",
            remedy="Name a run by its id, or its folder: `report.index` lists them.",
        )
    problems: list[str] = []
    info = read_leniently(folder / "run.json", RunInfo, problems)
    entries = _journal(folder / "journal.jsonl", problems)
    observed = [(window, _observed(window, problems)) for window in windows(folder)]
    # Runs that were killed have none, and those of older releases.
    disks = read_leniently(folder / DISKS, Disks, problems) if (folder / DISKS).exists() else Disks()
    finished = (folder / "verdict.json").exists()
    if finished:
        verdict = read_leniently(folder / "verdict.json", Verdict, problems)
    else:
        verdict = _without_verdict(folder, info, problems)
    named = msgspec.structs.replace(
        verdict, run=verdict.run or info.run or folder.name, drill=verdict.drill or info.drill or "unknown"
    )
    return LoadedRun(folder, info, named, finished, tuple(entries), tuple(observed), tuple(problems), disks)


def _without_verdict(folder: Path, info: RunInfo, problems: list[str]) -> Verdict:
    """Give the verdict of a run that came to none: what its record shows, or that it shows nothing."""
    from etcdops.report.assembling import recheck_beside

    problems.append("the run left no verdict: it was killed, or goes on still")
    try:
        return recheck_beside(folder, None)
    except EtcdopsError as error:
        problems.append(f"it cannot be verified: {error}")
        empty = msgspec.structs.replace(_filled(Verdict, {}, [], ""), verdict="inconclusive", report=str(folder))
        return msgspec.structs.replace(empty, run=info.run, drill=info.drill, seed=info.seed)


def _observed(window: Path, problems: list[str]) -> Observed | None:
    try:
        return load_observed(window)
    except StateError as error:
        problems.append(str(error))
        return None


def _journal(path: Path, problems: list[str]) -> list[Entry]:
    """Give the events of a journal; lines that are none are left out, and said."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        return []
    entries, bad = [], 0
    for line in lines:
        try:
            entries.append(msgspec.json.decode(line, type=Entry))
        except msgspec.MsgspecError:
            bad += 1
    if bad:
        problems.append(f"{bad} lines of {path.name} are damaged")
    return sorted(entries, key=lambda entry: entry.t_ns)


def _journaled(entries: Iterable[Entry]) -> Iterable[Fault]:
    """Give the faults that a journal tells of; of one that was not healed, up to the journal's end."""
    under_way: dict[str, Fault] = {}
    last = 0
    for entry in entries:
        last = entry.t_ns
        if entry.event == "inject":
            kind = entry.detail.partition(" ")[0]
            under_way[entry.member] = Fault(kind, entry.member, entry.t_ns, entry.t_ns, entry.t_ns, entry.t_ns)
        elif entry.event == "healed" and entry.member in under_way:
            yield msgspec.structs.replace(under_way.pop(entry.member), healing_ns=entry.t_ns, heal_ns=entry.t_ns)
    for fault in under_way.values():
        yield msgspec.structs.replace(fault, healing_ns=last, heal_ns=last)


def read_leniently(path: Path, kind: type[_T], problems: list[str]) -> _T:
    """Give what a JSON file holds of a struct, whatever release wrote it: what is missing or strange is left empty.

    What was left empty is added to `problems`. Never raises.
    """
    try:
        raw: Any = msgspec.json.decode(path.read_bytes())
    except OSError as error:
        problems.append(f"{path.name} cannot be read: {error.strerror}")
        raw = {}
    except msgspec.MsgspecError as error:
        problems.append(f"{path.name} is damaged: {error}")
        raw = {}
    return _filled(kind, raw if isinstance(raw, dict) else {}, problems, path.name)


def _filled(kind: type[_T], raw: dict[str, Any], problems: list[str], where: str) -> _T:
    values: dict[str, Any] = {}
    strange: list[str] = []
    for field in msgspec.structs.fields(kind):
        if field.encode_name in raw:
            try:
                values[field.name] = msgspec.convert(raw[field.encode_name], field.type, strict=False)
                continue
            except (msgspec.ValidationError, EtcdopsError):
                strange.append(field.name)
        elif field.required and raw:
            strange.append(field.name)
        if field.required:
            values[field.name] = _empty(field.type)
    if strange:
        problems.append(f"{where} is of another release, or damaged: without {', '.join(strange)}")
    return kind(**values)


def _empty(kind: Any) -> Any:
    """Give the emptiest value of a type."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return _filled(kind, {}, [], "")
    origin = get_origin(kind)
    if origin is Union or (origin is not None and origin.__name__ == "UnionType"):
        return None if type(None) in get_args(kind) else _empty(get_args(kind)[0])
    if origin is not None and origin.__name__ == "Literal":
        return get_args(kind)[0]
    return (origin or kind)()
