"""Waiting for what comes about by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


async def until(holds: Callable[[], Any], timeout_s: float = 60) -> Any:
    """The first true value of `holds`. Raises `TimeoutError`."""
    async with asyncio.timeout(timeout_s):
        while not (value := holds()):  # noqa: ASYNC110 - nothing tells when
            await asyncio.sleep(0.01)
    return value
