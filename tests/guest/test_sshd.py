"""The runner's SSH server, the real program, with asyncssh on the other side."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncssh
import pytest

from mayfly import tools
from mayfly.build import ssh
from tests.stack_fixture import free_port

HOST_KEY = asyncssh.generate_private_key("ssh-ed25519")
USER_KEY = ssh.new_key()


class Server:
    """The program as an agent has it."""

    def __init__(self, home: Path, host_key: str = HOST_KEY.export_private_key().decode()) -> None:
        self.port = free_port()
        self.process = subprocess.Popen(
            [tools.tools_dir() / "runner-sshd", f"127.0.0.1:{self.port}"],
            env={"HOME": str(home), "PATH": os.environ["PATH"], "GREETING": "hello"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.keys = {"host_key": host_key, "authorized_key": ssh.public_line(USER_KEY)}

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write((line or json.dumps(self.keys)) + "\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    assert server.hear() == "waiting"
    yield server
    server.end()


@pytest.fixture
def server(waiting: Server) -> Server:
    waiting.tell()
    return waiting


@asynccontextmanager
async def login(
    server: Server, key: asyncssh.SSHKey = USER_KEY, user: str = ssh.USER
) -> AsyncIterator[asyncssh.SSHClientConnection]:
    known: tuple[list[asyncssh.SSHKey], list[str], list[str]]
    known = ([HOST_KEY.convert_to_public()], [], [])
    async with asyncssh.connect(
        "127.0.0.1",
        server.port,
        username=user,
        client_keys=[key],
        known_hosts=known,
        config=None,
        agent_path=None,
        encryption_algs=ssh.CIPHERS,
        mac_algs=ssh.MACS,
        kex_algs=ssh.KEX,
    ) as connection:
        yield connection


def test_nobody_hears_a_word_before_it_has_keys(waiting: Server) -> None:
    with socket.create_connection(("127.0.0.1", waiting.port)) as probe:
        probe.settimeout(0.2)
        with pytest.raises(TimeoutError):
            probe.recv(1)
        waiting.tell()
        probe.settimeout(30)
        assert probe.recv(4) == b"SSH-"


async def test_the_first_login_is_told_once(server: Server) -> None:
    for _ in range(2):
        async with login(server):
            pass
    assert server.hear() == "login"
    server.process.kill()
    assert server.hear() == ""


async def test_a_command_has_its_streams_its_environment_and_its_status(server: Server) -> None:
    async with login(server) as connection:
        done = await connection.run("cat; echo $GREETING; echo oops >&2; exit 7", input="in\n")
        assert (done.stdout, done.stderr, done.exit_status) == ("in\nhello\n", "oops\n", 7)
        killed = await connection.run("kill -9 $$")
        assert killed.exit_status == 137
        many = await asyncio.gather(*(connection.run(f"echo {n}") for n in range(8)))
        assert [str(each.stdout).strip() for each in many] == [str(n) for n in range(8)]


async def test_a_command_ends_with_its_connection(server: Server, tmp_path: Path) -> None:
    async with login(server) as connection:
        process = await connection.create_process("echo $$; sleep 600 & wait")
        pid = int(await process.stdout.readline())
        connection.abort()
    for _ in range(500):
        if not Path(f"/proc/{pid}").exists():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it goes on")


async def test_a_unix_socket_is_forwarded_both_ways_and_half_closed(
    server: Server, tmp_path: Path
) -> None:
    there, here = tmp_path / "there.sock", tmp_path / "here.sock"

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answers, after the other side has ended, how much it said."""
        writer.write(str(len(await reader.read())).encode())
        writer.close()

    async with await asyncio.start_unix_server(count, there), login(server) as connection:
        await connection.forward_local_path(str(here), str(there))
        reader, writer = await asyncio.open_unix_connection(here)
        writer.write(bytes(5 << 20))
        writer.write_eof()
        assert await reader.read() == str(5 << 20).encode()
        writer.close()
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection(str(tmp_path / "nothing.sock"))


async def test_nothing_else_is_served(server: Server) -> None:
    async with login(server) as connection:
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("127.0.0.1", server.port)
        with pytest.raises(asyncssh.ChannelListenError):
            await connection.start_server(lambda *_: None, "127.0.0.1", 0)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.start_sftp_client()
        assert (await connection.run("echo still here")).stdout == "still here\n"


@pytest.mark.parametrize("who", ["another key", "another user"])
async def test_another_key_or_user_is_refused(server: Server, who: str) -> None:
    key = ssh.new_key() if who == "another key" else USER_KEY
    user = "root" if who == "another user" else ssh.USER
    with pytest.raises(asyncssh.PermissionDenied):
        async with login(server, key, user):
            pass


@pytest.mark.parametrize("line", ["", "{}", '{"host_key": "x", "authorized_key": "y"}'])
def test_without_good_keys_it_ends(tmp_path: Path, line: str) -> None:
    server = Server(tmp_path)
    assert server.hear() == "waiting"
    if line:
        server.tell(line)
    _, errors = server.process.communicate(timeout=30)
    assert server.process.returncode == 1 and "identity" in errors
