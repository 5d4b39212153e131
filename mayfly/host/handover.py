"""A runner that goes on with the scratch disk of another, which ends: what each of them does.

The one that has the disk puts it down cleanly, or the disk is not used: it may be damaged.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import structlog

from mayfly.errors import InfrastructureError
from mayfly.host.agent import Channel, agent
from mayfly.host.clone import disk_paths, guest_timings
from mayfly.host.deadline import only_child
from mayfly.host.monitor import monitor
from mayfly.host.process import end, readable
from mayfly.host.record import Record
from mayfly.host.template import Template
from mayfly.model import RunnerSpec
from mayfly.pid import ProcessId

log = structlog.get_logger("host")

EARLIER = "earlier.qcow2"
"""A VM's disk that was another's scratch disk."""

QUIESCE_S = 20
"""Seconds in which a runner is to have put its scratch disk down (measured under TCG: 1.5)."""

RELEASE_S = 5
"""Seconds in which a QEMU that was killed is to be gone: its memory is given back first."""

TAKE_S = 60
"""Seconds in which another is to have taken it up (seen under TCG: 5, and 13 on a
machine that was busy otherwise)."""


async def go_on(
    *,
    clone: Callable[[], Awaitable[Record]],
    unmake: Callable[[Record], Awaitable[None]],
    let_go: Callable[[], Awaitable[None]],
    take_up: Callable[[], Awaitable[dict[str, float]]],
) -> Record:
    """A clone that has the disk which another lets go. It is made while that one stops.

    Where the disk cannot be had, or may be damaged (`InfrastructureError` of `let_go` and
    `take_up`), it is a clone like any other, and its record says why (`cold`).
    """
    letting_go = asyncio.create_task(_timed(let_go))
    try:
        made = await clone()
        try:
            times = {"quiesce": await letting_go}
        except InfrastructureError as error:
            return _cold(made, error)
        try:
            times |= await take_up()
        except InfrastructureError as error:
            await unmake(made)
            return _cold(await clone(), error)
    finally:
        letting_go.cancel()
        await asyncio.gather(letting_go, return_exceptions=True)
    log.info("goes on", runner=made.name, **times)
    return replace(made, timings_s={**made.timings_s, **times})


def _cold(made: Record, why: InfrastructureError) -> Record:
    log.warning("scratch disk not kept", runner=made.name, error=str(why))
    return replace(made, cold=str(why))


async def _timed(work: Callable[[], Awaitable[None]]) -> float:
    """The seconds that it takes."""
    started = time.monotonic()
    await work()
    return round(time.monotonic() - started, 4)


async def let_go(
    record: Record, channel: Channel, directory: Path, spec: RunnerSpec, template: Template
) -> Path:
    """Have a runner put its scratch disk down, and end it; returns where the disk is then.

    `directory` is the runner's, `spec` and `template` are of the runner that is to have the disk.
    Raises `InfrastructureError` when the disk is of no use to that one, or not known to be sound.
    The runner's VM has ended even so; the rest of it goes when it is destroyed.
    """
    if record.process is None:
        raise InfrastructureError(f"runner {record.name} had ended")
    try:
        if spec.spoiled:
            raise InfrastructureError(spec.spoiled)
        if record.template != template.key:
            raise InfrastructureError("there is a new golden image")
        answer = await channel.call("quiesce", {"timeout_s": QUIESCE_S}, timeout_s=QUIESCE_S + 2)
        if answer.get("quiesced") is not True:
            raise InfrastructureError(f"runner {record.name} did not put its disk down")
    finally:
        await end_with_child(record.process)
    return scratch_of(record, directory / "qemu")


def scratch_of(record: Record, own: Path) -> Path:
    """Where the disk is that a runner's BuildKit has; `own` is its QEMU's folder."""
    earlier = own / EARLIER
    return earlier if earlier.exists() and not record.cold else disk_paths(own)["scratch"]


def move(theirs: Path, disk: Path, uid: int) -> None:
    """Make a disk that was let go `uid`'s, as `disk`. Raises `InfrastructureError`."""
    try:
        theirs.rename(disk)
        os.chown(disk, uid, uid, follow_symlinks=False)
    except OSError as error:
        raise InfrastructureError(f"its disk cannot be moved: {error.strerror}") from None


async def take_up(own: Path, template: Template, disk: Path, spec: RunnerSpec) -> dict[str, float]:
    """Have a clone that nobody has used go on with that disk; returns what took how many seconds.

    `own` is its QEMU's folder. Raises `InfrastructureError` when the disk is not taken up: the
    clone has no BuildKit then.
    """
    started, frozen = time.monotonic(), template.disks
    async with monitor(own / "qmp.sock") as qemu:
        await qemu.plug_disk(disk, frozen.scratch, frozen.scratch_format)
    asked = {"timeout_s": TAKE_S, "cpus": spec.size.cpus}
    async with agent(own / "agent.sock") as guest:
        answer = await guest.call("take_scratch", asked, timeout_s=TAKE_S + 5)
    if answer.get("taken") is not True:
        raise InfrastructureError("the guest did not take the disk up")
    whole = round(time.monotonic() - started, 4)
    return {"scratch": whole, **guest_timings(answer)}


async def end_with_child(process: ProcessId) -> None:
    """End a VM; when this returns QEMU, its watchdog's child, has let go of its disks."""
    qemu = only_child(process)
    try:
        await end(process)
        if qemu is not None:
            async with asyncio.timeout(RELEASE_S):
                await readable(qemu)
    except TimeoutError:
        raise InfrastructureError(f"the QEMU of process {process.pid} does not end") from None
    finally:
        if qemu is not None:
            os.close(qemu)
