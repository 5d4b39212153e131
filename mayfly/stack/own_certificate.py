"""The operator's own certificate for the farm's public address, where there is one.

Runners go on trusting Mayfly's own CA at their door; this one is for everybody outside. The edge
may not read the operator's files, so a copy is kept for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mayfly import users
from mayfly.config import Config
from mayfly.errors import MachineUnfit
from mayfly.stack.files import PUBLIC, place


def check(config: Config, now: datetime) -> tuple[bytes, bytes] | None:
    """Certificate and key, where the operator has named some.

    Raises `MachineUnfit` with what is wrong with them.
    """
    given = config.server
    if not given.certificate:
        return None
    certificate, key = _read("certificate", given.certificate), _read("key", given.key)
    for fault in faults(certificate, key, given.name, now):
        raise MachineUnfit(f"server.certificate: {given.certificate} {fault}")
    return certificate, key


def ensure(config: Config, now: datetime) -> None:
    """Copy certificate and key to where the edge reads them; or take a former copy away.

    Raises as `check` does, and `OSError`.
    """
    folder = config.state / "ca"
    found = check(config, now)
    if found is None:
        for name in ("public.crt", "public.key"):
            (folder / name).unlink(missing_ok=True)
        return
    certificate, key = found
    place(folder / "public.key", key, owner=users.EDGE)
    place(folder / "public.crt", certificate, mode=PUBLIC)


def _read(option: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MachineUnfit(f"server.{option}: {path} cannot be read: {error.strerror}") from None


def faults(certificate: bytes, key: bytes, name: str, now: datetime) -> Iterator[str]:
    """What is wrong with a certificate (PEM, the chain may follow) for the host `name`. Pure."""
    try:
        found = x509.load_pem_x509_certificates(certificate)[0]
    except ValueError:
        yield "holds no certificate in PEM"
        return
    try:
        private = serialization.load_pem_private_key(key, None)
    except (ValueError, TypeError):
        yield "its key file holds no private key in PEM without a password"
        return
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != found.public_key().public_bytes(*spki):
        yield "does not go with the key"
    if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
        yield f"is not valid now, but until {found.not_valid_after_utc:%Y-%m-%d}"
    names = _names(found)
    wild = f"*.{name.partition('.')[2]}"
    if name not in names and wild not in names:
        yield f"is for {', '.join(sorted(names)) or 'no name'} and not for {name} (server.name)"


def _names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return set()
    return {name.lower() for name in found.value.get_values_for_type(x509.DNSName)}
