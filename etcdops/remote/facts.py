"""What one host is like, looked at and not changed: its engine, its clock, its disk, its ports."""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import msgspec

from etcdops.docker.engine import server_in
from etcdops.docker.local_images import MIRROR, OFFICIAL, OURS
from etcdops.docker.problems import PUSH, explain, for_another
from etcdops.errors import CommandMissing, ConnectionLost, EtcdopsError, HostUnreachable
from etcdops.hosts import Completed
from etcdops.ports import candidates
from etcdops.remote.host import FREE_SPACE, SSHHost, free_space_in
from etcdops.units import size_text

__all__ = ["CLOCK_S", "CODES", "FULL_BYTES", "Asked", "HostFacts", "HostFinding", "Seen", "look"]

#: Every code of a finding, and how grave it is: with an "error", no member can run on the host as it is.
CODES = {
    "unreachable": "error",
    "duplicate-address": "error",
    "no-answer": "error",
    "docker-missing": "error",
    "docker-silent": "error",
    "docker-too-old": "error",
    "compose-missing": "error",
    "compose-too-old": "error",
    "image-missing": "warning",
    "image-architecture": "error",
    "disk-full": "error",
    "disk-low": "warning",
    "clock": "warning",
    "clocks-differ": "warning",
    "ports-taken": "error",
    "shell-noise": "warning",
    "same-engine": "warning",
    "architectures-differ": "warning",
    "peer-unreachable": "error",
    "peer-unknown": "warning",
}

_LOOK_S = 15.0
#: The first of docker-compose v1 that reads files without a `version`.
_OLDEST_COMPOSE = (1, 27)
#: With less free space a member would not run, or not for long.
FULL_BYTES = 100 * 2**20
_LOW_BYTES = 2**30
#: Clocks that are further apart make logs and leases hard to read.
CLOCK_S = 1.0

_SECONDS = re.compile(rb"(\d+)(?:\.(\d{9}))?")
_NUMBER = re.compile(r"\d+")

#: What identifies the engine, and the free space where it keeps everything, in one go.
_SPACE = (
    'told=$("$@" info --format "{{.ID}} {{.DockerRootDir}}") || exit; echo "$told"; set -- "${told#* }"; ' + FREE_SPACE
)
#: Of two Compose, the plugin is taken.
_COMPOSE = '"$@" compose version --short 2>/dev/null || exec docker-compose version --short'


class HostFinding(msgspec.Struct, frozen=True):
    """What a person should know of a host. `code` is one of CODES, `severity` "error" or "warning"."""

    host: str
    code: str
    severity: str
    message: str
    remedy: str = ""

    @classmethod
    def of(cls, host: str, code: str, message: str, remedy: str = "") -> HostFinding:
        """Give a finding as grave as its code is."""
        return cls(host, code, CODES[code], message, remedy)

    def __str__(self) -> str:
        return f"{self.severity} {self.code}: {self.message}" + (f"\n  -> {self.remedy}" if self.remedy else "")


class HostFacts(msgspec.Struct):
    """A host as it was seen. What could not be asked is None, or "".

    `latency_ms` is a message there and back, `connect_ms` how long the connection took. `clock_offset_ms` is how far
    its clock is ahead of this machine's, give or take `clock_error_ms`. `images` are those of etcd, or the one that was
    asked for. `ports_free` is how many of the ports that members may have are free; `ports_taken` are those in use of
    the ones that were asked for. `engine_id` tells engines apart.
    """

    name: str
    address: str
    peer_address: str
    reachable: bool = False
    connect_ms: float | None = None
    latency_ms: float | None = None
    docker: str = ""
    docker_api: str = ""
    compose: str = ""
    architecture: str = ""
    engine_id: str = ""
    images: list[str] = []
    disk_free_bytes: int | None = None
    clock_offset_ms: float | None = None
    clock_error_ms: float | None = None
    ports_free: int | None = None
    ports_taken: list[int] = []


