"""What an idle clone takes of this machine's memory for itself."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.farm import AT_ONCE, Bench
from bench.page import Found, Line
from bench.runners import leased, none_left, qemu_pid
from bench.stats import median
from mayfly.cli.output import show
from mayfly.config import Config
from mayfly.model import Size

SETTLE_S = 10.0
MOST_MB = 120
SMALLEST_DIMM = 512 * 2**20
"""Bytes. Memory that is plugged in is mapped without a name, and nothing else of that size is."""

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \d+ *(.*)$")


@dataclass(frozen=True, slots=True)
class Own:
    """Bytes of one QEMU that are its own.

    `written`: pages of the template's RAM that the clone has written; `plugged`: of memory that was
    plugged in; `code`: what TCG has translated; `rest`: QEMU itself. `shared` is what is mapped of
    the RAM file and not the clone's own.
    """

    written: int
    plugged: int
    code: int
    rest: int
    shared: int

    @property
    def own(self) -> int:
        return self.written + self.plugged + self.code + self.rest


async def memory(bench: Bench) -> Found:
    """One idle clone of the default size alone; eight of the smallest, for each."""
    show("idle clones: memory of their own")
    (alone,) = await idle(bench.config, bench.default, 1)
    each = await idle(bench.config, bench.smallest, AT_ONCE)
    own = alone.own / 1e6
    return Found(
        lines=(
            Line(
                f"idle clone's own memory (PSS beyond the template); {bench.default}, alone",
                f"<= {MOST_MB} MB",
                f"{own:.0f} MB (n=1)",
                own <= MOST_MB,
            ),
            Line(
                f"the same for each of {AT_ONCE} at once; {bench.smallest}",
                f"<= {MOST_MB} MB",
                f"p50 {median([one.own / 1e6 for one in each]):.0f} MB, "
                f"at most {max(one.own for one in each) / 1e6:.0f} MB (n={len(each)})",
                max(one.own for one in each) / 1e6 <= MOST_MB,
            ),
        ),
        notes=(
            f"{SETTLE_S:.0f} s after it was ready, from /proc/PID/smaps of QEMU: Pss of all its "
            "mappings, of those of the template's RAM file only `Anonymous` (pages it has written, "
            "so its own); their other pages are the file's, in the page cache once for all clones. "
            f"{bench.default.name} alone: {parts(alone)}; one of the {AT_ONCE} of "
            f"{bench.smallest.name}: {parts(each[0])}. 1 MB is 10^6 bytes.",
        ),
    )


async def idle(config: Config, size: Size, count: int) -> list[Own]:
    """What `count` clones, all there and idle, have of their own."""
    async with AsyncExitStack() as stack:
        leases = [await stack.enter_async_context(leased(config, size)) for _ in range(count)]
        await asyncio.sleep(SETTLE_S)
        found = [own(Path(f"/proc/{qemu_pid(lease.name)}/smaps").read_text()) for lease in leases]
    await none_left(config)
    return found


def parts(own: Own) -> str:
    """What the figure is made of."""
    return (
        f"{own.written / 1e6:.0f} MB of the template's RAM written, {own.plugged / 1e6:.0f} MB of "
        f"plugged memory, {own.code / 1e6:.0f} MB of translated code, {own.rest / 1e6:.0f} MB of "
        f"QEMU itself (and {own.shared / 1e6:.0f} MB of the RAM file mapped)"
    )


def own(smaps: str) -> Own:
    """The figures from the text of /proc/PID/smaps (proc_pid_smaps(5)). Pure."""
    written = plugged = code = rest = shared = 0
    for access, path, sizes in _mappings(smaps):
        pss, anonymous = sizes["Pss"], sizes["Anonymous"]
        if path.endswith("/ram") and "/templates/" in path:
            written += anonymous
            shared += max(0, sizes["Rss"] - anonymous)
        elif not path and "x" in access:
            code += pss
        elif not path and sizes["Size"] >= SMALLEST_DIMM:
            plugged += pss
        else:
            rest += pss
    return Own(written, plugged, code, rest, shared)


def _mappings(smaps: str) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Each mapping's access rights, its path, and its sizes in bytes."""
    head: tuple[str, str] | None = None
    sizes: dict[str, int] = {}
    for line in smaps.splitlines():
        if header := _MAPPING.match(line):
            if head is not None:
                yield *head, sizes
            head, sizes = (header[1], header[2]), {}
        elif line.endswith(" kB"):
            name, _, value = line.partition(":")
            sizes[name] = int(value.split()[0]) * 1024
    if head is not None:
        yield *head, sizes
