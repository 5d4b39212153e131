"""`mayfly up` and `mayfly down`, from the first check to the last file."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mayfly import users
from mayfly.config import Config
from mayfly.errors import Conflict, InfrastructureError, MachineUnfit
from mayfly.host.runners import teardown
from mayfly.stack import (
    apart,
    hosts,
    preflight,
    record,
    registry,
    seaweed,
    secrets,
    services,
    settings,
    supervise,
)
from mayfly.stack.files import PUBLIC, place
from mayfly.stack.prepare import prepare
from mayfly.stack.process import Process
from mayfly.stack.services import Service
from mayfly.stack.supervise import Progress, Supervisor

Prepare = Callable[[Config, Progress], Awaitable[None]]
"""Something long that is made once every program serves; raises `MayflyError` to end it all."""

STOP_S = 90
"""How long a supervisor may take to stop everything."""

UPKEEP_S = 24 * 3600


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """One program: `restarts` is how often it died on its own since it was first started."""

    name: str
    pid: int
    alive: bool
    restarts: int


@dataclass(frozen=True, slots=True)
class Status:
    """A running stack. `ready`: every program has served and preparations are over."""

    pid: int
    since: datetime
    ready: bool
    services: tuple[ServiceStatus, ...]


def running(config: Config) -> Status | None:
    """The stack that runs on this state, or None."""
    try:
        found = record.load(config.run)
    except OSError:
        return None
    if found is None or not found.alive:
        return None
    programs = tuple(
        ServiceStatus(name, kept.process.pid, kept.process.alive(), kept.restarts)
        for name, kept in found.services.items()
        if name != "bucket"
    )
    return Status(found.supervisor.pid, datetime.fromisoformat(found.since), found.ready, programs)


def up(
    config: Config, detach: bool, progress: Progress, *, prepare: Prepare = prepare
) -> Status | None:
    """Start everything, and say so line by line.

    With `detach` it returns the status once all is ready, and a supervisor stays. Without, it
    supervises until Ctrl-C or SIGTERM, stops everything, and returns None.

    `prepare` is awaited when every program serves. It does not travel to a detached supervisor,
    which uses the one that `mayfly/stack/__main__.py` names.

    Raises `Conflict` (already running; not a state of this version), `MachineUnfit` with a line for
    each fault, and `ConfigError` or `InfrastructureError` when a program does not come up. Nothing
    is left running then.
    """
    preflight.check(config)
    if not detach:
        asyncio.run(supervised(config, progress, prepare, lambda: None))
        return None
    _detached(config, progress)
    return running(config)


async def supervised(
    config: Config, progress: Progress, prepare: Prepare, ready: Callable[[], None]
) -> None:
    """Be the supervisor, until SIGTERM, SIGINT or SIGHUP. `ready` is called once all is."""
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    try:
        users.make_folders(config.state)
    except OSError as error:
        raise unwritable(error) from None
    with users.readable(), record.lock(config.run):
        table = make_state(config, datetime.now(UTC))
        hosts.add(config)
        logs = config.state / "log"
        supervisor = Supervisor(table, config.run, logs, progress, datetime.now(UTC))

        async def work() -> None:
            await supervisor.start()
            await prepare(config, progress)
            supervisor.ready()
            progress(f"ready: {config.url}")
            ready()
            while True:
                await asyncio.sleep(UPKEEP_S)
                try:
                    secrets.ensure(config, datetime.now(UTC))
                except OSError as error:
                    progress(str(unwritable(error)))
                except MachineUnfit as error:  # the operator's certificate, as it is now
                    progress(str(error))

        working = asyncio.create_task(work())
        stopping = asyncio.create_task(told.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
        finally:
            await supervisor.stop()
            await teardown(config)
            hosts.remove(config)


def make_state(config: Config, now: datetime) -> tuple[Service, ...]:
    """Make everything below the state that is missing; the programs that use it, in order.

    Raises `InfrastructureError` when it cannot be written, and as `services.table` does.
    """
    try:
        return _make_state(config, now)
    except OSError as error:
        raise unwritable(error) from None


def _make_state(config: Config, now: datetime) -> tuple[Service, ...]:
    users.make_folders(config.state)
    place(config.state / "version", f"{preflight.VERSION}\n".encode(), mode=PUBLIC)
    secrets.ensure(config, now)
    config = registry.settle(config)
    embedded = None
    if not config.registry.external:
        s3 = config.s3 if config.s3.endpoint else seaweed.prepare(config, now)
        program = registry.program(config)
        embedded = services.Embedded(program, registry.configure(config, s3), s3)
    return services.table(config, embedded, settings.write(config))


def unwritable(error: OSError) -> InfrastructureError:
    """What to say when something of the state cannot be written."""
    return InfrastructureError(f"{error.filename} cannot be written: {error.strerror}")


def _detached(config: Config, progress: Progress) -> None:
    """Start `python -m mayfly.stack` in a session of its own; return when it says it is ready."""
    apart.hear(
        [sys.executable, "-I", "-m", "mayfly.stack"],
        config.model_dump_json(),
        progress,
        name="the supervisor",
        stays=True,
        hint=f"see {config.state / 'log' / 'supervisor.log'}",
    )


def down(config: Config, purge: bool, progress: Progress) -> None:
    """Stop everything of this state, VMs included; with `purge` remove the state as well.

    Idempotent: what is not there is not missed. The hosts line goes, and the network is as it was.
    Of the state only what Mayfly has put there is removed; its folder stays where that holds
    something else, is a link, or is a file system of its own.

    Raises `Conflict` when the folder is not a Mayfly state (nothing is removed then) or somebody
    starts it at this moment, and `InfrastructureError` when something does not end.
    """
    preflight.check_state(config.state)
    if not config.state.is_dir():
        hosts.remove(config)
        return
    asyncio.run(_down(config, purge, progress))


async def _down(config: Config, purge: bool, progress: Progress) -> None:
    found = record.load(config.run)
    supervisor = Process.find(found.supervisor) if found else None
    if supervisor is not None:
        progress(f"stopping the supervisor (process {supervisor.identity.pid})")
        await supervisor.stop(STOP_S)
    with _nobody_starting(config):
        left = record.load(config.run)
        for name in await supervise.end_all(left.services if left else {}):
            progress(f"{name}: was left running; ended")
        record.path(config.run).unlink(missing_ok=True)
        await teardown(config)
        hosts.remove(config)
        if purge:
            _purge(config.state, progress)


@contextlib.contextmanager
def _nobody_starting(config: Config) -> Iterator[None]:
    """What a supervisor has for as long as it runs, and before it has written itself down."""
    with contextlib.ExitStack() as held:
        if config.run.is_dir():
            try:
                held.enter_context(record.lock(config.run))
            except Conflict:
                raise Conflict(
                    "Mayfly is just starting or stopping here",
                    hint="`mayfly down` again in a moment",
                ) from None
            except OSError as error:
                raise unwritable(error) from None
        yield


def _purge(state: Path, progress: Progress) -> None:
    progress(f"removing {state}")
    try:
        # Until all else is gone the folder is known for what it is, and this can be repeated.
        for entry in sorted(state.iterdir(), key=lambda entry: entry.name == "version"):
            if not preflight.ours(entry.name):
                progress(f"{entry} is not Mayfly's and stays")
            elif entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        if not (state.is_symlink() or state.is_mount() or any(state.iterdir())):
            state.rmdir()
    except OSError as error:
        raise InfrastructureError(f"{error.filename} cannot be removed: {error.strerror}") from None
