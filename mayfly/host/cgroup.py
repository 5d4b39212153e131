"""A control group for each VM: the ceilings that hold whatever a guest does.

All VMs of an installation are below one group, `mayfly-<tag>`, whose CPU and IO weights are far
below the default, so that the services beside it win. It stands at the top of each hierarchy and
not below the host program's own group, so that a service manager that ends the host's unit does
not end the VMs (Docker's `cgroupfs` driver does the same).

Controllers are taken from wherever they are, v1, v2 or some of each; the files of both are in the
kernel's Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst. Every path here is made of the
installation's tag and a runner's checked name, below directories that only root writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mayfly.errors import InfrastructureError
from mayfly.model import MIB

CONTROLLERS = ("cpu", "memory", "io", "pids")
V1_NAMES = {"io": "blkio"}
"""What v1 calls a controller, where it differs."""

PERIOD_US = 100_000
"""The kernel's default period for CPU ceilings."""

WATCHDOGS = "watchdogs"
"""The group of the VMs' watchdogs: below the VMs' in name only, without ceilings."""

CODE_CACHE_BYTES = 256 * MIB
"""What QEMU may keep of translated code under TCG (`-accel tcg,tb-size`)."""

QEMU_BYTES = CODE_CACHE_BYTES + 384 * MIB
"""What QEMU may take beyond its guest's memory: translated code, its own heap, the kernel's page
tables for it, and the page cache of its disks, which wants room enough to be written back."""

THREADS = 256
"""What QEMU may start beside its vCPUs; its pool for disk requests has up to 64 threads."""

REMOVE_S = 10
"""How long a group's last processes may take to be gone; a large guest's memory takes a while."""


@dataclass(frozen=True, slots=True)
class Ceiling:
    """What one VM may use at most. `cpus` are cores' worth of time."""

    cpus: int
    memory_bytes: int
    processes: int


def ceiling(cpus: int, memory_bytes: int) -> Ceiling:
    """The ceiling of a VM with that many vCPUs and that much memory."""
    return Ceiling(cpus, memory_bytes + QEMU_BYTES, cpus + THREADS)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a controller is: its hierarchy's root and version (1 or 2)."""

    root: Path
    version: int


