"""What a cluster should be: frozen specifications, checked when they are built.

Everything that a user can ask for passes through here, so bad input is refused before anything changes.

    >>> ClusterSpec.of_size("lab", 3).names
    ('ironman', 'thor', 'deadpool')
    >>> ClusterSpec.of_size("lab", 9)
    Traceback (most recent call last):
        ...
    etcdops.errors.SpecError: a cluster of 9 members is not offered: 1 to 7 are
"""

from __future__ import annotations

import re

import msgspec

from etcdops.errors import SpecError
from etcdops.units import size_text

__all__ = [
    "MEMBER_NAMES",
    "ClusterSpec",
    "MemberSpec",
    "Timing",
    "Tls",
    "is_foreign_name",
    "is_valid_name",
    "parse_size",
    "valid_name",
]

#: Names of members, in order of creation. The first three are the original lab's.
MEMBER_NAMES = ("ironman", "thor", "deadpool", "hulk", "wasp", "storm", "gambit")

_CLUSTER_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,30}")
#: The least and the most of a space quota: an empty database has 20 KiB and grows with the first writes; the most is
#: what etcd itself suggests (https://etcd.io/docs/v3.5/dev-guide/limit/) and warns beyond.
_QUOTA_BYTES = (2**20, 2**33)


#: What somebody else's member may be called: host names, and most of what people choose. No name begins with a dash,
#: which would be a flag, or holds a comma, a space or a bracket, which mean something to command lines and terminals.
_FOREIGN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_PURPOSES = ("lab", "production")


def is_valid_name(name: str) -> bool:
    """Whether `name` can name a cluster or a member."""
    return _CLUSTER_NAME.fullmatch(name) is not None


def valid_name(name: str, *, what: str = "cluster") -> str:
    """Give `name` back if it can name a cluster or a member; raise SpecError otherwise.

    A name becomes part of paths, of host names and of labels, hence the narrow alphabet.
    """
    if not is_valid_name(name):
        raise SpecError(
            f"{name!r} cannot name a {what}: 1 to 31 of a-z, 0-9 and '-', beginning with a letter or digit",
            remedy=f"Choose a name such as {'lab' if what == 'cluster' else 'ironman'!r}.",
        )
    return name


def is_foreign_name(name: str) -> bool:
    """Whether a member that somebody else runs can be called so here. It becomes no path, host name or label."""
    return _FOREIGN_NAME.fullmatch(name) is not None


def parse_size(text: str) -> int:
    """Give the number of members that `text` asks for, 1 to 7; raise SpecError otherwise."""
    try:
        size = int(text)
    except ValueError:
        raise SpecError(f"--size {text!r} is not a number", remedy="Give 1, 3, 5 or 7.") from None
    if not 1 <= size <= len(MEMBER_NAMES):
        raise SpecError(
            f"a cluster of {size} members is not offered: 1 to {len(MEMBER_NAMES)} are", remedy="Give 1, 3, 5 or 7."
        )
    return size


