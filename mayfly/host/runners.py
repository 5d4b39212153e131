"""Runners: made by cloning a template, listed, unmade; found again after a restart.

Everything that a runner has on this machine is derived from its directory `vms/<name>` and the
slot in its record, which is written before anything is made. `destroy` walks all of it and does
not care how far `create` had come.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mayfly.config import Config
from mayfly.errors import InfrastructureError, NotFound, UsageError
from mayfly.host import argv, network, scratch
from mayfly.host.agent import Channel, agent
from mayfly.host.cgroup import Groups, ceiling
from mayfly.host.component import runner_disks
from mayfly.host.deadline import LATE_S, boottime, guard, only_child
from mayfly.host.fence import Surroundings
from mayfly.host.machine import DEVICE, Machine
from mayfly.host.monitor import Monitor, monitor
from mayfly.host.process import Launch, close_folder, end, end_named, exited, folder_of, readable
from mayfly.host.record import Record, read_record, write_record
from mayfly.host.relief import relief
from mayfly.host.template import Template
from mayfly.host.watch import Watch
from mayfly.model import MIB, Load, Outcome, Runner, RunnerSpec
from mayfly.pid import ProcessId
from mayfly.usage import Evidence

log = structlog.get_logger("host")

FIRST_UID = 61000
SLOTS = 180
"""VMs run under the uids from `FIRST_UID` on, one each: 60706-61183 is the range that systemd's
list of reserved ranges (UIDS-GIDS.md) leaves unused."""

START_S = 60
"""How long making a runner may take. `timeout` counts from QEMU's start, a budget from readiness:
that much later it ends what nobody has ended, above all a runner that never became ready."""

DEADLINE_SLACK_S = 3
"""The guest counts from its identity, a moment before the lease is ready: it is not to be early."""

DISK_SLACK_BYTES = 64 * MIB
"""How much larger than its rung's disk a VM's file may become: qcow2's own tables take 10 bytes of
64 KiB, and root's overlay is smaller than any rung."""

EARLIER = "earlier.qcow2"
"""A VM's disk that was another's scratch disk."""

QUIESCE_S = 10
"""Seconds in which a runner is to have put its scratch disk down (measured under TCG: 1.5)."""

RELEASE_S = 5
"""Seconds in which a QEMU that was killed is to be gone: its memory is given back first."""

TAKE_S = 25
"""Seconds in which another is to have taken it up (BuildKit's start under TCG: 4)."""

