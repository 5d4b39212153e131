"""The `qemu` provider: a client of the host program on this machine."""

from __future__ import annotations

from mayfly.config import Config
from mayfly.model import Runner, RunnerSpec
from mayfly.vm.client import ControlClient
from mayfly.vm.protocol import Message
from mayfly.vm.provider import Progress


class Qemu:
    """Runners are QEMU VMs of this machine, made by its host program."""

    name = "qemu"

    def __init__(self, config: Config) -> None:
        self._host = ControlClient(config.run / "host.sock")

    async def about(self) -> Message:
        """What the machine is: accelerator, golden image, template."""
        return await self._host.about()

    async def prepare(self, progress: Progress) -> None:
        """Have the template made."""
        await self._host.prepare(progress)

    async def create(self, spec: RunnerSpec) -> Runner:
        """Have a runner cloned; returns it ready."""
        return await self._host.create(spec)

    async def destroy(self, runner: str) -> None:
        """Have a runner unmade."""
        await self._host.destroy(runner)

    async def list(self) -> tuple[Runner, ...]:
        """The machine's VMs."""
        return await self._host.list()
