"""Members as services of Compose: what runs in their containers, and how Docker sees whether it is well."""

from __future__ import annotations

from etcdops.docker.compose import Service
from etcdops.etcd_flags import etcd_flags
from etcdops.state import ClusterRecord, MemberRecord

__all__ = ["DATA", "TLS_FILES", "published_port", "services_of"]

#: A member's data directory, in the volume that is mounted at /var/lib/etcd.
DATA = "/var/lib/etcd/data"

#: Where a member finds the CA's certificate, its own, and its key.
TLS_FILES = ("/etc/etcd-tls/ca.pem", "/etc/etcd-tls/cert.pem", "/etc/etcd-tls/key.pem")


def services_of(record: ClusterRecord) -> list[Service]:
    """Give every member of a cluster as a service."""
    return [
        Service(member.name, published_port(member), member.data.place, _flags(record, member), _health(record))
        for member in record.members
    ]


def published_port(member: MemberRecord) -> int:
    """Give the port of this machine at which a member's clients reach it."""
    return int(member.client_url.rpartition(":")[2])


def _flags(record: ClusterRecord, member: MemberRecord) -> list[str]:
    scheme = "https" if record.spec.tls else "http"
    return etcd_flags(
        record,
        member,
        data=DATA,
        listen_client=f"{scheme}://0.0.0.0:2379",
        listen_peer=f"{scheme}://0.0.0.0:2380",
        tls=TLS_FILES,
    )


def _health(record: ClusterRecord) -> list[str]:
    check = ["CMD", "etcdctl"]
    if record.spec.tls:
        ca, cert, key = TLS_FILES
        check += ["--endpoints=https://127.0.0.1:2379", f"--cacert={ca}", f"--cert={cert}", f"--key={key}"]
    return [*check, "endpoint", "health"]