class Asked(NamedTuple):
    """What the hosts are looked at for: an image, "" for any of etcd's, and ports that have to be free.

    With `quick`, only for what would keep a member from running there, and for `image` if it is given.
    """

    image: str = ""
    ports: tuple[int, ...] = ()
    quick: bool = False


class Seen(NamedTuple):
    """What was seen of a host."""

    facts: HostFacts
    findings: list[HostFinding]


class _Note(Protocol):
    """Takes down what a person should know of the host that is looked at."""

    def __call__(self, code: str, message: str, remedy: str = "") -> None: ...


def look(host: SSHHost, facts: HostFacts, asked: Asked) -> Seen:
    """Fill in what a host says of itself, and give that with what a person should know. Changes nothing there.

    Raises HostUnreachable or ConnectionLost when there is nobody to ask; `facts` holds what was seen until then.
    """
    found: list[HostFinding] = []

    def note(code: str, message: str, remedy: str = "") -> None:
        found.append(HostFinding.of(host.name, code, f"{host.name}: {message}", remedy))

    began = time.perf_counter()
    host.connect()
    facts.connect_ms = _ms(time.perf_counter() - began)
    facts.reachable = True
    if not asked.quick:
        facts.latency_ms = _ms(host.round_trip_s())
    for step in (_ask_clock, _ask_docker, _ask_ports):
        try:
            step(host, facts, asked, note)
        except (HostUnreachable, ConnectionLost):
            raise
        except EtcdopsError as error:
            note("no-answer", str(error), error.remedy or "See whether it is overloaded.")
    return Seen(facts, found)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _text(done: Completed) -> str:
    """Give what a command wrote, "" if it failed."""
    return "" if done.exit_code else done.stdout.decode(errors="replace")


def _ask_clock(host: SSHHost, facts: HostFacts, asked: Asked, note: _Note) -> None:
    before, began = time.time(), time.perf_counter()
    done = host.run(["date", "+%s.%N"], timeout_s=_LOOK_S)
    took = time.perf_counter() - began
    # What a shell's start-up files print comes before the answer.
    lines = done.stdout.split(b"\n")
    if len(lines) > 2:
        note(
            "shell-noise",
            f"its shell prints something before each command: {lines[0].decode(errors='replace')!r}",
            "Have ~/.bashrc (or the like) of that user print only on a terminal: files are copied through it.",
        )
    told = _SECONDS.match(lines[-2] if len(lines) > 1 else lines[0])
    if not told:
        return
    # Without nanoseconds (busybox), it may be any moment of that second.
    there = int(told[1]) + (int(told[2]) / 1e9 if told[2] else 0.5)
    error = took / 2 + (0.0 if told[2] else 0.5)
    offset = there - (before + took / 2)
    facts.clock_offset_ms, facts.clock_error_ms = _ms(offset), _ms(error)
    if abs(offset) - error > CLOCK_S:
        note(
            "clock",
            f"its clock is {abs(offset):.1f} s {'ahead of' if offset > 0 else 'behind'} this machine's",
            "Have both follow a time server (chrony, systemd-timesyncd).",
        )


