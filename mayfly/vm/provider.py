"""What makes and unmakes VMs, seen from the orchestrator. Plain modules and objects satisfy it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypedDict

from mayfly.model import Runner, RunnerSpec
from mayfly.usage import Evidence
from mayfly.wire import GoldenJson

Progress = Callable[[str], None]
"""Takes one line that a person reads while something long goes on."""


class About(TypedDict):
    """What a provider says of the machines that it makes runners on."""

    accelerator: str
    golden: GoldenJson | None


class Provider(Protocol):
    """Makes, lists and unmakes runners; knows nothing of leases, tenants or policy.

    `golden` says whether its runners start from a golden image of this machine, `doors` whether
    the edge can reach them and they it.
    """

    name: str
    golden: bool
    doors: bool

    async def about(self) -> About:
        """For the status. Raises `Unreachable` when the provider cannot be asked."""

    async def prepare(self, progress: Progress) -> None:
        """Make whatever the first runner would otherwise wait for (a template, a warm pool).

        Returns at once when it is there. Raises `InfrastructureError` or `MachineUnfit`.
        """

    async def create(self, spec: RunnerSpec) -> Runner:
        """Make the runner and return it ready: with an identity, its SSH server answering.

        The same name again returns the runner that exists. When it fails nothing of it is left.
        With `spec.scratch_of` that runner is ended, and the new one goes on with its scratch disk,
        grown to the new size; where that is impossible or unsafe, `cold` of the answer says why.
        Raises `InfrastructureError` (worth another try) or `MachineUnfit` (not on this machine).
        """

    async def destroy(self, runner: str) -> None:
        """Unmake the runner and all that is its own. Returns silently when it does not exist."""

    async def usage(self, runner: str, *, final: bool) -> Evidence | None:
        """What the runner has used, this moment included, as it is seen on the runner's side.

        `final`: with the steps that ran on it, for which it may take some seconds. None when the
        runner does not exist. Raises `InfrastructureError`.
        """

    async def grow(self, runner: str, memory_bytes: int) -> None:
        """See that the runner, which goes on, has that much memory in all.

        Does nothing for one that has as much. Raises `NotFound` when it does not exist,
        `InfrastructureError` when it cannot be given; it may have got a part.
        """

    async def authorize(self, runner: str, public_key: str) -> None:
        """Let one more SSH key (an OpenSSH line) into the runner, for as long as it exists.

        Again is fine. Raises `NotFound` when it does not exist, `InfrastructureError`.
        """

    async def list(self) -> tuple[Runner, ...]:
        """Every runner that exists, ready or not, whoever asked for it."""
