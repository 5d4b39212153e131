"""A golden image in which whoever may log in can become root: a guest that was broken out of.

What Mayfly promises must hold against root inside the guest. There is no way to become root in a
runner, so tests of that promise start from a twin of the golden image with one file more: a copy
of its own setpriv(1), owned by root, with the setuid bit. debugfs(8) writes it into the disk,
offline: nothing is mounted and the product is as it is.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from mayfly.golden import catalogue
from mayfly.golden.catalogue import FILES, Golden
from mayfly.golden.manifest import digest
from mayfly.golden.recipe import file_sha256

TOOL = "/usr/bin/setpriv"
FOLDER, NAME = "/usr/bin", "broken-out"


def as_root(command: str) -> str:
    """A shell command that runs `command` as root, for whoever is logged in to such a guest."""
    become = f"{FOLDER}/{NAME} --reuid=0 --regid=0 --clear-groups"
    return f"{become} /bin/sh -c {shlex.quote(command)}"


def root_the_newest(state: Path) -> Golden:
    """Put a twin of the newest golden image of `state` beside it, as the newer one of today.

    Its manifest and digest are those of what it holds, so the catalogue verifies it. Raises
    `AssertionError` when there is no golden image, or when the disk is not as it should be.
    """
    original = catalogue.newest(state)
    assert original is not None, f"no golden image in {state}"
    folder = catalogue.golden_dir(state)
    name = catalogue.next_folder({p.name for p in folder.iterdir()}, datetime.now(UTC).date())
    twin = folder / name
    half = folder / f".rooted-{name}"
    half.mkdir()
    try:
        for part in (original.kernel, original.initrd):
            shutil.copy2(part, half / part.name)
        copy_sparse(original.disk, half / FILES["disk"])
        add_setuid_program(half / FILES["disk"])
        manifest = original.manifest()
        manifest["name"] = f"{original.name.partition(':')[0]}:{name}"
        manifest["content"]["files"][f"{FOLDER}/{NAME}".lstrip("/")] = "a setuid root setpriv"
        manifest["artifact"] = {
            part: {
                "sha256": file_sha256(half / file),
                "size_bytes": (half / file).stat().st_size,
            }
            for part, file in FILES.items()
        }
        manifest["digest"] = digest(manifest["content"], manifest["artifact"])
        (half / "manifest.json").write_text(json.dumps(manifest))
        half.rename(twin)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    made = catalogue.newest(state)
    assert made is not None and made.path == twin, "the twin is not the newest golden image"
    return made


def copy_sparse(source: Path, target: Path) -> None:
    """A copy with the holes of the original: most of a disk is nothing."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True, timeout=120)


def add_setuid_program(disk: Path) -> None:
    """Write the disk's own setpriv into it again, under `NAME`, as a setuid program of root."""
    with tempfile.TemporaryDirectory() as scratch:
        aside = Path(scratch) / NAME
        debugfs(disk, f"dump {TOOL} {aside}")
        assert aside.stat().st_size > 0, f"{disk} has no {TOOL}"
        debugfs(
            disk,
            f"cd {FOLDER}",
            f"write {aside} {NAME}",
            f"set_inode_field {NAME} mode 0104755",
            f"set_inode_field {NAME} uid 0",
            f"set_inode_field {NAME} gid 0",
        )
    shown = debugfs(disk, f"stat {FOLDER}/{NAME}")
    assert "Mode:  04755" in shown and "User:     0" in shown, shown
    subprocess.run(["e2fsck", "-f", "-n", disk], check=True, capture_output=True, timeout=120)


def debugfs(disk: Path, *commands: str) -> str:
    """What debugfs(8) prints when it carries out `commands` on `disk`, which may be written."""
    done = subprocess.run(
        ["debugfs", "-w", "-f", "/dev/stdin", disk],
        input="\n".join(commands) + "\n",
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stdout
