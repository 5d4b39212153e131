"""A provider without machines, for decisions, for scale and for trying things out.

What it does is told beforehand: delays, failures by runner, runners that die. Every call is
recorded. With a `directory` its runners are files there, so that they outlive the process as
real VMs do.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from mayfly.errors import NotFound
from mayfly.model import Load, Runner, RunnerSpec
from mayfly.usage import Evidence
from mayfly.vm.provider import About, Progress


class Fake:
    """Satisfies `provider.Provider`. `calls` has every call as (operation, runner), in order.

    `create_s` and `destroy_s` are what those calls take, in seconds of `sleep`.
    """

    name = "fake"
    golden = False
    doors = False

    def __init__(
        self,
        *,
        directory: Path | None = None,
        create_s: float = 0.0,
        destroy_s: float = 0.0,
        lines: tuple[str, ...] = (),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.create_s = create_s
        self.destroy_s = destroy_s
        self.calls: list[tuple[str, str]] = []
        self.specs: dict[str, RunnerSpec] = {}
        self.memory_bytes: dict[str, int] = {}
        self.keys: dict[str, list[str]] = {}
        self._evidence: dict[str, Evidence] = {}
        self._runners: dict[str, Runner] = {}
        self._faults: list[tuple[str, str, Exception]] = []
        self._held: dict[str, asyncio.Event] = {}
        self._lines = lines
        self._sleep = sleep
        self._directory = directory
        if directory and directory.is_dir():
            self._runners = {p.name: _load(p) for p in directory.iterdir()}

    def fail(self, operation: str, error: Exception, *, runner: str = "*", times: int = 1) -> None:
        """The next `times` calls of `operation` for a runner that matches raise `error`.

        `operation` is prepare, create, destroy, usage, grow, authorize or list; `runner` is a shell
        pattern.
        """
        self._faults += [(operation, runner, error)] * times

    def hold(self, operation: str) -> Callable[[], None]:
        """Let calls of `operation` wait until the returned function is called."""
        event = self._held[operation] = asyncio.Event()
        return event.set

    def lose(self, runner: str) -> None:
        """The runner dies by itself. Nothing happens when there is none."""
        self._runners.pop(runner, None)
        if self._directory:
            (self._directory / runner).unlink(missing_ok=True)

    def put(self, runner: str, size: str = "t1") -> None:
        """A runner that nobody asked for."""
        self._keep(Runner(runner, size, ready=True, ssh_host_key=host_key(runner)))

    def show(self, runner: str, load: Load | None = None, evidence: Evidence | None = None) -> None:
        """How the runner is from now on, and what it has used; None leaves it as it was."""
        if load:
            self._runners[runner] = replace(self._runners[runner], load=load)
        if evidence:
            self._evidence[runner] = evidence

    async def about(self) -> About:
        """There is no machine to tell of."""
        return {"accelerator": "none", "golden": None}

    async def prepare(self, progress: Progress) -> None:
        await self._act("prepare", "", 0)
        for line in self._lines:
            progress(line)

    async def create(self, spec: RunnerSpec) -> Runner:
        await self._act("create", spec.runner, self.create_s)
        self.specs[spec.runner] = spec
        if spec.runner not in self._runners:
            key = host_key(spec.runner)
            timings = {"clone": self.create_s}
            self._keep(Runner(spec.runner, spec.size.name, True, key, timings))
        return self._runners[spec.runner]

    async def destroy(self, runner: str) -> None:
        await self._act("destroy", runner, self.destroy_s)
        self.lose(runner)

    async def usage(self, runner: str, *, final: bool) -> Evidence | None:
        await self._act("usage", runner, 0)
        return self._evidence.get(runner)

    async def grow(self, runner: str, memory_bytes: int) -> None:
        await self._act("grow", runner, 0)
        if runner not in self._runners:
            raise NotFound(f"there is no runner {runner}")
        self.memory_bytes[runner] = memory_bytes

    async def authorize(self, runner: str, public_key: str) -> None:
        await self._act("authorize", runner, 0)
        if runner not in self._runners:
            raise NotFound(f"there is no runner {runner}")
        self.keys.setdefault(runner, []).append(public_key)

    async def list(self) -> tuple[Runner, ...]:
        await self._act("list", "", 0)
        return tuple(self._runners.values())

    async def _act(self, operation: str, runner: str, seconds: float) -> None:
        self.calls.append((operation, runner))
        if operation in self._held:
            await self._held[operation].wait()
        await self._sleep(seconds)
        for fault in self._faults:
            if fault[0] == operation and fnmatchcase(runner, fault[1]):
                self._faults.remove(fault)
                raise fault[2]

    def _keep(self, runner: Runner) -> None:
        self._runners[runner.name] = runner
        if self._directory:
            self._directory.mkdir(parents=True, exist_ok=True)
            (self._directory / runner.name).write_text(runner.size)


def host_key(runner: str) -> str:
    """A well-formed OpenSSH public key line, another for each name, that nobody can answer for."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + hashlib.sha256(runner.encode()).digest()
    return f"ssh-ed25519 {base64.b64encode(blob).decode()}"


def _load(path: Path) -> Runner:
    return Runner(path.name, path.read_text(), ready=True, ssh_host_key=host_key(path.name))
