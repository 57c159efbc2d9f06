"""Which hosts there are: an inventory file in TOML, or names that ~/.ssh/config knows.

[hosts.h1]
address = "10.88.0.1"        # without it, the name is looked up as ssh would
user = "root"
port = 22
key = "/home/you/.ssh/id_ed25519"
known_hosts = "/home/you/.ssh/known_hosts"
docker = "docker"            # or "sudo -n docker"
context = "rootless"         # a context of Docker's on that host
peer_address = "10.88.0.1"   # where other hosts reach it, if that is another
jump = "you@bastion:22"      # one or several, separated by commas, as ssh's -J
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from etcdops.errors import SpecError
from etcdops.spec import is_foreign_name

__all__ = ["HostSpec", "Inventory", "load", "parse", "read_inventory"]

_ADDRESS = re.compile(r"[A-Za-z0-9_:][A-Za-z0-9._:%-]{0,252}")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@-]{0,63}\$?")
_HEADER = re.compile(r"\s*\[(?P<path>[^\[\]]+)\]\s*(?:#.*)?")
_PART = re.compile(r"""\s*(?:"(?P<double>(?:\\.|[^"\\])*)"|'(?P<single>[^']*)'|(?P<bare>[A-Za-z0-9_-]+))\s*""")
_AT_LINE = re.compile(r"(?P<said>.*?) \(at line (?P<line>\d+), column \d+\)")
_IN_FIELD = re.compile(r"(?P<said>.*?) - at `\$\.(?P<field>\w+)`")

_FORM = '`[hosts.NAME]` and below it `address = "10.88.0.1"`; docs/hosts.md shows all that may be there.'


class _FieldError(SpecError):
    def __init__(self, message: str, field: str) -> None:
        super().__init__(message, remedy=f"docs/hosts.md shows what {field} may be.")
        self.field = field


#: How clients here reach the members on a host: whatever works, at their ports, or by a forward through SSH.
REACHES = ("auto", "direct", "forward")


class HostSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A host, as an inventory has it. What is "" or 0 is left to ~/.ssh/config, and then to ssh's own defaults.

    `address` is where ssh connects to, `peer_address` where members on other hosts do. `docker` is the command there,
    as a person would type it, `context` a context of Docker's. `reach` is how clients here reach members there: see
    `etcdops.reach`. Raises SpecError for what cannot be.
    """

    name: str
    address: str = ""
    user: str = ""
    port: int = 0
    key: str = ""
    known_hosts: str = ""
    docker: str = "docker"
    context: str = ""
    peer_address: str = ""
    jump: str = ""
    reach: str = "auto"

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise _FieldError(f"host {self.name}: {problem[1]}", problem[0])

    def _problem(self) -> tuple[str, str] | None:
        """Give the field that cannot be as it is, and why, or None."""
        for field in ("address", "peer_address"):
            if (value := getattr(self, field)) and not _ADDRESS.fullmatch(value):
                return field, f"{field} {value!r} is no address: give a name or an IP address alone"
        if self.user and not _USER.fullmatch(self.user):
            return "user", f"user {self.user!r} cannot be a user's name"
        if self.port and not 1 <= self.port <= 65535:
            return "port", f"port {self.port} is not offered: 1 to 65535 are"
        for hop in self.jump.split(",") if self.jump else ():
            user, at, rest = hop.strip().rpartition("@")
            if (at and not _USER.fullmatch(user)) or not _ADDRESS.fullmatch(rest.strip("[]")):
                return "jump", f"jump {self.jump!r} is no list of USER@HOST:PORT"
        try:
            words = shlex.split(self.docker)
        except ValueError as error:
            return "docker", f"docker {self.docker!r} is no command: {error}"
        if not words or words[0].startswith("-"):
            return "docker", f"docker {self.docker!r} is no command"
        if self.reach not in REACHES:
            return "reach", f"reach {self.reach!r} is none of {', '.join(REACHES)}"
        if self.context.startswith("-"):
            return "context", f"context {self.context!r} cannot be a context's name"
        return None

    @property
    def docker_argv(self) -> list[str]:
        """The words with which a Docker command begins on this host."""
        return [*shlex.split(self.docker), *(["--context", self.context] if self.context else [])]


class Inventory(msgspec.Struct, frozen=True):
    """The hosts that were asked for, in their order. `source` is the file, or "" for names of ~/.ssh/config."""

    hosts: tuple[HostSpec, ...]
    source: str = ""

    def host(self, name: str) -> HostSpec:
        """Give a host by its name; raises SpecError for one that is not there."""
        for each in self.hosts:
            if each.name == name:
                return each
        names = [each.name for each in self.hosts]
        raise SpecError(f"there is no host {name!r} in {self.source or 'the list'}{_nearest(name, names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts' names, in order."""
        return tuple(each.name for each in self.hosts)


