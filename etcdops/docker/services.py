"""Members as services of Compose: what runs in their containers, and how Docker sees whether it is well."""

from __future__ import annotations

from collections.abc import Sequence

from etcdops.docker.compose import Service
from etcdops.docker.tls import paths_of
from etcdops.etcd_flags import etcd_flags
from etcdops.state import ClusterRecord, MemberRecord

__all__ = ["DATA", "peer_port", "published_port", "services_of"]

#: A member's data directory, in the volume that is mounted at /var/lib/etcd.
DATA = "/var/lib/etcd/data"


def services_of(record: ClusterRecord, members: Sequence[MemberRecord], published: str = "") -> list[Service]:
    """Give members of a cluster as services of one project.

    Their clients reach them at 127.0.0.1; or else they are `published` at that address of their host for their peers,
    too, which are on other hosts.
    """
    at = f"{published}:" if published else "127.0.0.1:"
    return [
        Service(
            member.name,
            [f"{at}{published_port(member)}:2379"] + ([f"{at}{peer_port(member)}:2380"] if published else []),
            member.data.place,
            _flags(record, member),
            _health(record, member),
            alone=bool(published),
        )
        for member in members
    ]


def peer_port(member: MemberRecord) -> int:
    """Give the port of its host at which a member's peers reach it."""
    return _port_in(member.peer_url)


def published_port(member: MemberRecord) -> int:
    """Give the port of its host at which a member's clients reach it."""
    return _port_in(member.client_url)


def _port_in(url: str) -> int:
    return int(url.rpartition(":")[2])


def _flags(record: ClusterRecord, member: MemberRecord) -> list[str]:
    scheme = "https" if record.spec.tls else "http"
    return etcd_flags(
        record,
        member,
        data=DATA,
        listen_client=f"{scheme}://0.0.0.0:2379",
        listen_peer=f"{scheme}://0.0.0.0:2380",
        tls=_tls_files(record, member),
    )


def _tls_files(record: ClusterRecord, member: MemberRecord) -> tuple[str, str, str]:
    own = record.spec.member(member.name)
    return paths_of(own.cert, own.key)


def _health(record: ClusterRecord, member: MemberRecord) -> list[str]:
    check = ["CMD", "etcdctl"]
    if record.spec.tls:
        ca, cert, key = _tls_files(record, member)
        check += ["--endpoints=https://127.0.0.1:2379", f"--cacert={ca}", f"--cert={cert}", f"--key={key}"]
    return [*check, "endpoint", "health"]
