"""Making a VM out of a template: the steps, in order, and what each of them needs."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mayfly.config import Config
from mayfly.host import argv, network, scratch
from mayfly.host.agent import agent
from mayfly.host.cgroup import Groups, ceiling
from mayfly.host.component import runner_disks
from mayfly.host.deadline import LATE_S, boottime
from mayfly.host.fence import Surroundings
from mayfly.host.machine import DEVICE
from mayfly.host.monitor import monitor
from mayfly.host.process import Launch, close_folder, folder_of
from mayfly.host.record import Record
from mayfly.host.template import Template
from mayfly.model import MIB, RunnerSpec

log = structlog.get_logger("host")

START_S = 120
"""How long making a runner may take. `timeout` counts from QEMU's start, a budget from readiness:
that much later it ends what nobody has ended, above all a runner that never became ready."""

DEADLINE_SLACK_S = 3
"""The guest counts from its identity, a moment before the lease is ready: it is not to be early."""

DISK_SLACK_BYTES = 64 * MIB
"""How much larger than its rung's disk a VM's file may become: qcow2's own tables take 10 bytes of
64 KiB, and root's overlay is smaller than any rung."""


class Cloner:
    """Makes VMs below `config.state`. `keep` writes a VM's record; `launched` is told of what has
    been started for it, so that whoever unmakes it knows.
    """

    def __init__(
        self,
        config: Config,
        groups: Groups,
        fence: network.Fence,
        *,
        keep: Callable[[Record], None],
        launched: Callable[[str, Launch], None],
    ) -> None:
        self._config = config
        self._groups = groups
        self._fence = fence
        self._keep = keep
        self._launched = launched

    async def clone(
        self, directory: Path, record: Record, spec: RunnerSpec, template: Template
    ) -> Record:
        """The steps of making a runner, in order. Each leaves something that unmaking it removes.

        `directory` is made. Raises `InfrastructureError` and `OSError`.
        """
        phase = Phases()
        directory.mkdir(parents=True)
        own = directory / "qemu"
        link, uid = network.link(self._config, record.slot), record.uid
        folder_of(uid, own)
        self._keep(record)
        around = await network.surroundings(self._config)
        await self._fence.follow(around)

        with phase("prepare"):
            launch = self._launch(record.name, spec, template, own, link, uid)
            record = replace(record, process=launch.process)
            self._keep(record)
            disks, _ = await asyncio.gather(
                _disks(template, own),
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
                        identity, public = _identity(spec, around)
                        answer = await guest.call("identity", identity, timeout_s=START_S)
        log.info("runner ready", runner=record.name, size=str(spec.size), phases=phase.seconds)
        timings = {**phase.seconds, **guest_timings(answer)}
        now = boottime()
        return replace(
            record,
            ready=True,
            ready_at_s=now,
            ends_at_s=now + spec.budget_s + LATE_S,
            ssh_host_key=public,
            timings_s=timings,
        )

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
        launch = Launch(command)
        self._launched(name, launch)
        return launch


async def _disks(template: Template, directory: Path) -> argv.Disks:
    """One overlay for each disk of the component; all of them go with the directory."""
    frozen = template.disks
    backing = {
        "overlay": (frozen.root, frozen.root_format),
        "scratch": (frozen.scratch, frozen.scratch_format),
    }
    made = disk_paths(directory)
    await asyncio.gather(*(scratch.overlay(path, *backing[kind]) for kind, path in made.items()))
    return _overlays(directory)


def _identity(spec: RunnerSpec, around: Surroundings) -> tuple[dict[str, Any], str]:
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


def disk_paths(directory: Path) -> dict[str, Path]:
    """Where a VM's disks are, by the component's kinds of disk."""
    return {disk.kind: directory / f"{disk.label}.qcow2" for disk in runner_disks().values()}


def _overlays(directory: Path) -> argv.Disks:
    made = disk_paths(directory)
    return argv.Disks(made["overlay"], "qcow2", made["scratch"], "qcow2")


class Phases:
    """Seconds of each named phase; phases may nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 4)


def guest_timings(answer: dict[str, Any]) -> dict[str, float]:
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
