"""One question to the orchestrator, from a command that is not asynchronous."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mayfly import client, config
from mayfly.client import Client

_T = TypeVar("_T")


def ask(question: Callable[[Client], Awaitable[_T]]) -> _T:
    """What `question` finds out from the farm that the environment names.

    Raises `ConfigError`, `Denied` (no token), `Unreachable`, and what the question raises.
    """

    async def asking() -> _T:
        async with client.from_environment(config.load()) as farm:
            return await question(farm)

    return asyncio.run(asking())
