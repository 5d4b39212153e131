"""A farm in this process that trusts a Woodpecker server of the test's own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from mayfly.config import Config
from mayfly.orchestrator import reconcile
from tests.orchestrator.leases import LADDER, Farm, farm
from tests.orchestrator.trust.forge import Woodpecker

Made = Callable[..., AbstractAsyncContextManager[Farm]]


@pytest.fixture
def server() -> Woodpecker:
    return Woodpecker()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A farm by its configuration: sections, and what `farm` takes."""
    monkeypatch.setattr(reconcile, "TICK_S", 0.05)

    def make(more: Any = None, **sections: Any) -> AbstractAsyncContextManager[Farm]:
        told = {"state": tmp_path, "ladder": LADDER, "pool": {"memory_gb": 8}, **sections}
        return farm(Config.model_validate(told), **(more or {}))

    return make


@pytest.fixture
async def f(made: Made, server: Woodpecker) -> AsyncIterator[Farm]:
    async with made(woodpecker=server.options) as running:
        yield running
