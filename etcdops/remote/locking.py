"""The lock of a cluster on several hosts: who holds it works there, and another operator is told who that is.

It is a container on each host that is created and never started: the engine gives a name to one container alone,
whoever asks, so that creating it is atomic, also between different users of a host. Its labels say who holds it. While
it is held a file in it is written anew every 15 seconds; 60 seconds after the last time, by the host's own clock, it
counts no more and whoever comes next takes over.

It is taken on every host that answers, and whoever finds it held on any of them lets go of all. A single host would
leave nobody able to work when that host is down, and "the first that answers" leads two operators to different hosts as
soon as one cannot reach the first. A majority would lock out those who have come because most hosts are down. So it
guards what can be changed: two operators can both hold it only if no host answers both, and then there is none to which
both of them can do anything.
"""

from __future__ import annotations

import getpass
import io
import os
import random
import secrets
import tarfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from etcdops.docker.compose import project_of
from etcdops.docker.engine import LABEL
from etcdops.errors import EtcdopsError, Locked, Refused
from etcdops.hosts import boot_id, identify
from etcdops.remote.fan_out import fan_out

if TYPE_CHECKING:
    from etcdops.docker.on_host import HostEngine
    from etcdops.state import ClusterRecord

__all__ = ["LIMIT_S", "ROLE", "Holder", "HostsLock", "lock_name", "operator"]

#: What the label says of the container that is the lock.
ROLE = "lock"

#: After how many seconds without a sign of its holder a lock counts no more.
LIMIT_S = 60.0

_RENEW_S = 15.0
#: How long somebody else's short command is waited for before that is an error.
_GRACE_S = 5.0
_TAKE_S, _RENEWAL_S, _RELEASE_S = 40.0, 20.0, 15.0
_TRIES = 5

_SIGN = "/renewed"
#: A file made there has the time of that host's clock, and keeps it in the container.
_TOUCH = 'f=$(mktemp) || exit 9; to=$1; shift; "$@" cp "$f" "$to"; s=$?; rm -f "$f"; exit $s'

#: The marks of what this process holds: of a process that is alive, another may be left from a command that failed.
_taken: set[str] = set()

Progress = Callable[[str], None]


class Holder(NamedTuple):
    """Who holds the lock on a host: its container's id, and what that says. `silent_s` is the time since its last sign.

    `process` identifies the process on its machine, `mark` one taking of the lock.
    """

    host: str
    id: str
    who: str
    doing: str
    process: str
    mark: str
    since: str
    silent_s: float

    @property
    def expired(self) -> bool:
        """Whether it counts no more."""
        return self.silent_s > LIMIT_S

    @property
    def dead(self) -> bool:
        """Whether its process ran on this machine and is gone, so that nobody need wait for it to expire."""
        place, _, process = self.process.rpartition("/")
        pid, boot = process.partition(":")[0], process.rpartition(":")[2]
        here = place == _place() and boot == boot_id() and pid.isdecimal()
        return here and identify(int(pid)) != process

    def __str__(self) -> str:
        return f"{self.who} (`{self.doing}`, since {self.since})"


def operator() -> str:
    """Give who works here, for others: user@machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename}"


def lock_name(record: ClusterRecord) -> str:
    """Give the name of the container that is a cluster's lock, the same on each host."""
    return f"{project_of(record.spec.name, record.id)}_lock"


