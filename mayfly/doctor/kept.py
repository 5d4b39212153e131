"""What Mayfly has made on this machine and keeps: tools, state, disk, images, certificates."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mayfly import golden
from mayfly import tools as toolbox
from mayfly.config import Config, site_certificates
from mayfly.doctor.check import Check, fail, ok, warn
from mayfly.errors import MachineUnfit
from mayfly.golden import recipe
from mayfly.host import template as templates
from mayfly.host.machine import Machine
from mayfly.model import GIB
from mayfly.stack import preflight

NEEDED_BYTES = 10 * GIB
NEEDED_INODES = 10_000
SOON = timedelta(days=30)
RESEEDS = (5, 18)
"""The first Linux whose random numbers start anew when vmgenid says that a VM was cloned."""


def tools(config: Config) -> Iterator[Check]:
    yield ok("tools", str(toolbox.tools_dir(config.cache)))


def state(config: Config) -> Iterator[Check]:
    """A folder of Mayfly's own, of this version, or none yet."""
    preflight.check_state(config.state)
    there = config.state.is_dir()
    yield ok("state", f"{config.state}{'' if there else ', which `mayfly up` will make'}")


def disk(config: Config) -> Iterator[Check]:
    """Free as the file system, or its quota for us, says."""
    there = next(p for p in (config.state, *config.state.parents, Path("/")) if p.exists())
    usage, inodes = shutil.disk_usage(there), _free_inodes(there)
    found = f"{usage.free / GIB:.0f} of {usage.total / GIB:.0f} GiB free at {there}"
    elsewhere = "make room there, or keep the state elsewhere: MAYFLY_STATE=/path mayfly up"
    if usage.free < NEEDED_BYTES:
        yield warn("disk", f"{found}, {NEEDED_BYTES // GIB} GiB are wanted", elsewhere)
    elif inodes is not None and inodes < NEEDED_INODES:
        yield warn("disk", f"{found}, but only {inodes} more files", elsewhere)
    else:
        yield ok("disk", found)


def _free_inodes(path: Path) -> int | None:
    """None where the file system does not count them."""
    found = os.statvfs(path)
    return found.f_favail if found.f_files else None


def certificates(config: Config) -> Iterator[Check]:
    """A company's own CA certificates, which go into runners and base images."""
    from cryptography import x509

    now, faults, count = datetime.now(UTC), [], 0
    for path in site_certificates(config):
        try:
            for each in x509.load_pem_x509_certificates(path.read_bytes()):
                count += 1
                if each.not_valid_after_utc < now:
                    faults.append(f"{path} has expired on {each.not_valid_after_utc:%Y-%m-%d}")
                elif each.not_valid_after_utc < now + SOON:
                    faults.append(f"{path} expires on {each.not_valid_after_utc:%Y-%m-%d}")
        except (OSError, ValueError) as error:
            faults.append(f"{path} is no PEM certificate that can be read ({type(error).__name__})")
    if faults:
        yield warn(
            "certificates",
            "; ".join(faults),
            "replace it, then `mayfly golden build`, or choose: golden.site_certificates = []",
        )
    else:
        yield ok(
            "certificates", f"{count} of this site's own" if count else "none of this site's own"
        )


def golden_image(config: Config) -> Iterator[Check]:
    """The image that runners start from, and the template made of it."""
    image = golden.newest(config.state)
    if image is None:
        yield warn("golden image", "none yet", "mayfly golden build")
        return
    content: dict[str, Any] = image.manifest()["content"]
    if content.get("recipe_sha256") != recipe.load().sha256:
        yield warn(
            "golden image",
            f"{image.name} is older than this version's recipe",
            "mayfly golden build",
        )
    else:
        yield ok("golden image", image.name)


def twins(config: Config) -> Iterator[Check]:
    """Clones are nobody's twin: QEMU tells each that it is one, and the guest's kernel listens.

    Nothing where there is no QEMU or no image, which other checks say.
    """
    image = golden.newest(config.state)
    if image is None or shutil.which(config.vm.qemu) is None:
        return
    content: dict[str, Any] = image.manifest()["content"]
    kernels = [
        tuple(map(int, match[1].split(".")[:2]))
        for package in content.get("packages", [])
        if (match := re.match(r"linux-image-(\d+\.\d+)", str(package.get("name", ""))))
    ]
    devices = subprocess.run(
        [config.vm.qemu, "-device", "help"], capture_output=True, text=True, timeout=20, check=False
    ).stdout
    if '"vmgenid"' not in devices:
        yield fail(
            "twins", f"{config.vm.qemu} has no vmgenid device", "apt-get install qemu-system-x86"
        )
    elif not kernels or max(kernels) < RESEEDS:
        yield fail(
            "twins",
            "the golden image's kernel is older than 5.18 and does not reseed in a clone",
            "mayfly golden build --force",
        )
    else:
        version = ".".join(map(str, max(kernels)))
        yield ok("twins", f"none: QEMU has vmgenid, and the guest's Linux {version} reseeds by it")


def template(config: Config, inspected: Callable[[], Machine]) -> Iterator[Check]:
    """The frozen VM that runners are cloned from; nothing where there cannot be one yet."""
    if golden.newest(config.state) is None:
        return
    try:
        found = templates.current(config, inspected())
    except MachineUnfit:
        return
    yield ok("template", found.key if found else "none yet: the first `mayfly up` makes one")
