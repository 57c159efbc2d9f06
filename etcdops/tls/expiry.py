"""What certificates say, and when they end."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from etcdops.findings import Finding
from etcdops.foreign import is_foreign
from etcdops.tls.layout import is_own

if TYPE_CHECKING:
    from etcdops.state import ClusterRecord

__all__ = ["WARN_DAYS", "Certificate", "certificates", "ended", "findings", "read", "soonest"]

#: So many days before it ends, a certificate is warned of.
WARN_DAYS = 30

_PURPOSES = {ExtendedKeyUsageOID.SERVER_AUTH: "serverAuth", ExtendedKeyUsageOID.CLIENT_AUTH: "clientAuth"}


class Certificate(msgspec.Struct, frozen=True):
    """What a certificate says. `whose` is a member's name, "operator" or "authority"; times are RFC 3339 in UTC.

    `serial` and `fingerprint` (SHA-256 of the whole) are hexadecimal; `days_left` is negative once it has ended.
    """

    whose: str
    path: str
    subject: str
    names: tuple[str, ...]
    purposes: tuple[str, ...]
    serial: str
    fingerprint: str
    not_before: str
    not_after: str
    days_left: float


def describe(certificate: x509.Certificate, whose: str, path: str = "") -> Certificate:
    """Give what a certificate says."""
    try:
        purposes = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        used = tuple(_PURPOSES.get(each, each.dotted_string) for each in purposes)
    except x509.ExtensionNotFound:
        used = ()
    try:
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(each.value) for each in san)
    except x509.ExtensionNotFound:
        names = ()
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return Certificate(
        whose,
        path,
        str(common[0].value) if common else certificate.subject.rfc4514_string(),
        names,
        used,
        f"{certificate.serial_number:x}",
        certificate.fingerprint(hashes.SHA256()).hex(),
        _text(certificate.not_valid_before_utc),
        _text(certificate.not_valid_after_utc),
        round((certificate.not_valid_after_utc - datetime.now(timezone.utc)).total_seconds() / 86_400, 2),
    )


def _text(when: datetime) -> str:
    return when.isoformat(timespec="seconds")


def ended(certificate: x509.Certificate) -> bool:
    """Whether a certificate has ended."""
    return certificate.not_valid_after_utc <= datetime.now(timezone.utc)


def read(path: str, whose: str) -> Certificate | None:
    """Give what the first certificate in a file says, None where there is none to be read."""
    try:
        return describe(x509.load_pem_x509_certificate(Path(path).read_bytes()), whose, path)
    except (OSError, ValueError):
        return None


def from_der(certificate: bytes, whose: str) -> Certificate:
    """Give what a certificate says, as it came in a handshake."""
    return describe(x509.load_der_x509_certificate(certificate), whose)


def certificates(record: ClusterRecord, names: Iterable[str] | None = None) -> list[Certificate]:
    """Give what the certificates on this machine say: the authority's, the operator's, and the named members' (all).

    Those that cannot be read are left out.
    """
    tls = record.spec.tls
    if tls is None:
        return []
    paths = [("authority", tls.ca), ("operator", tls.client_cert)]
    for member in record.spec.members:
        if names is None or member.name in names:
            paths.append((member.name, member.cert))
    found = (read(path, whose) for whose, path in paths if path)
    return [certificate for certificate in found if certificate]


def soonest(found: Iterable[Certificate]) -> Certificate | None:
    """Give the certificate that ends first."""
    return min(found, key=lambda each: each.days_left, default=None)


def findings(record: ClusterRecord, known: Iterable[Certificate]) -> list[Finding]:
    """Give what is wrong with certificates of a cluster: those that have ended, or end within 30 days."""
    found = []
    for each in known:
        if each.days_left > WARN_DAYS:
            continue
        day, member = each.not_after[:10], each.whose if each.whose in record.spec.names else ""
        whose = f"the certificate of {each.whose}" if member else f"the {each.whose}'s certificate"
        if each.days_left <= 0:
            said = f"{whose} ended on {day}: connections with it are refused"
            found.append(Finding.of("certificate-expired", said, member=member, remedy=_remedy(record, each)))
        else:
            said = f"{whose} ends on {day}, in {each.days_left:.0f} days"
            found.append(Finding.of("certificate-expiring", said, member=member, remedy=_remedy(record, each)))
    return found


def _remedy(record: ClusterRecord, certificate: Certificate) -> str:
    if not is_own(record.spec) or is_foreign(record):
        return f"Put a new one in the place of {certificate.path}; etcd reads it at the next handshake."
    if certificate.whose == "authority":
        return "`snapshot.restore FILE --cluster NEW --tls` makes another cluster: an authority is not renewed."
    option = f" --member {certificate.whose}" if certificate.whose in record.spec.names else ""
    return f"`tls.renew{option}` makes a new one, without a restart."
