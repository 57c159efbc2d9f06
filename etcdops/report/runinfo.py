"""What a run was to do and on what: `run.json`, written before anything is touched."""

from __future__ import annotations

from pathlib import Path

import msgspec

from etcdops.errors import StateError
from etcdops.spec import Timing
from etcdops.state import replace_file
from etcdops.verify.activity import Minimum
from etcdops.workload.profiles import KINDS

__all__ = ["RunInfo", "promised_kinds", "read_run", "write_run"]

_NAME = "run.json"


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """All that a run's verdict needs besides its records, and all that is needed to repeat it.

    `profile`, `clients`, `client_rate` (operations per second and client) and `rate` (writes per second on each stream)
    say what was sent. `known_bad` says what this version of etcd is known to do wrong that checks may find.
    """

    schema: int
    run: str
    drill: str
    options: dict[str, str]
    seed: int
    rate: int
    profile: str
    clients: int
    client_rate: int
    client_keys: int = 20
    baseline_s: float
    minimum: Minimum
    failover_rule: str
    cluster: str
    runtime: str
    etcd_version: str
    binary: str
    known_bad: tuple[str, ...]
    timing: Timing
    members: tuple[str, ...]
    command: tuple[str, ...]
    python: str
    kernel: str
    cpus: int
    began: str
    began_ns: int


def promised_kinds(info: RunInfo) -> tuple[str, ...]:
    """Give the kinds of operations of which some must have been acknowledged for a verdict to count."""
    return KINDS.get(info.profile, ()) if info.clients else ()


def write_run(info: RunInfo, folder: Path) -> None:
    """Write `run.json` into the run's folder."""
    replace_file(folder / _NAME, msgspec.json.format(msgspec.json.encode(info), indent=2) + b"\n")


def read_run(folder: Path) -> RunInfo:
    """Give what `run.json` says. Raises StateError when there is none, or it is damaged."""
    path = folder / _NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=RunInfo)
    except OSError as error:
        raise StateError(
            f"{folder} is no run folder: {path.name} cannot be read: {error.strerror}",
            remedy="Name a run by its id, or its folder: `report` lines of drills, and `.etcdops/runs/`, have them.",
        ) from error
    except msgspec.MsgspecError as error:
        raise StateError(
            f"{path} is damaged, or of another version of etcdops: {error}",
            remedy="A run is verified by the version that recorded it, or a later one.",
        ) from error
