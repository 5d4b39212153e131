"""Keys, certificates and tokens of one state: what is missing is made, what is there is kept.

Each secret is readable by the one user that needs it. Everything that can be derived (public
halves, the admin token's hash and auth file) is derived again each time, so that they cannot
disagree.
"""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import json
import secrets
from datetime import datetime
from pathlib import Path

from mayfly import users
from mayfly.config import Config
from mayfly.registry import tokens
from mayfly.stack import certificates, own_certificate
from mayfly.stack.files import PUBLIC, place, read


def ensure(config: Config, now: datetime) -> None:
    """Make what is missing below `config.state`; the folders of `users.FOLDERS` are there.

    A program's certificate is made anew when the names it must hold have changed, when it soon
    ends, or when it is not this CA's; the CA only when it is missing or damaged. Raises `OSError`,
    and what `own_certificate.ensure` does.
    """
    keys, ca = config.state / "keys", config.state / "ca"
    token = kept(
        config.state / "admin.token", f"mayfly_admin_{secrets.token_urlsafe(32)}\n".encode()
    )
    digest = hashlib.sha256(token.strip()).hexdigest().encode() + b"\n"
    place(keys / "admin.sha256", digest, owner=users.ORCHESTRATOR)
    builders = kept(
        keys / "builders.token",
        f"mayfly_builders_{secrets.token_urlsafe(32)}\n".encode(),
        users.BUILDERS,
    )
    digest = hashlib.sha256(builders.strip()).hexdigest().encode() + b"\n"
    place(keys / "builders.sha256", digest, owner=users.ORCHESTRATOR)
    place(auth_file(config), docker_auth(config.registry_host, token.decode().strip()))
    http(config)

    lease = key(keys / "lease.key", users.ORCHESTRATOR)
    place(keys / "lease.pub", tokens.public(lease), mode=PUBLIC)
    gateway = key(keys / "gateway.key", users.EDGE)
    place(keys / "gateway.pub", tokens.public(gateway), mode=PUBLIC)
    place(keys / "gateway.jwks", tokens.jwks(tokens.public(gateway)).encode(), mode=PUBLIC)

    ca_key = certificates.load_key(key(ca / "ca.key"))
    ca_crt = certificates.load(read(ca / "ca.crt"))
    if ca_crt is None or ca_crt.public_key() != ca_key.public_key():
        ca_crt = certificates.authority(ca_key, now)
    place(ca / "ca.crt", certificates.dump(ca_crt), mode=PUBLIC)
    # Alone in a folder: skopeo's --cert-dir refuses one that has a key beside it.
    place(config.state / "trust" / "ca.crt", certificates.dump(ca_crt), mode=PUBLIC)
    for program, owner in (("edge", users.EDGE), ("builders", users.BUILDERS)):
        own_key = certificates.load_key(key(ca / f"{program}.key", owner))
        own_crt = certificates.load(read(ca / f"{program}.crt"))
        serves = certificates.serves(own_crt, own_key, names(config), ca_crt, now)
        if own_crt is None or not serves:
            own_crt = certificates.server(own_key, names(config), ca_crt, ca_key, now)
        place(ca / f"{program}.crt", certificates.dump(own_crt), mode=PUBLIC)
    own_certificate.ensure(config, now)


def auth_file(config: Config) -> Path:
    """The admin token as skopeo and docker read it (`--authfile`); root's, like the token."""
    return config.state / "admin.auth.json"


def docker_auth(host: str, token: str) -> bytes:
    """A docker `config.json` with the credentials for the registry at `HOST:PORT`. Pure."""
    auth = base64.b64encode(f"mayfly:{token}".encode()).decode()
    return json.dumps({"auths": {host: {"auth": auth}}}, indent=2).encode() + b"\n"


def http(config: Config) -> bytes:
    """The secret by which distribution signs the state of uploads; made when it is missing."""
    path = config.state / "registry" / "http.secret"
    return kept(path, secrets.token_hex(32).encode(), users.REGISTRY)


def names(config: Config) -> tuple[str, ...]:
    """Host names and addresses that the edge's certificate must hold, in order, each once."""
    address = config.server.listen.rpartition(":")[0].strip("[]")
    listen = () if ipaddress.ip_address(address).is_unspecified else (address,)
    return tuple(dict.fromkeys((config.server.name, "localhost", "127.0.0.1", *listen)))


def kept(path: Path, fresh: bytes, owner: int = users.ROOT) -> bytes:
    """The file's content, its owner and mode (0600) set right; `fresh` when it had none."""
    content = read(path, owner) or fresh
    place(path, content, owner=owner)
    return content


def key(path: Path, owner: int = users.ROOT) -> bytes:
    """A P-256 private key (PEM), kept; made anew when the file holds none."""
    pem = read(path, owner)
    try:
        if pem is not None:
            tokens.public(pem)
    except ValueError:
        pem = None
    pem = pem or tokens.generate()
    place(path, pem, owner=owner)
    return pem
