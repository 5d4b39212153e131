"""The embedded S3 service: SeaweedFS in one process, on loopback, with keys of its own.

It is there so that a machine needs nothing else. Who has an S3 service names it in `[s3]`.

Its parts speak to each other over ports too, and those ask for no S3 keys: so those want a
certificate or a signed token that only this process has (`security`), or are shut.
"""

from __future__ import annotations

import json
import secrets
import shutil
import sysconfig
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from mayfly import users
from mayfly.config import S3, Config
from mayfly.errors import MachineUnfit
from mayfly.stack import certificates, loopback
from mayfly.stack import secrets as secrets_
from mayfly.stack.files import place, read

PORTS = ("s3", "s3.grpc", "master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc")

MEMORY = "512MiB"
"""From here on Go collects more eagerly: 370 MB resident after a push of 200 MB, else 630."""

VOLUME_MB = 1024
"""Data files grow to this size; nothing is allocated before it is written."""


def folder(config: Config) -> Path:
    """Where all of it is: root's, with files that only the service reads."""
    return config.state / "s3"


def data(config: Config) -> Path:
    """All that the service itself writes; its home and working directory too."""
    return folder(config) / "data"


def binary() -> Path:
    """The program, from the Python environment or PATH. Raises `MachineUnfit`."""
    beside = Path(sysconfig.get_path("scripts"), "weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise MachineUnfit(
            "the embedded S3 service (weed) is not installed",
            hint="run `make setup`, or name an S3 service as s3.endpoint",
        )
    return Path(found)


def prepare(config: Config, now: datetime) -> S3:
    """Make keys, ports and configuration when they are missing; the `[s3]` that uses them.

    The folders of `users.FOLDERS` are there. Idempotent. Raises `OSError`, and
    `InfrastructureError` when no ports are free.
    """
    place_ = folder(config)
    text = read(place_ / "keys.json", users.S3)
    keys = json.loads(text) if text else _fresh_keys()
    _write(place_ / "keys.json", keys)
    _write(place_ / "identities.json", identities(keys["access_key"], keys["secret_key"]))
    private, certificate = place_ / "inner.key", place_ / "inner.crt"
    key = certificates.load_key(secrets_.key(private, users.S3))
    inner = certificates.load(read(certificate, users.S3))
    if inner is None or inner.public_key() != key.public_key():
        inner = certificates.self_signed(key, ("127.0.0.1", "localhost"), now)
    place(certificate, certificates.dump(inner), owner=users.S3)
    rules = security(keys["jwt"], certificate, private)
    place(place_ / "security.toml", rules.encode(), owner=users.S3)
    port = ports(place_)["s3"]
    return config.s3.model_copy(
        update={
            "endpoint": f"http://127.0.0.1:{port}",
            "access_key": keys["access_key"],
            "secret_key": keys["secret_key"],
        }
    )


def ports(place_: Path) -> Mapping[str, int]:
    """The ports of this state: chosen once, then kept in `ports.json`."""
    return loopback.ports(place_ / "ports.json", PORTS, owner=users.S3)


def argv(program: Path, place_: Path, ports: Mapping[str, int]) -> tuple[str, ...]:
    """The command line. Pure."""
    return (
        str(program),
        f"-config_dir={place_}",
        "-logtostderr=true",
        "server",
        f"-dir={place_ / 'data'}",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        *(f"-{_option(name)}={number}" for name, number in ports.items()),
        "-disableHttp",
        "-filer",
        "-s3",
        f"-s3.config={place_ / 'identities.json'}",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
        "-master.volumePreallocate=false",
        "-master.electionTimeout=1s",
        f"-master.volumeSizeLimitMB={VOLUME_MB}",
        "-volume.max=0",
        "-volume.preStopSeconds=0",
        "-volume.readMode=local",
        "-filer.exposeDirectoryData=false",
    )


def identities(access_key: str, secret_key: str) -> dict[str, Any]:
    """Who may use the S3 port: one identity, which may do everything. Pure."""
    return {
        "identities": [
            {
                "name": "mayfly",
                "credentials": [{"accessKey": access_key, "secretKey": secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"],
            }
        ]
    }


def security(key: str, certificate: Path, private: Path) -> str:
    """`security.toml`: signed tokens on the inner HTTP ports, mutual TLS on the gRPC ones. Pure.

    One self-signed certificate is everybody's own and the only authority.
    """
    tokens = ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read")
    parts = ("grpc.master", "grpc.volume", "grpc.filer", "grpc.s3", "grpc.client")
    return (
        "".join(f'[{name}]\nkey = "{key}"\nexpires_after_seconds = 60\n\n' for name in tokens)
        + f'[grpc]\nca = "{certificate}"\n\n'
        + "".join(f'[{name}]\ncert = "{certificate}"\nkey = "{private}"\n\n' for name in parts)
    )


def _option(name: str) -> str:
    program, _, kind = name.partition(".")
    return f"{program}.port.{kind}" if kind else f"{program}.port"


def _fresh_keys() -> dict[str, str]:
    return {
        "access_key": secrets.token_hex(10),
        "secret_key": secrets.token_urlsafe(30),
        "jwt": secrets.token_urlsafe(30),
    }


def _write(path: Path, value: object) -> None:
    place(path, json.dumps(value, indent=2).encode() + b"\n", owner=users.S3)
