"""What the watches of a run delivered: a file for each member, one delivery a line, in the order of their arrival."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from etcdops.answers import Event
from etcdops.workload.encoding import Codec, Text
from etcdops.workload.lines import SCHEMA, Header, LineWriter, bad_line, read_lines

__all__ = [
    "Delivery",
    "EventsWriter",
    "ExtraDeliveries",
    "ExtraWatch",
    "events_file",
    "extra_file",
    "read_deliveries",
    "read_extra",
]

KIND = "events"
_EXTRA = "watch-"

#: "opened": the member confirmed the watch. "events": changes. "progress": none, but everything up to `revision` has
#: been delivered. "ended": the stream broke; a new watch takes over where it ended.
Happening = Literal["opened", "events", "progress", "ended"]
_HAPPENINGS = ("opened", "events", "progress", "ended")


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """One message of a watch over the whole key space through one member, with previous values asked for.

    `t_ns` is when it was in hand (CLOCK_MONOTONIC), `watch` numbers the member's watches from 1. `revision` is the
    message's `header.revision`. For "opened", `start_revision` is from where events were asked for. `error` says why
    one ended.
    """

    t_ns: int
    watch: int
    what: Happening
    revision: int = 0
    start_revision: int = 0
    events: tuple[Event, ...] = ()
    error: str = ""


class ExtraWatch(NamedTuple):
    """One more watch than that over all keys: on `[key, range_end)`, without what is filtered out.

    `filters` are etcd's: "NOPUT", "NODELETE".
    """

    name: str
    key: bytes
    range_end: bytes
    filters: tuple[str, ...] = ()


class ExtraDeliveries(NamedTuple):
    """What one more watch through a member has delivered."""

    member: str
    watch: ExtraWatch
    deliveries: list[Delivery]


def events_file(folder: Path, member: str) -> Path:
    """Give where a run's folder holds what a member's watches delivered (before it is compressed)."""
    return folder / f"events-{member}.jsonl"


def extra_file(folder: Path, member: str, name: str) -> Path:
    """Give where a run's folder holds what one more watch through a member delivered."""
    return folder / f"{_EXTRA}{member}-{name}.jsonl"


class EventsWriter:
    """Appends deliveries to a member's file; see LineWriter for when they are on the disk, and for errors.

    `watch` is given for one that is not over all keys.
    """

    def __init__(self, path: str | os.PathLike[str], run: str, member: str, watch: ExtraWatch | None = None) -> None:
        text = Text(run)
        about = [watch.name, text.write(watch.key), text.write(watch.range_end), *watch.filters] if watch else []
        self._lines = LineWriter(path, Header(SCHEMA, KIND, run, member, about))
        self.path = self._lines.path
        self._codec = Codec(run)

    def append(self, delivery: Delivery) -> None:
        """Record one delivery."""
        events = [self._codec.event(event) for event in delivery.events]
        line: list[Any] = [delivery.t_ns, delivery.watch, _HAPPENINGS.index(delivery.what), delivery.revision]
        if delivery.what == "opened":
            line.append(delivery.start_revision)
        elif delivery.what == "events":
            line.append(events)
        elif delivery.what == "ended":
            line.append(delivery.error)
        self._lines.append(line)

    def flush(self) -> None:
        """Write what is held back."""
        self._lines.flush()

    def close(self) -> None:
        """Flush and close; a second time does nothing."""
        self._lines.close()

    def __enter__(self) -> EventsWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_deliveries(path: str | os.PathLike[str]) -> list[Delivery]:
    """Give a member's deliveries, from a plain or compressed file, in order; raises StateError as `read_history`."""
    return _read(path)[1]


def read_extra(folder: Path) -> list[ExtraDeliveries]:
    """Give what a run's watches on parts of the keys delivered, by member and name; raises as `read_deliveries`."""
    names = sorted({path.name.removesuffix(".gz") for path in folder.glob(f"{_EXTRA}*.jsonl*")})
    found = []
    for name in names:
        header, deliveries = _read(folder / name)
        text = Text(header.run)
        called, key, end, *filters = header.watch
        watch = ExtraWatch(called, text.read(key), text.read(end), tuple(filters))
        found.append(ExtraDeliveries(header.member, watch, deliveries))
    return found


def _read(path: str | os.PathLike[str]) -> tuple[Header, list[Delivery]]:
    header, lines = read_lines(path, KIND)
    codec = Codec(header.run)
    found = []
    for number, line in lines:
        try:
            found.append(_delivery(codec, line))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise bad_line(path, number, error) from error
    return header, found


def _delivery(codec: Codec, line: list[Any]) -> Delivery:
    t_ns, watch, what, revision = line[:4]
    happening: Any = _HAPPENINGS[what]
    if happening == "events":
        return Delivery(t_ns, watch, happening, revision, events=tuple(map(codec.read_event, line[4])))
    if happening == "opened":
        return Delivery(t_ns, watch, happening, revision, start_revision=line[4])
    if happening == "ended":
        return Delivery(t_ns, watch, happening, revision, error=line[4])
    return Delivery(t_ns, watch, happening, revision)
