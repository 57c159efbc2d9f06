"""An authority for one cluster, and what it signs. The only module, with `expiry`, that imports cryptography."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from etcdops.errors import Refused
from etcdops.state import replace_file
from etcdops.tls.layout import FILE_MODE

__all__ = ["BACKDATED", "CA_LIFETIME", "LEAF_LIFETIME", "Authority"]

CA_LIFETIME = timedelta(days=3650)
LEAF_LIFETIME = timedelta(days=365)

#: Certificates are valid from so long before they are made on, for clocks that are behind ours.
BACKDATED = timedelta(minutes=5)


class Authority(NamedTuple):
    """An authority: its certificate, and the key by which it signs."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def new(cls, name: str, *, lifetime: timedelta = CA_LIFETIME, backdated: timedelta = BACKDATED) -> Authority:
        """Make an authority called `name`, on the curve P-256, with a random serial number."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        builder = _builder(subject, subject, key.public_key(), lifetime, backdated)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(signs=True), critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(identifier, critical=False)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, certificate: str, key: str) -> Authority:
        """Read an authority from its two files; raises Refused where one is missing, or they do not fit."""
        remedy = f"Put {certificate} and {key} back from a copy: without both no certificate can be made."
        try:
            parsed = x509.load_pem_x509_certificate(Path(certificate).read_bytes())
            private = serialization.load_pem_private_key(Path(key).read_bytes(), password=None)
        except OSError as error:
            said = f"cannot read {error.filename} of the cluster's authority: {error.strerror}"
            raise Refused(said, remedy=remedy) from error
        except (ValueError, TypeError) as error:
            # What the library says of a key may quote it.
            raise Refused(
                f"{certificate} and {key} are not the certificate and the key of an authority", remedy=remedy
            ) from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or private.public_key() != parsed.public_key():
            raise Refused(f"the key {key} does not belong to the certificate {certificate}", remedy=remedy)
        return cls(parsed, private)

    def save(self, certificate: str, key: str) -> None:
        """Write both files, the key first: whoever finds a certificate finds its key as well."""
        replace_file(Path(key), _key_bytes(self.key), mode=FILE_MODE)
        replace_file(Path(certificate), self.certificate.public_bytes(serialization.Encoding.PEM))

    def has_signed(self, pem: bytes) -> bool:
        """Whether the certificate in a PEM text is signed by this authority; its own is."""
        try:
            x509.load_pem_x509_certificate(pem).verify_directly_issued_by(self.certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def issue(
        self,
        name: str,
        hosts: Iterable[str] = (),
        *,
        server: bool,
        lifetime: timedelta = LEAF_LIFETIME,
        backdated: timedelta = BACKDATED,
    ) -> bytes:
        """Make a pair for `name`, reached as `hosts` (names and addresses): certificate and key, as one PEM text.

        Whoever is a `server` may be a client too: etcd's members dial each other, and themselves, with one pair. The
        certificate ends with the authority's at the latest.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        lifetime = min(lifetime, self.certificate.not_valid_after_utc - _now())
        builder = _builder(_name(name), self.certificate.subject, key.public_key(), lifetime, backdated)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(signs=False), critical=True)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if server:
            purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if names := [_general(host) for host in dict.fromkeys(hosts)]:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        issuer = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        above = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer)
        builder = builder.add_extension(own, critical=False).add_extension(above, critical=False)
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM) + _key_bytes(key)


def _now() -> datetime:
    return datetime.now(timezone.utc)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    lifetime: timedelta,
    backdated: timedelta,
) -> x509.CertificateBuilder:
    now = _now()
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - backdated).not_valid_after(now + lifetime)


def _name(name: str) -> x509.Name:
    # 64 characters are what X.509 has for a common name.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "etcdops"),
            x509.NameAttribute(NameOID.COMMON_NAME, name[:64]),
        ]
    )


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
