"""buildx's output: shown as buildx means it, kept whole, and read for what it says by structure.

On a terminal buildx draws on one of its own, which is passed on, and the plain log is fetched when
the build is over; elsewhere buildx writes the plain log itself and it is passed on as it comes.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from mayfly.build.mask import Mask, Stream
from mayfly.build.terminal import screen, show
from mayfly.errors import InfrastructureError, MayflyError

Append = Callable[[int, bytes], Awaitable[int]]
"""Stores bytes at an offset of the build's log; returns the log's size then."""

Keep = Callable[[bytes], None]
"""Takes the next bytes of the plain log."""

CHUNK = 256 * 1024
FLUSH_S = 1.0
LAST_TRY_S = 1.0
STOP_S = 2.0
WORDS_S = 2.0  # what a buildx whose connection is lost has to end by itself, with its last words
HISTORY_S = 20.0  # how long fetching the log of a finished build may take
LONGEST_LINE = 64 * 1024
_PUSHED = re.compile(r"pushing (?:layers|manifest for .*?)(?: (?P<s>\d+\.\d)s)? done$")
_LINE = re.compile(r"#(?P<index>\d+) (?P<text>.*)")
_IMAGE = re.compile(r"\[[^\]]*\] (?:load metadata for|FROM) (?P<reference>\S+)")
_DONE = re.compile(r"DONE (?P<s>\d+\.\d)s$")
# Bake puts the target in front of BuildKit's own steps; those of a Dockerfile have a number there.
_EXPORT = re.compile(r"(?:\[[\w-]+\] )?exporting (?P<what>to image|cache)")


@dataclass(slots=True)
class Timeline:
    """What a plain log says, line by line. A vertex's first line is its name, and output of the
    user's own commands carries a time stamp, so nothing here can be said by a Dockerfile.

    `began`: BuildKit has said something of the build, not buildx alone (whose line is #0).
    `unread` are the references of images that a step wanted to read and did not.
    """

    began: bool = False
    push_s: float = 0.0
    cache_s: float = 0.0
    cached: int = 0
    push_failed: bool = False
    unread: list[str] = field(default_factory=list)
    _names: dict[str, str] = field(default_factory=dict)
    _pushing: set[str] = field(default_factory=set)
    _rest: bytes = b""

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the log; a line counts when it is whole. Of one that is longer
        than any of BuildKit's own its beginning is enough.
        """
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:LONGEST_LINE]
        for line in lines:
            self._line(line.decode(errors="replace").rstrip("\r"))

    def _line(self, line: str) -> None:
        match = _LINE.fullmatch(line)
        if not match:
            return
        index, text = match["index"], match["text"]
        name = self._names.setdefault(index, text)
        self.began = self.began or index != "0"
        if text.startswith("ERROR: ") and (image := _IMAGE.match(name)):
            self.unread.append(image["reference"])
        if text == "CACHED":
            self.cached += 1
        export = _EXPORT.match(name)
        if export and export["what"] == "to image":
            if text.startswith("pushing "):
                self._pushing.add(index)
            if pushed := _PUSHED.fullmatch(text):
                self.push_s += float(pushed["s"] or 0)
            if text.startswith("ERROR: ") and index in self._pushing:
                self.push_failed = True
        elif export and (done := _DONE.fullmatch(text)):
            self.cache_s += float(done["s"])


class Watching(Protocol):
    """Takes buildx's output, instead of showing it, and has a word in how it ended."""

    def begin(self) -> None:
        """A buildx is about to run; there may have been one before, on another runner."""

    def feed(self, data: bytes) -> bytes:
        """Take the next bytes of what buildx says; returns what goes into the build's log."""

    def ended(self, ran: Ran) -> Ran:
        """How it ended, by all that is known."""


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
        self._turn = asyncio.Lock()

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
        async with self._turn:
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
            await asyncio.wait_for(log.flush(), LAST_TRY_S)


def display(asked: str, environ: Mapping[str, str], *, terminal: bool) -> str:
    """How buildx will show progress: `plain` lines, `drawn` on a terminal, or `other`.

    `asked` is the user's --progress, or empty; `terminal` says whether stderr is one.
    """
    mode = asked or "auto"
    if mode == "auto":
        mode = environ.get("BUILDKIT_PROGRESS") or "auto"
    if mode == "plain" or (mode == "auto" and not terminal):
        return "plain"
    return "drawn" if terminal and mode in {"auto", "tty"} else "other"


