"""Who gets in: the user of a socket, the holder of a builder's certificate, and nobody else."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from mayfly import users
from mayfly.builders import door
from mayfly.builders.door import SocketDoor, TlsDoor
from mayfly.builders.service import Builders
from mayfly.builders.session import Session
from mayfly.config import Config
from mayfly.errors import InfrastructureError, Terminated
from mayfly.orchestrator import reconcile
from mayfly.stack import secrets
from tests.builders.relayed import Relayed, relayed
from tests.orchestrator.leases import LADDER, Farm, farm
from tests.stack_fixture import free_port


@pytest.fixture
async def f(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    """A farm with the state's keys, which serves builders by TLS at a free port."""
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)
    config = Config.model_validate(
        {
            "state": tmp_path,
            "ladder": LADDER,
            "pool": {"memory_gb": 4},
            "server": {"name": "localhost"},
            "builders": {"listen": f"127.0.0.1:{free_port()}", "linger_s": 0},
        }
    )
    users.make_folders(tmp_path)
    secrets.ensure(config, datetime.now(UTC))
    async with farm(config) as running:
        running.clock.now = datetime.now(UTC)  # as TLS has it
        yield running


@pytest.fixture
async def api(f: Farm, tmp_path: Path) -> AsyncIterator[Relayed]:
    async with relayed(f, tmp_path) as there:
        yield there


@pytest.fixture
async def served(f: Farm, api: Relayed) -> AsyncIterator[Builders]:
    builders = Builders(f.config, api)
    await builders.follow(await f.api.builders())
    yield builders
    await builders.close(Terminated("the test is over"))


async def said(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, text: bytes = b"hello"
) -> bytes:
    """What comes back to `text`; empty when the connection is closed instead."""
    try:
        writer.write(text)
        async with asyncio.timeout(60):
            return await reader.read(65536)
    except TimeoutError:  # an OSError, and no answer
        raise
    except OSError:
        return b""
    finally:
        writer.close()


async def at(path: Path) -> bytes:
    return await said(*await asyncio.open_unix_connection(path))


class Holder:
    """A client with a key of its own, and the certificate that the farm gave it for a builder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())

    @property
    def public(self) -> str:
        return (
            self.key.public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
            .decode()
        )

    def context(self, certificate: str, ca: str) -> ssl.SSLContext:
        made = ssl.create_default_context(cadata=ca)
        if certificate:
            pem = self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            (self.folder / "both.pem").write_bytes(pem + certificate.encode())
            made.load_cert_chain(self.folder / "both.pem")
        return made


async def by_tls(f: Farm, tls: ssl.SSLContext) -> bytes:
    try:
        opened = await asyncio.open_connection(
            "127.0.0.1", f.config.builders.port, ssl=tls, server_hostname="localhost"
        )
    except OSError:  # with TLS 1.3 a refusal may also come with the first read
        return b""
    return await said(*opened)


async def test_a_socket_is_its_users_and_roots(
    f: Farm, served: Builders, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await f.api.make_builder("mine", "team/app", uid=1000)
    path = Path(made["builder"]["address"].removeprefix("unix://"))
    path.parent.mkdir(exist_ok=True)
    path.write_text("what an earlier program left")
    await served.follow(await f.api.builders())
    assert await at(path) == b"hello"
    for uid, answer in ((1000, b"hello"), (1001, b"")):
        monkeypatch.setattr(door, "_peer", lambda _, uid=uid: uid)
        assert await at(path) == answer
    leases = len(f.ledger.recent(9))
    await f.api.remove_builder("mine")
    await served.follow(await f.api.builders())
    assert not path.exists()
    assert len(f.ledger.recent(9)) == leases


async def test_the_kernel_tells_who_is_there(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert door._peer(ours) == os.getuid()


async def test_a_path_that_no_socket_can_have_is_said(tmp_path: Path, api: Relayed) -> None:
    (tmp_path / "there").mkdir()
    session = Session({"name": "x"}, api, 1)  # type: ignore[typeddict-item]
    with pytest.raises(InfrastructureError, match="cannot listen at"):
        await SocketDoor(session, tmp_path / "there").open()
    with pytest.raises(InfrastructureError, match="cannot listen at"):
        await SocketDoor(session, tmp_path / ("x" * 200)).open()


async def test_a_certificate_opens_its_builder_until_that_is_removed(
    f: Farm, api: Relayed, served: Builders, tmp_path: Path
) -> None:
    one, other = Holder(tmp_path), Holder(tmp_path)
    made = await f.api.make_builder("away", "team/away", public_key=one.public)
    assert made["builder"]["address"] == f"tcp://localhost:{f.config.builders.port}"
    tls = one.context(made["certificate"], made["ca"])
    assert await by_tls(f, tls) == b""  # not heard of yet
    await served.follow(await f.api.builders())
    assert await by_tls(f, tls) == b"hello"
    (lease,) = f.ledger.recent(9)
    assert lease.request.repo == "team/away"
    # Nobody without a certificate, and nobody with one of another authority's or another's key.
    assert await by_tls(f, other.context("", made["ca"])) == b""
    foreign = (f.config.state / "ca" / "edge.crt").read_text()
    stranger = ssl.create_default_context(cadata=made["ca"])
    (tmp_path / "edge.pem").write_text(foreign + (f.config.state / "ca" / "edge.key").read_text())
    stranger.load_cert_chain(tmp_path / "edge.pem")
    assert await by_tls(f, stranger) == b""
    # Made again under the same name, it has another certificate; the old one opens nothing.
    await f.api.remove_builder("away")
    again = await f.api.make_builder("away", "team/away", public_key=other.public)
    await served.follow(await f.api.builders())
    assert await by_tls(f, tls) == b""
    assert await by_tls(f, other.context(again["certificate"], again["ca"])) == b"hello"


async def test_a_port_that_is_taken_is_told_once_and_tried_again(
    f: Farm, capsys: pytest.CaptureFixture[str]
) -> None:
    authority = (await f.api.builders())["authority"]
    tls = TlsDoor(f.config.builders.listen, f.config.state / "ca", {})
    with socket.socket() as other:
        other.bind(("127.0.0.1", f.config.builders.port))
        other.listen()
        for _ in range(2):
            await tls.open(authority)
    assert capsys.readouterr().out.count("builders are not served by TLS") == 1
    await tls.open(authority)
    assert "builders are served by TLS" in capsys.readouterr().out
    tls.close()
