"""Why an endpoint does not answer, in words that say what to give instead: gRPC's own tell little of TLS."""

from __future__ import annotations

import socket
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

from etcdops.errors import EtcdError
from etcdops.foreign.endpoints import client_context
from etcdops.spec import Tls

__all__ = ["Trouble", "diagnose"]

#: How long a connection may take.
_LOOK_S = 2.0

#: How long a handshake, or an answer, may take once a connection is there.
_SPEAK_S = 5.0

#: The kind of frame with which both sides of HTTP/2 begin.
_SETTINGS = 4

#: What every HTTP/2 connection begins with, and an empty frame of that kind: a server that takes the client answers it.
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])


class Trouble(NamedTuple):
    """What is wrong with an endpoint, after its URL, and what to do about it."""

    said: str
    remedy: str


def diagnose(url: str, tls: Tls | None, error: EtcdError) -> Trouble:
    """Look at an endpoint that gave `error`, by TCP and TLS alone, and give what is wrong. Takes seconds at most."""
    if error.code == "PERMISSION_DENIED" or "user name is empty" in error.text:
        return Trouble(
            f"authentication is on, and tells nothing to a client without a user ({error.text})",
            "Give --cert and --key of a client certificate whose common name is a user of etcd's.",
        )
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 0)
    try:
        connection = socket.create_connection(address, timeout=_LOOK_S)
    except socket.gaierror as failed:
        return Trouble(f"its host is not known here ({failed.strerror})", "Look at the name, and at your resolver.")
    except TimeoutError:
        return Trouble(f"nothing answers within {_LOOK_S:g} s", "Look at the address, the network and its firewalls.")
    except OSError as failed:
        return Trouble(f"nothing listens there ({failed.strerror or failed})", "Look whether that member runs.")
    connection.settimeout(_SPEAK_S)
    with connection:
        found = _secure(connection, address, tls) if parts.scheme == "https" else _plain(connection, address[0])
    return found or Trouble(
        f"something accepts connections and does not answer as etcd does ({error.code}: {error.text})",
        "Look whether that is a client port of etcd's, and not a peer port, and whether the member hangs.",
    )


def _plain(connection: socket.socket, host: str) -> Trouble | None:
    """Find a server that speaks TLS where http:// was given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    # Nothing is sent or believed: the question is only which language is spoken.
    context.verify_mode = ssl.CERT_NONE
    try:
        with context.wrap_socket(connection, server_hostname=host):
            pass
    except (OSError, ValueError):
        return None
    return Trouble("http is given, and it speaks TLS", "Give https://, with --cacert FILE.")


def _secure(connection: socket.socket, address: tuple[str, int], tls: Tls | None) -> Trouble | None:
    if tls is None:
        return None
    try:
        with client_context(tls).wrap_socket(connection, server_hostname=address[0]) as secured:
            # With TLS 1.3, a client whose certificate is missing or refused learns so by what it reads first.
            secured.sendall(_HELLO)
            secured.recv(1)
    except ssl.SSLCertVerificationError as error:
        return _not_believed(error, address[0], tls)
    except ssl.SSLError as error:
        # Who does not speak TLS ends the connection without a word, or answers in plain text.
        return _turned_away(error, tls) or _not_secure(address)
    except OSError:
        return _not_secure(address)
    return None


def _not_believed(error: ssl.SSLCertVerificationError, host: str, tls: Tls) -> Trouble:
    said = error.verify_message
    if "mismatch" in said or "not valid for" in said:
        return Trouble(
            f"its certificate is not for {host} ({said})",
            "Give the endpoint by a name that its certificate is for: `openssl s_client -connect HOST:PORT` shows it.",
        )
    if "expired" in said or "not yet valid" in said:
        return Trouble(f"its certificate is out of date ({said})", "Look at the clock here; or renew its certificate.")
    return Trouble(
        f"its certificate was not issued by the authority in {tls.ca} ({said})",
        "Give the authority that signed the members' certificates with --cacert.",
    )


def _not_secure(address: tuple[str, int]) -> Trouble | None:
    """Find a server that speaks HTTP/2 in plain text where https:// was given."""
    try:
        with socket.create_connection(address, timeout=_LOOK_S) as connection:
            connection.settimeout(_SPEAK_S)
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except OSError:
        return None
    if answer.startswith(b"HTTP/") or answer[3:4] == bytes([_SETTINGS]):
        return Trouble("https is given, and it does not speak TLS", "Give http://, without certificates.")
    return None


def _turned_away(error: ssl.SSLError, tls: Tls) -> Trouble | None:
    reason = error.reason or ""
    if "CERTIFICATE" not in reason and "UNKNOWN_CA" not in reason and "HANDSHAKE_FAILURE" not in reason:
        return None
    if tls.client_cert:
        return Trouble(
            f"it does not take the client certificate {tls.client_cert} ({reason})",
            "Give one that is signed by the authority which the members trust for clients, and is in date.",
        )
    return Trouble(
        f"it asks for a client certificate ({reason})", "Give --cert FILE and --key FILE, beside --cacert FILE."
    )