async def run(
    build: Sequence[str],
    history: Sequence[str],
    env: Mapping[str, str],
    log: Log,
    *,
    asked: str,
    stdin: Path | None = None,
    lost: asyncio.Event | None = None,
    mask: Mask | None = None,
    watching: Watching | None = None,
    recorded: bool = True,
) -> Ran:
    """Run buildx (argument list `build`) to its end; its plain log goes to `log` either way.

    What `mask` hides is neither in that log nor in what is shown, but for what buildx draws on a
    terminal.

    `asked` is the user's --progress. Where buildx does not write the plain log, it is what
    `history` prints afterwards, or what `watching` makes of what it says. Standard output is ours,
    and so is the input unless `stdin` names a file. When cancelled: interrupted, killed 2 s later;
    the same once `lost` is set and it has not ended by itself in another 2 s, for it may wait for
    its connection for ever. `recorded`: BuildKit keeps what `history` prints; where it does not (of
    what builds nothing), the build counts as one that it began.
    """
    timeline = Timeline()
    shown = display(asked, env, terminal=sys.stderr.isatty())
    last_words = b""
    mask = mask or Mask()
    to_log, to_user = Stream(mask), Stream(mask)

    def keep(data: bytes) -> None:
        timeline.feed(data)
        log.write(to_log.feed(data))

    def tell(data: bytes) -> None:
        show(to_user.feed(data))

    started_at = time.monotonic()
    if watching:
        watching.begin()
        status = await _run(
            build, env, lambda data: log.write(watching.feed(data)), stdin=stdin, lost=lost
        )
        return watching.ended(Ran(status, time.monotonic() - started_at, timeline))
    if shown == "drawn":
        async with screen() as drawing:
            status = await _run(build, env, stderr=drawing.slave, stdin=stdin, lost=lost)
        last_words = drawing.last_words
    else:
        takers = [tell, keep] if shown == "plain" else [tell]
        status = await _run(build, env, *takers, stdin=stdin, lost=lost)
        show(to_user.end())
    seconds = time.monotonic() - started_at
    if shown != "plain" and not (lost and lost.is_set()):
        try:
            async with asyncio.timeout(HISTORY_S):
                await _run(history, env, keep, alone=True)
        except TimeoutError:
            recorded = False
        timeline.began = timeline.began or not recorded
    if shown != "plain":
        keep(last_words)
    log.write(to_log.end())
    return Ran(status, seconds, timeline)


async def quietly(argv: Sequence[str], env: Mapping[str, str]) -> None:
    """Run a program that should have nothing to say.

    Raises `InfrastructureError` with the last line of what it said when it failed.
    """
    said = bytearray()
    if await _run(argv, env, said.extend, alone=True):
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        raise InfrastructureError(f"{' '.join(argv[:2])} failed: {last}")


async def _run(
    argv: Sequence[str],
    env: Mapping[str, str],
    *takers: Keep,
    stderr: int = asyncio.subprocess.PIPE,
    alone: bool = False,
    stdin: Path | None = None,
    lost: asyncio.Event | None = None,
) -> int:
    """One program to its end, and never beyond ours; its exit status.

    Its stderr is the descriptor `stderr`, else a pipe whose bytes go to the `takers`. `alone`: it
    has no standard input and output. It is ended soon after `lost` is set.
    """
    nowhere = asyncio.subprocess.DEVNULL if alone else None
    with stdin.open("rb") if stdin else nullcontext(nowhere) as given:
        process = await asyncio.create_subprocess_exec(
            *argv, env=env, stdin=given, stdout=nowhere, stderr=stderr
        )
    ending = asyncio.create_task(_end_after(lost, process)) if lost else None
    try:
        if process.stderr is not None:
            while data := await process.stderr.read(CHUNK):
                for take in takers:
                    take(data)
        return await process.wait()
    finally:
        if ending:
            ending.cancel()
        if process.returncode is None:
            await _stop(process)


async def _end_after(lost: asyncio.Event, process: asyncio.subprocess.Process) -> None:
    await lost.wait()
    with suppress(ProcessLookupError):
        await asyncio.sleep(WORDS_S)
        process.send_signal(signal.SIGINT)
        await asyncio.sleep(STOP_S)
        process.kill()


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Interrupt it; kill it 2 s later.

    By its number: asyncio's `send_signal` reaps a process that has just ended, and then tells the
    terminal that somebody did.
    """
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGINT)
        # Not asyncio.timeout(): in a cancelled task Python 3.11.2's raises CancelledError.
        try:
            await asyncio.wait_for(process.communicate(), STOP_S)
        except TimeoutError:
            os.kill(process.pid, signal.SIGKILL)
            await process.wait()
