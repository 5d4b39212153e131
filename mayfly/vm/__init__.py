"""What makes VMs. A provider is an object that satisfies `provider.Provider`; this is the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mayfly.config import Config
from mayfly.vm.provider import Provider


def _qemu(config: Config) -> Provider:
    from mayfly.vm.qemu import Qemu

    return Qemu(config)


def _fake(config: Config) -> Provider:
    from mayfly.vm.fake import Fake

    return Fake(directory=config.state / "orchestrator" / "fake")


PROVIDERS: Mapping[str, Callable[[Config], Provider]] = {"qemu": _qemu, "fake": _fake}


def provider(config: Config) -> Provider:
    """The configured provider. Starts nothing and touches nothing."""
    return PROVIDERS[config.vm.provider](config)
