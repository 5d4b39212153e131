"""buildx's output: shown as buildx means it, kept whole, and read for what it says by structure.

On a terminal buildx draws on it directly and the plain log is fetched when the build is over;
elsewhere buildx writes the plain log itself and it is passed on as it comes.
"""

from __future__ import annotations

import asyncio
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from mayfly.errors import InfrastructureError, MayflyError

Append = Callable[[int, bytes], Awaitable[int]]
"""Stores bytes at an offset of the build's log; returns the log's size then."""

Keep = Callable[[bytes], None]
"""Takes the next bytes of the plain log."""

CHUNK = 256 * 1024
FLUSH_S = 1.0
LAST_TRY_S = 1.0
STOP_S = 2.0
HISTORY_S = 20.0  # how long fetching the log of a finished build may take
_PUSHED = re.compile(r"pushing (?:layers|manifest for .*?)(?: (?P<s>\d+\.\d)s)? done$")
_LINE = re.compile(r"#(?P<index>\d+) (?P<text>.*)")
_DONE = re.compile(r"DONE (?P<s>\d+\.\d)s$")


@dataclass(slots=True)
class Timeline:
    """What a plain log says, line by line. A vertex's first line is its name, and output of the
    user's own commands carries a time stamp, so nothing here can be said by a Dockerfile.
    """

    push_s: float = 0.0
    cache_s: float = 0.0
    cached: int = 0
    push_failed: bool = False
    _names: dict[str, str] = field(default_factory=dict)
    _pushing: set[str] = field(default_factory=set)
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the log; a line counts when it is whole."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line.decode(errors="replace").rstrip("\r"))

    def _line(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if not match:
            return
        index, text = match["index"], match["text"]
        name = self._names.setdefault(index, text)
        if text == "CACHED":
            self.cached += 1
        if name.startswith("exporting to image"):
            if text.startswith("pushing "):
                self._pushing.add(index)
            if pushed := _PUSHED.fullmatch(text):
                self.push_s += float(pushed["s"] or 0)
            if text.startswith("ERROR: ") and index in self._pushing:
                self.push_failed = True
        elif name.startswith("exporting cache") and (done := _DONE.fullmatch(text)):
            self.cache_s += float(done["s"])


@dataclass(frozen=True, slots=True)
class Ran:
    """A buildx that ended: its exit status (negative: killed by that signal) and what it said."""

    status: int
    seconds: float
    timeline: Timeline


class Log:
    """The build's log on its way to the orchestrator, in chunks, while the build runs."""

    def __init__(self, append: Append) -> None:
        self._append = append
        self._pending = bytearray()
        self._offset = 0

    def write(self, data: bytes) -> None:
        """Keep more of the log; never waits."""
        self._pending += data

    async def run(self) -> None:
        """Upload about once a second until cancelled. A failing upload is tried again."""
        while True:
            await asyncio.sleep(FLUSH_S)
            with suppress(MayflyError):
                await self.flush()

    async def flush(self) -> None:
        """Upload what there is. Raises what `append` raises; nothing is lost or doubled then."""
        while chunk := bytes(self._pending[:CHUNK]):
            await self._append(self._offset, chunk)
            self._offset += len(chunk)
            del self._pending[: len(chunk)]


@asynccontextmanager
async def uploading(append: Append) -> AsyncIterator[Log]:
    """A log that is uploaded about once a second; what is left at the end gets one more try."""
    log = Log(append)
    task = asyncio.create_task(log.run())
    try:
        yield log
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with suppress(MayflyError, TimeoutError):
            async with asyncio.timeout(LAST_TRY_S):
                await log.flush()


def plain(asked: str, environ: Mapping[str, str], *, terminal: bool) -> bool:
    """Whether buildx will write the plain log to stderr, so that it can be kept as it comes."""
    mode = asked or "auto"
    if mode == "auto":
        mode = environ.get("BUILDKIT_PROGRESS") or "auto"
    return mode == "plain" or (mode == "auto" and not terminal)


async def run(
    build: Sequence[str], history: Sequence[str], env: Mapping[str, str], log: Log, *, asked: str
) -> Ran:
    """Run buildx (argument list `build`) to its end; its plain log goes to `log` either way.

    `asked` is the user's --progress. On a terminal the log is what `history` prints afterwards.
    Standard input and output are ours. When cancelled: interrupted, killed 2 s later.
    """
    timeline = Timeline()

    def keep(data: bytes) -> None:
        log.write(data)
        timeline.feed(data)

    started_at = time.monotonic()
    if plain(asked, env, terminal=sys.stderr.isatty()):
        status = await _run(build, env, keep, _show)
        seconds = time.monotonic() - started_at
    else:
        status = await _run(build, env)
        seconds = time.monotonic() - started_at
        with suppress(TimeoutError):
            async with asyncio.timeout(HISTORY_S):
                await _run(history, env, keep)
    return Ran(status, seconds, timeline)


async def quietly(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a program that should have nothing to say. Raises `InfrastructureError` with what it
    said when it failed."""
    process = await asyncio.create_subprocess_exec(
        *argv,
        env=env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode:
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise InfrastructureError(f"{' '.join(argv[:2])} failed: {last}")


async def _run(argv: Sequence[str], env: Mapping[str, str], *takers: Keep) -> int:
    """One program to its end. Its stderr goes to the `takers`; without any it inherits ours."""
    process = await asyncio.create_subprocess_exec(
        *argv, env=env, stderr=asyncio.subprocess.PIPE if takers else None
    )
    try:
        if process.stderr is not None:
            while data := await process.stderr.read(CHUNK):
                for take in takers:
                    take(data)
        return await process.wait()
    finally:
        if process.returncode is None:
            await _stop(process)


async def _stop(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_S):
                await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()


def _show(data: bytes) -> None:
    with suppress(OSError, ValueError):
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()
