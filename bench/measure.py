"""The measurements. Each starts what it measures and leaves nothing behind; times are seconds."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mayfly import client, flow, golden
from mayfly.build import buildx, cache, progress, ssh
from mayfly.build.holding import held, ready
from mayfly.build.stop import stoppable
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.host import machine, template
from mayfly.model import LeaseRequest, Outcome
from mayfly.tools import tools_dir

REPO = "bench/python-web"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "python-web"
GONE_S = 30.0


@dataclass(frozen=True, slots=True)
class Open:
    """A runner of our own with BuildKit's socket forwarded into `folder`, and its phases so far."""

    folder: buildx.Folder
    phases_s: dict[str, float]


def silent(line: str) -> None:
    """For progress that a benchmark does not show."""


@asynccontextmanager
async def runner(config: Config) -> AsyncIterator[Open]:
    """A lease from being asked for to being gone; yields when BuildKit's socket is forwarded."""
    key = ssh.new_key()
    wanted = LeaseRequest(repo=REPO, ssh_public_key=ssh.public_line(key))
    async with client.from_environment(config) as api, stoppable() as stop:
        with buildx.folder() as folder:
            async with held(api, wanted, every_s=config.lease.heartbeat_s, stop=stop) as held_lease:
                lease, holder = held_lease
                view = await ready(holder, lease, silent)
                relay = ssh.relay_of(view, holder.tls)
                folder.write_logins(
                    {"auths": {config.registry_host: {"registrytoken": relay.token}}}
                )
                async with ssh.connect(relay, key) as tunnel:
                    await tunnel.forward(folder.socket)
                    yield Open(folder, dict(view["timings_s"]))
                await holder.end(lease, Outcome.CANCELLED)
        deadline = time.monotonic() + GONE_S
        while await api.leases() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def lease_to_workers(config: Config) -> tuple[float, dict[str, float]]:
    """From asking for a lease to BuildKit's list of workers, read over SSH; and its phases."""
    started_at = time.monotonic()
    async with runner(config) as there:
        address = f"unix://{there.folder.socket}"
        await _run(
            [str(tools_dir(config.cache) / "buildctl"), "--addr", address, "debug", "workers"]
        )
        return time.monotonic() - started_at, there.phases_s


async def cold_boot(config: Config) -> float:
    """From starting QEMU on the golden image to BuildKit's list of workers, read in the guest.

    The same machine and disks as a template's, with no SSH, so that the boot is not made to look
    slower than it is.
    """
    image, found = golden.newest(config.state), await machine.inspect(config)
    frozen = template.current(config, found)
    if image is None or frozen is None:
        raise MachineUnfit("there is no template to compare with", hint="run `mayfly up` first")
    for _ in range(template.ATTEMPTS):
        with tempfile.TemporaryDirectory(prefix=".bench-", dir=config.state) as folder:
            place = replace(frozen, path=Path(folder))
            started_at = time.monotonic()
            try:
                async with template.booted(config, place, image, silent):
                    return time.monotonic() - started_at
            except template.QemuDied:
                continue
    raise InfrastructureError("QEMU died at every cold boot")


async def mayfly_build(config: Config, cache_key: str, *flags: str) -> float:
    """`mayfly build` of the example as a person runs it, from start to end of the process."""
    started_at = time.monotonic()
    await _run([sys.executable, "-m", "mayfly.cli.main", "build", *words(cache_key, *flags)])
    return time.monotonic() - started_at


async def buildx_runs(
    config: Config, cache_key: str, runs: Sequence[tuple[str, bool]]
) -> list[float]:
    """The very buildx commands that `mayfly build` would run, one after the other on one runner
    that is there and connected already; the time of each.

    A run is a flag for buildx (or nothing) and whether there is a cache to import.
    """
    times: list[float] = []
    async with runner(config) as there:
        for flag, warm in runs:
            given = words(cache_key, *([flag] if flag else []))
            request = flow.prepare(given, config, os.environ, Path.cwd())
            env = buildx.environment(request.environ, request.args, there.folder)
            if not times:
                await progress.quietly(buildx.create_argv(request.buildx, there.folder), env)
            where = cache.references(config.registry_host, REPO, request.args)
            caches = {name: cache.Cache(ref, warm) for name, ref in where.items()}
            command = buildx.build_argv(request.buildx, request.args, there.folder, caches)
            started_at = time.monotonic()
            await _run(command, env)
            times.append(time.monotonic() - started_at)
    return times


def words(cache_key: str, *flags: str) -> list[str]:
    """The arguments of `mayfly build` for the example."""
    own = ["--mayfly-repo", REPO, "--mayfly-cache-key", cache_key]
    return [*flags, *own, "-t", f"images/{REPO}:bench", "--push", str(EXAMPLE)]


async def _run(argv: Sequence[str], env: dict[str, str] | None = None) -> None:
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=env,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    if process.returncode != 0:
        tail = errors.decode(errors="replace").strip().splitlines()[-5:]
        raise InfrastructureError(f"{argv[0]} ended with {process.returncode}: {' / '.join(tail)}")
