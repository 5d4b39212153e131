"""The relay's WebSocket is the runner's TCP stream: whole, in order, both ways, until it ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import asyncssh
import pytest
from aiohttp import web

from mayfly import users
from mayfly.config import Config
from mayfly.edge.app import Edge, serving
from mayfly.registry import grants
from mayfly.registry.tokens import Signer
from mayfly.stack import secrets
from tests.stack_fixture import FakeHost, free_port


@dataclass
class Here:
    """An edge in this process (without TLS), and a host whose runners are sockets."""

    url: str
    host: FakeHost
    edge: Edge
    signer: Signer
    session: aiohttp.ClientSession

    def token(self, lease: str, life_s: float = 60, attempt: int = 1) -> str:
        now = datetime.now(UTC)
        return self.signer.runner_token(
            lease, attempt, (), deadline=now + timedelta(seconds=life_s), now=now
        )

    def persons_token(self) -> str:
        return self.signer.registry_token("admin", grants.EVERYTHING, now=datetime.now(UTC))

    async def connect(self, lease: str, token: str = "") -> aiohttp.ClientWebSocketResponse:
        bearer = {"Authorization": f"Bearer {token or self.token(lease)}"}
        return await self.session.ws_connect(
            f"{self.url}/v1/leases/{lease}/ssh", headers=bearer, max_msg_size=0
        )

    async def runner(self, lease: str, port: int) -> None:
        self.host.add(f"{lease}-1", port)
        await self.edge.runners.attach(f"{lease}-1")


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    config = Config(state=tmp_path)
    users.make_folders(tmp_path)
    secrets.ensure(config, datetime.now(UTC))
    host, port = FakeHost(), free_port()
    signer = Signer((tmp_path / "keys" / "lease.key").read_bytes())
    async with (
        Edge(config, host.dialer(), None) as edge,
        serving(edge.public(), lambda runner: web.TCPSite(runner, "127.0.0.1", port)),
        aiohttp.ClientSession() as session,
    ):
        yield Here(f"http://127.0.0.1:{port}", host, edge, signer, session)


async def server(answer: object) -> int:
    """A TCP server with `answer(reader, writer)`; its port."""
    started = await asyncio.start_server(answer, "127.0.0.1", 0)  # type: ignore[arg-type]
    return int(started.sockets[0].getsockname()[1])


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_a_hundred_megabytes_come_back_as_they_went(here: Here) -> None:
    await here.runner("abc", await server(echo))
    size, chunk = 100_000_000, 200_000
    sent, got = hashlib.sha256(), hashlib.sha256()
    async with await here.connect("abc") as socket:

        async def send() -> None:
            for _ in range(size // chunk):
                data = os.urandom(chunk)
                sent.update(data)
                await socket.send_bytes(data)

        sending, count = asyncio.create_task(send()), 0
        while count < size:
            data = await socket.receive_bytes(timeout=30)
            count += len(data)
            got.update(data)
        await sending
    assert (count, got.digest()) == (size, sent.digest())


async def test_ssh_works_through_it(here: Here) -> None:
    class Server(asyncssh.SSHServer):
        def begin_auth(self, username: str) -> bool:
            return False

    async def process(process: asyncssh.SSHServerProcess[str]) -> None:
        process.stdout.write(f"{process.command} {await process.stdin.read()}")
        process.exit(7)

    key = asyncssh.generate_private_key("ssh-ed25519")
    listener = await asyncssh.listen(
        "127.0.0.1", 0, server_factory=Server, server_host_keys=[key], process_factory=process
    )
    await here.runner("abc", listener.get_port())

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with await here.connect("abc") as socket:

            async def back() -> None:
                async for message in socket:
                    writer.write(message.data)

            returning = asyncio.create_task(back())
            while data := await reader.read(65536):
                await socket.send_bytes(data)
            await socket.close()
            await returning
            writer.close()

    async with asyncssh.connect(
        "127.0.0.1",
        await server(carry),
        username="build",
        known_hosts=([key.convert_to_public()], [], []),
    ) as connection:
        done = await connection.run("hello", input="there" * 100_000)
    assert (done.stdout, done.exit_status) == ("hello " + "there" * 100_000, 7)
    listener.close()


async def test_what_the_runner_said_last_arrives_before_the_end(here: Here) -> None:
    async def last_words(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 3_000_000)
        writer.close()

    await here.runner("abc", await server(last_words))
    async with await here.connect("abc") as socket:
        data = b"".join([message.data async for message in socket])
        assert (len(data), socket.close_code) == (3_000_000, aiohttp.WSCloseCode.OK)


async def test_what_the_client_said_last_arrives_before_the_end(here: Here) -> None:
    got: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.3)  # slower than the client
        got.set_result(len(await reader.read(-1)))
        writer.close()

    await here.runner("abc", await server(count))
    async with await here.connect("abc") as socket:
        for _ in range(30):
            await socket.send_bytes(b"x" * 100_000)
    assert await asyncio.wait_for(got, 10) == 3_000_000


async def test_a_slow_runner_slows_the_client_down(here: Here) -> None:
    hold = asyncio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await hold.wait()
        writer.close()

    await here.runner("abc", await server(stuck))
    async with await here.connect("abc") as socket:
        sent = 0

        async def send() -> None:
            nonlocal sent
            while True:
                await socket.send_bytes(b"x" * 100_000)
                sent += 100_000

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(send(), 2)
        assert sent < 40_000_000, "the relay keeps what the runner does not take"
        hold.set()


async def test_an_answer_takes_about_no_time(here: Here) -> None:
    await here.runner("abc", await server(echo))
    loop = asyncio.get_running_loop()
    took = []
    async with await here.connect("abc") as socket:
        for _ in range(200):
            began = loop.time()
            await socket.send_bytes(b"x")
            await socket.receive_bytes()
            took.append(loop.time() - began)
    # Nagle's algorithm on either side would make each of them 40 ms.
    assert sorted(took)[50] < 0.02


async def test_detaching_cuts_what_is_open_and_keeps_out_what_comes(here: Here) -> None:
    await here.runner("abc", await server(echo))
    async with await here.connect("abc") as socket:
        await socket.send_bytes(b"x")
        await socket.receive_bytes()
        await asyncio.wait_for(here.edge.runners.detach("abc-1"), 10)
        assert (await socket.receive(timeout=5)).type is not aiohttp.WSMsgType.BINARY
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        await here.connect("abc")
    assert caught.value.status == 404


async def test_the_deadline_cuts_it(here: Here) -> None:
    await here.runner("abc", await server(echo))
    async with await here.connect("abc", here.token("abc", 6)) as socket:
        message = await socket.receive(timeout=60)
        assert message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)


async def test_text_is_refused(here: Here) -> None:
    await here.runner("abc", await server(echo))
    async with await here.connect("abc") as socket:
        await socket.send_str("hello")
        assert (await socket.receive(timeout=5)).data == aiohttp.WSCloseCode.UNSUPPORTED_DATA


async def test_a_frame_without_bound_is_refused(here: Here) -> None:
    await here.runner("abc", await server(echo))
    async with await here.connect("abc") as socket:
        await socket.send_bytes(bytes(2_000_000))
        assert (await socket.receive(timeout=5)).data == aiohttp.WSCloseCode.MESSAGE_TOO_BIG


async def test_who_may_not_is_told_before_anything_is_upgraded(here: Here) -> None:
    await here.runner("abc", await server(echo))
    await here.runner("def", free_port())
    wrong = {
        "none": ("abc", "Basic x", 401, "denied"),
        "garbage": ("abc", "Bearer x", 401, "denied"),
        "another lease's": ("def", f"Bearer {here.token('abc')}", 403, "denied"),
        "expired": ("abc", f"Bearer {here.token('abc', -1)}", 401, "denied"),
        "another attempt's": ("abc", f"Bearer {here.token('abc', attempt=2)}", 404, "usage"),
        "a person's": (
            "abc",
            f"Bearer {here.persons_token()}",
            403,
            "denied",
        ),
        "nobody listens": ("def", f"Bearer {here.token('def')}", 503, "infrastructure"),
    }
    for what, (lease, bearer, status, code) in wrong.items():
        async with here.session.get(
            f"{here.url}/v1/leases/{lease}/ssh", headers={"Authorization": bearer}
        ) as answer:
            assert answer.status == status, what
            assert (await answer.json())["error"]["code"] == code, what
