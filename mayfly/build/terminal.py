"""A pseudo-terminal for a program's stderr: what it draws goes to ours, and its last words stay."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import BinaryIO

CURSOR_ON = b"\x1b[?25h"
KEPT_BYTES = 64 * 1024


class Screen:
    """A terminal: `slave` is the program's end of it, the rest happens here."""

    def __init__(self, master: int, slave: int) -> None:
        self.slave = slave
        self.over = asyncio.Event()
        self._master = master
        self._recent = b""

    @property
    def last_words(self) -> bytes:
        """What came after the drawing: the cursor is shown again and plain text follows."""
        return self._recent.rpartition(CURSOR_ON)[2].replace(b"\r", b"")

    def copy(self) -> None:
        """Pass on what has been drawn; `over` is set once every program has closed the slave."""
        try:
            data = os.read(self._master, KEPT_BYTES)
        except OSError:  # EIO: how Linux says that the other end is closed
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._master)
            self.over.set()
        self._recent = (self._recent + data)[-KEPT_BYTES:]
        show(data)

    def resize(self) -> None:
        """Make it as large as the terminal on our stderr."""
        with suppress(OSError, ValueError):
            size = fcntl.ioctl(sys.stderr.fileno(), termios.TIOCGWINSZ, bytes(8))
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)


@asynccontextmanager
async def screen() -> AsyncIterator[Screen]:
    """A terminal of our terminal's size, now and when that changes.

    On the way out everything that was drawn has been passed on.
    """
    master, slave = os.openpty()
    tty.setraw(slave)
    made = Screen(master, slave)
    made.resize()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, made.resize)
    loop.add_reader(master, made.copy)
    try:
        yield made
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        os.close(slave)
        await made.over.wait()
        os.close(master)


def show(data: bytes) -> None:
    """Write to stderr as it is; a stderr that is gone is no fault of the build's."""
    with suppress(OSError, ValueError):
        sys.stderr.buffer.write(data)
        sys.stderr.buffer.flush()


def writer(stream: BinaryIO) -> Callable[[bytes], None]:
    """What passes bytes on to a stream; one whose reader is gone is no fault of the command's."""

    def write(data: bytes) -> None:
        with suppress(OSError, ValueError):
            stream.write(data)
            stream.flush()

    return write