class HostsLock:
    """A cluster's lock on its hosts, from `take` to `release`; it is renewed in between."""

    def __init__(self, engines: Mapping[str, HostEngine], record: ClusterRecord, doing: str) -> None:
        #: The hosts on which it is held, with the container that says so.
        self.held: dict[str, str] = {}
        self.tried = frozenset(engines)
        self._engines = dict(engines)
        self._record = record
        self._doing = doing
        self._mark = secrets.token_hex(8)
        self._over = threading.Event()
        self._renewing: list[threading.Thread] = []
        self._signs: dict[str, float] = {}
        self._loser = ""

    # -- taking it

    def take(self, progress: Progress) -> None:
        """Take the lock on every host that answers; raises Locked, saying who holds it, where another has it.

        Hosts that do not answer are named. Raises what the first host said where it can be taken on none.
        """
        deadline = time.monotonic() + _GRACE_S
        told = False
        _taken.add(self._mark)
        try:
            while (holder := self._take_all(progress)) is not None:
                self._free(self.held)
                self.held = {}
                if time.monotonic() > deadline:
                    raise self._locked(holder)
                if not told:
                    progress(f"waiting for {self._record.spec.name}: {holder} is working on it, by its lock on"
                             f" {holder.host}")  # fmt: skip
                    told = True
                # Two who have met on different hosts do not meet again at the next try.
                time.sleep(random.uniform(0.3, 0.9))
        except EtcdopsError:
            _taken.discard(self._mark)
            raise
        except BaseException:
            self._let_go_of_unknown()
            raise
        self._signs = dict.fromkeys(self.held, _now())
        for name in self.held:
            thread = threading.Thread(target=self._renew, args=(name,), daemon=True, name=f"lock-{name}")
            self._renewing.append(thread)
            thread.start()

    def _take_all(self, progress: Progress) -> Holder | None:
        """Take the lock on all hosts at once; gives somebody who has it on one of them, or None."""
        taken_over: list[str] = []
        hosts = [engine.ssh for engine in self._engines.values()]
        ended = fan_out(hosts, lambda host: self._take_on(host.name, taken_over.append), timeout_s=_TAKE_S)
        holder = None
        silent: list[EtcdopsError] = []
        for name, outcome in ended.items():
            if outcome.error is not None:
                silent.append(outcome.error)
            elif isinstance(found := outcome.checked(), Holder):
                holder = holder or found
            else:
                self.held[name] = found
        for said in dict.fromkeys(taken_over):
            progress(said)
        if holder is None and not self.held:
            first = silent[0]
            raise type(first)(f"the cluster's lock can be taken on no host: {first}", remedy=first.remedy)
        if holder is None:
            for error in silent:
                progress(f"going on without a host, for which the lock cannot be taken: {error}")
        return holder

    def _take_on(self, name: str, say: Callable[[str], None]) -> str | Holder:
        """Take the lock on one host: gives the container's id, or who holds it. One that counts no more is removed."""
        engine = self._engines[name]
        for _ in range(_TRIES):
            done = engine.try_run(*self._create())
            if done.exit_code == 0:
                return done.stdout.decode().strip()
            if b"is already in use by container" not in done.stderr:
                engine.checked(("create", "of the lock"), done)
            holder = self._look(name)
            if holder is None:
                continue
            if holder.mark == self._mark:
                return holder.id
            mine = holder.process == _process() and holder.mark not in _taken
            if not (holder.expired or holder.dead or mine):
                return holder
            # By its id: a name may be another's by now.
            engine.try_run("rm", "--force", holder.id)
            if not mine:
                why = "whose process is gone" if holder.dead else f"silent for {holder.silent_s:.0f} s"
                say(f"took over the lock of {holder}, {why}")
        raise Refused(
            f"the lock of {self._record.spec.name} on {name} comes and goes", remedy="Type this again in a moment."
        )

    def _create(self) -> list[str]:
        record = self._record
        labels = {
            "cluster": record.spec.name,
            "cluster-id": record.id,
            "role": ROLE,
            "state-dir": record.state_dir,
            "uid": str(os.getuid()),
            "holder": f"{operator()}, process {os.getpid()}",
            "doing": self._doing,
            "process": _process(),
            "mark": self._mark,
        }
        flags = [word for name, value in labels.items() for word in ("--label", f"{LABEL}{name}={value}")]
        image = record.image_id or record.image
        # Nothing is pulled for it: a host without the image has no member either.
        words = ["--name", lock_name(record), "--pull", "never", "--network", "none", *flags]
        return ["create", *words, "--entrypoint", "never", image, "started"]

    def _look(self, name: str) -> Holder | None:
        """Look who holds the lock on a host; None where nobody does."""
        engine = self._engines[name]
        words = ("inspect", "--type", "container", "--format", "{{json .}}", lock_name(self._record))
        done = engine.try_run(*words)
        if done.exit_code != 0:
            if b"o such container" not in done.stderr:
                engine.checked(words, done)
            return None
        told = msgspec.json.decode(done.stdout, type=_Inspected)
        sign, clock = engine.host.run_each(
            [engine.argv("cp", f"{told.Id}:{_SIGN}", "-"), ["date", "+%s"]], timeout_s=_RENEWAL_S
        )
        created = datetime.fromisoformat(told.Created[:19] + "+00:00")
        last = max(created.timestamp(), _time_of(sign.stdout) if sign.exit_code == 0 else 0.0)
        now = clock.stdout.split()
        silent_s = float(now[-1]) - last if now and now[-1].isdigit() else 0.0
        said = {
            key: _plain(told.Config.Labels.get(f"{LABEL}{key}", "")) for key in ("holder", "doing", "process", "mark")
        }
        return Holder(
            name,
            told.Id,
            said["holder"] or "somebody",
            said["doing"] or "?",
            said["process"],
            said["mark"],
            f"{created:%Y-%m-%d %H:%M:%S} UTC",
            silent_s,
        )

    def _locked(self, holder: Holder) -> Locked:
        return Locked(
            f"cluster {self._record.spec.name} is being worked on by {holder}: its lock on {holder.host} was renewed"
            f" {max(holder.silent_s, 0):.0f} s ago. Nothing was changed",
            remedy="Wait for that to end, or talk to them. Should that machine be gone, the lock counts no more"
            f" {LIMIT_S:.0f} s after its last sign, and whoever comes next takes over.",
        )

    # -- holding it

    def check(self) -> None:
        """Raise Locked where the lock was lost: for long nobody heard of us, and another has taken over."""
        if self.held and all(_now() - self._signs.get(name, 0.0) > LIMIT_S - _RENEW_S for name in self.held):
            hosts = [self._engines[name].ssh for name in list(self.held)]
            fan_out(hosts, lambda host: self._renew_on(host.name), timeout_s=_RENEWAL_S)
        if not self.held:
            raise Locked(
                f"the lock of {self._record.spec.name} was lost: no host heard of us for {LIMIT_S:.0f} s, and"
                f" {self._loser or 'another'} has taken over",
                remedy="Look at `status`. What was broken here is undone by its host, or by whoever took over.",
            )

    def _renew(self, name: str) -> None:
        while not self._over.wait(_RENEW_S):
            self._renew_on(name)

    def _renew_on(self, name: str) -> None:
        """Give a sign on one host. Where the lock is gone it is taken again, unless somebody else has it."""
        engine = self._engines[name]
        held = self.held.get(name)
        if held is None:
            return
        # A host that is out of reach for a while is tried again; the lock lives for so long.
        with suppress(EtcdopsError, OSError):
            words = [f"{held}:{_SIGN}", *engine.argv()]
            done = engine.host.run(["sh", "-c", _TOUCH, "sh", *words], timeout_s=_RENEWAL_S)
            if done.exit_code == 0:
                self._signs[name] = _now()
            elif b"o such container" in done.stderr:
                found = self._take_on(name, lambda text: None)
                if isinstance(found, Holder):
                    self._loser = str(found)
                    del self.held[name]
                else:
                    self.held[name] = found
                    self._signs[name] = _now()

    # -- letting go

    def release(self) -> None:
        """Let go of the lock. On a host that does not answer now it ends by itself."""
        self._over.set()
        for thread in self._renewing:
            thread.join(_RENEWAL_S)
        self._free(self.held)
        self.held = {}
        _taken.discard(self._mark)

    def _free(self, held: Mapping[str, str]) -> None:
        hosts = [self._engines[name].ssh for name in held]
        fan_out(
            hosts, lambda host: self._engines[host.name].try_run("rm", "--force", held[host.name]), timeout_s=_RELEASE_S
        )

    def _let_go_of_unknown(self) -> None:
        """Remove what an interrupted `take` may have created, by its mark."""
        _taken.discard(self._mark)
        filters = ("--filter", f"label={LABEL}mark={self._mark}")

        def remove(engine: HostEngine) -> None:
            if ids := engine.run("ps", "--all", "--quiet", *filters).split():
                engine.remove(ids)

        hosts = [engine.ssh for engine in self._engines.values()]
        fan_out(hosts, lambda host: remove(self._engines[host.name]), timeout_s=_RELEASE_S)
        self.held = {}


class _Config(msgspec.Struct):
    Labels: dict[str, str]


class _Inspected(msgspec.Struct):
    Id: str
    Created: str
    Config: _Config


def _time_of(archive: bytes) -> float:
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            entry = tar.next()
            return float(entry.mtime) if entry else 0.0
    except tarfile.TarError:
        return 0.0


def _plain(text: str) -> str:
    """Give what another has written as a terminal can be shown it."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:200])


def _place() -> str:
    """Give what a process id is told within: another container of this machine has the same ones."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process() -> str:
    return f"{_place()}/{identify(os.getpid())}"


def _now() -> float:
    """Give seconds that go on while this machine sleeps, where it can tell."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
