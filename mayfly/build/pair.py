"""A key pair for a build, made before what speaks SSH is loaded: asking for a lease needs it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Pair:
    """`private` is PEM, `public` an OpenSSH public key line. Neither ever touches a disk."""

    private: bytes = field(repr=False)
    public: str


def new() -> Pair:
    """A fresh Ed25519 pair."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public = key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH)
    return Pair(private, public.decode())
