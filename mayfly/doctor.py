"""What this machine lacks for builds and how to mend it: `mayfly doctor`.

Each check is a small function that looks at one thing and changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

from mayfly import tools
from mayfly.config import Config
from mayfly.errors import MayflyError
from mayfly.golden import newest
from mayfly.host import machine
from mayfly.ladder import room as room_of
from mayfly.model import GIB

NEEDED_DISK_BYTES = 10 * GIB
# program -> Debian package
PROGRAMS = {
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "mkfs.ext4": "e2fsprogs",
}


class State(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was `found`, and how to `mend` it (empty when it is well)."""

    name: str
    state: State
    found: str
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def checks(config: Config) -> tuple[Check, ...]:
    """Every check, in the order in which to mend. Raises nothing: a check that fails says why."""
    return (
        _root(),
        *_virtualisation(config),
        _programs(),
        _tools(config),
        _golden(config),
        _address(config),
        _disk(config),
    )


def _root() -> Check:
    if os.geteuid() == 0:
        return Check("root", State.OK, "yes")
    return Check(
        "root",
        State.FAIL,
        "no: runners need namespaces and firewall rules",
        "run `mayfly up` as root; building needs no root",
    )


async def _inspect(config: Config) -> machine.Machine:
    try:
        return await machine.inspect(config)
    finally:
        await asyncio.sleep(0)  # lets asyncio close its pipes before the loop is gone


def _virtualisation(config: Config) -> Iterator[Check]:
    try:
        with tempfile.TemporaryDirectory(prefix="mayfly-doctor-") as scratch:
            aside = config.model_copy(update={"state": Path(scratch)})
            found = asyncio.run(_inspect(aside))
    except MayflyError as error:
        yield Check("QEMU", State.FAIL, error.message, error.hint)
        return
    yield Check("QEMU", State.OK, found.qemu)
    if found.accelerator == "kvm":
        yield Check("acceleration", State.OK, f"KVM: {found.reason}")
    else:
        yield Check(
            "acceleration",
            State.WARN,
            f"none (TCG), compiling is about an order of magnitude slower: {found.reason}",
            "use a machine, or a kind of cloud server, that offers nested virtualisation",
        )
    room = room_of(config, found.memory_bytes, found.cores)
    refused = [str(size) for size in config.sizes if not room.fits(size)]
    fitting = ", ".join(size.name for size in room.fitting)
    if not fitting:
        yield Check(
            "sizes",
            State.FAIL,
            f"not even {refused[0]} fits into {room.memory_bytes / GIB:.1f} GiB and "
            f"{room.cpus} vCPUs",
            "configure a smaller [ladder], or lower pool.reserve_gb",
        )
    elif refused:
        yield Check(
            "sizes",
            State.WARN,
            f"{fitting}; too large for {room.memory_bytes / GIB:.1f} GiB and {room.cpus} vCPUs: "
            + ", ".join(refused),
            "nothing to do unless builds need them; see [pool] and [ladder]",
        )
    else:
        yield Check("sizes", State.OK, fitting)


def _programs() -> Check:
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if not missing:
        return Check("packages", State.OK, "all there")
    packages = " ".join(sorted({PROGRAMS[name] for name in missing}))
    return Check(
        "packages", State.FAIL, f"missing: {', '.join(missing)}", f"apt-get install {packages}"
    )


def _tools(config: Config) -> Check:
    try:
        return Check("tools", State.OK, str(tools.tools_dir(config.cache)))
    except MayflyError as error:
        return Check("tools", State.FAIL, error.message, error.hint)


def _golden(config: Config) -> Check:
    try:
        image = newest(config.state)
    except (MayflyError, OSError) as error:
        return Check("golden image", State.WARN, str(error), "mayfly golden build --force")
    if image is None:
        return Check("golden image", State.WARN, "none yet", "mayfly golden build")
    return Check("golden image", State.OK, image.name)


def _address(config: Config) -> Check:
    """Somebody else on our port is a fault; our own edge is not."""
    host, _, port = config.server.listen.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            if (config.run / "host.sock").exists():
                return Check("address", State.OK, f"{config.server.listen}: Mayfly is running")
            return Check(
                "address",
                State.FAIL,
                f"{config.server.listen}: {error.strerror}",
                "stop what uses it, or set server.listen",
            )
    return Check("address", State.OK, f"{config.server.listen} is free")


def _disk(config: Config) -> Check:
    there = next(p for p in (config.state, *config.state.parents, Path("/")) if p.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / GIB:.0f} GiB free at {there}"
    if free >= NEEDED_DISK_BYTES:
        return Check("disk", State.OK, found)
    return Check(
        "disk",
        State.WARN,
        found,
        f"make room: {NEEDED_DISK_BYTES // GIB} GiB are wanted, or set MAYFLY_STATE elsewhere",
    )