def read_inventory(text: str) -> Inventory:
    """Give the hosts that `--hosts` names: a file (`hosts.toml`, `./lab`), or names separated by commas (`h1,h2,h3`).

    A word is a file if it ends with .toml, holds a slash, or is there as a file. Raises SpecError.
    """
    if text.endswith(".toml") or "/" in text or os.path.isfile(text):
        return load(text)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if not is_foreign_name(name):
            raise SpecError(
                f"--hosts {text!r}: {name!r} cannot name a host",
                remedy="Give an inventory file, or names that `ssh NAME` knows, separated by commas.",
            )
    if twice := [name for index, name in enumerate(names) if name in names[:index]]:
        raise SpecError(f"--hosts {text!r} names {twice[0]} twice", remedy="Name each host once.")
    return Inventory(tuple(HostSpec(name=name) for name in names))


def load(path: str | os.PathLike[str]) -> Inventory:
    """Give the hosts of an inventory file. Raises SpecError, naming file and line, for one that cannot be used."""
    name = os.fspath(path)
    try:
        text = Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(
            f"there is no inventory {name}", remedy=f"Make it: {_FORM} Or name hosts of ~/.ssh/config: --hosts h1,h2."
        ) from None
    except UnicodeDecodeError as error:
        line = Path(name).read_bytes()[: error.start].count(b"\n") + 1
        raise SpecError(f"{name}, line {line}: not UTF-8, so it is no TOML") from None
    except OSError as error:
        raise SpecError(f"cannot read the inventory {name}: {error.strerror or error}") from error
    return parse(text, source=name)


def parse(text: str, *, source: str) -> Inventory:
    """Give the hosts of an inventory's text; `source` is what errors call it. Raises SpecError as `load` does."""
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        told: dict[str, Any] = toml.loads(text)
    except toml.TOMLDecodeError as error:
        found = _AT_LINE.fullmatch(str(error))
        where = f", line {found['line'] if found else len(text.splitlines())}"
        raise SpecError(f"{source}{where}: no TOML: {found['said'] if found else error}", remedy=_FORM) from None
    lines = _lines(text)
    tables = told.get("hosts")
    for key in told:
        if key != "hosts":
            raise SpecError(
                f"{source}{_at(lines, key)}: {key!r} is not known{_nearest(key, ['hosts'])}",
                remedy=f"An inventory has hosts alone: {_FORM}",
            )
    if tables is None or tables == {}:
        raise SpecError(f"{source} names no host", remedy=f"Write {_FORM}")
    if not isinstance(tables, dict):
        raise SpecError(f"{source}{_at(lines, 'hosts')}: hosts is no table", remedy=f"Write {_FORM}")
    hosts = tuple(_host(source, lines, name, table, os.path.dirname(source)) for name, table in tables.items())
    _refuse_twice(source, lines, hosts)
    return Inventory(hosts, source)


_Lines = Mapping[tuple[str, ...], int]


