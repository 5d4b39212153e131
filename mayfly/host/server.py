"""The host's two sockets: `host.sock` makes and unmakes runners, `dial.sock` hands out sockets.

Each belongs to the one uid that may use it (mode 0600), and the kernel's word on who is at the
other end (SO_PEERCRED, unix(7)) is checked as well. So the edge, which faces the world, can
neither make a runner nor destroy one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import structlog

from mayfly import golden
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MayflyError, UsageError
from mayfly.host import cgroup, machine, network, template
from mayfly.host.cgroup import Groups
from mayfly.host.machine import Machine
from mayfly.host.relief import FULL_BYTES
from mayfly.host.runners import Runners
from mayfly.host.seal import Seals
from mayfly.usage import evidence_to_json
from mayfly.vm.protocol import (
    MAX_LINE,
    READ_BYTES,
    Message,
    decode,
    encode,
    failure,
    runner_to_json,
    spec_from_json,
)
from mayfly.vm.provider import Progress

log = structlog.get_logger("host")

REQUEST_TIMEOUT_S = 10
"""How long a peer may take to send its one line."""

MIND_S = 1.0
"""How often to see whether the disk is full."""

LOOK_ANYWAY = 30
"""In every so many rounds runners are asked although there is room: it may have been full since."""

Operation = Callable[[Message, Progress], Awaitable[tuple[Message, socket.socket | None]]]


class Host:
    """The operations, by name, over this machine's runners and templates."""

    def __init__(self, config: Config, found: Machine) -> None:
        self._config = config
        self._machine = found
        self._groups = Groups.open(network.tag(config), config.pool.cpu_weight)
        self._runners = Runners(config, found, self._groups)
        self._making = asyncio.Lock()
        self._seals = Seals()
        self._waiting: list[Progress] = []
        self.control: Mapping[str, Operation] = {
            "about": self._about,
            "prepare": self._prepare,
            "create": self._create,
            "destroy": self._destroy,
            "grow": self._grow,
            "authorize": self._authorize,
            "usage": self._usage,
            "list": self._list,
        }
        self.dial: Mapping[str, Operation] = {
            "list": self._list,
            "dial": self._dial,
            "listen": self._listen,
        }

    async def start(self) -> None:
        """Open the machine's network and take over the VMs that live."""
        if self._groups.tree.missing:
            log.warning("runners are fenced in less", reason=cgroup.words(self._groups.tree))
        await self._runners.fence.open()
        await self._runners.adopt()

    async def mind(self) -> None:
        """Keep runners from standing still because the disk is full; for ever."""
        full_before, rounds = False, 0
        while True:
            full = full_before
            try:
                full = shutil.disk_usage(self._config.state / "vms").free < FULL_BYTES
                if full or full_before or rounds % LOOK_ANYWAY == 0:
                    await self._runners.relieve()
            except (MayflyError, OSError) as error:
                log.warning("a full disk is not relieved", error=str(error) or repr(error))
            full_before, rounds = full, rounds + 1
            await asyncio.sleep(MIND_S)

    async def _about(self, request: Message, progress: Progress) -> tuple[Message, None]:
        image = golden.newest(self._config.state)
        current = template.current(self._config, self._machine)
        found = self._machine
        return {
            "accelerator": found.accelerator,
            "accelerator_reason": found.reason,
            "qemu_version": found.qemu,
            "cores": found.cores,
            "memory_bytes": found.memory_bytes,
            "sizes": [s.name for s in machine.room(self._config, found).fitting],
            "template": current.key if current else None,
            "golden": image
            and {
                "name": image.name,
                "digest": image.digest,
                "created_at": image.created_at.isoformat(),
            },
        }, None

    async def _prepare(self, request: Message, progress: Progress) -> tuple[Message, None]:
        made = await self._template(progress)
        return {"template": made.key}, None

    async def _template(self, progress: Progress) -> template.Template:
        """The template, made by the first who asks; everyone who waits hears how it goes."""
        self._waiting.append(progress)
        try:
            async with self._making:
                made = await template.ensure(self._config, self._machine, self._tell, self._seals)
                for key in template.prune(self._config, {made.key, *self._runners.templates}):
                    log.info("template removed", template=key)
                return made
        finally:
            self._waiting.remove(progress)

    def _tell(self, line: str) -> None:
        log.info(line)
        for progress in self._waiting:
            progress(line)

    async def _create(self, request: Message, progress: Progress) -> tuple[Message, None]:
        try:
            spec = spec_from_json(request)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"not a runner's specification: {error!r}") from None
        made = await self._template(progress)
        runner = await self._runners.create(spec, made)
        return {"runner": runner_to_json(runner)}, None

    async def _destroy(self, request: Message, progress: Progress) -> tuple[Message, None]:
        await self._runners.destroy(_name(request))
        return {}, None

    async def _grow(self, request: Message, progress: Progress) -> tuple[Message, None]:
        wanted = request.get("memory_bytes")
        if not isinstance(wanted, int) or not 0 < wanted <= self._machine.memory_bytes:
            raise UsageError("`memory_bytes` must be a number, and this machine must have them")
        await self._runners.grow(_name(request), wanted)
        return {}, None

    async def _authorize(self, request: Message, progress: Progress) -> tuple[Message, None]:
        key = request.get("public_key")
        if not isinstance(key, str) or not (key.isascii() and key.isprintable()):
            raise UsageError("`public_key` must be an OpenSSH public key line")
        await self._runners.authorize(_name(request), key)
        return {}, None

    async def _usage(self, request: Message, progress: Progress) -> tuple[Message, None]:
        final = request.get("final") is True
        evidence = await self._runners.usage(_name(request), final=final)
        return {"evidence": evidence and evidence_to_json(evidence)}, None

    async def _list(self, request: Message, progress: Progress) -> tuple[Message, None]:
        return {"runners": [runner_to_json(r) for r in self._runners.list()]}, None

    async def _dial(self, request: Message, progress: Progress) -> tuple[Message, socket.socket]:
        return {}, await self._runners.dial(_name(request))

    async def _listen(self, request: Message, progress: Progress) -> tuple[Message, socket.socket]:
        return {}, self._runners.listen(_name(request))


