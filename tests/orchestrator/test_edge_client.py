"""What the orchestrator asks of an edge for runners that nobody can reach."""

from __future__ import annotations

import pytest

from mayfly.errors import InfrastructureError, Unreachable
from mayfly.orchestrator.edge import NoDoors


class Refusing:
    """An edge that serves `one` and finds no other runner."""

    def __init__(self) -> None:
        self.away = False

    async def attached(self) -> tuple[str, ...]:
        return ("one",)

    async def attach(self, runner: str) -> None:
        if self.away:
            raise Unreachable("away")
        if runner != "one":
            raise InfrastructureError("not there")

    async def revoke(self, runner: str) -> None:
        return


async def test_a_runner_without_a_door_counts_as_served_until_it_is_revoked() -> None:
    edge = Refusing()
    lenient = NoDoors(edge)
    await lenient.attach("one")
    await lenient.attach("two")
    assert set(await lenient.attached()) == {"one", "two"}
    await lenient.revoke("two")
    assert await lenient.attached() == ("one",)
    edge.away = True
    with pytest.raises(Unreachable):
        await lenient.attach("two")
