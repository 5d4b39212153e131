"""The command on the runner's own system: Debian with Python, as the user that BuildKit runs as.

No image has to be pulled, so it is there sooner. What it may do is what the lease's holder may by
SSH in any case; what it uses is not in the build's evidence, which is BuildKit's.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mayfly.build import pair, progress
from mayfly.build.holding import Api, Show, held, patiently, ready
from mayfly.build.result import Attempt, Result
from mayfly.build.stop import signals, stoppable
from mayfly.build.terminal import writer
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MayflyError
from mayfly.model import BuildSpec, LeaseRequest, Outcome
from mayfly.run import artifacts, ignored
from mayfly.run.request import STAGE, Run

if TYPE_CHECKING:  # loaded while the runner is made
    from mayfly.build import ssh

HOME = "/scratch/home"
HERE = f"{HOME}/src"
"""On the scratch disk: the root file system has no room."""

ENTER = f"mkdir -p {HERE} && cd {HERE} && export HOME={HOME} TMPDIR=/scratch/tmp && "


async def run(wanted: Run, api: Api, config: Config, show: Show) -> tuple[Result, int | None]:
    """Run the command to its end; the build that it was, and its own status if it has one.

    Raises as `flow.build` does. A lost connection is not made again: the command has gone with it.
    """
    keys = pair.new()
    asked = LeaseRequest(
        repo=wanted.repo,
        ssh_public_key=keys.public,
        size=wanted.args.size,
        ref=wanted.ref,
        event=wanted.event,
        target=STAGE,
        languages=wanted.languages,
        spec=replace(wanted.spec or BuildSpec(), oom_retry=False),
        keep_min=wanted.args.keep_min,
        counts=False,
    )
    status: int | None = None
    async with (
        stoppable() as stop,
        signals(stop, lambda: None),
        held(api, asked, every_s=config.lease.heartbeat_s, stop=stop) as (lease, holder, page),
        progress.uploading(partial(holder.append_log, lease)) as log,
    ):
        show(f"build {lease} of {wanted.repo}: {page}")
        from mayfly.build import ssh

        key = ssh.loaded(keys)
        view = await ready(holder, lease, show)
        times = {name: view["timings_s"].get(name, 0.0) for name in ("queue", "ready")}
        began_s = time.monotonic()
        try:
            async with ssh.connect(ssh.relay_of(view, holder.tls), key) as tunnel:
                times["connect"] = round(time.monotonic() - began_s, 3)
                status = await _command(wanted, tunnel, log, show)
            outcome, error = Outcome.FAILED if status else Outcome.SUCCEEDED, None
        except InfrastructureError as lost:
            outcome, error = Outcome.INFRASTRUCTURE, lost
        times["build"] = round(time.monotonic() - began_s - times.get("connect", 0), 3)
        with suppress(MayflyError):
            await patiently(log.flush)
        verdict = await patiently(
            partial(
                holder.report,
                lease,
                outcome=outcome,
                attempt=view["attempt"],
                digest="",
                timings_s=times,
                images=(),
            )
        )
    attempt = Attempt(view["size"]["name"], outcome, timings_s=times, error=error)
    final = Outcome(verdict["outcome"])
    kept_until = verdict["kept_until"] or ""
    return Result(lease, final, (attempt,), verdict["reason"], kept_until), status


async def _command(wanted: Run, tunnel: ssh.Tunnel, log: progress.Log, show: Show) -> int:
    """Directory there, command, artifacts back; the command's status."""

    def shown(take: ssh.Take, data: bytes) -> None:
        take(data)
        log.write(data)

    out, err = (partial(shown, writer(stream.buffer)) for stream in (sys.stdout, sys.stderr))
    await _send(wanted, tunnel, err)
    status = await tunnel.run(f"{ENTER}exec {shlex.join(wanted.words)}", out, err)
    if wanted.artifacts:
        await _fetch(wanted, tunnel, show)
    return status


async def _send(wanted: Run, tunnel: ssh.Tunnel, err: ssh.Take) -> None:
    """The directory as a tar; nothing is asked of the runner when it is empty."""
    given = await asyncio.to_thread(ignored.patterns, wanted.folder)  # git may take its time
    if next(ignored.files(wanted.folder, given), None) is None:
        return
    source, sink = os.pipe()
    failure: list[BaseException] = []

    def pack() -> None:
        try:
            with os.fdopen(sink, "wb") as into:
                ignored.packed(wanted.folder, given, into)
        except BrokenPipeError:
            pass  # the runner says why
        except BaseException as error:
            failure.append(error)

    packing = threading.Thread(target=pack, daemon=True)
    packing.start()
    status = await tunnel.run(f"{ENTER}exec tar -xf -", err, err, stdin=source)
    await asyncio.to_thread(packing.join)
    if failure:
        raise failure[0]
    if status:
        raise InfrastructureError("the directory could not be unpacked there", hint="see above")


async def _fetch(wanted: Run, tunnel: ssh.Tunnel, show: Show) -> None:
    """The artifacts that are there, written below the directory."""
    source, sink = os.pipe()
    taking = asyncio.create_task(asyncio.to_thread(_take, wanted, source))
    names = artifacts.shell_words(wanted.artifacts)
    find = f'for f in {names}; do [ ! -e "$f" ] || set -- "$@" "$f"; done'
    command = f'{ENTER}{{ {find}; [ $# = 0 ] || exec tar -cf - -- "$@"; }}'
    try:
        with os.fdopen(sink, "wb") as into:
            status = await tunnel.run(command, into.write, lambda data: None)
    except BaseException:
        await asyncio.gather(taking, return_exceptions=True)
        raise
    artifacts.tell(await taking, wanted.artifacts, show)
    if status:
        show(f"warning: not all artifacts could be read there: tar ended with {status}")


def _take(wanted: Run, source: int) -> artifacts.Taken:
    with os.fdopen(source, "rb") as opened:
        try:
            if not opened.peek(1):
                return artifacts.Taken()
            return artifacts.take(opened, wanted.artifacts, wanted.folder)
        finally:
            while opened.read(1 << 20):
                pass  # whoever writes is not to wait for ever
