"""A whole `mayfly build`, with the time of each line that it says."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from bench import eat
from bench.farm import BASE, Bench
from bench.runners import REPO, none_left
from mayfly import client
from mayfly.errors import InfrastructureError
from mayfly.wire import BuildJson

_BUILD = re.compile(r"build (\S+) of ")


@dataclass(frozen=True, slots=True)
class Told:
    """`seconds` is the whole process; `lines` are what it said, each with the seconds until then;
    `row` is the build as the orchestrator has it afterwards."""

    seconds: float
    lines: tuple[tuple[float, str], ...]
    row: BuildJson

    def at(self, pattern: str, after_s: float = 0.0) -> float:
        """When the first line that the pattern matches was said, `after_s` at the earliest.

        Raises `InfrastructureError` when there is none.
        """
        for at_s, line in self.lines:
            if at_s >= after_s and re.search(pattern, line):
                return at_s
        raise InfrastructureError(f"the build never said {pattern!r}")

    @property
    def attempts(self) -> list[tuple[str, str | None]]:
        """Size and outcome of each."""
        return [(attempt["size"], attempt["outcome"]) for attempt in self.row["attempts"]]


async def told(bench: Bench, context: Path, size: str, *flags: str, fails: bool = False) -> Told:
    """Run it from nothing, in that size, and wait until its runner has gone.

    Its layer cache is one that nobody has: `--no-cache` would be for the second attempt as well,
    and that is to find what the first has done.

    Raises `InfrastructureError` when it fails, unless it may (`fails`).
    """
    key = f"{context.name}-{time.time_ns()}"
    words = ["--progress", "plain", "--mayfly-repo", REPO, "--mayfly-size", size]
    words += ["--mayfly-cache-key", key]
    began_s = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mayfly.cli.main", "build", *words, *flags, str(context)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        lines = await _lines(process, began_s)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    seconds = time.monotonic() - began_s
    tail = " / ".join(line for _, line in lines[-3:])
    if process.returncode and not fails:
        raise InfrastructureError(f"a build in {size} ended with {process.returncode}: {tail}")
    names = (found[1] for _, line in lines if (found := _BUILD.search(line)))
    if (name := next(names, None)) is None:
        raise InfrastructureError(f"a build never began: {tail}")
    await none_left(bench.config)
    async with client.from_environment(bench.config) as api:
        return Told(seconds, lines, await api.build(name))


async def _lines(
    process: asyncio.subprocess.Process, began_s: float
) -> tuple[tuple[float, str], ...]:
    if process.stderr is None:
        raise InfrastructureError("no pipe from the build")
    found = [
        (time.monotonic() - began_s, line.decode(errors="replace").rstrip())
        async for line in process.stderr
    ]
    await process.wait()
    return tuple(found)


def context_of(bench: Bench, name: str, *steps: str) -> Path:
    """A context of its own with `eat.py` in it, whose Dockerfile runs the steps."""
    folder = bench.scratch / name
    folder.mkdir()
    (folder / "eat.py").write_text(Path(eat.__file__).read_text())
    runs = "".join(f"RUN {step}\n" for step in steps)
    base = f"{bench.config.registry_host}/images/base/{BASE}"
    (folder / "Dockerfile").write_text(f"FROM {base}\nCOPY eat.py /\n{runs}")
    return folder
