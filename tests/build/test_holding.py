"""A lease that ends elsewhere stops the build, and one that our own report ends does not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from mayfly.build.holding import held
from mayfly.build.stop import stoppable
from mayfly.errors import MayflyError
from mayfly.model import Outcome


@dataclass
class Farm:
    """A farm that says the lease is over, with an outcome, before it answers the report."""

    outcome: str
    tls: None = None
    state = "ready"

    def holding(self, token: str) -> Farm:
        return self

    async def ask(self, request: Any, key: str) -> Any:
        return {"id": "l", "token": "t", "page_url": "u"}

    async def heartbeat(self, lease: str) -> Any:
        return {"state": self.state}

    async def lease(self, lease: str, **_: Any) -> Any:
        return {"id": lease, "state": self.state, "outcome": self.outcome, "reason": ""}

    async def end(self, lease: str, outcome: Outcome) -> None:
        """It has ended."""

    async def report(self, lease: str, **_: Any) -> str:
        self.state = "destroying"
        await asyncio.sleep(0.2)
        return "the verdict"


async def report(farm: Any) -> str:
    async with stoppable() as stop, held(farm, farm, every_s=0.02, stop=stop) as (lease, api, _):
        return str(await api.report(lease))  # type: ignore[call-arg]


async def test_a_success_is_told_by_the_answer_to_our_own_report() -> None:
    assert await report(Farm("succeeded")) == "the verdict"


@pytest.mark.parametrize(("outcome", "status"), [("cancelled", 130), ("runner_lost", 20)])
async def test_a_lease_that_ends_elsewhere_stops_the_build(outcome: str, status: int) -> None:
    with pytest.raises(MayflyError, match=f"ended as {outcome}") as caught:
        await report(Farm(outcome))
    assert caught.value.exit_status == status
