"""The certificates of a cluster as they are here, and as members serve them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from etcdops.errors import Refused
from etcdops.tls import expiry, serving
from etcdops.tls.expiry import Certificate
from etcdops.tls.layout import is_own
from etcdops.tls.serving import Proof

if TYPE_CHECKING:
    from etcdops.cluster import Cluster

__all__ = ["Served", "Shown", "show"]


class Served(msgspec.Struct, frozen=True):
    """What a port of a member's serves. `result` is "as here", "another" or "not seen", `detail` says why or which."""

    member: str
    port: str
    result: str
    detail: str = ""
    serial: str = ""
    not_after: str = ""


class Shown(msgspec.Struct, frozen=True):
    """The certificates of a cluster. `own` says that etcdops is the authority; `missing` are files that are not there.

    `certificates` are those on this machine: the authority's, the operator's, and the members'.
    """

    schema: int
    cluster: str
    own: bool
    certificates: tuple[Certificate, ...]
    missing: tuple[str, ...]
    served: tuple[Served, ...]
    proof: Proof


def show(cluster: Cluster) -> Shown:
    """Read the certificates on this machine, and find by handshakes what members serve, and whom. Never writes.

    Raises Refused for a cluster without TLS.
    """
    record = cluster.runtime.adopt(cluster.record)
    tls = record.spec.tls
    if tls is None:
        raise Refused(
            f"{record.spec.name} has no TLS: there are no certificates",
            remedy="TLS is chosen when a cluster is created: `up-env --tls --cluster NAME`.",
        )
    known = expiry.certificates(record)
    paths = [tls.ca, tls.client_cert, *(member.cert for member in record.spec.members)]
    there = {each.path for each in known}
    here = {each.whose: each for each in known}
    states = cluster.runtime.states(record)
    found = []
    for member in record.members:
        for port in serving.PORTS:
            if states[member.name] in ("stopped", "paused"):
                found.append(Served(member.name, port, "not seen", f"{member.name} does not run"))
            else:
                found.append(_look(cluster, member.name, port, here.get(member.name)))
    return Shown(
        1,
        record.spec.name,
        is_own(record.spec),
        tuple(known),
        tuple(dict.fromkeys(path for path in paths if path and path not in there)),
        tuple(found),
        serving.prove(cluster),
    )


def _look(cluster: Cluster, name: str, port: str, here: Certificate | None) -> Served:
    address = serving.address_of(cluster, name, port)
    if address is None:
        return Served(name, port, "not seen", "this machine has no way there")
    seen = serving.served(address, cluster.record.spec.tls, name)
    if isinstance(seen, str):
        return Served(name, port, "not seen", seen)
    if here is not None and seen.fingerprint == here.fingerprint:
        return Served(name, port, "as here", "", seen.serial, seen.not_after)
    return Served(name, port, "another", f"serial {seen.serial}, until {seen.not_after}", seen.serial, seen.not_after)
