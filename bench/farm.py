"""A farm of the bench's own, so that nobody's configuration or work is in the figures."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mayfly import base, config, golden, ladder, stack
from mayfly.cli.output import show
from mayfly.config import Config
from mayfly.model import GIB, Size

AT_ONCE = 8
"""How many leases of the smallest size the pool must hold (row `together`)."""

SMALLEST = "tiny"
BASE = "python"
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "python-web"
PUBLIC_REGISTRY = "registry.mayfly.internal:5000"
"""The registry that the example's Dockerfile names; the bench's farm has another port."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What a row works with.

    `default` is the size that most rows use: the smallest of Mayfly's own ladder. `times` makes a
    number of repetitions smaller for a trial.
    """

    config: Config
    smallest: Size
    default: Size
    largest: Size
    times: Callable[[int], int]
    scratch: Path

    def example(self, name: str) -> Path:
        """A context of its own, below `scratch`: the example, with this farm's registry."""
        folder = self.scratch / name
        shutil.copytree(EXAMPLE, folder)
        dockerfile = folder / "Dockerfile"
        text = dockerfile.read_text()
        dockerfile.write_text(text.replace(PUBLIC_REGISTRY, self.config.registry_host))
        return folder


def ladder_text(sizes: tuple[Size, ...]) -> str:
    """The sizes as TOML: those of the default ladder that fit, and one below them."""
    rungs = [(SMALLEST, 1, 1, 4)]
    rungs += [(s.name, s.cpus, s.memory_bytes // GIB, s.disk_bytes // GIB) for s in sizes]
    return "".join(
        f"[ladder.{name}]\ncpu = {cpus}\nmemory_gb = {memory}\ndisk_gb = {disk}\n"
        for name, cpus, memory, disk in rungs
    )


def overcommit(cores: int, default: float) -> float:
    """vCPUs for each core, so that `AT_ONCE` runners of one vCPU fit."""
    return max(default, AT_ONCE / cores)


def toml(state: Path, port: int, memory_bytes: int, cores: int, disk_bytes: int) -> str:
    """The farm's configuration: what is not here has its default. Pure."""
    plain = Config()
    sizes = ladder.room(plain, memory_bytes, cores, disk_bytes).fitting
    return (
        f'state = "{state}"\n'
        f'[server]\nlisten = "127.0.0.1:{port}"\n'
        '[builders]\nlisten = ""\n'
        '[network]\nsubnet = "198.19.0.0/16"\n'
        f"[pool]\ncpu_overcommit = {overcommit(cores, plain.pool.cpu_overcommit)}\n"
        + ladder_text(sizes)
    )


@contextmanager
def farm(kept: Path | None, times: Callable[[int], int]) -> Iterator[Bench]:
    """A running farm with the base image that the example needs; stopped on the way out.

    Its state is a folder of its own beside this machine's, removed at the end; `kept` names one
    that stays for the next run instead. Golden images of this machine are used where they are
    what the recipe says. Raises the `MayflyError` of whatever fails.
    """
    machines = config.load()
    folder = kept or Path(tempfile.mkdtemp(prefix="mayfly-bench-", dir=machines.state.parent))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    file = folder / "mayfly.toml"
    if not file.exists():
        file.write_text(toml(folder / "state", free_port(), *ladder.physical(folder)))
    os.environ["MAYFLY_CONFIG"] = str(file)
    for name in ("MAYFLY_STATE", "MAYFLY_URL", "MAYFLY_TOKEN"):
        os.environ.pop(name, None)
    own = config.load()
    try:
        _share_golden_images(machines, own)
        golden.make(own, show)
        stack.up(own, detach=True, progress=show)
        try:
            base.publish(own, BASE, show)
            with tempfile.TemporaryDirectory(prefix="mayfly-bench-") as scratch:
                yield Bench(own, *_three(own.sizes), times, Path(scratch))
        finally:
            stack.down(own, purge=kept is None, progress=show)
    finally:
        if kept is None:
            shutil.rmtree(folder, ignore_errors=True)


def _three(sizes: tuple[Size, ...]) -> tuple[Size, Size, Size]:
    """Smallest, default and largest; on a machine that holds only one they are the same."""
    return sizes[0], sizes[min(1, len(sizes) - 1)], sizes[-1]


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _share_golden_images(source: Config, target: Config) -> None:
    """Link what is there: making one takes minutes and says nothing about speed."""
    for path in sorted(source.state.glob("golden/[0-9]*")):
        there = target.state / "golden" / path.name
        if not there.exists():
            shutil.copytree(path, there, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    """A hard link where one is possible, else a copy (another file system)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)
