"""The `qemu` provider: a client of the host program on this machine."""

from __future__ import annotations

from datetime import UTC, datetime

from mayfly.config import Config
from mayfly.model import Runner, RunnerSpec
from mayfly.usage import Evidence
from mayfly.vm.client import ControlClient
from mayfly.vm.provider import About, Progress


class Qemu:
    """Runners are QEMU VMs of this machine, made by its host program."""

    name = "qemu"
    golden = True
    doors = True

    def __init__(self, config: Config) -> None:
        self._host = ControlClient(config.run / "host.sock")

    async def about(self) -> About:
        """The accelerator and the newest golden image of the machine."""
        told = await self._host.about()
        image = told["golden"]
        if image is not None:
            made = datetime.fromisoformat(image["created_at"])
            age_s = (datetime.now(UTC) - made).total_seconds()
            image = {"name": image["name"], "digest": image["digest"], "age_s": round(age_s)}
        return {"accelerator": str(told["accelerator"]), "golden": image}

    async def prepare(self, progress: Progress) -> None:
        """Have the template made."""
        await self._host.prepare(progress)

    async def create(self, spec: RunnerSpec) -> Runner:
        """Have a runner cloned; returns it ready."""
        return await self._host.create(spec)

    async def destroy(self, runner: str) -> None:
        """Have a runner unmade."""
        await self._host.destroy(runner)

    async def usage(self, runner: str, *, final: bool) -> Evidence | None:
        """What the host's sampler has seen."""
        return await self._host.usage(runner, final=final)

    async def grow(self, runner: str, memory_bytes: int) -> None:
        """Have memory plugged in."""
        await self._host.grow(runner, memory_bytes)

    async def authorize(self, runner: str, public_key: str) -> None:
        """Have the guest's SSH server told."""
        await self._host.authorize(runner, public_key)

    async def list(self) -> tuple[Runner, ...]:
        """The machine's VMs."""
        return await self._host.list()
