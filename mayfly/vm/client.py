"""How other programs speak to the host: one class for each of its two sockets."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from mayfly.errors import Unreachable
from mayfly.model import Runner, RunnerSpec
from mayfly.usage import Evidence, evidence_from_json
from mayfly.vm.protocol import (
    READ_BYTES,
    Message,
    check,
    decode,
    encode,
    runner_from_json,
    spec_to_json,
)
from mayfly.vm.provider import Progress


def _silent(line: str) -> None:
    """Progress that nobody asked for."""


class _Client:
    def __init__(self, path: Path) -> None:
        self._path = path

    async def _call(
        self, request: Message, progress: Progress = _silent
    ) -> tuple[Message, list[int]]:
        """Send one request, pass progress on, return the answer with the descriptors it carried.

        Raises `Unreachable` when the host does not answer, and whatever error it reports.
        """
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.setblocking(False)
            try:
                await loop.sock_connect(connection, str(self._path))
                await loop.sock_sendall(connection, encode(request))
                buffer, fds = b"", list[int]()
                while True:
                    line, newline, rest = buffer.partition(b"\n")
                    if newline:
                        buffer = rest
                        message = decode(line)
                        if "progress" in message:
                            progress(str(message["progress"]))
                            continue
                        return check(message), fds
                    await _readable(loop, connection)
                    data, received, _, _ = socket.recv_fds(connection, READ_BYTES, 1)
                    fds.extend(received)
                    if not data:
                        raise Unreachable("the host program closed the connection")
                    buffer += data
            except OSError as error:
                raise Unreachable(
                    f"the host program does not answer at {self._path}: {error.strerror or error}",
                    hint="start it with `mayfly up`",
                ) from None

    async def list(self) -> tuple[Runner, ...]:
        """Every VM of this machine."""
        answer, _ = await self._call({"op": "list"})
        return tuple(runner_from_json(item) for item in answer["runners"])


async def _readable(loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    loop.add_reader(connection, wake)
    try:
        await future
    finally:
        loop.remove_reader(connection)


class ControlClient(_Client):
    """Makes and unmakes runners. For the orchestrator, and for root."""

    async def about(self) -> Message:
        """What this machine is: `accelerator`, `qemu_version`, `golden`, `template`, `cpus`, …"""
        answer, _ = await self._call({"op": "about"})
        return answer

    async def prepare(self, progress: Progress) -> None:
        """Make the template; returns at once when it is there."""
        await self._call({"op": "prepare"}, progress)

    async def create(self, spec: RunnerSpec) -> Runner:
        """Make a runner and return it ready; nothing is left of one that failed."""
        answer, _ = await self._call({"op": "create", **spec_to_json(spec)})
        return runner_from_json(answer["runner"])

    async def destroy(self, runner: str) -> None:
        """Unmake a runner; returns silently when there is none of that name."""
        await self._call({"op": "destroy", "runner": runner})

    async def usage(self, runner: str, *, final: bool) -> Evidence | None:
        """What a runner has used; None when there is none of that name."""
        answer, _ = await self._call({"op": "usage", "runner": runner, "final": final})
        return evidence_from_json(answer["evidence"]) if answer["evidence"] else None

    async def grow(self, runner: str, memory_bytes: int) -> None:
        """Give a runner that much memory in all. Raises `NotFound` when there is none."""
        await self._call({"op": "grow", "runner": runner, "memory_bytes": memory_bytes})

    async def authorize(self, runner: str, public_key: str) -> None:
        """Let one more key into a runner. Raises `NotFound` when there is none of that name."""
        await self._call({"op": "authorize", "runner": runner, "public_key": public_key})


class DialClient(_Client):
    """Ways into runners' namespaces, as sockets. For the edge, and for root."""

    async def dial(self, runner: str) -> socket.socket:
        """A connected, non-blocking socket to the runner's SSH server.

        Raises `NotFound` when there is no such runner.
        """
        return await self._socket({"op": "dial", "runner": runner})

    async def listen(self, runner: str) -> socket.socket:
        """A listening socket that the runner reaches as the registry's address.

        It stays good until the runner is destroyed; then nothing connects to it any more.
        Raises `NotFound` when there is no such runner, `InfrastructureError` when another
        listener has it.
        """
        return await self._socket({"op": "listen", "runner": runner})

    async def _socket(self, request: Message) -> socket.socket:
        _, fds = await self._call(request)
        if len(fds) != 1:
            raise Unreachable("the host program sent no socket")
        result = socket.socket(fileno=fds[0])
        result.setblocking(False)
        return result
