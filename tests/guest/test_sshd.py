"""The runner's SSH server, the real program, with asyncssh on the other side."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
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


async def test_a_key_that_is_told_later_may_log_in_as_well(server: Server) -> None:
    another = ssh.new_key()
    with pytest.raises(asyncssh.PermissionDenied):
        async with login(server, another):
            pass
    for line in ("nonsense", json.dumps({"authorized_key": "x"}), "{}"):
        server.tell(line)
    server.tell(json.dumps({"authorized_key": ssh.public_line(another)}))
    async with asyncio.timeout(10):
        while True:
            with suppress(asyncssh.PermissionDenied):
                async with login(server, another) as connection:
                    assert (await connection.run("echo in")).stdout == "in\n"
                    break
    async with login(server):
        pass


async def test_no_more_than_sixteen_keys_are_taken(server: Server) -> None:
    keys = [ssh.new_key() for _ in range(17)]
    for key in keys:
        server.tell(json.dumps({"authorized_key": ssh.public_line(key)}))
    assert server.process.stderr is not None
    for _ in range(2):  # the lease's own is one of the sixteen
        assert "as many keys as there can be" in server.process.stderr.readline()
    async with login(server, keys[14]):
        pass
    with pytest.raises(asyncssh.PermissionDenied):
        async with login(server, keys[15]):
            pass


async def test_a_terminal_has_its_name_its_size_and_a_new_one_when_that_changes(
    server: Server,
) -> None:
    async with login(server) as connection:
        process = await connection.create_process(
            "tty; echo $TERM; stty size; read x; stty size; exit 9",
            term_type="mayfly-256",
            term_size=(132, 43),
        )
        said = [(await process.stdout.readline()).strip() for _ in range(3)]
        assert said[0].startswith("/dev/pts/")
        assert said[1:] == ["mayfly-256", "43 132"]
        process.change_terminal_size(80, 25)
        process.stdin.write("go on\n")
        rest = (await process.stdout.read()).split("\r\n")
        assert rest == ["go on", "25 80", ""]  # what is typed is echoed
        await process.wait_closed()
        assert process.exit_status == 9


async def test_a_terminals_interrupt_key_reaches_the_command(server: Server) -> None:
    async with login(server) as connection:
        process = await connection.create_process(
            "trap 'exit 3' INT; echo ready; while :; do sleep 0.1; done", term_type="vt100"
        )
        assert (await process.stdout.readline()).strip() == "ready"
        process.stdin.write("\x03")
        await process.wait_closed()
        assert process.exit_status == 3


async def test_a_shell_on_a_terminal_ends_with_what_is_typed(server: Server) -> None:
    async with login(server) as connection:
        process = await connection.create_process(term_type="vt100")
        process.stdin.write("exit 5\n")
        await process.wait_closed()
        assert process.exit_status == 5


async def test_what_a_command_leaves_running_keeps_nobody_waiting(server: Server) -> None:
    async with login(server) as connection:
        done = await connection.run("sleep 600 & echo $!; exit 6", timeout=60)
        assert done.exit_status == 6
        left = Path(f"/proc/{str(done.stdout).strip()}")
        async with asyncio.timeout(10):
            while left.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_signal_reaches_the_command(server: Server) -> None:
    async with login(server) as connection:
        process = await connection.create_process(
            "trap 'exit 4' TERM; sleep 600 & echo ready; wait"
        )
        assert (await process.stdout.readline()).strip() == "ready"
        process.send_signal("TERM")
        await process.wait_closed()
        assert process.exit_status == 4


async def test_a_command_is_not_as_urgent_as_the_server(waiting: Server) -> None:
    os.setpriority(os.PRIO_PROCESS, waiting.process.pid, -5)
    for task in Path(f"/proc/{waiting.process.pid}/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(task.name), -5)
    waiting.tell()
    async with login(waiting) as connection:
        assert (await connection.run("sleep 0.1; nice")).stdout == "0\n"


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
