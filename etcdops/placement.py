"""What a new cluster is made of, before anything runs: PEM files, ports, and where it is remembered."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import Refused, SpecError, StateError
from etcdops.paths import index_file
from etcdops.spec import ClusterSpec, MemberSpec, Timing, Tls
from etcdops.units import size_text

if TYPE_CHECKING:
    from etcdops.remote.inventory import HostSpec
    from etcdops.runtimes.base import Runtime
    from etcdops.state import ClusterRecord, MemberRecord, Store

__all__ = ["check_same", "place", "remember", "with_pem_files", "with_tls_files"]

_log = logging.getLogger(__name__)


def with_tls_files(spec: ClusterSpec) -> ClusterSpec:
    """Give the spec with absolute paths of PEM files, for members run elsewhere; SpecError for one that is missing."""
    if spec.tls is None or spec.tls.ca_key:
        return spec
    tls = Tls(_pem(spec.tls.ca), _pem(spec.tls.client_cert), _pem(spec.tls.client_key))
    return msgspec.structs.replace(spec, tls=tls, members=tuple(map(with_pem_files, spec.members)))


def with_pem_files(member: MemberSpec) -> MemberSpec:
    """Give a member's specification with absolute paths of its PEM files; SpecError for one that is missing."""
    if not member.cert and not member.key:
        return member
    return msgspec.structs.replace(member, cert=_pem(member.cert), key=_pem(member.key))


def _pem(path: str) -> str:
    try:
        with open(path, "rb"):
            return os.path.abspath(path)
    except OSError as error:
        raise SpecError(f"cannot read the PEM file {path}: {error.strerror or error}") from error


def place(
    runner: Runtime, spec: ClusterSpec, cluster_id: str, store: Store, *, generation: int = 1
) -> tuple[MemberRecord, ...]:
    """Place new members at ports that no cluster of this state directory has, be it stopped or not.

    `generation` is that of their data.
    """
    taken = set()
    for name in store.names():
        try:
            taken |= {port for member in store.load(name).members for port in _ports(member)}
        except StateError:
            continue
    pinned = {port for member in spec.members for port in (member.client_port, member.peer_port)}
    directory = str(store.cluster_dir(spec.name))
    for _ in range(20):
        members = runner.place(spec, cluster_id, directory, generation=generation)
        if not taken & ({port for member in members for port in _ports(member)} - pinned):
            break
    return members


def _ports(member: MemberRecord) -> set[int]:
    """Give the ports of this machine that a member has; in a network of its own a member's peer port is no such."""
    return {int(url.rpartition(":")[2]) for url in (member.client_url, member.peer_url) if "//127.0.0.1:" in url}


def remember(store: Store) -> None:
    """Add a state directory to this user's list. Best effort: without it only running clusters are found elsewhere."""
    path = index_file()
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # A path may hold any bytes.
        with open(path, "a+", encoding="utf-8", errors="surrogateescape") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            known = file.read().splitlines()
            if str(store.root) not in known:
                # Directories of temporary clusters would pile up here.
                kept = [root for root in known if os.path.isdir(root)]
                if kept != known:
                    file.truncate(0)
                    file.writelines(f"{root}\n" for root in kept)
                file.write(f"{store.root}\n")
    except OSError as error:
        _log.debug("cannot write %s: %s", path, error)


def check_same(
    record: ClusterRecord,
    *,
    runtime: str,
    size: int,
    spec: ClusterSpec,
    tls: bool = False,
    hosts: Sequence[HostSpec] = (),
) -> None:
    """Refuse a wish that differs from what the cluster has: runtime, size, version and so on are fixed at creation.

    Raises Refused, saying what the cluster has. What is left at its default in `spec` is no wish; `tls` wishes for TLS,
    whoever made the certificates. `hosts` may be reached in another way than they were, but have to be the same.
    """
    differs = []
    if runtime and runtime not in ("auto", record.runtime):
        differs.append(f"runtime {record.runtime}, not {runtime}")
    if size and size != len(record.members):
        differs.append(f"{len(record.members)} members, not {size}")
    if spec.etcd_version and spec.etcd_version.lstrip("v") != record.etcd_version:
        differs.append(f"etcd {record.etcd_version}, not {spec.etcd_version}")
    asked = os.path.realpath(spec.etcd_bin)
    if spec.etcd_bin and (asked if os.path.isdir(asked) else os.path.dirname(asked)) != os.path.realpath(record.binary):
        differs.append(f"the etcd in {record.binary}, not {spec.etcd_bin}")
    port = spec.members[0].client_port
    if port and port != record.spec.members[0].client_port:
        has = record.members[0].client_url.rpartition(":")[2]
        differs.append(f"port {has} for its first member, not {port}")
    if spec.image and spec.image != record.image:
        differs.append(f"the image {record.image}, not {spec.image}" if record.image else f"no image, not {spec.image}")
    if spec.timing not in (Timing(), record.spec.timing):
        timing = record.spec.timing
        differs.append(f"a heartbeat of {timing.heartbeat_ms} ms, an election timeout of {timing.election_ms} ms")
    if spec.tls and with_tls_files(spec).tls != record.spec.tls:
        differs.append("TLS with other files" if record.spec.tls else "no TLS")
    if tls and not record.spec.tls:
        differs.append("no TLS")
    if spec.quota_bytes and spec.quota_bytes != record.spec.quota_bytes:
        has = size_text(record.spec.quota_bytes) if record.spec.quota_bytes else "2 GiB, etcd's default"
        differs.append(f"a space quota of {has}, not {size_text(spec.quota_bytes)}")
    if spec.purpose not in ("lab", record.spec.purpose):
        differs.append(f"the purpose {record.spec.purpose}, not {spec.purpose}")
    if hosts:
        differs += _other_hosts(record.hosts, hosts)
    if differs:
        raise Refused(
            f"cluster {record.spec.name} has {'; '.join(differs)}: these are fixed when it is created",
            remedy="Leave the flag out, or create another cluster with --cluster NAME.",
        )


def _other_hosts(has: Sequence[HostSpec], asked: Sequence[HostSpec]) -> list[str]:
    """Say in what hosts differ: by their names, or by where they are."""
    own, wished = ({each.name: each for each in hosts} for hosts in (has, asked))
    if set(own) != set(wished):
        return [f"the hosts {', '.join(own) or 'of no inventory'}, not {', '.join(wished)}"]
    return [
        f"host {name} at {_where(each)}, not at {_where(wished[name])}"
        for name, each in own.items()
        if _where(each) != _where(wished[name])
    ]


def _where(host: HostSpec) -> str:
    at = f"{host.address or host.name}, port {host.port or 22}"
    return f"{at} (for its peers {host.peer_address})" if host.peer_address else at
