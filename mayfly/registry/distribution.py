"""The configuration of distribution (v3): S3, a unix socket, tokens of the edge. Pure.

There is one kind of storage here, S3, and no way to ask for another: a registry on a local volume
would make the machine, not the bucket, the truth.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mayfly.config import S3, Config
from mayfly.errors import ConfigError
from mayfly.registry import tokens

CHUNK_BYTES = 8 * 1024 * 1024
"""A part of a multipart upload: S3 takes 10 000 of at least 5 MiB; two are in memory an upload."""

ROOT = "/oci"
"""Key prefix in the bucket; the other tenants have prefixes of their own."""


def socket(config: Config) -> Path:
    """Where distribution listens; only the edge and root may connect."""
    return config.run / "registry" / "registry.sock"


def jwks(config: Config) -> Path:
    """The public half of the edge's signing key, as distribution reads it."""
    return config.state / "keys" / "gateway.jwks"


def complete(s3: S3) -> None:
    """Return when everything that a registry must know of its bucket is there; `ConfigError`."""
    missing = [
        f"s3.{name}: a registry needs it - set it together with s3.endpoint"
        for name in ("endpoint", "region", "bucket", "access_key", "secret_key")
        if not getattr(s3, name)
    ]
    if missing:
        raise ConfigError(missing)


def settings(config: Config, s3: S3, http_secret: str) -> dict[str, Any]:
    """`config.yml` as a dict.

    `s3` has every field filled (the embedded server's when `config.s3.endpoint` is empty).
    `http_secret` signs the state of unfinished uploads: the same after a restart, so that they go
    on. Raises `ConfigError` when the bucket cannot be named.
    """
    complete(s3)
    return {
        "version": 0.1,
        "log": {"level": "warn", "formatter": "json", "accesslog": {"disabled": True}},
        "storage": {
            "s3": {
                "regionendpoint": s3.endpoint,
                "forcepathstyle": True,
                "region": s3.region,
                "bucket": s3.bucket,
                "accesskey": s3.access_key,
                "secretkey": s3.secret_key,
                "secure": s3.endpoint.startswith("https:"),
                "rootdirectory": ROOT,
                "chunksize": CHUNK_BYTES,
            },
            "cache": {"blobdescriptor": "inmemory", "blobdescriptorsize": 10_000},
            "delete": {"enabled": True},
            "redirect": {"disable": True},
        },
        "http": {
            "net": "unix",
            "addr": str(socket(config)),
            "secret": http_secret,
            "relativeurls": True,
            "draintimeout": "5s",
        },
        "auth": {
            "token": {
                "realm": f"{config.url}/token",
                "service": tokens.REGISTRY,
                "issuer": tokens.GATEWAY_ISSUER,
                "jwks": str(jwks(config)),
                "signingalgorithms": [tokens.ALGORITHM],
            }
        },
    }


def text(settings: dict[str, Any]) -> str:
    """The settings as YAML (of which JSON is a part)."""
    return json.dumps(settings, indent=2) + "\n"
