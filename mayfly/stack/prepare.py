"""What `mayfly up` makes once every program serves: all that the first build would wait for."""

from __future__ import annotations

from mayfly import golden, vm
from mayfly.config import Config
from mayfly.vm.provider import Progress


async def prepare(config: Config, progress: Progress) -> None:
    """A golden image, when there is none, and the provider's own preparations (a template).

    Returns at once when all of it is there. Raises what `golden.make` and `Provider.prepare` do.
    """
    provider = vm.provider(config)
    if provider.golden and golden.newest(config.state) is None:
        await golden.make_apart(config, progress)
    await provider.prepare(progress)
