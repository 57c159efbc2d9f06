"""The disks that a run's members wrote to: `disks.json`, written once all has been healed."""

from __future__ import annotations

from pathlib import Path

import msgspec

from etcdops.state import replace_file

__all__ = ["DISKS", "Disk", "Disks", "fsync_text", "p99", "systems_text", "write_disks"]

#: The name of the file.
DISKS = "disks.json"


class Disk(msgspec.Struct, frozen=True):
    """What a member wrote its log to, and how long that took to be on the disk.

    `file_system` is its type, "" where that could not be told. `fsyncs` is how often etcd waited for its write-ahead
    log to be on the disk during the run, since its last start if it was started meanwhile; 99 in 100 of those took at
    most `p99_ms` milliseconds, the bound of one of the buckets in which etcd counts them (None: longer than the last).
    """

    file_system: str = ""
    fsyncs: int = 0
    p99_ms: float | None = None


class Disks(msgspec.Struct, frozen=True):
    """The disk of each member of which something is known."""

    members: dict[str, Disk] = {}


def write_disks(disks: Disks, folder: Path) -> None:
    """Write `disks.json` into a run's folder."""
    replace_file(folder / DISKS, msgspec.json.format(msgspec.json.encode(disks), indent=2) + b"\n")


def p99(buckets: dict[float, int]) -> float | None:
    """Give the least bound, in the buckets' unit, under which 99 in 100 observations lie; None where there are none.

    `buckets` count how many are at most each bound, as Prometheus has it.
    """
    total = max(buckets.values(), default=0)
    if not total:
        return None
    return min(bound for bound, count in buckets.items() if 100 * count >= 99 * total)


def systems_text(disks: Disks) -> str:
    """Say which file systems members wrote to: one if it is the same for all; "" where none is known."""
    return _together({name: disk.file_system for name, disk in disks.members.items()})


def fsync_text(disks: Disks) -> str:
    """Say within which time 99 in 100 fsyncs of each member's log ended; "" where none is known."""
    told = {}
    for name, disk in disks.members.items():
        if disk.fsyncs:
            bound = "longer than etcd counts" if disk.p99_ms is None else f"at most {disk.p99_ms:g} ms"
            told[name] = f"{bound} ({disk.fsyncs:,} fsyncs)"
    return _together(told)


def _together(told: dict[str, str]) -> str:
    known = {name: text for name, text in told.items() if text}
    if len(set(known.values())) == 1 and len(known) == len(told):
        return next(iter(known.values()))
    return "; ".join(f"{name}: {text}" for name, text in known.items())
