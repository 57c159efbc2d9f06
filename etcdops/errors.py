"""The errors that etcdops raises, and the exit code that the command line gives each.

EtcdopsError                    base: a message, and a remedy saying what to do now          exit 1
├── SpecError                   what was asked for is not valid                                   2
│   └── ConfirmationNeeded      a destructive step was not confirmed                              2
├── Refused                     a precondition is not met; nothing was changed                    3
│   ├── ClusterNotFound         no such cluster here
│   ├── StateError              the state directory cannot be read or written
│   ├── Locked                  another command is working on this cluster
│   ├── BinaryError             no usable etcd, etcdctl or etcdutl
│   ├── RuntimeUnavailable      this machine cannot run members in that way
│   ├── CommandMissing          a program that is needed is not installed
│   ├── ImageError              no usable image, or it cannot be built
│   ├── HostUnreachable         a remote host cannot be reached by SSH, or lets nobody in
│   └── Aborted                 a drill's steady state was not met
├── ClusterError                the cluster, or a member of it, did not do what it should         1
│   ├── MemberFailed            a member did not start, or died
│   ├── NoLeader                no member leads                                                   5
│   ├── QuorumLost              too few voters answer                                             5
│   ├── WaitTimeout             a wait ended without its condition; the state is unknown          6
│   └── EtcdError               an etcd server or the connection to it answered with an error
├── ConnectionLost              the SSH connection to a host ended in the middle of something           6
├── SnapshotError               a snapshot could not be saved, or is not sound                      1
├── PartlyChanged               an operation has begun, and not come to its end                   7
└── HealFailed                  a fault could not be undone                                       7

Interrupted (KeyboardInterrupt) a signal ended the work, and what it had broken was healed      128+n
"""

from __future__ import annotations

__all__ = [
    "Aborted",
    "BinaryError",
    "ClusterError",
    "ClusterNotFound",
    "CommandMissing",
    "ConfirmationNeeded",
    "ConnectionLost",
    "EtcdError",
    "EtcdopsError",
    "HealFailed",
    "HostUnreachable",
    "ImageError",
    "Interrupted",
    "Locked",
    "MemberFailed",
    "NoLeader",
    "PartlyChanged",
    "QuorumLost",
    "Refused",
    "RuntimeUnavailable",
    "SnapshotError",
    "SpecError",
    "StateError",
    "WaitTimeout",
]


class EtcdopsError(Exception):
    """Something that etcdops could not do: `str(error)` says what was tried, where, and the last thing seen.

    `remedy` says what to do now, or is empty when there is nothing better to do than to read the message.
    """

    exit_code = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    @property
    def in_full(self) -> str:
        """What was tried and what to do now, as sentences for where both stand in one text."""
        return f"{str(self).rstrip('.')}. {self.remedy}" if self.remedy else str(self)


class SpecError(EtcdopsError):
    """What was asked for is not valid: a flag, a name, a field of a specification. Nothing was changed."""

    exit_code = 2


class ConfirmationNeeded(SpecError):
    """A destructive step needs `--yes`, or a terminal on which to ask."""


class Refused(EtcdopsError):
    """A precondition is not met. Nothing was changed."""

    exit_code = 3


class ClusterNotFound(Refused):
    """There is no cluster of that name in this state directory."""


class StateError(Refused):
    """The state directory or a file in it cannot be read, understood or written."""


class Locked(Refused):
    """Another command holds the cluster's lock; the message names it."""


class BinaryError(Refused):
    """No usable etcd binary was found, or the one that was named is not etcd."""


class RuntimeUnavailable(Refused):
    """This machine cannot run members in the way that was asked for."""


class CommandMissing(Refused):
    """A program that is needed is not installed where it is needed."""


class ImageError(Refused):
    """There is no container image that could be used, or one could not be built."""


class HostUnreachable(Refused):
    """A remote host cannot be reached by SSH, is not the one that is known, or does not let us in.

    `host` is its name, `kind` one of "unreachable", "refused", "unknown-key", "changed-key", "authentication" and
    "configuration".
    """

    def __init__(self, message: str, *, host: str = "", kind: str = "unreachable", remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.host = host
        self.kind = kind


class Aborted(Refused):
    """A drill's steady state was not met, or its plan was refused. No fault was injected."""


class ClusterError(EtcdopsError):
    """The cluster, or a member of it, did not do what it should."""


class MemberFailed(ClusterError):
    """A member did not start, or died; the message holds the log lines that matter."""


class NoLeader(ClusterError):
    """No member that answers leads, or knows of a leader."""

    exit_code = 5


class QuorumLost(ClusterError):
    """Too few voters answer for the cluster to accept writes."""

    exit_code = 5

    def __init__(self, *, healthy: int, voters: int, remedy: str = "Start the stopped members: `up-env`.") -> None:
        super().__init__(
            f"{healthy} of {voters} voters answer, and the quorum is {voters // 2 + 1}: no write can be acknowledged",
            remedy=remedy,
        )
        self.healthy = healthy
        self.voters = voters


class WaitTimeout(ClusterError):
    """A wait ended without its condition; what the cluster did afterwards is unknown."""

    exit_code = 6


class EtcdError(ClusterError):
    """An etcd server, or the connection to it, answered with an error.

    `code` is the gRPC status name ("UNAVAILABLE"), `text` the server's or the transport's own words, `endpoint` the
    client URL that was called. `definite` is True only when the call certainly had no effect; a write that failed
    otherwise may still be applied, now or later.
    """

    def __init__(self, code: str, text: str, *, endpoint: str, definite: bool = False, remedy: str = "") -> None:
        super().__init__(f"{endpoint}: {code}: {text}", remedy=remedy)
        self.code = code
        self.text = text
        self.endpoint = endpoint
        self.definite = definite


class ConnectionLost(EtcdopsError):
    """The SSH connection to a host ended while something ran there; whether that came to its end is unknown."""

    exit_code = 6


class SnapshotError(EtcdopsError):
    """A snapshot could not be saved, or is not sound. Nothing is left of one that could not be saved."""


class PartlyChanged(EtcdopsError):
    """An operation has begun and not come to its end; the message says how to go on, and how to take it back."""

    exit_code = 7


class HealFailed(EtcdopsError):
    """A fault could not be undone; the message says what is still broken, the remedy how to undo it by hand."""

    exit_code = 7


class Interrupted(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP ended the work. What it had broken has been healed by the time this is raised."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells report it."""
        return 128 + self.signum