class Timing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raft's two clocks, the same on all members. Milliseconds.

    etcd's tuning guide asks for an election timeout of 5 to 50 heartbeats and at most 50 s
    (https://etcd.io/docs/v3.5/tuning/); etcd itself refuses less than 5 heartbeats.
    """

    heartbeat_ms: int = 100
    election_ms: int = 1000

    def __post_init__(self) -> None:
        if self.heartbeat_ms < 1:
            raise SpecError(f"a heartbeat interval of {self.heartbeat_ms} ms is too short: at least 1 ms")
        if not 5 * self.heartbeat_ms <= self.election_ms <= 50_000:
            raise SpecError(
                f"an election timeout of {self.election_ms} ms with a heartbeat of {self.heartbeat_ms} ms is refused by"
                " etcd: from 5 heartbeats to 50,000 ms",
                remedy="Leave both out for etcd's defaults, 100 ms and 1,000 ms.",
            )


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of PEM files for mutual TLS between members, and between clients and members.

    `ca` signed all the others. `client_cert` and `client_key` are what etcdops and `ctl` show to members. Each member
    has a pair of its own in its MemberSpec. For a cluster that somebody else runs, `client_cert` and `client_key` may
    be "": not every etcd asks for them. `ca_key` is the authority's key where etcdops is the authority, which makes the
    files itself then; "" where they are somebody else's.
    """

    ca: str
    client_cert: str
    client_key: str
    ca_key: str = ""


class MemberSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member: its name, and what is pinned about it.

    `client_port` and `peer_port` 0 mean that a free port is chosen. `cert` and `key` are the PEM files that the
    member shows to clients and to peers, for a cluster with Tls. A `foreign` member is run by somebody else: it has
    the name that it has, and files of its own. `host` names the host that it is to run on, where there are several; ""
    means that one is chosen.
    """

    name: str
    client_port: int = 0
    peer_port: int = 0
    cert: str = ""
    key: str = ""
    foreign: bool = False
    host: str = ""

    def __post_init__(self) -> None:
        if not (self.foreign and is_foreign_name(self.name)):
            valid_name(self.name, what="member")
        for port in (self.client_port, self.peer_port):
            if port and not 1024 <= port <= 65535:
                raise SpecError(f"port {port} of member {self.name} is not offered: 1024 to 65535 are")


class ClusterSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A cluster: its members, Raft's timing, the version of etcd and what it is for.

    `etcd_version` "" means whatever is found first (see `etcdops.binaries` and `etcdops.docker.images`); `etcd_bin`
    names a binary outright, `image` a container image. `purpose` "production" makes every drill refuse. `quota_bytes`
    is how large a member's database may become before no write is accepted (NOSPACE); 0 is etcd's default, 2 GiB.
    """

    name: str
    members: tuple[MemberSpec, ...]
    timing: Timing = Timing()
    tls: Tls | None = None
    etcd_version: str = ""
    etcd_bin: str = ""
    image: str = ""
    purpose: str = "lab"
    quota_bytes: int = 0

    def __post_init__(self) -> None:
        valid_name(self.name)
        names = [member.name for member in self.members]
        if not names:
            raise SpecError(f"cluster {self.name} has no members")
        if len(set(names)) != len(names):
            raise SpecError(f"cluster {self.name} names a member twice: {', '.join(names)}")
        ports = [port for m in self.members for port in (m.client_port, m.peer_port) if port]
        if len(set(ports)) != len(ports):
            raise SpecError(f"cluster {self.name} pins a port twice: {', '.join(map(str, sorted(ports)))}")
        if self.purpose not in _PURPOSES:
            raise SpecError(f"purpose {self.purpose!r} is not known: {' or '.join(_PURPOSES)}")
        if self.quota_bytes and not _QUOTA_BYTES[0] <= self.quota_bytes <= _QUOTA_BYTES[1]:
            least, most = (size_text(limit) for limit in _QUOTA_BYTES)
            raise SpecError(f"a space quota of {self.quota_bytes:,} bytes is not offered: {least} to {most} are")
        if self.tls and any(not ((m.cert and m.key) or m.foreign) for m in self.members):
            raise SpecError(f"cluster {self.name} has TLS, but not every member has a certificate and a key")

    @classmethod
    def of_size(
        cls,
        name: str,
        size: int = 3,
        *,
        base_port: int = 0,
        timing: Timing | None = None,
        etcd_version: str = "",
        etcd_bin: str = "",
        image: str = "",
        quota_bytes: int = 0,
    ) -> ClusterSpec:
        """Give a cluster of `size` members (1 to 7) named ironman, thor, deadpool and on.

        With `base_port`, the members take ports from there on: client and peer port of the first, of the second, …
        """
        parse_size(str(size))
        if base_port and not 1024 <= base_port <= 65535 - 2 * size + 1:
            raise SpecError(f"--port {base_port} is not offered: 1024 to {65535 - 2 * size + 1} are")
        members = tuple(
            MemberSpec(
                member,
                client_port=base_port + 2 * i if base_port else 0,
                peer_port=base_port + 2 * i + 1 if base_port else 0,
            )
            for i, member in enumerate(MEMBER_NAMES[:size])
        )
        return cls(
            name,
            members,
            timing=timing or Timing(),
            etcd_version=etcd_version,
            etcd_bin=etcd_bin,
            image=image,
            quota_bytes=quota_bytes,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The members' names, in order of creation."""
        return tuple(member.name for member in self.members)

    @property
    def quorum(self) -> int:
        """Voters that must agree before a write is acknowledged: voters // 2 + 1."""
        return len(self.members) // 2 + 1

    def member(self, name: str) -> MemberSpec:
        """Give the member called `name`; raise SpecError if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise SpecError(f"cluster {self.name} has no member {name!r}: it has {', '.join(self.names)}")
