"""The embedded S3 service: on loopback only, its ports kept, its data safe from a kill."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from mayfly import users
from mayfly.registry import bucket
from mayfly.stack import lifecycle, seaweed
from tests.stack_fixture import Stack, curl


def test_ports_are_chosen_once(tmp_path: Path) -> None:
    chosen = seaweed.ports(tmp_path)
    assert set(chosen) == set(seaweed.PORTS)
    assert len(set(chosen.values())) == len(seaweed.PORTS)
    assert max(chosen.values()) < 32_768, "in the range of outgoing connections"
    assert seaweed.ports(tmp_path) == chosen


def test_everything_listens_on_loopback_and_nothing_phones_home() -> None:
    ports = dict.fromkeys(seaweed.PORTS, 1)
    argv = seaweed.argv(Path("/weed"), Path("/s3"), ports)
    assert {"-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false"} <= set(argv)
    assert "-master.volumePreallocate=false" in argv


@pytest.mark.services
def test_all_its_ports_are_on_loopback(stack: Stack) -> None:
    listening = subprocess.check_output(["ss", "-Hltn"], text=True)
    for number in seaweed.ports(seaweed.folder(stack.config)).values():
        at = [line.split()[3] for line in listening.splitlines() if f":{number} " in line]
        assert at == [f"127.0.0.1:{number}"]


def ask_without_certificate(port: int) -> bytes:
    """What a gRPC port answers to somebody of this machine."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        context.wrap_socket(plain) as secured,
    ):
        return secured.recv(100)


@pytest.mark.services
def test_without_keys_every_port_refuses(stack: Stack) -> None:
    bucket.client(stack.s3).put_object(Bucket="mayfly", Key="secret", Body=b"hush")
    ports = seaweed.ports(seaweed.folder(stack.config))
    paths = {
        "s3": "/mayfly/secret",
        "filer": "/buckets/mayfly/secret",
        "master": "/col/delete?collection=mayfly",
        "volume": "/1,0123456789",
    }
    for name, path in paths.items():
        answer = curl(f"http://127.0.0.1:{ports[name]}{path}")
        assert answer.status in ((401,) if name == "volume" else (403, 404)), name
        assert "hush" not in answer.body
    for name in ("master.grpc", "volume.grpc", "filer.grpc", "s3.grpc"):
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            ask_without_certificate(ports[name])
    got = bucket.client(stack.s3).get_object(Bucket="mayfly", Key="secret")["Body"].read()
    assert got == b"hush"


@pytest.mark.services
def test_what_was_written_survives_a_kill(stack: Stack) -> None:
    data = os.urandom(3_000_000)
    bucket.client(stack.s3).put_object(Bucket="mayfly", Key="kept", Body=data)
    status = lifecycle.running(stack.config)
    assert status is not None
    (pid,) = [service.pid for service in status.services if service.name == "s3"]
    stack.lines.clear()
    os.kill(pid, signal.SIGKILL)
    stack.wait_for("s3: serves again")
    bucket.ensure(stack.s3)
    assert bucket.client(stack.s3).get_object(Bucket="mayfly", Key="kept")["Body"].read() == data


@pytest.mark.services
def test_it_writes_in_its_own_folder_only(stack: Stack) -> None:
    place = seaweed.folder(stack.config)
    files = {"identities.json", "inner.crt", "inner.key", "keys.json", "ports.json"}
    assert {entry.name for entry in place.iterdir()} == files | {"data", "security.toml"}
    assert (place.stat().st_uid, place.stat().st_mode & 0o7777) == (0, 0o711)
    for file in (place / name for name in files | {"security.toml"}):
        assert (file.stat().st_uid, file.stat().st_mode & 0o7777) == (users.S3, 0o600), file
    assert seaweed.data(stack.config).stat().st_uid == users.S3


@pytest.mark.services
def test_it_leaves_nothing_in_tmp(stack: Stack) -> None:
    port = seaweed.ports(seaweed.folder(stack.config))["filer.grpc"]
    with socket.create_connection(("127.0.0.1", port)):
        assert not list(Path("/tmp").glob(f"seaweedfs*{port}*"))
