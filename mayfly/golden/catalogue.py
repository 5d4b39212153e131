"""The golden images that are there: `<state>/golden/<YYYY-MM-DD>[.<n>]/`.

A second, different image of a day gets `.2`, then `.3`; the newest is the last of these.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path

from mayfly.errors import InfrastructureError
from mayfly.golden.manifest import Manifest, digest
from mayfly.golden.recipe import file_sha256

FILES = {"disk": "disk.raw", "kernel": "vmlinuz", "initrd": "initrd.img"}
_FOLDER = re.compile(r"(\d{4}-\d{2}-\d{2})(?:\.([1-9]\d{0,5}))?")


@dataclass(frozen=True)
class Golden:
    """One golden image. `name` is `buildkit-runner-golden:<date>`, `digest` is `sha256:…`."""

    name: str
    digest: str
    path: Path
    cmdline: str
    created_at: datetime

    @property
    def disk(self) -> Path:
        """The root file system, raw; runners overlay it and never write it."""
        return self.path / FILES["disk"]

    @property
    def kernel(self) -> Path:
        return self.path / FILES["kernel"]

    @property
    def initrd(self) -> Path:
        return self.path / FILES["initrd"]

    def manifest(self) -> Manifest:
        """`manifest.json`, read now. Raises `InfrastructureError` when it is gone or broken."""
        return read_manifest(self.path)


def golden_dir(state: Path) -> Path:
    return state / "golden"


def order(folder: str) -> tuple[str, int] | None:
    """The sort key of an image's folder name (date, ordinal); None for any other name."""
    match = _FOLDER.fullmatch(folder)
    return (match[1], int(match[2] or 1)) if match else None


def next_folder(taken: set[str], today: date) -> str:
    """The name for another image of `today`."""
    used = [key[1] for name in taken if (key := order(name)) and key[0] == today.isoformat()]
    return today.isoformat() if not used else f"{today.isoformat()}.{max(used) + 1}"


def read_manifest(path: Path) -> Manifest:
    try:
        manifest: Manifest = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError) as fault:
        raise InfrastructureError(
            f"golden image {path.name}: no readable manifest", hint="`mayfly golden build --force`"
        ) from fault
    return manifest


def load(path: Path) -> Golden:
    """The image in a folder. Raises `InfrastructureError` when its manifest cannot be used."""
    manifest = read_manifest(path)
    try:
        return Golden(
            name=manifest["name"],
            digest=manifest["digest"],
            path=path,
            cmdline=manifest["content"]["cmdline"],
            created_at=datetime.fromisoformat(manifest["created_at"]).astimezone(UTC),
        )
    except (KeyError, TypeError, ValueError) as fault:
        raise InfrastructureError(
            f"golden image {path.name}: its manifest lacks {fault}",
            hint="`mayfly golden build --force`",
        ) from fault


def listing(state: Path) -> list[Golden]:
    """Every whole image, oldest first; empty when there is none. Broken folders are left out."""
    folder = golden_dir(state)
    if not folder.is_dir():
        return []
    found: list[tuple[tuple[str, int], Golden]] = []
    for path in folder.iterdir():
        key = order(path.name)
        if key is None or not all((path / name).is_file() for name in FILES.values()):
            continue
        try:
            found.append((key, load(path)))
        except InfrastructureError:
            continue
    return [golden for _, golden in sorted(found, key=lambda pair: pair[0])]


def newest(state: Path) -> Golden | None:
    """The last image made; None when there is none."""
    images = listing(state)
    return images[-1] if images else None


def broken(state: Path, whole: Golden | None) -> Path | None:
    """The folder of the newest image, when that is not `whole`, the newest one that `listing` has:
    a file of it is gone, or its manifest cannot be used."""
    folder = golden_dir(state)
    if not folder.is_dir():
        return None
    found = [(key, path) for path in folder.iterdir() if (key := order(path.name)) is not None]
    last = max(found)[1] if found else None
    return last if whole is None or last != whole.path else None


def discard(path: Path) -> None:
    """Take an image's folder away; what has its files open keeps them. Silently when it is gone."""
    aside = path.with_name(f".discarded-{path.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def checksums(golden: Golden) -> dict[Path, str]:
    """The SHA-256 of each of the image's files, as its manifest has it.

    Raises `InfrastructureError` when the manifest cannot be read, or is not that of its digest.
    """
    manifest = golden.manifest()
    hint = "`mayfly golden build --force`"
    try:
        found = {golden.path / n: str(manifest["artifact"][p]["sha256"]) for p, n in FILES.items()}
        same = digest(manifest["content"], manifest["artifact"]) == golden.digest
    except (KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise InfrastructureError(f"{golden.name}: its manifest has changed", hint=hint)
    return found


def verify(golden: Golden) -> None:
    """Read every byte and compare with the manifest. Returns when all are as they were made.

    Raises `InfrastructureError` that names the file that is not.
    """
    hint = "`mayfly golden build --force`"
    for path, recorded in checksums(golden).items():
        try:
            actual = file_sha256(path)
        except OSError as fault:
            raise InfrastructureError(f"{golden.name}: {path.name} is gone", hint=hint) from fault
        if actual != recorded:
            raise InfrastructureError(f"{golden.name}: {path.name} has changed", hint=hint)
