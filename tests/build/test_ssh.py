"""SSH through a relay, against a real SSH server: who is trusted, who gets in, what comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from mayfly.build import ssh
from mayfly.errors import Denied, InfrastructureError, Unreachable
from tests.build.fake_runner import FakeRunner, fake_runner


@asynccontextmanager
async def echo(path: Path) -> AsyncIterator[None]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    try:
        yield
    finally:
        server.close()


@asynccontextmanager
async def runner(tmp_path: Path, key: ssh.Key) -> AsyncIterator[FakeRunner]:
    buildkit = tmp_path / "buildkitd.sock"
    async with echo(buildkit), fake_runner(ssh.public_line(key), buildkit) as there:
        yield there


async def test_a_megabyte_comes_back_through_socket_ssh_and_relay(tmp_path: Path) -> None:
    key = ssh.new_key()
    here = tmp_path / "here.sock"
    async with runner(tmp_path, key) as there, ssh.connect(there.relay(), key) as tunnel:
        await tunnel.forward(here)
        assert await tunnel.alive()
        reader, writer = await asyncio.open_unix_connection(here)
        sent = bytes(range(256)) * 4096
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent
        writer.close()


async def test_a_runner_with_another_host_key_is_refused(tmp_path: Path) -> None:
    key, other = ssh.new_key(), ssh.new_key()
    async with runner(tmp_path, key) as there:
        relay = there.relay(host_key=ssh.public_line(other))
        with pytest.raises(Denied, match="another host key"):
            async with ssh.connect(relay, key):
                pytest.fail("connected to a runner that is not the lease's")


async def test_a_runner_refuses_any_key_but_the_leases(tmp_path: Path) -> None:
    async with runner(tmp_path, ssh.new_key()) as there:
        with pytest.raises(Denied, match="refuses this build's key"):
            async with ssh.connect(there.relay(), ssh.new_key()):
                pytest.fail("logged in with a key that is not the lease's")


async def test_the_users_own_keys_and_hosts_are_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = ssh.new_key(), ssh.new_key()
    dot_ssh = tmp_path / ".ssh"
    dot_ssh.mkdir()
    key.write_private_key(str(dot_ssh / "id_ed25519"))
    (dot_ssh / "config").write_text("Host *\n  PubkeyAuthentication no\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    async with runner(tmp_path, key) as there:
        (dot_ssh / "known_hosts").write_text(f"* {there.host_key}\n")
        with pytest.raises(Denied, match="refuses this build's key"):
            async with ssh.connect(there.relay(), other):
                pytest.fail("logged in with the user's own key")
        with pytest.raises(Denied, match="another host key"):
            async with ssh.connect(there.relay(host_key=ssh.public_line(other)), key):
                pytest.fail("trusted the user's known_hosts")
        async with ssh.connect(there.relay(), key) as tunnel:
            assert await tunnel.alive(), "the user's own configuration changes nothing"


async def test_a_refused_token_and_an_absent_edge_are_told_apart(tmp_path: Path) -> None:
    key = ssh.new_key()
    async with runner(tmp_path, key) as there:
        with pytest.raises(Denied, match="HTTP 403"):
            async with ssh.connect(there.relay(token="stale"), key):
                pytest.fail("the edge was passed without a token")
        there.absent = 1
        with pytest.raises(InfrastructureError, match="HTTP 404"):
            async with ssh.connect(there.relay(), key):
                pytest.fail("there is no such lease")
    with pytest.raises(Unreachable, match="does not answer"):
        async with ssh.connect(there.relay(), key):
            pytest.fail("the edge is gone")


async def test_altered_bytes_end_the_connection(tmp_path: Path) -> None:
    key, count = ssh.new_key(), 0

    def alter(data: bytes) -> bytes:
        nonlocal count
        count += 1
        return data if count < 4 else data[:-1] + bytes([data[-1] ^ 1])

    buildkit = tmp_path / "buildkitd.sock"
    async with (
        echo(buildkit),
        fake_runner(ssh.public_line(key), buildkit, alter) as there,
    ):
        with pytest.raises((Denied, InfrastructureError)):
            async with asyncio.timeout(10), ssh.connect(there.relay(), key) as tunnel:
                await tunnel.forward(tmp_path / "here.sock")
                assert await tunnel.alive() is False
                raise InfrastructureError("seen")


async def test_a_connection_that_falls_silent_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a network that drops everything: nothing is closed, and nothing comes any more."""
    monkeypatch.setattr(ssh, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(ssh, "KEEPALIVES_LOST", 3)
    key, buildkit, dropping = ssh.new_key(), tmp_path / "buildkitd.sock", False

    def alter(data: bytes) -> bytes:
        return b"" if dropping else data

    async with (
        echo(buildkit),
        fake_runner(ssh.public_line(key), buildkit, alter) as there,
        ssh.connect(there.relay(), key) as tunnel,
    ):
        await asyncio.sleep(1)
        assert not tunnel.lost.is_set(), "an idle connection is kept"
        dropping = True
        async with asyncio.timeout(5):
            await tunnel.lost.wait()
        assert not await tunnel.alive()


async def test_a_lost_runner_is_not_alive(tmp_path: Path) -> None:
    key = ssh.new_key()
    async with runner(tmp_path, key) as there, ssh.connect(there.relay(), key) as tunnel:
        assert await tunnel.alive()
        await there.cut()
        assert not await tunnel.alive()
        assert tunnel.lost.is_set()


async def test_a_runner_whose_buildkit_is_gone_is_not_alive(tmp_path: Path) -> None:
    key = ssh.new_key()
    async with (
        fake_runner(ssh.public_line(key), tmp_path / "nobody.sock") as there,
        ssh.connect(there.relay(), key) as tunnel,
    ):
        assert not await tunnel.alive()


async def test_the_cheapest_cipher_for_a_guest_is_chosen(tmp_path: Path) -> None:
    key = ssh.new_key()
    async with runner(tmp_path, key) as there, ssh.connect(there.relay(), key):
        connection: asyncssh.SSHServerConnection = there.connections[0]
        assert connection.get_extra_info("recv_cipher") == "aes128-ctr"
        assert connection.get_extra_info("recv_mac") == "hmac-sha2-256-etm@openssh.com"
