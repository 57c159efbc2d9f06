"""etcd's own flags for a member, the same wherever it runs but for addresses and paths; and for restoring its data."""

from __future__ import annotations

from etcdops.state import ClusterRecord, MemberRecord
from etcdops.versions import parse_version

__all__ = ["etcd_flags", "restore_flags"]

_ANY_ADDRESS = "peer-skip-client-san-verification=true"


def etcd_flags(
    record: ClusterRecord,
    member: MemberRecord,
    *,
    data: str,
    listen_client: str,
    listen_peer: str,
    tls: tuple[str, str, str],
) -> list[str]:
    """Give the flags of a member: its data directory, where it listens, and the rest from the record.

    `tls` holds the paths, where the member runs, of the CA and of the member's own certificate and key; it is used
    for a cluster with TLS only.
    """
    spec = record.spec
    flags = [
        f"--name={member.name}",
        f"--data-dir={data}",
        f"--listen-client-urls={listen_client}",
        f"--advertise-client-urls={member.client_url}",
        f"--listen-peer-urls={listen_peer}",
        f"--initial-advertise-peer-urls={member.peer_url}",
        f"--initial-cluster={','.join(f'{m.name}={m.peer_url}' for m in record.members)}",
        f"--initial-cluster-token={record.token}",
        # A wiped member under "new" would try to form a cluster of its own (etcd#12227).
        f"--initial-cluster-state={'existing' if record.bootstrapped else 'new'}",
        f"--heartbeat-interval={spec.timing.heartbeat_ms}",
        f"--election-timeout={spec.timing.election_ms}",
        "--logger=zap",
        "--log-outputs=stderr",
    ]
    if spec.quota_bytes:
        flags.append(f"--quota-backend-bytes={spec.quota_bytes}")
    if spec.tls:
        ca, cert, key = tls
        for prefix in ("", "peer-"):
            flags += [
                f"--{prefix}cert-file={cert}",
                f"--{prefix}key-file={key}",
                f"--{prefix}trusted-ca-file={ca}",
                f"--{prefix}client-cert-auth=true",
            ]
        if record.hosts:
            # Of a peer that comes through a host's address translation, another address is seen than its own, which
            # its certificate does not name; the cluster's own authority has signed it all the same.
            flags.append(
                f"--{'' if parse_version(record.etcd_version).series >= (3, 6) else 'experimental-'}{_ANY_ADDRESS}"
            )
    return flags


def restore_flags(record: ClusterRecord, member: MemberRecord, *, data: str, bump: int) -> list[str]:
    """Give the flags of `snapshot restore` for a member's data.

    `bump` moves revisions on, and marks all before as compacted, so that whoever watches or caches is told that it has
    to read anew instead of waiting for revisions that were used before (etcd#16028); 0 does neither.
    """
    flags = [
        f"--name={member.name}",
        f"--data-dir={data}",
        f"--initial-cluster={','.join(f'{m.name}={m.peer_url}' for m in record.members)}",
        f"--initial-cluster-token={record.token}",
        f"--initial-advertise-peer-urls={member.peer_url}",
    ]
    return [*flags, f"--bump-revision={bump}", "--mark-compacted"] if bump else flags
