"""Starts the programs in order, starts again what dies or hangs, stops them in reverse order.

Programs outlive a supervisor that is killed: builds go on. The next one keeps those that are still
as its table wants them, and ends the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mayfly.errors import InfrastructureError, MachineUnfit, MayflyError, UsageError
from mayfly.pid import ProcessId
from mayfly.stack import record
from mayfly.stack.probe import answers
from mayfly.stack.process import Process
from mayfly.stack.record import Kept, Record
from mayfly.stack.services import Service

Progress = Callable[[str], None]

READY_S = 90
"""How long a program may take until it serves."""

LOOK_S = 5
"""Between two looks whether a running program serves."""

HUNG_S = 30
"""A program that runs and has not served for so long is killed and started again, as if it had
died. Longer than any of them is busy with one thing, also where builds keep every CPU busy."""

STEADY_S = 60
"""After this long without a fault, earlier faults of a program are forgotten."""

LOG_BYTES = 8 * 1024 * 1024
"""A log that is larger when its program starts is put aside as `<name>.log.1`."""

_EXIT_ERRORS = {error.exit_status: error for error in (UsageError, MachineUnfit)}


def backoff(faults: int) -> float:
    """Seconds to wait before the start that follows the `faults`-th fault in a row. Pure."""
    return min(30.0, 0.2 * 2.0 ** min(faults - 1, 10)) if faults > 0 else 0.0


class Supervisor:
    """Runs `services`, writes its record to `run` and the programs' output to `logs`."""

    def __init__(
        self, services: Sequence[Service], run: Path, logs: Path, progress: Progress, now: datetime
    ) -> None:
        self._services = services
        self._run = run
        self._logs = logs
        self._progress = progress
        self._processes: dict[str, Process] = {}
        self._watchers: list[asyncio.Task[None]] = []
        self._sockets: dict[str, socket.socket] = {}
        try:
            me = ProcessId.of(os.getpid())
        except ProcessLookupError:
            raise InfrastructureError("/proc is not mounted", hint="mount it") from None
        left = record.load(run)
        self._left: Mapping[str, Kept] = left.services if left else {}
        # With what an earlier one left, so that no death and no stop leaves anything unknown.
        self._record = Record(me, now.isoformat(timespec="seconds"), services=self._left)

    async def start(self) -> None:
        """Start every program, each after the one before serves; returns when all do.

        Raises `MayflyError` when one does not come up; then call `stop`.
        """
        self._save()
        wanted = {service.name for service in self._services}
        await end_all({name: kept for name, kept in self._left.items() if name not in wanted})
        for service in self._services:
            if service.once:
                await self._once(service)
                continue
            process = await self._adopt(service, self._left.get(service.name))
            if process is None:
                self._progress(f"{service.name}: starting")
                process = self._spawn(service)
                await self._until_ready(service, process)
            task = asyncio.create_task(self._keep(service, process))
            self._watchers.append(task)

    def ready(self) -> None:
        """Note down that everything is prepared."""
        self._record = replace(self._record, ready=True)
        self._save()

    async def stop(self) -> None:
        """Stop every program, the last started first, then what an earlier start left.

        Idempotent.
        """
        for task in self._watchers:
            task.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        self._watchers.clear()
        for service in reversed(self._services):
            process = self._processes.pop(service.name, None)
            if process is not None:
                self._progress(f"{service.name}: stopping")
                await process.stop(service.stop_s)
        for name in await end_all(self._record.services):
            self._progress(f"{name}: was left running; ended")
        for opened in self._sockets.values():
            opened.close()
        self._sockets.clear()
        record.path(self._run).unlink(missing_ok=True)

    async def _adopt(self, service: Service, kept: Kept | None) -> Process | None:
        """What an earlier supervisor left running of this service, if it may be kept."""
        process = Process.find(kept.process) if kept else None
        if kept is None or process is None:
            return None
        same = kept.fingerprint == service.fingerprint
        if same and (service.ready is None or await answers(service.ready)):
            self._progress(f"{service.name}: still running, kept")
            self._processes[service.name] = process
            return process
        self._progress(f"{service.name}: ending what an earlier start left running")
        await process.stop(service.stop_s)
        return None

    async def _once(self, service: Service) -> None:
        self._progress(f"{service.name}: checking")
        process = self._spawn(service)
        try:
            async with asyncio.timeout(READY_S):
                how = await process.wait()
        except BaseException:
            await process.stop(0)
            raise
        finally:
            self._processes.pop(service.name, None)
        if how != "exit 0":
            raise self._failure(service, how)

    async def _keep(self, service: Service, process: Process) -> None:
        """Watch a program that serves, and start it again, until cancelled."""
        loop = asyncio.get_running_loop()
        faults, began = 0, loop.time()
        while True:
            how = await self._end(service, process)
            faults = 1 if loop.time() - began > STEADY_S else faults + 1
            delay = backoff(faults)
            self._progress(f"{service.name}: died ({how}); starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            began = loop.time()
            try:
                process = self._spawn(service, restart=True)
                await self._until_ready(service, process)
                self._progress(f"{service.name}: serves again")
            except MayflyError as error:
                self._progress(f"{service.name}: {error}")
                await process.stop(service.stop_s)

    async def _end(self, service: Service, process: Process) -> str:
        """How the program ended, in words; one that does not serve any more is killed."""
        ended = asyncio.create_task(process.wait())
        served_at = asyncio.get_running_loop().time()
        try:
            while True:
                await asyncio.wait({ended}, timeout=LOOK_S)
                if ended.done():
                    return ended.result()
                now = asyncio.get_running_loop().time()
                if service.ready is None or await answers(service.ready):
                    served_at = now
                elif now - served_at > HUNG_S:
                    self._progress(f"{service.name}: runs and has not served for {HUNG_S} s")
                    process.signal(signal.SIGKILL)
                    return await ended
        finally:
            ended.cancel()

    def _spawn(self, service: Service, *, restart: bool = False) -> Process:
        """Start it and write it down. Raises `InfrastructureError`, `MachineUnfit`."""
        env = dict(service.env)
        fds: tuple[int, ...] = ()
        if service.listen:
            fds = (self._listening(service.listen).fileno(),)
            env["MAYFLY_EDGE_FD"] = str(fds[0])
        log = self._log(service)
        try:
            if log.exists() and log.stat().st_size > LOG_BYTES:
                log.replace(log.with_name(f"{log.name}.1"))
            with log.open("ab") as output:
                process = Process.start(
                    service.command, env=env, cwd=service.cwd, log=output, pass_fds=fds
                )
        except OSError as error:
            raise InfrastructureError(f"{service.name} cannot be started: {error}") from None
        self._processes[service.name] = process
        before = self._record.services.get(service.name)
        restarts = (before.restarts if before else 0) + 1 if restart else 0
        kept = Kept(process.identity, service.fingerprint, restarts, service.stop_s)
        self._note(**{service.name: kept})
        return process

    def _listening(self, address: str) -> socket.socket:
        if address not in self._sockets:
            self._sockets[address] = listen(address)
        return self._sockets[address]

    async def _until_ready(self, service: Service, process: Process) -> None:
        if service.ready is None:
            return
        ended = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(READY_S):
                pause = 0.02
                while not await answers(service.ready):
                    if ended.done():
                        raise self._failure(service, ended.result())
                    pause = min(0.25, pause * 1.5)
                    await asyncio.wait({ended}, timeout=pause)
        except TimeoutError:
            raise InfrastructureError(
                f"{service.name} runs but does not serve after {READY_S} s",
                hint=f"see {self._log(service)}",
            ) from None
        finally:
            ended.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await ended

    def _failure(self, service: Service, how: str) -> MayflyError:
        """The error for a program that did not come up: its own last words, when it has any."""
        log = self._log(service)
        said = log.read_bytes()[-2000:].decode(errors="replace").strip().rpartition("\n")[2]
        status = int(how.removeprefix("exit ")) if how.startswith("exit ") else -1
        error = _EXIT_ERRORS.get(status, InfrastructureError)
        if error is InfrastructureError:
            return error(f"{service.name} does not start ({how}): {said[:500]}", hint=f"see {log}")
        return error(said.removeprefix(f"mayfly-{service.name}: ")[:500])

    def _log(self, service: Service) -> Path:
        return self._logs / f"{service.name}.log"

    def _note(self, **kept: Kept) -> None:
        services = {**self._record.services, **kept}
        self._record = replace(self._record, services=services)
        self._save()

    def _save(self) -> None:
        """The programs run whether this can be written (a full disk) or not."""
        try:
            record.save(self._run, self._record)
        except OSError as error:
            self._progress(f"{record.path(self._run)} cannot be written: {error.strerror}")


async def end_all(services: Mapping[str, Kept]) -> tuple[str, ...]:
    """End the recorded programs that still run, the last started first; their names."""
    ended = []
    for name, kept in reversed(tuple(services.items())):
        process = Process.find(kept.process)
        if process is not None:
            await process.stop(kept.stop_s)
            ended.append(name)
    return tuple(ended)


def listen(address: str) -> socket.socket:
    """A listening TCP socket at `ADDRESS:PORT`. Raises `MachineUnfit` when the port is not free."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, int(port)))
        opened.listen(1024)
    except OSError as error:
        opened.close()
        raise MachineUnfit(
            f"cannot listen at {address}: {error.strerror}",
            hint="end what uses the port, or set server.listen",
        ) from None
    return opened
