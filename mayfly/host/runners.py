"""Runners: made by cloning a template, listed, unmade; found again after a restart.

Everything that a runner has on this machine is derived from its directory `vms/<name>` and the
slot in its record, which is written before anything is made. `destroy` walks all of it and does
not care how far `create` had come.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog

from mayfly.config import Config
from mayfly.errors import InfrastructureError, NotFound, UsageError
from mayfly.host import argv, handover, network
from mayfly.host.cgroup import Groups, ceiling
from mayfly.host.clone import START_S, Cloner, disk_paths
from mayfly.host.deadline import LATE_S, boottime, guard
from mayfly.host.machine import Machine
from mayfly.host.monitor import Monitor, monitor
from mayfly.host.process import Launch, end, end_named, exited
from mayfly.host.record import SLOTS, Record, read_record, write_record
from mayfly.host.relief import relief
from mayfly.host.sampling import Sampling
from mayfly.host.template import Template
from mayfly.model import Outcome, Runner, RunnerSpec
from mayfly.pid import ProcessId
from mayfly.usage import Evidence

log = structlog.get_logger("host")

TEMPLATE = "mayfly/template"
"""What QEMU is called while it boots a template (`argv.template`)."""

GROW_S = 10
"""Seconds in which a QEMU is to have plugged memory in (seen under TCG: 0.1)."""

T = TypeVar("T")

NAME = re.compile(r"[a-z0-9]{1,32}-[0-9]{1,3}")


class Runners:
    """The VMs of this machine."""

    def __init__(self, config: Config, machine: Machine, groups: Groups) -> None:
        self._config = config
        self._machine = machine
        self.fence = network.Fence(config)
        self._records: dict[str, Record] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._making: dict[str, asyncio.Task[Record]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._launches: dict[str, Launch] = {}
        self._sampling = Sampling(machine.memory_bytes)
        self._groups = groups
        self._cloner = Cloner(
            config, groups, self.fence, keep=self._keep, launched=self._launches.__setitem__
        )
        # A clone that wakes keeps a core busy; more of them at once only make each other late.
        self._turns = asyncio.Semaphore(machine.cores)

    def list(self) -> tuple[Runner, ...]:
        """Every VM, those under way and those that were ended but not destroyed too."""
        now = boottime()
        return tuple(
            replace(
                record.runner(now),
                disk_used_bytes=self._disk_used_bytes(record.name),
                load=self._sampling.load(record.name),
            )
            for record in self._records.values()
        )

    def _disk_used_bytes(self, runner: str) -> int:
        """What the VM's own disks take. QEMU cannot put other files or links in their place: its
        folder is its uid's, so names in it are looked at and not followed."""
        used = 0
        own = self._directory(runner) / "qemu"
        for path in (*disk_paths(own).values(), own / handover.EARLIER):
            with contextlib.suppress(OSError):
                used += path.lstat().st_blocks * 512
        return used

    @property
    def templates(self) -> frozenset[str]:
        """The keys of the templates that living VMs are clones of."""
        return frozenset(record.template for record in self._records.values())

    async def adopt(self) -> None:
        """Take over what an earlier host program left: ready VMs live on, the rest is unmade.

        Each that lives has one watchdog afterwards, the one it had or a new one.
        """
        await end_named(TEMPLATE, self._config.state / "templates")
        for directory in sorted((self._config.state / "vms").glob("*")):
            record = read_record(directory)
            reason = _unfit(record)
            if record and (record.ended or not reason):
                self._records[record.name] = record
                if record.alive:
                    self._guard(record)
                    self._watch(record)
                    self._sampling.start(record, self._directory(record.name))
                    log.info("runner adopted", runner=record.name)
                continue
            try:
                if record and (ended := _over(record)):
                    await self._conclude(record, ended)
                    continue
                await self._unmake(directory.name, record)
                log.info("remains of a runner removed", runner=directory.name, reason=reason)
            except InfrastructureError as error:
                log.warning("remains of a runner stay", runner=directory.name, error=str(error))

    async def create(self, spec: RunnerSpec, template: Template) -> Runner:
        """Clone `template` and give the clone its identity; returns when its SSH server listens.

        The same name again returns the runner that is there. When it fails nothing of it is left.
        Raises `UsageError` for a name that is not one, `InfrastructureError` otherwise, also when
        `destroy` comes meanwhile.
        """
        name = spec.runner
        if not NAME.fullmatch(name):
            raise UsageError(f"{name!r} is not a runner's name")
        async with self._lock(name):
            if (there := self._records.get(name)) is not None:
                if there.ready or there.ended:
                    return there.runner(boottime())
                await self._undo(name)  # what an earlier call made and could not take back
            self._records[name] = Record(
                name,
                self._free_slot(),
                spec.size.name,
                template.key,
                cpus=spec.size.cpus,
                memory_bytes=spec.size.memory_bytes,
            )
            making = asyncio.create_task(self._in_turn(self._records[name], spec, template))
            self._making[name] = making
            try:
                record = await making
            except BaseException as error:
                making.cancel()
                died = self._died(name) if isinstance(error, InfrastructureError) else None
                await asyncio.shield(self._undo(name))
                if died is not None:
                    raise died from None
                if isinstance(error, TimeoutError):
                    raise InfrastructureError(f"no runner within {START_S} s") from None
                if making.cancelled() and not _cancelled():
                    raise InfrastructureError("the runner was destroyed while made") from None
                raise
            finally:
                del self._making[name]
            self._keep(record)
            self._guard(record)
            self._watch(record)
            self._sampling.start(record, self._directory(record.name))
            return record.runner(boottime())

    def _guard(self, record: Record) -> None:
        """See that the runner has its watchdog and its last ceiling. Neither stops a build."""
        try:
            if record.process is not None and record.ends_at_s:
                directory = self._directory(record.name)
                guard(record.process, record.ends_at_s, directory, self._groups.watchdogs)
            self._groups.hold(record.name, ceiling(record.cpus, record.memory_bytes))
        except (OSError, InfrastructureError) as error:
            log.error("runner without its watchdog", runner=record.name, error=str(error))

    def _died(self, runner: str) -> InfrastructureError | None:
        """What QEMU said when it ended by itself while the runner was made; None when it lives."""
        launch = self._launches.get(runner)
        if launch is None or launch.process.alive():
            return None
        words = launch.complaints().strip().splitlines()[-1:] or ["no message"]
        return InfrastructureError(f"QEMU ended while the runner was made: {words[0][:300]}")

    async def _undo(self, runner: str) -> None:
        """Unmake what `create` has made. The record, and with it the slot, goes last."""
        await self._unmake(runner, self._records[runner])
        del self._records[runner]

    async def destroy(self, runner: str) -> None:
        """Unmake a runner and all that is its own, made or being made; silently when there is none.

        Raises `InfrastructureError` when something does not go; it is listed until it has gone.
        """
        if not NAME.fullmatch(runner):
            return
        if (making := self._making.get(runner)) is not None:
            making.cancel()
        async with self._lock(runner):
            if (watch := self._watches.pop(runner, None)) is not None:
                watch.cancel()
            record = self._records.get(runner)
            if record is not None or self._directory(runner).exists():
                await self._sampling.stop(runner)
                await self._unmake(runner, record)
                self._records.pop(runner, None)
                self._sampling.forget(runner)
                log.info("runner destroyed", runner=runner)

    async def grow(self, runner: str, memory_bytes: int) -> None:
        """See that a runner has that much memory in all, rounded up to what a guest can take in.

        Nothing when it has; memory is never taken away. The guest's kernel finds it by itself,
        some tenths of a second later. Raises `NotFound` when there is no such runner,
        `InfrastructureError` when its QEMU refuses (no slot is free, say) or says nothing: the
        runner can be destroyed only after this.
        """
        async with self._lock(runner):
            record = self._records.get(runner)
            if record is None or not record.alive:
                raise NotFound(f"there is no runner {runner}")
            wanted = -(-memory_bytes // argv.BLOCK_BYTES) * argv.BLOCK_BYTES
            self._groups.hold(runner, ceiling(record.cpus, max(wanted, record.memory_bytes)))
            try:
                async with (
                    asyncio.timeout(GROW_S),
                    monitor(self._directory(runner) / "qemu/qmp.sock") as qemu,
                ):
                    await qemu.plug_memory(wanted - await qemu.memory_bytes())
            except TimeoutError:
                raise InfrastructureError(
                    f"the QEMU of runner {runner} does not answer within {GROW_S} s"
                ) from None
            self._keep(replace(record, memory_bytes=max(wanted, record.memory_bytes)))
            log.info("runner grown", runner=runner, memory_bytes=wanted)

    async def authorize(self, runner: str, public_key: str) -> None:
        """Have the runner's SSH server let one more key in.

        Raises `NotFound` when there is no such runner, `InfrastructureError` when it refuses.
        """
        record = self._records.get(runner)
        if record is None or not record.alive:
            raise NotFound(f"there is no runner {runner}")
        await self._sampling.authorize(runner, public_key)
        log.info("key authorized", runner=runner, key=public_key)

    async def dial(self, runner: str) -> socket.socket:
        """A socket connected to the runner's SSH server. Raises `NotFound` when it is gone."""
        link = self._link(runner)
        made = self._in_namespace(link, network.tcp_socket)
        try:
            loop = asyncio.get_running_loop()
            async with asyncio.timeout(10):
                await loop.sock_connect(made, ("127.0.0.1", network.SSH_PORT))
        except (OSError, TimeoutError) as error:
            made.close()
            raise InfrastructureError(
                f"runner {runner} does not take connections: {error}"
            ) from None
        return made

    def listen(self, runner: str) -> socket.socket:
        """A listening socket at the registry's address as the runner sees it."""
        port = self._config.server.port
        return self._in_namespace(self._link(runner), lambda: network.listener(port))

    def _in_namespace(self, link: network.Link, make: Any) -> socket.socket:
        try:
            made: socket.socket = network.inside(link.path, make)
        except OSError as error:
            raise InfrastructureError(
                f"no socket in namespace {link.namespace}: {error.strerror}"
            ) from None
        return made

    def _link(self, runner: str) -> network.Link:
        record = self._records.get(runner)
        if record is None or not record.ready:
            raise NotFound(f"there is no runner {runner}")
        return network.link(self._config, record.slot)

    def _lock(self, runner: str) -> asyncio.Lock:
        return self._locks.setdefault(runner, asyncio.Lock())

    def _free_slot(self) -> int:
        taken = {record.slot for record in self._records.values()}
        for slot in range(SLOTS):
            if slot not in taken:
                network.link(self._config, slot)  # raises where the subnet has no room
                return slot
        raise InfrastructureError(f"this machine has {SLOTS} VMs already")

    def _keep(self, record: Record) -> None:
        self._records[record.name] = record
        write_record(self._directory(record.name), record)

    def _directory(self, runner: str) -> Path:
        return self._config.state / "vms" / runner

    async def _in_turn(self, record: Record, spec: RunnerSpec, template: Template) -> Record:
        """`_clone` once its turn has come. Raises `TimeoutError` when it then takes too long."""
        async with self._turns, asyncio.timeout(START_S):
            if spec.scratch_of:
                return await self._go_on(record, spec, template)
            return await self._clone(record, spec, template)

    async def _go_on(self, record: Record, spec: RunnerSpec, template: Template) -> Record:
        """A clone that has the scratch disk of another runner, which ends, where that can be."""
        own = self._directory(record.name) / "qemu"
        disk = own / handover.EARLIER
        return await handover.go_on(
            clone=lambda: self._clone(record, spec, template),
            unmake=lambda made: self._unmake(record.name, made),
            let_go=lambda: self._let_go(spec, template, disk, record.uid),
            take_up=lambda: handover.take_up(own, template, disk, spec),
        )

    async def _let_go(self, spec: RunnerSpec, template: Template, disk: Path, uid: int) -> None:
        """End the runner whose scratch disk another is to have, and make it that one's `disk`.

        Raises `InfrastructureError` as `handover.let_go` does.
        """
        runner = spec.scratch_of
        async with self._lock(runner):
            record = self._records.get(runner)
            if record is None or not record.alive:
                raise InfrastructureError(f"runner {runner} had ended")
            channel = self._sampling.pause(runner)
            theirs = await handover.let_go(record, channel, self._directory(runner), spec, template)
            handover.move(theirs, disk, uid)

    async def _clone(self, record: Record, spec: RunnerSpec, template: Template) -> Record:
        """The VM itself. Each step of it leaves something that `_unmake` removes."""
        return await self._cloner.clone(self._directory(record.name), record, spec, template)

    async def usage(self, runner: str, *, final: bool) -> Evidence | None:
        """As `Sampling.usage`."""
        return await self._sampling.usage(runner, final=final)

    def _watch(self, record: Record) -> None:
        async def watch(process: ProcessId) -> None:
            await exited(process)
            launch = self._launches.get(record.name)
            words = launch.complaints().strip().splitlines()[-1:] if launch else []
            ended = _over(record)
            log.info("runner's QEMU has ended", runner=record.name, why=ended, words=words)
            self._watches.pop(record.name, None)
            if ended is None:
                await self.destroy(record.name)
            else:
                await self.conclude(record.name, ended)

        if record.process is not None:
            self._watches[record.name] = asyncio.create_task(watch(record.process))

    async def conclude(self, runner: str, outcome: Outcome) -> None:
        """End a runner for a reason that its lease is to have for its outcome.

        All of it goes but its record, which is listed until the runner is destroyed. Silently when
        there is no such runner, or it is being made. Raises `InfrastructureError`.
        """
        async with self._lock(runner):
            record = self._records.get(runner)
            if record is not None and record.ready:
                if (watch := self._watches.pop(runner, None)) is not None:
                    watch.cancel()
                await self._conclude(record, outcome)

    async def relieve(self) -> None:
        """Look for runners that stand still because the disk is full, and see that none stays so.

        A runner that goes for it has `disk_full` for its outcome. One whose QEMU does not answer
        holds nobody up. Raises `InfrastructureError` when one does not go.
        """
        ready = [record.name for record in self._records.values() if record.ready]
        told = await asyncio.gather(*(self._ask(name, Monitor.out_of_disk) for name in ready))
        still = [name for name, stands in zip(ready, told, strict=True) if stands]
        waiting = {name: self._disk_used_bytes(name) for name in still}
        todo = relief(waiting, shutil.disk_usage(self._config.state / "vms").free)
        if todo.end is not None:
            log.warning("the disk is full", ending=todo.end, waiting=len(waiting))
            await self.conclude(todo.end, Outcome.DISK_FULL)
        for name in todo.resume:
            await self._ask(name, Monitor.resume)

    async def _ask(self, runner: str, question: Callable[[Monitor], Awaitable[T]]) -> T | None:
        """What the runner's QEMU answers; None when it does not, within some seconds.

        It may be anybody's by now: whatever it makes the library raise is no answer.
        """
        with contextlib.suppress(Exception):
            async with asyncio.timeout(3):
                async with monitor(self._directory(runner) / "qemu/qmp.sock", timeout_s=2) as qemu:
                    return await question(qemu)
        return None

    async def _conclude(self, record: Record, outcome: Outcome) -> None:
        await self._sampling.stop(record.name)
        await self._unmake(record.name, record)
        self._directory(record.name).mkdir(exist_ok=True)
        self._keep(replace(record, ready=False, process=None, ended=outcome))
        log.info("runner ended", runner=record.name, outcome=outcome)

    async def _unmake(self, runner: str, record: Record | None) -> None:
        """Remove whatever exists of a runner: its processes, groups, namespace and directory."""
        if record is not None and record.process is not None:
            await end(record.process)
        await end_named(f"mayfly/{runner}", self._directory(runner))
        await self._groups.remove(runner)
        if (launch := self._launches.pop(runner, None)) is not None:
            launch.close()
        if record is not None:
            await network.remove_namespace(network.link(self._config, record.slot).namespace)
        await asyncio.to_thread(shutil.rmtree, self._directory(runner), ignore_errors=True)


def _unfit(record: Record | None) -> str:
    """Why a runner that an earlier host program left is not taken over; empty when it is. Pure but
    for the look whether its QEMU runs.
    """
    if record is None:
        return "it has no record that can be read"
    if not record.ready or record.process is None:
        return "it was being made when the host program ended"
    return "" if record.process.alive() else "its QEMU has ended"


def _over(record: Record) -> Outcome | None:
    """Why a runner whose QEMU has ended by itself did, as far as its record tells."""
    over = record.ready and record.ends_at_s and boottime() >= record.ends_at_s - LATE_S
    return Outcome.BUDGET_EXCEEDED if over else None


def _cancelled() -> bool:
    """Whether the task that asks is itself being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def teardown(config: Config) -> None:
    """End every VM of this installation and remove all that the host made for them.

    For `mayfly down`, when no host program runs. Idempotent. Templates and golden images stay.
    """
    await end_named(TEMPLATE, config.state / "templates")
    for directory in sorted((config.state / "vms").glob("*")):
        record = read_record(directory)
        if record is not None and record.process is not None:
            await end(record.process)
        await end_named(f"mayfly/{directory.name}", directory)
        shutil.rmtree(directory, ignore_errors=True)
    await Groups.there(network.tag(config)).close()
    await network.close_machine(config)