def _ask_docker(host: SSHHost, facts: HostFacts, asked: Asked, note: _Note) -> None:
    docker = host.spec.docker_argv
    questions = [
        [*docker, "version", "--format", "{{json .Server}}"],
        ["sh", "-c", _SPACE, "sh", *docker],
        ["sh", "-c", _COMPOSE, "sh", *docker],
    ]
    if asked.image:
        questions.append([*docker, "image", "inspect", "--format", "{{.Architecture}}", asked.image])
    elif not asked.quick:
        questions.append([*docker, "image", "ls", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}"])
    try:
        version, space, compose, *image = host.run_each(questions, timeout_s=_LOOK_S)
    except CommandMissing as error:
        note("docker-missing", str(error), "Install Docker there, or correct `docker` in the inventory.")
        return
    server = server_in(version.stdout)
    if version.exit_code or not server.version:
        said = explain("docker version", host.name, version.stderr.decode(errors="replace"))
        user = host.connect().target.user
        note(
            "docker-silent",
            str(said),
            f"There: `systemctl start docker`. If {user} may not use it: `usermod -aG docker {user}`, or"
            ' `docker = "sudo -n docker"` in the inventory.',
        )
        return
    facts.docker, facts.docker_api, facts.architecture = server
    if server.too_old:
        note("docker-too-old", f"Docker {facts.docker} is too old: 20.10 is the oldest that will do", "Update it.")
    _take_compose(facts, _text(compose).strip(), note)
    _take_space(facts, space, note)
    if asked.image:
        kinds = _text(image[0]).split()
        _take_images(facts, dict(zip([asked.image], kinds, strict=False)), asked, note)
    elif image:
        usual = [name for name in _text(image[0]).splitlines() if name.rpartition(":")[0] in (OFFICIAL, MIRROR, OURS)]
        _take_images(facts, _architectures(host, usual), asked, note)


def _architectures(host: SSHHost, images: Sequence[str]) -> dict[str, str]:
    if not images:
        return {}
    argv = [*host.spec.docker_argv, "image", "inspect", "--format", "{{.Architecture}}", *images]
    told = host.run(argv, timeout_s=_LOOK_S).stdout.decode(errors="replace").split()
    return dict(zip(images, told, strict=False))


def _take_compose(facts: HostFacts, version: str, note: _Note) -> None:
    facts.compose = version.removeprefix("v")
    if not version:
        note("compose-missing", "Docker has no Compose there", "Install docker-compose-plugin, or docker-compose.")
    elif tuple(int(each) for each in _NUMBER.findall(version)[:2]) < _OLDEST_COMPOSE:
        note("compose-too-old", f"Compose {facts.compose} is too old: 1.27 is the oldest that will do", "Update it.")


def _take_images(facts: HostFacts, kinds: dict[str, str], asked: Asked, note: _Note) -> None:
    facts.images = list(kinds)
    if not kinds:
        what = f"the image {asked.image} is not there" if asked.image else "no image of etcd is there"
        note("image-missing", what, f"It is pulled by `up-env` where a registry can be reached; else {PUSH}")
        return
    foreign = [name for name, kind in kinds.items() if kind != facts.architecture]
    if foreign and (asked.image or len(foreign) == len(kinds)):
        said = for_another(foreign[0], kinds[foreign[0]], "there", facts.architecture)
        note("image-architecture", said, "Bring one for that architecture there, or name another with --image.")


def _take_space(facts: HostFacts, told: Completed, note: _Note) -> None:
    first, _, _ = told.stdout.decode(errors="replace").partition("\n")
    facts.engine_id, _, root = first.partition(" ")
    free = free_space_in(told.stdout)
    if free is None:
        said = told.stderr.decode(errors="replace").strip() or f"exit code {told.exit_code}"
        note("no-answer", f"how much is free in {root or 'Docker'} cannot be told: {said}", "See `docker info` there.")
        return
    facts.disk_free_bytes = free
    if free < _LOW_BYTES:
        note(
            "disk-full" if free < FULL_BYTES else "disk-low",
            f"{size_text(free)} are free in {root}, where Docker keeps everything",
            "See `docker system df` there; `docker image prune` makes room.",
        )


def _ask_ports(host: SSHHost, facts: HostFacts, asked: Asked, note: _Note) -> None:
    if asked.quick:
        return
    taken: Collection[int] = host.listening_ports()
    usual = candidates(host)
    facts.ports_free = len(usual) - len(set(usual) & set(taken))
    facts.ports_taken = sorted(set(asked.ports) & set(taken))
    if facts.ports_taken:
        said = ", ".join(map(str, facts.ports_taken))
        note(
            "ports-taken", f"in use there: port {said}", f"See who listens: `ss -ltnp 'sport = :{said.split(',')[0]}'`."
        )
