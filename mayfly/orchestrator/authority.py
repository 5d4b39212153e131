"""The authority that signs the certificates of builders' clients.

It is not the CA of the farm's own certificates, whose key is root's: what it signs opens the door
of builders and nothing else, and only while a builder's record names that very certificate.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mayfly.errors import InfrastructureError, UsageError

AUTHORITY_DAYS, CLIENT_DAYS = 3650, 397


@dataclass(frozen=True, slots=True)
class Issued:
    """A client's certificate: PEM, SHA-256 of its DER (hex), and its end."""

    pem: str
    fingerprint: str
    expires_at: datetime


class Authority:
    """Kept in a folder of the orchestrator's; made there when it is missing."""

    def __init__(self, folder: Path, now: datetime) -> None:
        """Raises `InfrastructureError` when it can be neither read nor made."""
        key, certificate = folder / "builders-ca.key", folder / "builders-ca.crt"
        try:
            if not certificate.exists():
                _make(key, certificate, now)
            self._key = serialization.load_pem_private_key(key.read_bytes(), None)
            self._certificate = x509.load_pem_x509_certificate(certificate.read_bytes())
        except (OSError, ValueError) as error:
            raise InfrastructureError(
                f"the authority of builders' certificates in {folder}: {error}",
                hint="remove builders-ca.* there; its builders must then be made again",
            ) from None

    @property
    def pem(self) -> str:
        """The certificate that clients' are verified against."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(self, public_key: str, name: str, now: datetime) -> Issued:
        """A certificate for the client of builder `name`, who has the other half of `public_key`
        (PEM, P-256). Raises `UsageError` when it is not such a key.
        """
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)  # noqa: S101
        try:
            key = serialization.load_pem_public_key(public_key.encode())
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
            raise UsageError("public_key is not a P-256 key in PEM")
        expires_at = now.replace(microsecond=0) + timedelta(days=CLIENT_DAYS)
        made = (
            _builder(f"Mayfly builder {name}", key, now, expires_at)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        pem = made.public_bytes(serialization.Encoding.PEM).decode()
        return Issued(pem, made.fingerprint(hashes.SHA256()).hex(), expires_at)


def _make(key: Path, certificate: Path, now: datetime) -> None:
    """The certificate last: where it is, the key is whole."""
    private = ec.generate_private_key(ec.SECP256R1())
    made = (
        _builder("Mayfly builders", private.public_key(), now, now + timedelta(days=AUTHORITY_DAYS))
        .issuer_name(_name("Mayfly builders"))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(private, hashes.SHA256())
    )
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    for path, data in ((key, pem), (certificate, made.public_bytes(serialization.Encoding.PEM))):
        temporary = path.with_suffix(path.suffix + ".new")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _builder(
    common: str, key: ec.EllipticCurvePublicKey, now: datetime, expires_at: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(common))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(expires_at)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )
