"""What the commands print: lines on stderr for people, tables or JSON on stdout."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TextIO

from mayfly.errors import MayflyError


def show(line: str) -> None:
    """One line about what goes on, on stderr, marked as ours. That nobody reads it any more is no
    fault of what goes on.
    """
    try:
        print(f"mayfly: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        to_nobody(sys.stderr)


def reader_has_gone(stream: TextIO) -> bool:
    """Whether `stream` is a pipe or a socket that nobody reads any more (poll(2))."""
    with suppress(OSError, ValueError):
        watched = select.poll()
        watched.register(stream.fileno(), 0)
        return any(what & (select.POLLERR | select.POLLHUP) for _, what in watched.poll(0))
    return False


def flush(stream: TextIO) -> None:
    """Write what is still in `stream`, while a reader that has gone can still be seen to."""
    try:
        stream.flush()
    except BrokenPipeError:
        to_nobody(stream)


def to_nobody(stream: TextIO) -> None:
    """From now on nothing that is written to `stream`, or is still in it, goes anywhere."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def complain(error: MayflyError) -> None:
    """An error as one line, or one for each fault when it stands for several."""
    for each in (error, *error.also):
        for line in str(each).splitlines():
            show(line)


def print_json(value: object) -> None:
    """The value as indented JSON on stdout."""
    print(json.dumps(value, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Rows under headings, as wide as they are; the line `empty` when there is none."""
    cells = [[str(cell) if cell is not None else "-" for cell in row] for row in rows]
    if not cells:
        print(empty)
        return
    table = [list(columns), *cells]
    widths = [max(len(row[n]) for row in table) for n in range(len(columns))]
    for row in table:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip())


def seconds(value: float | None) -> str:
    """A duration for people: `0.42 s`, `7.3 s`, `3 min 20 s`."""
    if value is None:
        return "-"
    if value < 1:
        return f"{value:.2f} s"
    if value < 60:
        return f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60)} s"
