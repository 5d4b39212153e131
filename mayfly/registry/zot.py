"""The configuration of zot: S3, loopback, tokens of the edge. Pure.

As with distribution there is one kind of storage, S3. Each setting that looks odd is a trap of
zot's that was met with 2.1:

* `dedupe` is off: with it, whoever may write to one repository mounts any blob of which he knows
  the digest out of every other.
* `gc` is off: it would remove images that are known by digest only.
* the time limits of 60 s cover a request's whole body, so they are lifted: a layer may take longer.
* one zot writes to a bucket: its locks are within the process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mayfly.config import S3, Config
from mayfly.registry import tokens
from mayfly.registry.distribution import complete

ROOT = "/zot"
"""Key prefix in the bucket: zot keeps images in another layout than distribution does."""


def key(config: Config) -> Path:
    """The public half of the edge's signing key, PEM; `cert` of zot's takes it too."""
    return config.state / "keys" / "gateway.pub"


def settings(config: Config, s3: S3) -> dict[str, Any]:
    """`config.json` as a dict; `config.registry.port` is zot's port.

    Raises `ConfigError` when the bucket cannot be named.
    """
    complete(s3)
    return {
        "distSpecVersion": "1.1.1",
        "storage": {
            "rootDirectory": str(config.run / "registry" / "zot"),
            "dedupe": False,
            "gc": False,
            "storageDriver": {
                "name": "s3",
                "regionendpoint": s3.endpoint,
                "forcepathstyle": True,
                "region": s3.region,
                "bucket": s3.bucket,
                "accesskey": s3.access_key,
                "secretkey": s3.secret_key,
                "secure": s3.endpoint.startswith("https:"),
                "skipverify": False,
                "rootdirectory": ROOT,
            },
        },
        "http": {
            "address": "127.0.0.1",
            "port": str(config.registry.port),
            "readTimeout": "0s",
            "writeTimeout": "0s",
            "auth": {
                "bearer": {
                    "realm": f"{config.url}/token",
                    "service": tokens.REGISTRY,
                    "cert": str(key(config)),
                }
            },
        },
        "log": {"level": "warn"},
    }


def text(settings: dict[str, Any]) -> str:
    """The settings as zot reads them."""
    return json.dumps(settings, indent=2) + "\n"
