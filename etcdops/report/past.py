"""Runs of the past: which there are in a state directory, and how the newest of each drill ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from etcdops.state import Store

__all__ = ["UNFINISHED", "PastRun", "newest_runs"]

#: The verdict of a run that left none: it goes on, or was killed.
UNFINISHED = "unfinished"

#: When a run began (local time), its drill, and what tells it from others of that second.
_FOLDER = re.compile(r"(\d{8}-\d{6})-([a-z][a-z0-9-]*)-[0-9a-f]{4}")


_T = TypeVar("_T", bound=msgspec.Struct)


class PastRun(msgspec.Struct, frozen=True):
    """A run: its id, its verdict (or UNFINISHED), and when it began (RFC 3339, UTC; "" where that is not known)."""

    run: str
    verdict: str
    began: str


class _Began(msgspec.Struct):
    began: str = ""


class _Ended(msgspec.Struct):
    verdict: str = UNFINISHED


def newest_runs(store: Store) -> dict[str, PastRun]:
    """Give the newest run of each drill that was ever run from a state directory, by the drill's name.

    Nothing is raised for folders that are damaged: their verdict is UNFINISHED. Changes nothing.
    """
    stamps: dict[str, str] = {}
    folders: dict[str, list[Path]] = {}
    for folder in store.runs.iterdir() if store.runs.is_dir() else ():
        if named := _FOLDER.fullmatch(folder.name):
            stamp, drill = named.groups()
            if stamp > stamps.get(drill, ""):
                stamps[drill], folders[drill] = stamp, []
            if stamp == stamps[drill]:
                folders[drill].append(folder)
    return {drill: max(map(_past, same), key=lambda run: (run.began, run.run)) for drill, same in folders.items()}


def _past(folder: Path) -> PastRun:
    # The few fields that are needed, from whichever release wrote the rest.
    ended, began = _read(folder / "verdict.json", _Ended()), _read(folder / "run.json", _Began())
    return PastRun(folder.name, ended.verdict, began.began)


def _read(path: Path, otherwise: _T) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=type(otherwise))
    except (OSError, msgspec.MsgspecError):
        return otherwise