@dataclass(frozen=True, slots=True)
class Tree:
    """The control groups of this machine.

    `controllers` are the places of those there are, by their v2 names. `others` are the roots of
    hierarchies without one of them, which a service manager keeps its services apart by.
    """

    controllers: Mapping[str, Place]
    others: tuple[Path, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The controllers that this machine does not lend us."""
        return tuple(name for name in CONTROLLERS if name not in self.controllers)

    @property
    def roots(self) -> tuple[Path, ...]:
        """Every hierarchy that a VM's group is made in, each once."""
        used = [place.root for place in self.controllers.values()]
        return tuple(dict.fromkeys([*used, *self.others]))


def find(mounts: str, lends: Callable[[Path], frozenset[str]]) -> Tree:
    """The tree that the text of /proc/mounts shows. Pure.

    `lends` says which controllers a v2 root has to give. A controller that is in a v1 hierarchy is
    in no other. Of a hierarchy that is mounted several times the oldest mount counts: the others
    are some container's or chroot's view, which goes away with it.
    """
    places: dict[str, Place] = {}
    unified: Path | None = None
    others: list[Path] = []
    for line in mounts.splitlines():
        _, where, kind, options, *_ = [*line.split(), "", "", "", ""]
        root, words = Path(where), set(options.split(","))
        if kind == "cgroup2" and unified is None:
            unified = root
        elif kind == "cgroup":
            for name in CONTROLLERS:
                if V1_NAMES.get(name, name) in words:
                    places.setdefault(name, Place(root, 1))
            if "name=systemd" in words and not others:
                others.append(root)
    if unified is not None:
        lent = lends(unified)
        free = [name for name in CONTROLLERS if name in lent and name not in places]
        places |= {name: Place(unified, 2) for name in free}
        if not free:
            others.append(unified)
    return Tree(places, tuple(others))


def v2_controllers(root: Path) -> frozenset[str]:
    """What a v2 hierarchy has to give; nothing when that cannot be read."""
    try:
        return frozenset((root / "cgroup.controllers").read_text().split())
    except OSError:
        return frozenset()


def settings(controller: str, version: int, limit: Ceiling) -> tuple[tuple[str, str], ...]:
    """The files, with their values, that hold a VM to its ceiling. In the order of writing.

    No VM may swap: what it has is in memory or it has not got it.
    """
    quota, memory = limit.cpus * PERIOD_US, str(limit.memory_bytes)
    match controller, version:
        case "cpu", 1:
            return (("cpu.cfs_period_us", str(PERIOD_US)), ("cpu.cfs_quota_us", str(quota)))
        case "cpu", 2:
            return (("cpu.max", f"{quota} {PERIOD_US}"),)
        case "memory", 1:
            swap = "memory.memsw.limit_in_bytes"  # memory and swap together: never the smaller one
            return ((swap, "-1"), ("memory.limit_in_bytes", memory), (swap, memory))
        case "memory", 2:
            return (("memory.max", memory), ("memory.swap.max", "0"))
        case "pids", _:
            return (("pids.max", str(limit.processes)),)
    return ()


def weights(controller: str, version: int, weight: int) -> tuple[tuple[str, str], ...]:
    """The files, with their values, that give a group `weight` of the default 100.

    v1 counts CPU shares from 1024; which of the files for IO exist depends on the scheduler.
    """
    match controller, version:
        case "cpu", 1:
            return (("cpu.shares", str(max(2, weight * 1024 // 100))),)
        case "cpu", 2:
            return (("cpu.weight", str(weight)),)
        case "io", 1:
            return (("blkio.bfq.weight", str(weight)), ("blkio.weight", str(max(10, weight))))
        case "io", 2:
            return (("io.bfq.weight", str(weight)), ("io.weight", f"default {weight}"))
    return ()


OPTIONAL = (
    *("memory.memsw.limit_in_bytes", "memory.swap.max"),
    *("blkio.bfq.weight", "blkio.weight", "io.bfq.weight", "io.weight"),
)
"""Files that a kernel need not have: without swap accounting, with another IO scheduler."""


def survey(mounts: Path = Path("/proc/self/mounts")) -> Tree:
    """What this machine seems to lend; nothing is made for it. For `mayfly doctor`, as any user."""
    found = find(mounts.read_text(), v2_controllers)
    writable = {n: p for n, p in found.controllers.items() if not _read_only(p.root)}
    return Tree(writable, found.others)


def _read_only(root: Path) -> bool:
    try:
        return bool(os.statvfs(root).f_flag & os.ST_RDONLY)
    except OSError:
        return True


def words(tree: Tree) -> str:
    """What runners are held back by on this machine, in one line for people."""
    if not tree.missing:
        return "control groups for CPU, memory, IO and processes"
    instead = ", runners are only nicer than others (nice, ionice)" if "cpu" in tree.missing else ""
    return f"no control groups for {', '.join(tree.missing)}{instead}"


class Groups:
    """The groups of one installation; `tree` has no controllers where there is nothing to use."""

    def __init__(self, tag: str, tree: Tree) -> None:
        self._name = f"mayfly-{tag}"
        self.tree = tree

    @classmethod
    def open(cls, tag: str, weight: int, mounts: Path = Path("/proc/self/mounts")) -> Groups:
        """Make the group of the installation in every hierarchy that allows it. Idempotent.

        `weight` is what its VMs have together, of the 100 that any other group has. A controller
        that this machine does not lend (read-only, taken by processes of a container's root) is
        left out: `tree.missing` names it.
        """
        found = find(mounts.read_text(), v2_controllers)
        held: dict[str, Place] = {}
        for controller, place in found.controllers.items():
            group = place.root / f"mayfly-{tag}"
            with contextlib.suppress(OSError):
                if place.version == 2:
                    (place.root / "cgroup.subtree_control").write_text(f"+{controller}")
                group.mkdir(exist_ok=True)
                if place.version == 2:
                    (group / "cgroup.subtree_control").write_text(f"+{controller}")
                _write(group, weights(controller, place.version, weight))
                held[controller] = place
        lend_nothing = {place.root for place in found.controllers.values() if place.version == 2}
        lend_nothing -= {place.root for place in held.values()}
        others = []
        for root in (*found.others, *lend_nothing):
            with contextlib.suppress(OSError):
                (root / f"mayfly-{tag}").mkdir(exist_ok=True)
                others.append(root)
        groups = cls(tag, Tree(held, tuple(others)))
        for group in groups._leaves(WATCHDOGS):
            with contextlib.suppress(OSError):
                group.mkdir(exist_ok=True)
        return groups

    @classmethod
    def there(cls, tag: str, mounts: Path = Path("/proc/self/mounts")) -> Groups:
        """The groups that `open` can have made, for whoever takes them away."""
        return cls(tag, find(mounts.read_text(), v2_controllers))

    def make(self, runner: str, limit: Ceiling) -> tuple[Path, ...]:
        """Make a VM's groups, with every ceiling but the CPU's, which would slow its waking.

        Returns the files that a process writes itself into to be in them; none where this machine
        has no control groups. Raises `InfrastructureError`; half-made ones are `remove`d by the
        caller.
        """
        try:
            for group in self._leaves(runner):
                group.mkdir(exist_ok=True)
            for controller, place in self.tree.controllers.items():
                if controller != "cpu":
                    _write(
                        self._leaf(place.root, runner), settings(controller, place.version, limit)
                    )
        except OSError as error:
            raise InfrastructureError(f"no control group for {runner}: {error}") from None
        return tuple(group / "cgroup.procs" for group in self._leaves(runner))

    def hold(self, runner: str, limit: Ceiling) -> None:
        """Set every ceiling, the CPU's too. Idempotent. Raises `InfrastructureError`."""
        try:
            self._limit(runner, limit, CONTROLLERS)
        except OSError as error:
            raise InfrastructureError(f"control group of {runner}: {error}") from None

    def _limit(self, runner: str, limit: Ceiling, controllers: Iterable[str]) -> None:
        for name in controllers:
            if (place := self.tree.controllers.get(name)) is not None:
                _write(self._leaf(place.root, runner), settings(name, place.version, limit))

    @property
    def watchdogs(self) -> tuple[Path, ...]:
        """The files that a watchdog writes itself into."""
        return tuple(group / "cgroup.procs" for group in self._leaves(WATCHDOGS) if group.exists())

    async def remove(self, runner: str) -> None:
        """Kill whatever is in a VM's groups and remove them; silently where there are none.

        Raises `InfrastructureError` when one does not empty itself within `REMOVE_S`.
        """
        await _remove(self._leaves(runner))

    async def close(self) -> None:
        """Remove every group of the installation, whatever is in it. Idempotent."""
        parents = [root / self._name for root in self.tree.roots]
        for parent in parents:
            if parent.is_dir():
                await _remove([path for path in parent.iterdir() if path.is_dir()])
        await _remove(parents)

    def _leaves(self, name: str) -> tuple[Path, ...]:
        return tuple(self._leaf(root, name) for root in self.tree.roots)

    def _leaf(self, root: Path, name: str) -> Path:
        return root / self._name / name


def _write(group: Path, values: Iterable[tuple[str, str]]) -> None:
    for name, value in values:
        with contextlib.suppress(*((OSError,) if name in OPTIONAL else ())):
            (group / name).write_text(value)


async def _remove(groups: Iterable[Path]) -> None:
    left = [group for group in groups if group.exists()]
    deadline = time.monotonic() + REMOVE_S
    while left := [group for group in left if not _gone(group)]:
        if time.monotonic() > deadline:
            raise InfrastructureError(f"control group {left[0]} does not empty itself")
        await asyncio.sleep(0.01)


def _gone(group: Path) -> bool:
    """Kill what is in the group and try to remove it; whether it has gone."""
    with contextlib.suppress(OSError):
        for pid in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
