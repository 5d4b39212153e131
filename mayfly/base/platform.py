"""The platforms that base images are made for, by the names that Dockerfiles and buildx use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from mayfly.errors import UsageError


@dataclass(frozen=True, slots=True)
class Platform:
    """What the OCI calls a platform (image-spec, image index), and Debian's name for it."""

    architecture: str
    debian: str
    variant: str = ""

    @property
    def name(self) -> str:
        return "/".join(("linux", self.architecture, self.variant)).rstrip("/")

    @property
    def oci(self) -> dict[str, str]:
        """The `platform` object of an image index."""
        variant = {"variant": self.variant} if self.variant else {}
        return {"os": "linux", "architecture": self.architecture, **variant}


OWN = Platform("amd64", "amd64")
# Those that a runner can run: its own, and those whose emulators its golden image has.
PLATFORMS: Mapping[str, Platform] = {
    platform.name: platform
    for platform in (
        OWN,
        Platform("arm64", "arm64"),
        Platform("arm", "armhf", "v7"),
        Platform("ppc64le", "ppc64el"),
        Platform("riscv64", "riscv64"),
        Platform("s390x", "s390x"),
    )
}


def parse(texts: Iterable[str]) -> tuple[Platform, ...]:
    """The platforms of comma-separated lists, each once; this machine's for none.

    Raises `UsageError` for one that no base image is made for.
    """
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    for name in names:
        if name not in PLATFORMS:
            raise UsageError(
                f"no base image is made for platform {name!r}", hint=f"use {', '.join(PLATFORMS)}"
            )
    return tuple(PLATFORMS[name] for name in dict.fromkeys(names)) or (OWN,)


def name_of(found: Mapping[str, Any]) -> str:
    """The name of a platform as an image index or an image's configuration has it.

    arm64's only variant, v8, is left out, as buildx does.
    """
    variant = str(found.get("variant", ""))
    if (found.get("architecture"), variant) == ("arm64", "v8"):
        variant = ""
    parts = (str(found.get("os", "")), str(found.get("architecture", "")), variant)
    return "/".join(parts).rstrip("/")
