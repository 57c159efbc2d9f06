"""A Docker engine, through the `docker` command of a host. Containers are found by our labels, and named by id."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

from etcdops.docker.problems import explain
from etcdops.errors import CommandMissing, ConnectionLost, EtcdopsError, HostUnreachable, RuntimeUnavailable
from etcdops.hosts import Completed, Host, LocalHost

__all__ = ["ALIVE", "LABEL", "Container", "Engine", "Server", "server_in"]

#: What our labels begin with.
LABEL = "io.etcdops."

#: Docker's words for a container that has a process.
ALIVE = ("running", "paused", "restarting")

#: The oldest API that this is tested with: that of Docker 20.10.
_OLDEST_API = (1, 41)

_DEFAULT_ADDRESS = "unix:///var/run/docker.sock"

_ADDRESS = ("context", "inspect", "--format", "{{.Name}}\t{{.Endpoints.docker.Host}}")
_VERSION = ("version", "--format", "{{json .Server}}")

_QUICK_S = 30.0
#: An engine that does not say within this time what there is hangs.
_LOOK_S = 10.0

#: Words among the first two of a command that changes nothing.
_LOOKS = frozenset({"context", "inspect", "logs", "ls", "ps", "version"})

_LOCAL_ADDRESS = re.compile(r"(unix|npipe|fd)://.|tcp://(127(\.\d+){3}|localhost|\[::1\])?(:\d+)?/?$")

#: Our labels, as templates of docker's: written together, a value that holds a comma could be taken for two.
_OURS = ("cluster", "cluster-id", "role", "member", "state-dir", "uid", "of", "by", "since")
_LABELS = "\t".join(f'{{{{json (.Label "{LABEL}{name}")}}}}' for name in _OURS)


class Server(NamedTuple):
    """What an engine says of itself; all "" where it says nothing. `architecture` is as "amd64"."""

    version: str = ""
    api: str = ""
    architecture: str = ""

    @property
    def too_old(self) -> bool:
        """Whether it is older than Docker 20.10."""
        return tuple(int(part) for part in self.api.split(".") if part.isdigit()) < _OLDEST_API


def server_in(text: str | bytes) -> Server:
    """Give what an engine says of itself in the answer to `docker version --format '{{json .Server}}'`."""
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        return Server()
    return Server(*(str(told.get(key, "")) for key in ("Version", "ApiVersion", "Arch")))


class Container(NamedTuple):
    """A container of ours. `state` is Docker's word: running, paused, exited, created, restarting, removing, dead."""

    id: str
    state: str
    networks: tuple[str, ...]
    labels: dict[str, str]

    @property
    def member(self) -> str:
        """The member that it runs, or "" for the client."""
        return self.labels.get("member", "")