def _name(request: Message) -> str:
    name = request.get("runner")
    if not isinstance(name, str):
        raise UsageError("`runner` must be a name")
    return name


async def serve(path: Path, *, uid: int, operations: Mapping[str, Operation]) -> None:
    """Answer at the unix socket `path` for `uid` and root, until cancelled."""
    path.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX) as server:
        mask = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(mask)
        os.chown(path, uid, uid)
        server.listen(128)
        server.setblocking(False)
        async with asyncio.TaskGroup() as tasks:
            while True:
                connection, _ = await loop.sock_accept(server)
                tasks.create_task(_answer(connection, uid, operations))


async def _answer(connection: socket.socket, uid: int, operations: Mapping[str, Operation]) -> None:
    """One request and its answer. The work goes on when the peer hangs up meanwhile."""
    loop = asyncio.get_running_loop()
    pending: list[bytes] = []
    wake = asyncio.Event()

    def progress(line: str) -> None:
        pending.append(encode({"progress": line}))
        wake.set()

    async def forward() -> None:
        while True:
            await wake.wait()
            wake.clear()
            while pending:
                await loop.sock_sendall(connection, pending.pop(0))

    with connection, contextlib.suppress(OSError):
        connection.setblocking(False)
        fd_to_send: socket.socket | None = None
        forwarding = asyncio.create_task(forward())
        try:
            _check_peer(connection, uid)
            request = decode(await asyncio.wait_for(_line(connection), REQUEST_TIMEOUT_S))
            operation = operations.get(str(request.get("op")))
            if operation is None:
                raise UsageError(f"there is no operation {str(request.get('op'))[:40]!r} here")
            answer, fd_to_send = await operation(request, progress)
            reply = encode({"ok": True, **answer})
        except MayflyError as error:
            reply = encode(failure(error))
        except TimeoutError:
            reply = encode(failure(InfrastructureError("no request came")))
        except Exception as error:
            log.exception("an operation failed unexpectedly")
            reply = encode(failure(InfrastructureError(f"internal: {type(error).__name__}")))
        finally:
            forwarding.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await forwarding
        for line in pending:
            await loop.sock_sendall(connection, line)
        if fd_to_send is None:
            await loop.sock_sendall(connection, reply)
        else:
            with fd_to_send:
                socket.send_fds(connection, [reply], [fd_to_send.fileno()])


def _check_peer(connection: socket.socket, uid: int) -> None:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, peer, _ = struct.unpack("3i", packed)
    if peer not in (0, uid):
        raise UsageError(f"uid {peer} may not use this socket")


async def _line(connection: socket.socket) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while not data.endswith(b"\n"):
        more = await loop.sock_recv(connection, READ_BYTES)
        if not more:
            raise InfrastructureError("the peer hung up")
        data += more
        if len(data) > MAX_LINE:
            raise InfrastructureError(f"a request is over {MAX_LINE} bytes")
    return data
