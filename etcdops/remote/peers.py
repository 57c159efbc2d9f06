"""Whether hosts reach each other: from each, a TCP connection to each other's peer address."""

from __future__ import annotations

import time

import msgspec

from etcdops.errors import ConnectionLost, EtcdopsError, HostUnreachable
from etcdops.remote.host import SSHHost
from etcdops.remote.ssh_config import Target

__all__ = ["Peer", "PeerLink", "peer_of", "try_peers"]

_TRY_S = 4.0
#: A program there has to start as well.
_TRY_BY_COMMAND_S = 8.0
_NO_TOOL = 45
_CLOSED = "the host answers, although nothing listens at that port"
_SILENT = f"no answer within {_TRY_S:.0f} s"

#: SSH_OPEN_CONNECT_FAILED (RFC 4254, 5.1), and what servers write beside it that gives no reason.
_CONNECT_FAILED = 2
_SAYS_NOTHING = ("open failed", "connect failed", "")

#: For hosts whose sshd forwards nothing: whatever of these is there. bash has connections of its own.
_CONNECT = f"""
if command -v bash >/dev/null; then exec bash -c 'exec 3<>"/dev/tcp/$1/$2"' bash "$1" "$2"; fi
if command -v nc >/dev/null; then exec nc -zv -w 3 "$1" "$2"; fi
if command -v python3 >/dev/null; then
    exec python3 -c 'import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 3)' "$1" "$2"
fi
exit {_NO_TOOL}
"""


#: What programs say of a name that nobody knows.
_NO_ADDRESS = ("Name or service not known", "No address associated", "name resolution")


class PeerLink(msgspec.Struct, frozen=True):
    """Whether `source` reaches `target` at `address` and `port`: "reachable", "unreachable" or "unknown"; and why.

    A connection that is refused shows that the other host answers, so it is "reachable".
    """

    source: str
    target: str
    address: str
    port: int
    result: str
    detail: str = ""
    took_ms: float | None = None


class Peer(msgspec.Struct, frozen=True):
    """Where other hosts reach one."""

    name: str
    address: str
    port: int
    #: Where it is reached from this machine.
    reached: str = ""


def peer_of(target: Target, peer_address: str) -> Peer:
    """Give where other hosts try to reach one: its peer address, and the port of its SSH server, which is there."""
    return Peer(target.name, peer_address or target.host, target.port, target.host)


def try_peers(source: SSHHost, peers: list[Peer]) -> list[PeerLink]:
    """Give which of `peers` a host reaches; none is tried for longer than some seconds.

    It is sshd that connects, as for a forwarded port: that needs no program on the host. Where sshd does not forward,
    bash, nc or python3 does it. Raises HostUnreachable or ConnectionLost when the host cannot be asked.
    """
    # One after the other: of several that fail at the same time, Paramiko mixes up why.
    return [_try(source, peer) for peer in peers]


def _try(source: SSHHost, peer: Peer) -> PeerLink:
    from paramiko.ssh_exception import ChannelException, SSHException

    transport = source.connect().transport
    began = time.perf_counter()
    try:
        transport.open_channel("direct-tcpip", (peer.address, peer.port), ("127.0.0.1", 0), timeout=_TRY_S).close()
        return _link(source, peer, "reachable", "", began)
    except ChannelException as error:
        said = str(error.text or error)
        if error.code == _CONNECT_FAILED and "refused" in said:
            return _link(source, peer, "reachable", _CLOSED, began)
        if error.code == _CONNECT_FAILED and said.lower() not in _SAYS_NOTHING:
            return _link(source, peer, "unreachable", said)
    except (SSHException, EOFError, OSError) as error:
        if not transport.is_active():
            raise ConnectionLost(
                f"the connection to host {source.name} was lost: {str(error) or type(error).__name__}"
            ) from error
        if "imeout" in str(error):
            return _link(source, peer, "unreachable", _SILENT)
    return _by_command(source, peer)


def _by_command(source: SSHHost, peer: Peer) -> PeerLink:
    began = time.perf_counter()
    try:
        done = source.script(_CONNECT, peer.address, str(peer.port), timeout_s=_TRY_BY_COMMAND_S)
    except (HostUnreachable, ConnectionLost):
        raise
    except EtcdopsError:
        return _link(source, peer, "unreachable", _SILENT)
    said = done.stderr.decode(errors="replace").strip().splitlines()
    if done.exit_code == _NO_TOOL:
        return _link(source, peer, "unknown", "its sshd forwards nothing, and it has neither bash nor nc nor python3")
    if done.exit_code == 0:
        return _link(source, peer, "reachable", "", began)
    if any(words in " ".join(said) for words in _NO_ADDRESS):
        return _link(source, peer, "unreachable", "there is no address for this name")
    if "refused" in " ".join(said).lower():
        return _link(source, peer, "reachable", _CLOSED, began)
    return _link(source, peer, "unreachable", said[-1] if said else f"exit code {done.exit_code}")


def _link(source: SSHHost, peer: Peer, result: str, detail: str, began: float | None = None) -> PeerLink:
    took_ms = None if began is None else round((time.perf_counter() - began) * 1000, 3)
    return PeerLink(source.name, peer.name, peer.address, peer.port, result, detail, took_ms)
