"""Packets that are dropped in a member's own network namespace: how it is cut off where no network can be left.

The rules are put there, and taken away, by a container that lives as long as that takes: it shares the member's network
and may administer it, so neither root on the host nor anything in the member's image is needed. The one that has cut a
member off stays, stopped, for as long as the member is: it says so to whoever looks, by its labels. A member that is
started anew has a new network namespace, and no rules.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from etcdops.docker.engine import LABEL, Container, Engine
from etcdops.docker.local_images import CONTENT, has_label, inspect
from etcdops.docker.rootfs import BIN_DIR, write
from etcdops.errors import ImageError, MemberFailed

__all__ = ["CUT", "Cut", "Filters"]

#: What the label says of the container that has cut a member off.
CUT = "cut"

#: "peers" leaves a member its clients.
Cut = Literal["peers"]

_IMAGE = "etcdops/filter"
_ORIGIN = f"{LABEL}made-from"
_WHERE = "/etc/etcdops"

#: Both are the same program under two ways into the kernel; which of them a host knows, it says itself.
_PROGRAMS = ("xtables-nft-multi", "xtables-legacy-multi")
_EXTENSIONS = ("libxt_standard.so", "libxt_tcp.so")
_PLACES = ("/usr/sbin", "/sbin", "/usr/bin", "/usr/local/sbin")
_EXTENSION_PLACES = ("/usr/lib/*/xtables", "/usr/lib64/xtables", "/usr/lib/xtables", "/lib/*/xtables")

_OPEN = """*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
"""
# A member asks nobody but its peers, so that of what it sends only answers to clients are left.
_RULES = {
    "none": _OPEN + "COMMIT\n",
    "peers": _OPEN
    + "-A INPUT -i lo -j ACCEPT\n-A INPUT -p tcp -m tcp --dport 2379 -j ACCEPT\n-A INPUT -j DROP\n"
    + "-A OUTPUT -o lo -j ACCEPT\n-A OUTPUT -p tcp -m tcp --sport 2379 -j ACCEPT\n-A OUTPUT -j DROP\nCOMMIT\n",
}


class Filters:
    """The packet filters of the members on one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._image = ""

    def cut(self, container: Container, what: Cut) -> None:
        """Drop what a member sends and gets, and see that it is; raises MemberFailed where that cannot be done."""
        image = self._ready()
        started = self._started(container.id)
        said = ""
        for program in _PROGRAMS:
            argv = [*self._create(container, program, what, started), image, *_restore(what)]
            helper = self._engine.run(*argv).strip()
            done = self._engine.try_run("start", "--attach", helper)
            if done.exit_code == 0:
                self._check(container, program)
                return
            said = done.stderr.decode(errors="replace").strip() or said
            self._engine.remove([helper])
        raise MemberFailed(
            f"member {container.member} could not be cut off on {self._engine.host.name}: {said}",
            remedy="The kernel there needs nf_tables or ip_tables: `modprobe ip_tables` loads it.",
        )

    def _check(self, container: Container, program: str) -> None:
        # Of other tables there may be rules of Docker's, whose extensions are not in the image.
        look = ["--entrypoint", program, self._ready(), "iptables-save", "-t", "filter"]
        if "-j DROP" not in self._engine.run("run", "--rm", *_access(container.id), *look):
            raise MemberFailed(f"member {container.member} is not cut off: no rule is in force")

    def open(self, marks: Iterable[Container]) -> list[str]:
        """Let the members' packets through again; `marks` are containers that `cut` has left. Gives the members."""
        opened = []
        for mark in marks:
            member, program = mark.labels.get("of", ""), mark.labels.get("by", _PROGRAMS[0])
            if self._started(member) == mark.labels.get("since"):
                argv = ["run", "--rm", *_access(member), "--entrypoint", program, self._ready(), *_restore("none")]
                self._engine.run(*argv)
                opened.append(mark.member)
            self._engine.remove([mark.id])
        return opened

    @classmethod
    def by_hand(cls, what: str, container: str) -> list[str]:
        """Give the words after `docker` that put rules into a container's network: "peers" or "none"."""
        return cls.all_by_hand(what, container)[0]

    @staticmethod
    def all_by_hand(what: str, container: str) -> list[list[str]]:
        """Give such words for each of the ways into the kernel."""
        access = _access(container)
        return [["run", "--rm", *access, "--entrypoint", each, _IMAGE, *_restore(what)] for each in _PROGRAMS]

    def in_force(self, mark: Container) -> bool:
        """Whether the rules that this container has put into a member's network are still there."""
        return bool(mark.labels.get("since")) and self._started(mark.labels.get("of", "")) == mark.labels["since"]

    def _started(self, container: str) -> str:
        """Give when a container was last started, if it runs: its network namespace is as old; else ""."""
        look = ("inspect", "--format", "{{if .State.Running}}{{.State.StartedAt}}{{end}}", container)
        return self._engine.try_run(*look).stdout.decode().strip()

    def _create(self, container: Container, program: str, what: str, started: str) -> list[str]:
        labels = {name: container.labels[name] for name in ("cluster", "cluster-id", "state-dir", "uid")}
        labels |= {"role": CUT, "member": container.member, "of": container.id, "by": program, "since": started}
        flags = [word for name, value in labels.items() for word in ("--label", f"{LABEL}{name}={value}")]
        return ["create", *_access(container.id), *flags, "--label", f"{LABEL}what={what}", "--entrypoint", program]

    # -- the image

    def _ready(self) -> str:
        """Give the image with iptables, sent to the engine first if it is not there."""
        if not self._image:
            programs, extensions = _found()
            origin = _origin([*programs, *extensions])
            there = inspect(self._engine, [_IMAGE])
            # To make the archive, only to see that it is there, takes longer than all else.
            if not has_label(there, _ORIGIN, origin):
                self._bring(programs, extensions, there, origin)
            self._image = _IMAGE
        return self._image

    def _bring(
        self, programs: Sequence[str], extensions: Sequence[str], there: Sequence[dict[str, Any]], origin: str
    ) -> None:
        """Send the image to the engine, unless what is there has the same content, made elsewhere."""
        with tempfile.NamedTemporaryFile(prefix="etcdops-filter-", suffix=".tar") as file:
            digest = write(file, programs, also=extensions, texts=_texts())
            if has_label(there, CONTENT, digest):
                return
            file.seek(0)
            labels = {CONTENT: digest, _ORIGIN: origin, f"{LABEL}role": CUT}
            changes = [*(f"LABEL {name}={value}" for name, value in labels.items()), f"ENV PATH={BIN_DIR}"]
            words = [word for change in changes for word in ("--change", change)]
            self._engine.run("import", *words, "-", _IMAGE, stdin=file.read(), timeout_s=120.0)


