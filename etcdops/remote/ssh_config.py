"""Where an SSH connection goes and with which keys: what an inventory says, then ~/.ssh/config, then ssh's defaults.

`StrictHostKeyChecking` is not looked at: the host's key is checked always.
"""

from __future__ import annotations

import getpass
import glob
import os
import re
import shlex
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from etcdops.errors import HostUnreachable
from etcdops.remote.inventory import HostSpec

__all__ = ["Target", "resolve"]

_SYSTEM = "/etc/ssh/ssh_config"
_SYSTEM_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN_HOSTS = "~/.ssh/known_hosts ~/.ssh/known_hosts2"
_INCLUDES_DEPTH = 16
_TIME = re.compile(r"(\d+)([smhdw]?)")
_UNITS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_KEYWORD = re.compile(r"\s*(?P<word>\w+)(?:\s*=\s*|\s+)(?P<rest>.*?)\s*")


class Target(NamedTuple):
    """A host as it is connected to. `known_as` is what known_hosts calls it, `known_hosts` where that is looked up.

    `keys` are the private keys to try, none for the usual ones in ~/.ssh; `agent` says whether the agent's are tried as
    well. `jumps` are the hosts on the way, `command` a ProxyCommand in their place. `timeout_s` is ssh's
    ConnectTimeout, 0 for none.
    """

    name: str
    host: str
    port: int
    user: str
    known_as: str
    known_hosts: tuple[str, ...]
    keys: tuple[str, ...]
    agent: bool
    jumps: tuple[HostSpec, ...]
    command: str
    timeout_s: int = 0

    @property
    def login(self) -> str:
        """The same for ssh's command line."""
        port = "" if self.port == 22 else f"-p {self.port} "
        return f"{port}{self.user}@{self.host}"

    @property
    def described(self) -> str:
        """Where it is, for a person."""
        where = f"{self.host}, port {self.port}"
        return where if self.name == self.host else f"{self.name} ({where})"


def resolve(spec: HostSpec) -> Target:
    """Give where and how a host is connected to. Raises HostUnreachable for a configuration that cannot be used."""
    alias = spec.address or spec.name
    told = _lookup(os.path.expanduser("~/.ssh/config"), alias, spec.name)
    host = spec.address if spec.address and "hostname" not in told else str(told.get("hostname", alias))
    port = spec.port or _number(spec.name, told.get("port", "22"))
    files = spec.known_hosts or str(told.get("userknownhostsfile", _USER_KNOWN_HOSTS))
    named = [spec.key] if spec.key else told.get("identityfile", [])
    only = bool(spec.key) or str(told.get("identitiesonly", "no")).lower() == "yes"
    jump = spec.jump or ("" if _none(told, "proxyjump") else str(told["proxyjump"]))
    command = "" if jump or _none(told, "proxycommand") else str(told["proxycommand"])
    return Target(
        name=spec.name,
        host=host,
        port=port,
        user=spec.user or str(told.get("user", "")) or getpass.getuser(),
        known_as=str(told.get("hostkeyalias", "")) or (host if port == 22 else f"[{host}]:{port}"),
        known_hosts=(
            *([spec.known_hosts] if spec.known_hosts else map(os.path.expanduser, files.split())),
            *_SYSTEM_KNOWN_HOSTS,
        ),
        keys=tuple(os.path.expanduser(key) for key in named),
        agent=not only,
        jumps=tuple(_hop(hop.strip()) for hop in jump.split(",")) if jump else (),
        command=command,
        timeout_s=_seconds(str(told.get("connecttimeout", ""))),
    )


def _none(told: dict[str, Any], key: str) -> bool:
    return str(told.get(key, "none")).lower() == "none"


def _number(name: str, text: object) -> int:
    try:
        return int(str(text))
    except ValueError:
        raise HostUnreachable(
            f"~/.ssh/config gives {name} the port {text!r}",
            host=name,
            kind="configuration",
            remedy="Correct it there.",
        ) from None


def _seconds(text: str) -> int:
    """Give a time as ssh takes it (sshd_config(5), TIME FORMATS: "90", "1m30s"); 0 for what is none."""
    parts = _TIME.findall(text.lower())
    if "".join(number + unit for number, unit in parts) != text.lower():
        return 0
    return sum(int(number) * _UNITS_S[unit] for number, unit in parts)


def _hop(text: str) -> HostSpec:
    """Give a host on the way: [USER@]HOST[:PORT], where HOST may be an IPv6 address in brackets."""
    text = text.removeprefix("ssh://")
    user, _, place = text.rpartition("@")
    bracketed = re.fullmatch(r"\[(?P<host>[^\]]+)\](?::(?P<port>\d+))?", place)
    if bracketed:
        host, port = bracketed["host"], bracketed["port"]
    else:
        host, _, port = place.partition(":") if place.count(":") == 1 else (place, "", "")
    return HostSpec(name=host, user=user, port=int(port) if port and port.isdecimal() else 0)


def _lookup(user_file: str, alias: str, name: str) -> dict[str, Any]:
    from paramiko.ssh_exception import ConfigParseError, CouldNotCanonicalize

    try:
        return dict(_config(user_file, _changed(user_file)).lookup(alias))
    except (ConfigParseError, CouldNotCanonicalize, ValueError, OSError) as error:
        raise HostUnreachable(
            f"~/.ssh/config cannot be used for {name}: {error}",
            host=name,
            kind="configuration",
            remedy=f"See what `ssh -G {alias}` says.",
        ) from error


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


@cache
def _config(user_file: str, changed: float) -> Any:
    """Give the configuration that is there, the user's first: of several values, ssh takes the first."""
    from paramiko import SSHConfig

    config = SSHConfig()
    for path in (user_file, _SYSTEM):
        config.parse(StringIO("\n".join(_included(path, os.path.dirname(path), 0))))
    return config


def _included(path: str, home: str, depth: int, block: str = "Host *") -> list[str]:
    """Give a file's lines with those that it includes in their place; Paramiko passes over `Include`."""
    try:
        text = Path(path).read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        found = _KEYWORD.fullmatch(line)
        word = found["word"].lower() if found else ""
        if word in ("host", "match"):
            block = line
        if not found or word != "include" or depth >= _INCLUDES_DEPTH:
            lines.append(line)
            continue
        for pattern in shlex.split(found["rest"]):
            for each in sorted(glob.glob(os.path.join(home, os.path.expanduser(pattern)))):
                # What a file includes ends with it: what comes next belongs where it stands.
                lines += [*_included(each, home, depth + 1, block), block]
    return lines
