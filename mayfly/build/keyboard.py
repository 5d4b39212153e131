"""Our own terminal, lent to a program elsewhere: what is typed goes there as it is typed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

CHUNK = 64 * 1024
USUAL = (80, 24)


class Terminal:
    """The terminal on the descriptor `keyboard`, which is raw within the block.

    Where that is no terminal nothing is changed, and its size is the usual one.
    """

    def __init__(self, keyboard: int) -> None:
        self._keyboard = keyboard
        self._before: list[object] | None = None

    def __enter__(self) -> Terminal:
        with suppress(termios.error):
            self._before = termios.tcgetattr(self._keyboard)
            tty.setraw(self._keyboard)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._before is not None:
            with suppress(termios.error):  # it may be gone
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        try:
            return tuple(os.get_terminal_size(self._keyboard))  # type: ignore[return-value]
        except OSError:
            return USUAL

    def show(self, data: bytes) -> None:
        """Write to our standard output; one that is gone is no fault."""
        with suppress(OSError, ValueError):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    @contextmanager
    def typed(
        self, take: Callable[[bytes], None], resize: Callable[[int, int], None]
    ) -> Iterator[None]:
        """Within the block what is typed goes to `take` and a new size to `resize`."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                data = os.read(self._keyboard, CHUNK)
            except OSError:
                data = b""
            if data:
                take(data)
            else:
                loop.remove_reader(self._keyboard)

        loop.add_reader(self._keyboard, read)
        loop.add_signal_handler(signal.SIGWINCH, lambda: resize(*self.size()))
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            loop.remove_reader(self._keyboard)