class Engine:
    """A Docker engine.

    `address` is where it listens (`unix:///var/run/docker.sock`) or the name of a context of Docker's; "" leaves that
    to DOCKER_HOST, DOCKER_CONTEXT and `docker context use`, as the docker command itself does.

    Methods raise RuntimeUnavailable when there is no docker command, or no engine that answers; see
    `etcdops.docker.problems` for what else.
    """

    #: What to do where an image is not there.
    without_image: ClassVar[str] = (
        "`image.build{version}` makes one from the etcd at hand; then `up-env --runtime compose{version}` uses it."
        " `image.list` shows what is here, `--image` uses another."
    )

    def __init__(self, host: Host | None = None, address: str = "") -> None:
        self.host = host or LocalHost()
        self.address = address
        self._found = ""
        self._version: tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"<Engine {self.address or 'of the environment'} on {self.host.name}>"

    @property
    def flags(self) -> list[str]:
        """The flags that lead `docker` and `docker-compose` to this engine."""
        if not self.address:
            return []
        return ["--host" if "://" in self.address else "--context", self.address]

    def argv(self, *arguments: str) -> list[str]:
        """Give the argv of a docker command for this engine."""
        return ["docker", *self.flags, *arguments]

    def by_hand(self, *arguments: str) -> str:
        """Give the command that a person would type, with flags only where the environment leads elsewhere."""
        usual = os.environ.get("DOCKER_HOST") or _context() or _DEFAULT_ADDRESS
        return shlex.join(["docker", *([] if self.address == usual else self.flags), *arguments])

    # -- running docker

    def try_run(self, *arguments: str, timeout_s: float = _QUICK_S, stdin: bytes | Iterator[bytes] = b"") -> Completed:
        """Run a docker command and give how it ended, whatever that was; raises when there is no docker."""
        with self._translated(arguments):
            return self.host.run(self.argv(*arguments), timeout_s=timeout_s, stdin=stdin)

    def run(self, *arguments: str, timeout_s: float = _QUICK_S, stdin: bytes | Iterator[bytes] = b"") -> str:
        """Run a docker command and give what it wrote; raises when it fails."""
        return self.checked(arguments, self.try_run(*arguments, timeout_s=timeout_s, stdin=stdin))

    def run_each(self, commands: Sequence[Sequence[str]], *, timeout_s: float = _QUICK_S) -> list[str]:
        """Run several docker commands at the same time; raises for the first that failed once all have ended."""
        with self._translated(*commands[:1]):
            ended = self.host.run_each([self.argv(*command) for command in commands], timeout_s=timeout_s)
        return [self.checked(command, done) for command, done in zip(commands, ended, strict=True)]

    @contextmanager
    def _translated(self, arguments: Sequence[str] = ()) -> Iterator[None]:
        """Tell a docker command that is missing, or does not come to its end, as what it means for a person."""
        try:
            yield
        except CommandMissing as error:
            raise RuntimeUnavailable(
                f"Docker is not installed: {error}",
                remedy="Install Docker with Compose, or use `--runtime process`, which needs neither.",
            ) from error
        except (HostUnreachable, ConnectionLost):
            # It is the way to the engine that fails, and that is said already.
            raise
        except EtcdopsError as error:
            # Who was only asked has changed nothing.
            asked = not _LOOKS.isdisjoint(arguments[:2])
            raise (RuntimeUnavailable if asked else EtcdopsError)(
                f"the Docker engine ({self.described}) does not answer: {error}",
                remedy="If `docker version` hangs as well, restart the engine; `--runtime process` needs none.",
            ) from error

    def checked(self, arguments: Sequence[str], done: Completed) -> str:
        """Give what a docker command wrote, or raise what its failure means."""
        if done.exit_code != 0:
            said = done.stderr.decode(errors="replace") or done.stdout.decode(errors="replace")
            raise explain(f"docker {' '.join(arguments[:2])}", self.described, said)
        return done.stdout.decode(errors="replace")

    # -- the engine itself

    @property
    def described(self) -> str:
        """Where it is, for a person."""
        return self.address or os.environ.get("DOCKER_HOST") or _context() or "default context"

    def storage(self) -> str:
        """Give the directory, on the engine's machine, in which it keeps volumes and all else."""
        return self.run("info", "--format", "{{.DockerRootDir}}").strip()

    def elsewhere(self, address: str) -> str:
        """Where this engine is, for a person, if it is another than that at `address`; else ""."""
        if self.described in (address, "default context"):
            return ""
        try:
            return "" if self.find_address() == address else self.described
        except RuntimeUnavailable:
            return self.described

    def survey(self) -> Completed:
        """Ask for all that a new cluster needs to know, at once; gives how `docker compose version` ended.

        Raises RuntimeUnavailable where there is no docker, no engine that answers, one that is too old or on another
        machine. `find_address` and `version` then know the answers.
        """
        with self._translated(_VERSION):
            questions = [_ADDRESS, _VERSION, ("compose", "version", "--short")]
            context, version, compose = self.host.run_each([self.argv(*each) for each in questions], timeout_s=_LOOK_S)
        if not self.address:
            self._found = self._address_in(self.checked(_ADDRESS, context))
        self._version = self._version_in(self.checked(_VERSION, version))
        return compose

    def find_address(self) -> str:
        """Give the address that the environment leads to, so that this engine is found again from another one.

        Raises RuntimeUnavailable for an engine on another machine: what it publishes on its loopback is out of reach.
        """
        if not self.address and not self._found:
            self._found = self._address_in(self.run(*_ADDRESS))
        return self.address or self._found

    def _address_in(self, told: str) -> str:
        name, _, listens = told.strip().partition("\t")
        if by_environment := os.environ.get("DOCKER_HOST"):
            name, listens = "default", by_environment if "://" in by_environment else f"tcp://{by_environment}"
        if not _LOCAL_ADDRESS.match(listens):
            raise RuntimeUnavailable(
                f"the Docker engine at {listens}{'' if name == 'default' else f' (context {name})'} is on another"
                " machine, and what members publish on its loopback cannot be reached from here",
                remedy="Unset DOCKER_HOST, or choose a local one: `docker context ls`, `docker context use default`.",
            )
        # A context may be changed or removed, and Compose v1 does not find every one; but it may hold keys for TLS.
        return listens if name == "default" or listens.startswith("unix:") else name

    def version(self) -> tuple[str, str]:
        """Give the engine's version and architecture ("amd64"); raises RuntimeUnavailable for one that is too old."""
        if self._version is None:
            self._version = self._version_in(self.run(*_VERSION, timeout_s=_LOOK_S))
        return self._version

    def _version_in(self, text: str) -> tuple[str, str]:
        told = server_in(text)
        if told.too_old:
            raise RuntimeUnavailable(
                f"the Docker engine {told.version} ({self.described}) is too old: it speaks API {told.api or '?'}, and"
                " 1.41 (Docker 20.10) is the oldest that etcdops works with",
                remedy="Update it, or use `--runtime process`, which needs no Docker.",
            )
        return told.version, told.architecture

    def learn(self, version: str, architecture: str) -> None:
        """Take what `version` would ask for from who has asked already."""
        self._version = (version, architecture)

    # -- containers

    def containers(self, **labels: str) -> list[Container]:
        """Give all containers, running or not, that carry our labels with these values ("" means any value)."""
        columns = f"{{{{.ID}}}}\t{{{{.State}}}}\t{{{{.Networks}}}}\t{_LABELS}"
        listed = self.run(
            "ps", "--all", "--no-trunc", *_filters(labels), "--format", columns, timeout_s=_LOOK_S
        ).splitlines()
        found = []
        for line in listed:
            id_, state, networks, *values = line.split("\t")
            found.append(Container(id_, state, tuple(name for name in networks.split(",") if name), _ours(values)))
        return found

    def named(self, kind: str, **labels: str) -> list[str]:
        """Give the names of all volumes or networks (`kind`) that carry our labels with these values."""
        return [name for name, _ in self.labelled(kind, **labels)]

    def labelled(self, kind: str, **labels: str) -> list[tuple[str, dict[str, str]]]:
        """As `named`, with all of our labels that each carries."""
        columns = f"{{{{.Name}}}}\t{_LABELS}"
        listed = self.run(kind, "ls", *_filters(labels), "--format", columns, timeout_s=_LOOK_S).splitlines()
        return [(name, _ours(values)) for name, *values in (line.split("\t") for line in listed)]

    def remove_volume(self, name: str) -> None:
        """Remove a volume, with the containers of ours that refer to it and do not run; raises when one runs."""
        listed = self.run(
            *("ps", "--all", "--no-trunc", "--filter", f"volume={name}", "--filter", f"label={LABEL}cluster-id"),
            *("--format", "{{.ID}}\t{{.State}}"),
            timeout_s=_LOOK_S,
        )
        found = [line.split("\t") for line in listed.splitlines()]
        self.remove([id_ for id_, state in found if state not in ALIVE])
        self.run("volume", "rm", name)

    def start(self, ids: Sequence[str]) -> None:
        """Start containers, all at the same time."""
        self.run_each([["start", id_] for id_ in ids], timeout_s=120.0)

    def remove(self, ids: Sequence[str]) -> None:
        """Remove containers, whatever their state, with their anonymous volumes."""
        if ids:
            self.run("rm", "--force", "--volumes", *ids, timeout_s=120.0)


def _context() -> str:
    """Give the name of the context that is chosen, by the environment or with `docker context use`; "" if none is."""
    if name := os.environ.get("DOCKER_CONTEXT"):
        return name
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    try:
        with open(os.path.join(directory, "config.json"), "rb") as file:
            told = json.load(file)
    except (OSError, ValueError):
        return ""
    return str(told.get("currentContext", "")) if isinstance(told, dict) else ""


def _filters(labels: Mapping[str, str]) -> list[str]:
    filters = []
    for name, value in labels.items():
        key = LABEL + name.replace("_", "-")
        filters += ["--filter", f"label={key}={value}" if value else f"label={key}"]
    return filters


def _ours(values: Sequence[str]) -> dict[str, str]:
    """Give our labels of their values as JSON, in the order of `_OURS`; one that is lacking is empty, and left out."""
    told = zip(_OURS, map(json.loads, values), strict=True)
    return {name: value for name, value in told if value}
