"""A wheel of PyPI as a folder of files, by uv and against its checksum."""

from __future__ import annotations

import sys
from pathlib import Path

from mayfly.debian.process import run
from mayfly.errors import MachineUnfit


def unpack_wheel(package: str, version: str, sha256: str, folder: Path) -> None:
    """Unpack a wheel for x86-64 Linux into `folder`. `sha256` is the wheel's, in hex.

    uv knows the index from this machine's configuration and keeps what it fetched. Raises
    `MachineUnfit` without uv, `InfrastructureError` when it fails or the checksum differs.
    """
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        raise MachineUnfit("uv is not in Mayfly's environment", hint="run `make setup`")
    run(
        [uv, "pip", "install", "--quiet", "--system-certs", "--no-deps", "--require-hashes",
         "--only-binary", ":all:", "--python-platform", "x86_64-manylinux_2_28",
         "--python", sys.executable, "--target", folder, "-r", "-"],
        what=f"fetching {package}",
        stdin=f"{package}=={version} --hash=sha256:{sha256}\n",
    )  # fmt: skip
