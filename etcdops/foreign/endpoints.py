"""The endpoints and PEM files that somebody gives for a cluster, checked before anything is asked."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

from etcdops.errors import SpecError
from etcdops.spec import Tls

__all__ = ["check_schemes", "client_context", "parse_endpoints", "parse_url", "tls_of"]

_KIND = "Give http://HOST:PORT or https://HOST:PORT, as in --endpoints http://10.0.0.1:2379,http://10.0.0.2:2379."


def parse_endpoints(given: str | Iterable[str]) -> tuple[str, ...]:
    """Give the client URLs in `given`, separated by commas, each once; raise SpecError for what is none."""
    texts = [given] if isinstance(given, str) else list(given)
    words = [word.strip() for text in texts for word in text.split(",")]
    return tuple(dict.fromkeys(parse_url(word) for word in words if word))


def parse_url(text: str) -> str:
    """Give a client URL in its plain form; raise SpecError for what is none."""
    if "@" in text:
        # Whatever stands before it may be a password, and is not repeated.
        raise SpecError("an endpoint has no user and no password: one of those given has an '@'", remedy=_KIND)
    if "://" not in text:
        raise SpecError(f"the endpoint {text!r} has no scheme", remedy=f"http:// or https://? {_KIND}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise SpecError(f"the endpoint {text!r} is not a URL: {error}", remedy=_KIND) from None
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https"):
        raise SpecError(f"the endpoint {text!r} is neither http:// nor https://", remedy=_KIND)
    if not host or any(letter.isspace() or letter in "\\%<>\"'" for letter in host):
        raise SpecError(f"the endpoint {text!r} names no host", remedy=_KIND)
    if not port:
        raise SpecError(f"the endpoint {text!r} names no port", remedy=f"etcd's own is 2379. {_KIND}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise SpecError(f"the endpoint {text!r} has more than a host and a port", remedy=_KIND)
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def tls_of(cacert: str = "", cert: str = "", key: str = "") -> Tls | None:
    """Give the paths of PEM files as they are given to etcdctl, absolute, or None for none.

    Raises SpecError for a certificate without its key, and for what cannot be read or is no PEM file.
    """
    if not (cacert or cert or key):
        return None
    if bool(cert) != bool(key):
        raise SpecError(
            "a client certificate needs its key, and a key its certificate", remedy="Give both --cert and --key."
        )
    if not cacert:
        raise SpecError(
            "without the authority's certificate nobody can tell whose members answer",
            remedy="Give --cacert FILE; for a public authority, that is the file with your system's authorities.",
        )
    tls = Tls(*(os.path.abspath(path) if path else "" for path in (cacert, cert, key)))
    client_context(tls)
    return tls


def client_context(tls: Tls) -> ssl.SSLContext:
    """Give the context in which a client of the standard library would speak; raise SpecError for unfit PEM files."""
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    context.set_alpn_protocols(["h2"])
    what, path = "--cacert", tls.ca
    try:
        # OpenSSL does not say which file is missing.
        for given in (("--cacert", tls.ca), ("--cert", tls.client_cert), ("--key", tls.client_key)):
            what, path = given
            if path:
                with open(path, "rb"):
                    pass
        what, path = "--cacert", tls.ca
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=tls.ca)
        context.set_alpn_protocols(["h2"])
        if tls.client_cert:
            what, path = "--cert and --key", f"{tls.client_cert}, {tls.client_key}"

            def no_password() -> str:
                raise SpecError(
                    f"the key {tls.client_key} is encrypted, and no password is asked for",
                    remedy="Give one that is not: `openssl pkey -in KEY -out PLAIN`, kept with permissions 0600.",
                )

            context.load_cert_chain(tls.client_cert, tls.client_key, password=no_password)
    except ssl.SSLError as error:
        said = "they do not belong together" if error.reason == "KEY_VALUES_MISMATCH" else "no PEM files that fit"
        raise SpecError(f"{what} ({path}) cannot be used: {said} ({error.reason or error})") from error
    except OSError as error:
        raise SpecError(f"{what} ({path}) cannot be read: {error.strerror or error}") from error
    return context


def check_schemes(endpoints: Sequence[str], tls: Tls | None) -> None:
    """Raise SpecError for https:// without an authority, and for PEM files that no endpoint wants."""
    secure = [url for url in endpoints if url.startswith("https://")]
    if secure and tls is None:
        raise SpecError(
            f"{secure[0]} speaks TLS, and no authority's certificate was given",
            remedy="Give --cacert FILE, and where members ask for a client certificate --cert FILE --key FILE.",
        )
    if tls and not secure:
        raise SpecError(
            f"certificates are given, and no endpoint is https:// ({', '.join(endpoints)})",
            remedy="Give https:// endpoints; or leave out --cacert, --cert and --key.",
        )
