"""Where the files of an authority of etcdops' own are: in `tls/` of the cluster's directory. Imports next to nothing.

    tls/ca.pem             the authority's certificate, which may be shown to anybody
    tls/ca.key             its key
    tls/operator.pem       certificate and key of whoever works with the cluster through etcdops
    tls/member-NAME.pem    certificate and key of a member

A pair is one file: etcd reads certificate and key anew for each handshake, one after the other, and two files cannot be
replaced at once. One can, so that a pair is whole at any time, whenever the power fails.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from etcdops.spec import ClusterSpec, MemberSpec, Tls

__all__ = ["FILE_MODE", "TLS_DIR_MODE", "directory_of", "is_own", "leaf_of", "with_own_files", "with_own_leaf"]

FILE_MODE, TLS_DIR_MODE = 0o600, 0o700


def directory_of(cluster_dir: Path) -> Path:
    """Give the directory of the TLS files of the cluster with this directory."""
    return cluster_dir / "tls"


def is_own(spec: ClusterSpec) -> bool:
    """Whether etcdops is the authority for this cluster's certificates."""
    return spec.tls is not None and bool(spec.tls.ca_key)


def leaf_of(directory: Path, name: str) -> str:
    """Give the path of a member's pair."""
    return str(directory / f"member-{name}.pem")


def with_own_leaf(spec: MemberSpec, tls: Tls) -> MemberSpec:
    """Give a member's specification with the path of the pair that the cluster's own authority signs for it."""
    path = leaf_of(Path(tls.ca_key).parent, spec.name)
    return msgspec.structs.replace(spec, cert=path, key=path)


def with_own_files(spec: ClusterSpec, directory: Path) -> ClusterSpec:
    """Give a cluster's specification with the paths of what its own authority will sign. No file is made yet."""
    operator = str(directory / "operator.pem")
    tls = Tls(str(directory / "ca.pem"), operator, operator, ca_key=str(directory / "ca.key"))
    members = tuple(with_own_leaf(member, tls) for member in spec.members)
    return msgspec.structs.replace(spec, tls=tls, members=members)
