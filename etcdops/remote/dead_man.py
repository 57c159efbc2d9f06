"""A timer on a host that undoes a fault there by itself when the operator has not been heard of for LIMIT_S seconds.

It is armed before the fault and renewed while the operator's machine is there. When that machine dies, or the SSH
session is cut, the host undoes the fault. It needs `sh`, `setsid` and `sleep` on the host.

The timer is a file, and a process on the host that reads it once a second. When the file is gone, the process ends.
When the file has not changed for LIMIT_S readings, the process renames it to NAME.fired, runs the command that undoes
the fault, and ends. It counts readings, so that setting the host's clock changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from etcdops.errors import EtcdopsError, MemberFailed
from etcdops.hosts import Completed

if TYPE_CHECKING:
    from etcdops.remote.host import SSHHost

__all__ = ["FIRED", "LIMIT_S", "DeadMan", "armed_on", "disarm_all"]

#: After how many seconds without a sign of the operator a fault is undone.
LIMIT_S = 30

#: What a timer's name ends with once it has gone off.
FIRED = ".fired"

_RENEW_S = 5.0
_FIRED = 7
_QUICK_S = 10.0

#: Timers of this user, and of nobody else's.
_DIRECTORY = 'd="${TMPDIR:-/tmp}/etcdops-dead-man-$(id -u)"; umask 077; mkdir -p "$d"; [ -O "$d" ] || exit 9; '

_WATCH = (
    'f=$1; limit=$2; shift 2; n=0; last=; trap "" HUP; '
    'while seen=$(cat "$f" 2>/dev/null); do '
    'if [ "$seen" = "$last" ]; then n=$((n+1)); else n=0; last=$seen; fi; '
    'if [ "$n" -ge "$limit" ]; then mv "$f" "$f.fired" && "$@" >>"$f.fired" 2>&1; exit; fi; '
    "sleep 1; done"
)

_ARM = (
    _DIRECTORY
    + 'f="$d/$1"; limit=$2; watch=$3; shift 3; rm -f "$f.fired"; echo 0 >"$f" || exit 8; '
    + 'setsid sh -c "$watch" sh "$f" "$limit" "$@" </dev/null >/dev/null 2>&1 &'
)
_RENEW = _DIRECTORY + 'f="$d/$1"; [ -e "$f" ] && echo "$2" >"$f"'
_DISARM = _DIRECTORY + 'f="$d/$1"; rm -f "$f"; if [ -e "$f.fired" ]; then rm -f "$f.fired"; exit 7; fi'
_EACH = _DIRECTORY + 'cd "$d" && for f in "$1"-*; do [ -e "$f" ] || continue; '
_ALL = _EACH + 'echo "$f"; done; exit 0'
# What tells that a timer has gone off is left for who armed it and is still there, `$2`, to learn.
_ALL_OFF = (
    _EACH + 'case $f in *.fired) case " $2 " in *" ${f%.fired} "*) continue ;; esac ;; esac; '
    'rm -f "$f" && echo "$f"; done; exit 0'
)

#: The timers that this process has armed and not disarmed, each with its host.
_armed: set[tuple[str, str]] = set()


class DeadMan:
    """A timer on a host, from `arm` to `disarm`, which is renewed in between.

    `cluster` and `member` name it, `undo` is the command that undoes the fault. Raises MemberFailed where it cannot be
    armed: then no fault may be caused. Once disarmed, `fired` says whether it had gone off before, and `lost` that this
    is not known: the host could not be reached, and the timer goes off by itself.
    """

    def __init__(
        self, host: SSHHost, cluster: str, member: str, undo: Sequence[str], *, limit_s: int = LIMIT_S
    ) -> None:
        self.fired = self.lost = False
        self._host = host
        self._name = f"{cluster}-{member}"
        self._undo = list(undo)
        self._limit_s = limit_s
        self._over = threading.Event()
        self._renewing = threading.Thread(target=self._renew, daemon=True)

    def arm(self) -> None:
        """Start the timer."""
        done = self._sh(_ARM, str(self._limit_s), _WATCH, *self._undo)
        if done.exit_code != 0:
            raise MemberFailed(
                f"no timer could be armed on {self._host.name} that would undo the fault by itself:"
                f" {done.stderr.decode(errors='replace').strip() or f'exit {done.exit_code}'}",
                remedy="It takes sh, setsid and a directory for temporary files there. Nothing was broken.",
            )
        _armed.add((self._host.name, self._name))
        self._renewing.start()

    def disarm(self) -> None:
        """End the timer. Where the host cannot be reached it goes off by itself."""
        self._over.set()
        self._renewing.join(_QUICK_S)
        _armed.discard((self._host.name, self._name))
        try:
            self.fired = self._sh(_DISARM).exit_code == _FIRED
        except EtcdopsError:
            self.lost = True

    def _renew(self) -> None:
        count = 0
        while not self._over.wait(_RENEW_S):
            count += 1
            # A host that is out of reach undoes the fault by itself, which is what this is for.
            with suppress(EtcdopsError):
                self._sh(_RENEW, str(count))

    def _sh(self, script: str, *arguments: str) -> Completed:
        return self._host.script(script, self._name, *arguments, timeout_s=_QUICK_S)


def armed_on(host: SSHHost, cluster: str) -> list[str]:
    """Give the members of a cluster for which a timer is armed on a host; NAME.fired for one that has gone off."""
    return _listed(host, _ALL, cluster)


def disarm_all(host: SSHHost, cluster: str) -> list[str]:
    """End all timers of a cluster on a host; gives the members that they were for, NAME.fired for one that went off.

    That one has gone off is still told to the `DeadMan` of this process that armed it.
    """
    ours = " ".join(timer for name, timer in list(_armed) if name == host.name)
    return _listed(host, _ALL_OFF, cluster, ours)


def _listed(host: SSHHost, script: str, cluster: str, *arguments: str) -> list[str]:
    done = host.script(script, cluster, *arguments, timeout_s=_QUICK_S)
    return [line.removeprefix(f"{cluster}-") for line in done.stdout.decode(errors="replace").splitlines()]