TEMPLATE = "mayfly/template"
"""What QEMU is called while it boots a template (`argv.template`)."""

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
        self._samplers: dict[str, tuple[Watch, asyncio.Task[None]]] = {}
        self._groups = groups
        # A clone that wakes keeps a core busy; more of them at once only make each other late.
        self._turns = asyncio.Semaphore(machine.cores)

    def list(self) -> tuple[Runner, ...]:
        """Every VM, those under way and those that were ended but not destroyed too."""
        now = boottime()
        return tuple(
            replace(
                record.runner(now),
                disk_used_bytes=self._disk_used_bytes(record.name),
                load=self._load(record.name),
            )
            for record in self._records.values()
        )

    def _disk_used_bytes(self, runner: str) -> int:
        """What the VM's own disks take. QEMU cannot put other files or links in their place: its
        folder is its uid's, so names in it are looked at and not followed."""
        used = 0
        own = self._directory(runner) / "qemu"
        for path in (*_disk_paths(own).values(), own / EARLIER):
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
                    self._sample(record)
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
                return there.runner(boottime())
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
            self._sample(record)
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
                await self._stop_sampling(runner)
                await self._unmake(runner, record)
                self._records.pop(runner, None)
                self._samplers.pop(runner, None)
                log.info("runner destroyed", runner=runner)

    async def grow(self, runner: str, memory_bytes: int) -> None:
        """See that a runner has that much memory in all, rounded up to what a guest can take in.

        Nothing when it has; memory is never taken away. The guest's kernel finds it by itself,
        some tenths of a second later. Raises `NotFound` when there is no such runner,
        `InfrastructureError` when its QEMU refuses (no slot is free, say).
        """
        async with self._lock(runner):
            record = self._records.get(runner)
            if record is None or not record.alive:
                raise NotFound(f"there is no runner {runner}")
            wanted = -(-memory_bytes // argv.BLOCK_BYTES) * argv.BLOCK_BYTES
            self._groups.hold(runner, ceiling(record.cpus, max(wanted, record.memory_bytes)))
            async with monitor(self._directory(runner) / "qemu/qmp.sock") as qemu:
                await qemu.plug_memory(wanted - await qemu.memory_bytes())
            self._keep(replace(record, memory_bytes=max(wanted, record.memory_bytes)))
            log.info("runner grown", runner=runner, memory_bytes=wanted)

    def _sample(self, record: Record) -> None:
        """Take samples of the runner from now on."""
        directory = self._directory(record.name)
        watch = Watch(
            record.name,
            Channel(directory / "qemu/agent.sock"),
            directory,
            cpus=record.cpus,
            memory_limit_bytes=self._machine.memory_bytes,
            age_s=lambda: max(0.0, boottime() - record.ready_at_s),
        )
        self._samplers[record.name] = watch, asyncio.create_task(watch.run())

    async def _stop_sampling(self, runner: str) -> None:
        """Silently when that was done; what was seen is kept until the runner is destroyed."""
        if runner in self._samplers:
            watch, task = self._samplers[runner]
            task.cancel()
            await watch.channel.close()

    def _load(self, runner: str) -> Load | None:
        return self._samplers[runner][0].load if runner in self._samplers else None

    async def usage(self, runner: str, *, final: bool) -> Evidence | None:
        """What the runner has used, this moment included; None when there is no such runner.

        `final`: BuildKit's own record of the steps as well, which takes some seconds.
        """
        if runner not in self._samplers:
            return None
        watch, task = self._samplers[runner]
        if not task.done():
            if final:
                await watch.finish()
            else:
                with contextlib.suppress(InfrastructureError):
                    await watch.look()
        return watch.evidence

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
        """A clone that has the scratch disk of another runner, which ends; made while that stops.

        Where the disk cannot be had, or may be damaged, it is a clone like any other, and its
        record says why.
        """
        disk = self._directory(record.name) / "qemu" / EARLIER
        uid, started = FIRST_UID + record.slot, time.monotonic()
        letting_go = asyncio.create_task(self._let_go(spec.scratch_of, template, disk, uid))
        try:
            made = await self._clone(record, spec, template)
            await asyncio.wait({letting_go})
        finally:
            letting_go.cancel()
            await asyncio.gather(letting_go, return_exceptions=True)
        if (error := letting_go.exception()) is not None:
            if not isinstance(error, InfrastructureError):
                raise error
            log.warning("scratch disk not kept", runner=record.name, error=str(error))
            return replace(made, cold=str(error))
        kept_s = time.monotonic() - started
        try:
            times = await self._take_scratch(made, spec, template, disk)
        except InfrastructureError as error:
            log.warning("scratch disk not taken up", runner=record.name, error=str(error))
            await self._unmake(record.name, made)
            return replace(await self._clone(record, spec, template), cold=str(error))
        times = {"quiesce": round(kept_s, 4), **times}
        log.info("goes on", runner=record.name, scratch_of=spec.scratch_of, **times)
        return replace(made, timings_s={**made.timings_s, **times})

    async def _let_go(self, runner: str, template: Template, disk: Path, uid: int) -> None:
        """Have a runner put its scratch disk down, end it, and make the disk `uid`'s, as `disk`.

        Raises `InfrastructureError` when there is no such disk, or it is not known to be sound. The
        runner's VM has ended even so; the rest of it goes when it is destroyed.
        """
        async with self._lock(runner):
            record = self._records.get(runner)
            if record is None or not record.alive or record.process is None:
                raise InfrastructureError(f"runner {runner} had ended")
            try:
                if record.template != template.key:
                    raise InfrastructureError("there is a new golden image")
                watch, task = self._samplers[runner]
                task.cancel()
                answer = await watch.channel.call(
                    "quiesce", {"timeout_s": QUIESCE_S}, timeout_s=QUIESCE_S + 2
                )
                if answer.get("quiesced") is not True:
                    raise InfrastructureError(f"runner {runner} did not put its disk down")
            finally:
                await _end_with_child(record.process)
            theirs = _disk_paths(self._directory(runner) / "qemu")["scratch"]
            try:
                theirs.rename(disk)
                os.chown(disk, uid, uid, follow_symlinks=False)
            except OSError as error:
                raise InfrastructureError(f"its disk cannot be moved: {error.strerror}") from None

    async def _take_scratch(
        self, record: Record, spec: RunnerSpec, template: Template, disk: Path
    ) -> dict[str, float]:
        """Have the runner's BuildKit go on with that disk; returns what took how many seconds."""
        own, started = self._directory(record.name) / "qemu", time.monotonic()
        frozen = template.disks
        async with monitor(own / "qmp.sock") as qemu:
            await qemu.plug_disk(disk, frozen.scratch, frozen.scratch_format)
        async with agent(own / "agent.sock") as guest:
            size = spec.size
            asked = {"timeout_s": TAKE_S, "disk_bytes": size.disk_bytes, "cpus": size.cpus}
            answer = await guest.call("take_scratch", asked, timeout_s=TAKE_S + 5)
        if answer.get("taken") is not True:
            raise InfrastructureError("the guest did not take the disk up")
        whole = round(time.monotonic() - started, 4)
        return {"scratch": whole, **_guest_timings(answer)}

    async def _clone(self, record: Record, spec: RunnerSpec, template: Template) -> Record:
        """The steps of making a runner, in order. Each leaves something that `_unmake` removes."""
        phase = _Phases()
        directory = self._directory(record.name)
        directory.mkdir(parents=True)
        own = directory / "qemu"
        link, uid = network.link(self._config, record.slot), FIRST_UID + record.slot
        folder_of(uid, own)
        self._keep(record)
        around = await network.surroundings(self._config)
        await self.fence.follow(around)

        with phase("prepare"):
            launch = self._launch(record.name, spec, template, own, link, uid)
            record = replace(record, process=launch.process)
            self._keep(record)
            disks, _ = await asyncio.gather(
                self._disks(template, own),
                network.make_namespace(self._config, link, around),
            )
            for path in (disks.root, disks.scratch):
                os.chown(path, uid, uid)

        with phase("qemu"):
            await launch.go(own / "qmp.sock")
            close_folder(own, uid)  # nor does whoever breaks out into QEMU make files there
            async with monitor(own / "qmp.sock") as qemu:
                with phase("restore"):
                    await qemu.load(template.state)
                with phase("memory"):
                    boot = template.shape.hardware.boot_memory_bytes
                    await qemu.plug_memory(spec.size.memory_bytes - boot)
                async with agent(own / "agent.sock") as guest:
                    await qemu.resume()
                    with phase("identity"):
                        identity, public = self._identity(spec, around)
                        answer = await guest.call("identity", identity, timeout_s=START_S)
        log.info("runner ready", runner=record.name, size=str(spec.size), phases=phase.seconds)
        timings = {**phase.seconds, **_guest_timings(answer)}
        now = boottime()
        return replace(
            record,
            ready=True,
            ready_at_s=now,
            ends_at_s=now + spec.budget_s + LATE_S,
            ssh_host_key=public,
            timings_s=timings,
        )

    async def _disks(self, template: Template, directory: Path) -> argv.Disks:
        """One overlay for each disk of the component; all of them go with the directory."""
        frozen = template.disks
        backing = {
            "overlay": (frozen.root, frozen.root_format),
            "scratch": (frozen.scratch, frozen.scratch_format),
        }
        made = _disk_paths(directory)
        await asyncio.gather(
            *(scratch.overlay(path, *backing[kind]) for kind, path in made.items())
        )
        return _overlays(directory)

    def _launch(
        self,
        name: str,
        spec: RunnerSpec,
        template: Template,
        directory: Path,
        link: network.Link,
        uid: int,
    ) -> Launch:
        """Start what becomes QEMU, so that it is in its control groups by the time it is needed."""
        kvm = template.shape.hardware.accelerator == "kvm"
        command = argv.confined(
            argv.clone(
                self._config.vm.qemu,
                template.shape.hardware,
                spec.runner,
                ram=template.ram,
                disks=_overlays(directory),
                boot=template.boot,
                directory=directory,
                ssh_port=network.SSH_PORT,
            ),
            namespace=link.path,
            uid=uid,
            groups=[DEVICE.stat().st_gid] if kvm else [],
            lifetime_s=spec.budget_s + START_S + LATE_S,
            file_bytes=spec.size.disk_bytes + DISK_SLACK_BYTES,
            cgroups=self._groups.make(name, ceiling(spec.size.cpus, spec.size.memory_bytes)),
            nice="cpu" in self._groups.tree.missing,
        )
        self._launches[name] = Launch(command)
        return self._launches[name]

    def _identity(self, spec: RunnerSpec, around: Surroundings) -> tuple[dict[str, Any], str]:
        """What makes a clone somebody, and the public half of its SSH host key."""
        private, public = ssh_key_pair()
        now_ns = time.time_ns()
        return {
            "entropy_b64": base64.b64encode(secrets.token_bytes(256)).decode(),
            "machine_id": secrets.token_hex(16),
            "hostname": f"mayfly-{spec.runner}",
            "ssh_host_key": private,
            "authorized_key": spec.authorized_key,
            "resolvers": list(around.resolvers),
            "cpus": spec.size.cpus,
            "disk_bytes": spec.size.disk_bytes,
            "deadline_unix_s": now_ns / 1e9 + spec.budget_s + DEADLINE_SLACK_S,
            "unix_time_ns": now_ns,
        }, public

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
        await self._stop_sampling(record.name)
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


async def _end_with_child(process: ProcessId) -> None:
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


def _disk_paths(directory: Path) -> dict[str, Path]:
    """Where a VM's disks are, by the component's kinds of disk."""
    return {disk.kind: directory / f"{disk.label}.qcow2" for disk in runner_disks().values()}


def _overlays(directory: Path) -> argv.Disks:
    made = _disk_paths(directory)
    return argv.Disks(made["overlay"], "qcow2", made["scratch"], "qcow2")


def _cancelled() -> bool:
    """Whether the task that asks is itself being cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class _Phases:
    """Seconds of each named phase; phases may nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 4)


def _guest_timings(answer: dict[str, Any]) -> dict[str, float]:
    """The guest's own times for its identity, where they are names and sensible numbers."""
    timings = answer.get("timings_s")
    if not isinstance(timings, dict):
        return {}
    return {
        f"guest.{name}": round(float(value), 4)
        for name, value in list(timings.items())[:16]
        if re.fullmatch(r"[a-z_]{1,20}", name)
        and isinstance(value, int | float)
        and 0 <= value < 1e6
    }


def ssh_key_pair() -> tuple[str, str]:
    """A new ed25519 key: the private half as OpenSSH PEM, the public one as a line."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return private.decode(), public.decode()


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