def _host(source: str, lines: _Lines, name: str, table: Any, directory: str) -> HostSpec:
    if not is_foreign_name(name):
        raise SpecError(
            f"{source}{_at(lines, 'hosts', name)}: {name!r} cannot name a host",
            remedy="Letters, digits, dots, dashes and underscores can, beginning with a letter or digit.",
        )
    if not isinstance(table, dict):
        raise SpecError(f"{source}{_at(lines, 'hosts', name)}: host {name} is no table", remedy=f"Write {_FORM}")
    known = [field for field in HostSpec.__struct_fields__ if field != "name"]
    for key in table:
        if key not in known:
            raise SpecError(
                f"{source}{_at(lines, 'hosts', name, key)}: host {name} has an unknown field {key!r}"
                f"{_nearest(key, known)}",
                remedy=f"Known are {', '.join(known)}.",
            )
    try:
        host = msgspec.convert({**table, "name": name}, HostSpec)
    except _FieldError as error:
        raise SpecError(f"{source}{_at(lines, 'hosts', name, error.field)}: {error}", remedy=error.remedy) from None
    except msgspec.ValidationError as error:
        raise _wrong_type(source, lines, name, str(error)) from None
    for field in ("key", "known_hosts"):
        if value := getattr(host, field):
            path = os.path.join(directory, os.path.expanduser(value))
            host = msgspec.structs.replace(host, **{field: os.path.abspath(path)})
    if host.key and not os.path.isfile(host.key):
        raise SpecError(
            f"{source}{_at(lines, 'hosts', name, 'key')}: host {name}: there is no key {host.key}",
            remedy="Name the private key, or leave `key` out for your agent and the keys in ~/.ssh.",
        )
    return host


def _wrong_type(source: str, lines: _Lines, name: str, error: str) -> SpecError:
    found = _IN_FIELD.fullmatch(error)
    field = found["field"] if found else ""
    said = (found["said"] if found else error).replace("`", "").replace("Expected", "expected")
    return SpecError(
        f"{source}{_at(lines, 'hosts', name, field)}: host {name}: {field}: {said}",
        remedy='Numbers stand alone, text in quotes: `port = 22`, `user = "root"`.',
    )


def _refuse_twice(source: str, lines: _Lines, hosts: tuple[HostSpec, ...]) -> None:
    seen: dict[tuple[str, object], str] = {}
    places: list[tuple[str, object]]
    for host in hosts:
        places = [("address", (host.address or host.name, host.port or 22))]
        if host.peer_address:
            places.append(("peer_address", host.peer_address))
        for field, place in places:
            if (first := seen.setdefault((field, place), host.name)) != host.name:
                shown = f"{place[0]}, port {place[1]}" if isinstance(place, tuple) else place
                raise SpecError(
                    f"{source}{_at(lines, 'hosts', host.name, field)}: hosts {first} and {host.name} have the same"
                    f" {field}: {shown}",
                    remedy="Each host is a machine of its own: remove one, or correct its address.",
                )


def _nearest(word: str, known: list[str]) -> str:
    import difflib

    near = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _at(lines: _Lines, *path: str) -> str:
    """Give ", line N" of a key, or of what it is in."""
    while path:
        if path in lines:
            return f", line {lines[path]}"
        path = path[:-1]
    return ""


def _lines(text: str) -> dict[tuple[str, ...], int]:
    """Give the line on which each table and each key begins: TOML's readers tell what is there, and not where.

    Keys within inline tables and texts of several lines are not looked for; their table's line is named instead.
    """
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _HEADER.fullmatch(line)
        if header and (path := _path(header["path"])):
            table = path
            for length in range(1, len(path) + 1):
                found.setdefault(path[:length], number)
        elif (equals := line.find("=")) > 0 and (path := _path(line[:equals])):
            for length in range(1, len(table + path) + 1):
                found.setdefault((table + path)[:length], number)
    return found


def _path(text: str) -> tuple[str, ...]:
    """Give the parts of a dotted key, or () for what is none."""
    parts, at = [], 0
    while match := _PART.match(text, at):
        double, single, bare = match["double"], match["single"], match["bare"]
        parts.append(next(each for each in (double, single, bare) if each is not None))
        at = match.end()
        if at == len(text):
            return tuple(parts)
        if text[at] != ".":
            return ()
        at += 1
    return ()