def _origin(paths: Sequence[str]) -> str:
    """Tell files of this machine, and the rules that go with them, from others, without reading any."""
    seen = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return hashlib.sha256(repr((seen, _texts())).encode()).hexdigest()


def _texts() -> dict[str, str]:
    return {f"{_WHERE}/{name}.rules": text for name, text in _RULES.items()}


def _restore(what: str) -> list[str]:
    return ["iptables-restore", f"{_WHERE}/{what}.rules"]


def _access(container: str) -> list[str]:
    capabilities = ["--cap-drop", "ALL", "--cap-add", "NET_ADMIN", "--cap-add", "NET_RAW"]
    return ["--network", f"container:{container}", *capabilities, "--user", "0:0", "--read-only", "--tmpfs", "/run"]


def _found() -> tuple[Sequence[str], Sequence[str]]:
    """Give the paths of iptables' programs and extensions on this machine; raises ImageError without them."""
    import glob

    programs = [path for name in _PROGRAMS for place in _PLACES if os.path.exists(path := f"{place}/{name}")]
    first = {os.path.basename(path): path for path in reversed(programs)}
    extensions = [
        path for name in _EXTENSIONS for place in _EXTENSION_PLACES for path in sorted(glob.glob(f"{place}/{name}"))
    ]
    kept = {os.path.basename(path): path for path in reversed(extensions)}
    if not first or len(kept) < len(_EXTENSIONS):
        raise ImageError(
            "cutting off a member on another host takes iptables, which goes there in an image, and it is not"
            " installed here",
            remedy="`apt-get install iptables` on this machine; nothing is needed on the hosts.",
        )
    return list(first.values()), list(kept.values())
