"""What members really serve, and whom they turn away: found by connecting to their ports, and by nothing else."""

from __future__ import annotations

import os
import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

import msgspec

from etcdops import reach
from etcdops.errors import SpecError
from etcdops.runtimes.base import CanGiveCertificates
from etcdops.tls import expiry
from etcdops.tls.authority import Authority
from etcdops.tls.expiry import Certificate

if TYPE_CHECKING:
    from etcdops.cluster import Cluster
    from etcdops.spec import Tls

__all__ = ["PORTS", "Encounter", "Proof", "address_of", "prove", "served"]

PORTS = ("client", "peer")

#: How long a connection, a handshake and an answer may take, each.
_WAIT_S = 2.0

#: Something that both ports answer, whatever the answer is. With TLS 1.3, who is turned away learns so only then.
_ASK = b"GET /version HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n"

_NOBODY, _STRANGER, _OPERATOR = "no certificate", "another authority's certificate", "the operator's certificate"


class Encounter(msgspec.Struct, frozen=True):
    """How a port (`port` is "client" or "peer") of a member received somebody (`who`).

    `result` is "served" (it answered), "turned away" or "not reached"; `detail` is the last thing that was seen.
    """

    member: str
    port: str
    who: str
    result: str
    detail: str = ""

    @property
    def is_right(self) -> bool:
        """Whether it is as it should be: the operator is served, and nobody else."""
        return self.result == ("served" if self.who == _OPERATOR else "turned away")


class Proof(msgspec.Struct, frozen=True):
    """Whom the ports of a cluster's members serve.

    `result` is "passed" (on every port the operator is served, and strangers are turned away), "failed" (a stranger is
    served, or the operator is not) or "inconclusive" (some port is not reached from here, and the others are right).
    """

    result: str
    encounters: tuple[Encounter, ...]

    @property
    def wrong(self) -> tuple[Encounter, ...]:
        """Those that are not as they should be, the ones that were not reached apart."""
        return tuple(each for each in self.encounters if not each.is_right and each.result != "not reached")


class _Met(NamedTuple):
    result: str
    detail: str


def address_of(cluster: Cluster, member: str, port: str) -> tuple[str, int] | None:
    """Give the address at which this machine reaches a port of a member's, None if it does not."""
    record = cluster.record.member(member)
    if port == "peer" and isinstance(cluster.runtime, CanGiveCertificates):
        return cluster.runtime.peer_address(cluster.record, record)
    parts = urlsplit(reach.through(record.client_url if port == "client" else record.peer_url))
    return (parts.hostname, parts.port) if parts.scheme == "https" and parts.hostname and parts.port else None


def served(address: tuple[str, int], tls: Tls | None, whose: str) -> Certificate | str:
    """Give what the certificate says that is served at an address, or why none is. It is not judged, only read."""
    try:
        with (
            socket.create_connection(address, timeout=_WAIT_S) as connection,
            _context(tls).wrap_socket(connection, server_hostname=address[0]) as secured,
        ):
            shown = secured.getpeercert(binary_form=True)
    except ssl.SSLError as error:
        return f"the handshake failed ({error.reason or error})"
    except OSError as error:
        return f"not reached ({error.strerror or error})"
    return expiry.from_der(shown, whose) if shown else "it shows no certificate"


def prove(cluster: Cluster, names: Sequence[str] | None = None) -> Proof:
    """Connect to the client and the peer port of members (all that run): as a stranger, with nothing, and as oneself.

    A stranger has a certificate of an authority that is called as the cluster's is. Raises SpecError for a cluster
    without TLS. Frozen members are not reached; nothing is written.
    """
    from concurrent.futures import ThreadPoolExecutor

    record = cluster.record
    tls = record.spec.tls
    if tls is None:
        raise SpecError(f"{record.spec.name} has no TLS: everybody is served")
    states = cluster.runtime.states(record)
    chosen = [name for name in names or record.spec.names if states[name] in ("running", "isolated", "unknown")]
    known = expiry.read(tls.ca, "authority")
    with _stranger(known.subject if known else "etcdops") as file:
        contexts = {_NOBODY: _context(None), _STRANGER: _context(None), _OPERATOR: _context(tls)}
        contexts[_STRANGER].load_cert_chain(file)

        def meet(asked: tuple[str, str, str]) -> Encounter:
            name, port, who = asked
            return Encounter(*asked, *_meet(address_of(cluster, name, port), contexts[who]))

        wanted = [(name, port, who) for name in chosen for port in PORTS for who in contexts]
        with ThreadPoolExecutor(max_workers=12) as pool:
            met = tuple(pool.map(meet, wanted))
    right = all(each.is_right for each in met) and bool(met)
    proof = Proof("passed" if right else "inconclusive", met)
    return msgspec.structs.replace(proof, result="failed") if proof.wrong else proof


def _meet(address: tuple[str, int] | None, context: ssl.SSLContext) -> _Met:
    if address is None:
        return _Met("not reached", "this machine has no way there")
    try:
        connection = socket.create_connection(address, timeout=_WAIT_S)
    except OSError as error:
        return _Met("not reached", error.strerror or str(error))
    with connection:
        try:
            with context.wrap_socket(connection, server_hostname=address[0]) as secured:
                secured.sendall(_ASK)
                answer = secured.recv(64)
        except TimeoutError:
            return _Met("not reached", f"no answer within {_WAIT_S:g} s")
        except (ssl.SSLError, ConnectionError) as error:
            return _Met("turned away", getattr(error, "reason", None) or error.strerror or str(error))
        except OSError as error:
            return _Met("not reached", error.strerror or str(error))
    return (
        _Met("served", answer.partition(b"\r")[0].decode(errors="replace")) if answer else _Met("turned away", "closed")
    )


def _context(tls: Tls | None) -> ssl.SSLContext:
    """Give what connects with the operator's certificate, or with none. What the other side shows is not judged."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if tls and tls.client_cert and os.path.exists(tls.client_cert):
        context.load_cert_chain(tls.client_cert, tls.client_key)
    return context


@contextmanager
def _stranger(name: str) -> Iterator[str]:
    """Give a file with a pair by which nobody should be taken for anybody: its authority only has the right name."""
    pair = Authority.new(name).issue("etcdops", server=False)
    # Its name and its mode are mkstemp's: nobody else reads it.
    with tempfile.NamedTemporaryFile(prefix="etcdops-") as file:
        file.write(pair)
        file.flush()
        yield file.name
