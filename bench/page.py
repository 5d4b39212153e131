"""`docs/benchmarks.md`, read and written: rows that were not measured again stay. Pure.

A row's lines carry its name in the first column, as the command that measures it again; its notes
begin with the name. So the page is its own record of what it holds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_HEAD = "| command | what | must reach | measured | |"
_LINE = re.compile(r"^\| `python -m bench ([a-z-]+)` \|")
_NOTE = re.compile(r"^- `([a-z-]+)`, \d{4}-\d\d-\d\d: ")


@dataclass(frozen=True, slots=True)
class Line:
    """One comparison: what it is, what it must reach, what came out.

    `holds` is None where nothing is required and the figure is only said.
    """

    what: str
    must: str
    measured: str
    holds: bool | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a row found out: its lines, and what is worth knowing beside them."""

    lines: tuple[Line, ...]
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """False when a line misses what it must reach."""
        return all(line.holds is not False for line in self.lines)


def page(
    before: str, machine: str, found: Mapping[str, Found], order: Sequence[str], day: str
) -> str:
    """The page with `found` in it, rows in `order`.

    Of the page `before`, the other rows of `order` stay if it was measured on the same `machine`
    (its description, one line); figures of two machines never stand in one table. `day` is the
    date of `found`.
    """
    kept_lines: dict[str, list[str]] = {}
    kept_notes: dict[str, list[str]] = {}
    if f"\n{machine}\n" in before:
        for text in before.splitlines():
            if line := _LINE.match(text):
                kept_lines.setdefault(line[1], []).append(text)
            elif note := _NOTE.match(text):
                kept_notes.setdefault(note[1], []).append(text)
    for name, row in found.items():
        kept_lines[name] = [_table_line(name, line) for line in row.lines]
        kept_notes[name] = [f"- `{name}`, {day}: {note}" for note in row.notes]
    lines = [text for name in order for text in kept_lines.get(name, [])]
    notes = [text for name in order for text in kept_notes.get(name, [])]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            "Written by `make bench`, or by the command beside a row for that row alone (in the",
            "checkout, with `.venv/bin` on PATH). What a row compares was measured in turn, in one",
            "run, in a farm of the bench's own on this machine:",
            "",
            machine,
            "",
            _HEAD,
            "| --- | --- | --- | --- | --- |",
            *lines,
            "",
            *([*notes, ""] if notes else []),
        ]
    )


def _table_line(name: str, line: Line) -> str:
    cells = (f"`python -m bench {name}`", line.what, line.must, line.measured, verdict(line.holds))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def verdict(holds: bool | None) -> str:
    """What the last column says."""
    if holds is None:
        return "-"
    return "holds" if holds else "**does not hold**"
