"""A runner of the bench's own, with the time of each thing on the way to it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from mayfly import client
from mayfly.build import buildx, ssh
from mayfly.build.holding import held, ready
from mayfly.build.stop import stoppable
from mayfly.config import Config
from mayfly.errors import InfrastructureError
from mayfly.model import LeaseRequest, Outcome, Size
from mayfly.tools import tools_dir

REPO = "bench/python-web"
GONE_S = 30.0
VERIFIED = "Completed key exchange"
"""What asyncssh logs once the server has proved that it holds the pinned host key."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is ready, and what opens its runner.

    `asked_at` is when it was asked for (`time.monotonic()`), `ready_s` the seconds from then until
    the answer that it is ready, `phases_s` its `timings_s`.
    """

    name: str
    relay: ssh.Relay
    key: ssh.Key
    asked_at: float
    ready_s: float
    phases_s: dict[str, float]


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner that we are logged in to, BuildKit's socket forwarded into `folder`.

    `verified_s` are the seconds from asking for the lease until sshd had answered with the pinned
    host key (the end of the key exchange), `connected_s` those until we were logged in.
    """

    lease: Lease
    folder: buildx.Folder
    verified_s: float
    connected_s: float

    @property
    def address(self) -> str:
        return f"unix://{self.folder.socket}"


@asynccontextmanager
async def leased(config: Config, size: Size) -> AsyncIterator[Lease]:
    """A ready lease, ended on the way out; its VM may take a moment longer (`none_left`)."""
    key = ssh.new_key()
    wanted = LeaseRequest(repo=REPO, ssh_public_key=ssh.public_line(key), size=size.name)
    async with client.from_environment(config) as api, stoppable() as stop:
        asked_at = time.monotonic()
        async with held(api, wanted, every_s=config.lease.heartbeat_s, stop=stop) as (
            id_,
            holder,
            _,
        ):
            view = await ready(holder, id_, lambda _: None)
            ready_s = time.monotonic() - asked_at
            relay = ssh.relay_of(view, holder.tls)
            name = view["runner"]["name"] if view["runner"] else ""
            yield Lease(name, relay, key, asked_at, ready_s, dict(view["timings_s"]))
            await holder.end(id_, Outcome.CANCELLED)


@asynccontextmanager
async def runner(config: Config, size: Size) -> AsyncIterator[Runner]:
    """A lease from being asked for to its VM being gone; yields when BuildKit can be reached."""
    async with leased(config, size) as lease:
        with buildx.folder() as folder, key_exchanges() as verified:
            token = lease.relay.token
            folder.write_logins({"auths": {config.registry_host: {"registrytoken": token}}})
            async with ssh.connect(lease.relay, lease.key) as tunnel:
                connected_s = time.monotonic() - lease.asked_at
                await tunnel.forward(folder.socket)
                if not verified:
                    raise InfrastructureError(f"SSH never said {VERIFIED!r}")
                yield Runner(lease, folder, verified[0] - lease.asked_at, connected_s)
    await none_left(config)


async def none_left(config: Config) -> None:
    """Wait until no lease and no VM is left, so that none is in the next figure.

    Raises `InfrastructureError` after 30 s.
    """
    deadline = time.monotonic() + GONE_S
    async with client.from_environment(config) as api:
        while await api.leases() or any((config.state / "vms").iterdir()):
            if time.monotonic() > deadline:
                raise InfrastructureError(f"a runner is still there after {GONE_S:.0f} s")
            await asyncio.sleep(0.1)


@contextmanager
def key_exchanges() -> Iterator[list[float]]:
    """When SSH key exchanges of this process ended (`time.monotonic()`), as asyncssh logs them.

    The product's own connection is watched, so what is measured is what a build does.
    """
    seen: list[float] = []

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if VERIFIED in str(record.msg):
                seen.append(time.monotonic())

    logger, watch = logging.getLogger("asyncssh"), Watch()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(watch)
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    try:
        yield seen
    finally:
        logger.removeHandler(watch)
        logger.setLevel(level)
        logger.propagate = propagate


async def workers(config: Config, there: Runner) -> float:
    """Seconds from asking for the lease to BuildKit's list of workers, over its SSH."""
    program = str(tools_dir(config.cache) / "buildctl")
    await run([program, "--addr", there.address, "debug", "workers"])
    return time.monotonic() - there.lease.asked_at


def qemu_pid(name: str) -> int:
    """The QEMU process of a runner. Raises `InfrastructureError` when there is none."""
    wanted = f"mayfly/{name}".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            program, *arguments = path.read_bytes().split(b"\0")
        except OSError:
            continue
        is_qemu = os.path.basename(program).startswith(b"qemu-system")  # noqa: PTH119
        if is_qemu and any(argument.split(b",")[0] == wanted for argument in arguments):
            return int(path.parent.name)
    raise InfrastructureError(f"no QEMU of runner {name} is running")


async def run(argv: Sequence[str], env: dict[str, str] | None = None) -> str:
    """Run a program to its end; its standard output. Raises `InfrastructureError` if it fails."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await process.communicate()
    except BaseException:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        tail = errors.decode(errors="replace").strip().splitlines()[-5:]
        raise InfrastructureError(f"{argv[0]} ended with {process.returncode}: {' / '.join(tail)}")
    return output.decode(errors="replace")
