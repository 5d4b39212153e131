"""A context to BuildKit: through our SSH and relay, against `tar | ssh` and buildctl there."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path

from bench.farm import Bench
from bench.page import Found, Line
from bench.runners import Runner, qemu_pid, run, runner
from bench.stats import of, ratio
from mayfly.build import buildx, progress, ssh
from mayfly.cli.output import show
from mayfly.config import Config
from mayfly.host import network
from mayfly.tools import tools_dir

PAIRS = 3
MOST = 0.8
FILE_BYTES = 100 * 10**6
FILES, EACH_BYTES = 2000, 50 * 10**3
DOCKERFILE = "FROM scratch\nCOPY data /data\n"
THERE = "/scratch/tmp/context"


async def context(bench: Bench) -> Found:
    """Each context both ways in turn, each time on a fresh runner; the result is not kept."""
    one = await pairs(bench, "one file of 100 MB", one_file)
    many = await pairs(bench, "2,000 files of 50 kB", many_files)
    what = (
        "context to BuildKit through our SSH and the edge, against `tar | ssh` and buildctl there"
    )
    lines = []
    for name, times, must in (
        ("one file of 100 MB", one, True),
        ("2,000 files of 50 kB", many, False),
    ):
        ours, theirs = times
        found = ratio(ours, theirs)
        lines.append(
            Line(
                f"{what}: {name}; {bench.default}",
                f"<= {MOST}x" if must else "print",
                f"{found:.2f}x; ours {of(ours)}, theirs {of(theirs)}",
                found <= MOST if must else None,
            )
        )
    return Found(
        lines=tuple(lines),
        notes=(
            "random bytes; ours: `buildx build` beside the context; theirs: `tar c | ssh … tar x`, "
            "then `ssh … buildctl build`, by OpenSSH with its defaults straight into the runner's "
            "namespace, past the edge. Connecting is in both, the lease in neither.",
        ),
    )


async def pairs(
    bench: Bench, name: str, fill: Callable[[Path], None]
) -> tuple[list[float], list[float]]:
    """Seconds of ours and of theirs."""
    folder = bench.scratch / name.replace(" ", "-").replace(",", "")
    (folder / "data").mkdir(parents=True)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    fill(folder / "data")
    count = bench.times(PAIRS)
    show(f"{count} pairs: a context of {name}")
    ours, theirs = [], []
    for _ in range(count):
        async with runner(bench.config, bench.default) as there:
            ours.append(await through_session(bench.config, there, folder))
        async with runner(bench.config, bench.default) as there:
            theirs.append(await by_tar(there, folder, bench.scratch))
    return ours, theirs


def one_file(folder: Path) -> None:
    """100 MB in one file."""
    (folder / "file").write_bytes(os.urandom(FILE_BYTES))


def many_files(folder: Path) -> None:
    """100 MB in 2,000 files, 50 in a folder."""
    for number in range(FILES):
        place = folder / str(number // 50)
        place.mkdir(exist_ok=True)
        (place / str(number)).write_bytes(os.urandom(EACH_BYTES))


async def through_session(config: Config, there: Runner, folder: Path) -> float:
    """Seconds of connecting by the relay and of `buildx build`."""
    program = tools_dir(config.cache) / "buildx"
    own = there.folder
    env = {
        **os.environ,
        "BUILDX_BUILDER": buildx.BUILDER,
        "BUILDX_CONFIG": str(own.buildx_config),
        "DOCKER_CONFIG": str(own.docker_config),
    }
    await progress.quietly(buildx.create_argv(program, own), env)
    started_at = time.monotonic()
    async with ssh.connect(there.lease.relay, there.lease.key) as tunnel:
        await tunnel.forward(own.socket)
        await run([str(program), "build", "--output", "type=cacheonly", str(folder)], env)
        return time.monotonic() - started_at


async def by_tar(there: Runner, folder: Path, scratch: Path) -> float:
    """Seconds of sending the context by tar and OpenSSH, and of buildctl on the runner."""
    key, known = scratch / "ssh-key", scratch / "known_hosts"
    key.touch(mode=0o600)
    key.write_bytes(there.lease.key.export_private_key())
    known.write_text(f"runner {there.lease.relay.host_key}\n")
    into = ssh_argv(qemu_pid(there.lease.name), key, known)
    there_now = shlex.join([*into, f"mkdir -p {THERE} && tar -x -C {THERE}"])
    build = (
        f"buildctl build --frontend dockerfile.v0 --local context={THERE} "
        f"--local dockerfile={THERE}"
    )
    started_at = time.monotonic()
    await run(
        ["bash", "-o", "pipefail", "-c", f"tar -c -C {shlex.quote(str(folder))} . | {there_now}"]
    )
    await run([*into, build])
    return time.monotonic() - started_at


def ssh_argv(pid: int, key: Path, known: Path) -> list[str]:
    """OpenSSH into the runner whose QEMU has `pid`, with no configuration but what is here."""
    options = (
        *("-F", "none", "-i", str(key), "-p", str(network.SSH_PORT)),
        *("-o", f"UserKnownHostsFile={known}", "-o", "HostKeyAlias=runner"),
        *("-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes"),
    )
    return ["nsenter", f"--net=/proc/{pid}/ns/net", "ssh", *options, f"{ssh.USER}@127.0.0.1"]
