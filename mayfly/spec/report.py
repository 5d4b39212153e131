"""What Nickel has against a spec, as one error that shows the place.

Nickel answers in prose for terminals: a headline, then places, each with a few lines of source and
labels under them. What is read off it is bounded and made printable: the spec's author has had a
hand in it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mayfly.errors import SchemaError
from mayfly.spec.source import LONGEST_BYTES, Source

WIDTH = 96
"""Characters that an excerpt shows of a line, and a message of the text at fault."""

_STYLE = re.compile(r"\x1b\[[0-9;]*m")
_PLACE = re.compile(r"^ *┌─ (?P<file>.+):(?P<line>\d+):(?P<column>\d+)$", re.M)
_UNDERLINES = (re.compile(r"\^+"), re.compile(r"-+"))
_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"?|\w+(?:[.-]\w+)*|\S')
_BROKEN = re.compile(r"contract broken by the value of `(.*)`")
_EXTRA = re.compile(r"extra field `(.*)`")
_IMPORT = re.compile(r"import of (.*) failed: ")
_EMPTY = re.compile(r"[ \t]*(?:#.*)?")
_ITSELF = "python"
"""What Nickel calls text that comes from no file."""


@dataclass(frozen=True, slots=True)
class Report:
    """Nickel's words: the headline, what follows it, and the first place that is in the repo (not
    in Nickel's own library, nor in a message that looks like a place).

    `file` is empty for the source itself, and `line` is 0 where there is no place. `length` is that
    of the underlined text, 0 where it goes over several lines; `label` stands beside the line.
    """

    headline: str
    detail: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    length: int = 0
    label: str = ""


def parse(words: str, source: Source, before: int = 0) -> Report:
    """The report in `words`; whatever they are, it has a headline.

    They are about a text with `before` lines in front of the source's, and others behind it.
    """
    plain = _STYLE.sub("", words)
    head, _, rest = plain.partition("\n")
    head = head.removeprefix("error: ") or "it does not evaluate"
    places = list(_PLACE.finditer(plain))
    detail = " ".join(rest[: max(0, places[0].start() - len(head) - 8)].split()) if places else ""
    lines = range(before + 1, before + source.text.count("\n") + 2)

    def ours(place: re.Match[str]) -> bool:
        if place["file"] == _ITSELF:
            return int(place["line"][:9]) in lines
        return _inside(Path(place["file"]), source.root)

    place = next(filter(ours, places), None)
    if place is None:
        return Report(head, detail)
    line, column = int(place["line"][:9]), int(place["column"][:9])
    shown = re.compile(rf"^ *{line} │ .*\n(?P<under>.*)$", re.M).search(plain, place.end())
    under = shown["under"].partition("│")[2] if shown else ""
    runs = (pattern.search(under) for pattern in _UNDERLINES)
    found = None if "╰" in under or "╭" in under else next((run for run in runs if run), None)
    return Report(
        head,
        detail,
        *(("", line - before) if place["file"] == _ITSELF else (place["file"], line)),
        column,
        len(found[0]) if found else 0,
        under[found.end() :].strip(" │^-") if found else "",
    )


def error(report: Report, source: Source, fields: Sequence[str]) -> SchemaError:
    """The error for a report about the spec; `fields` are those that there are."""
    line, column, length = report.line, report.column, report.length
    if extra := _EXTRA.search(report.detail):
        line, column, length = _of_field(extra[1], source) or (line, column, length)
    if line < 1:
        line, column, length = _first(source)
    shown, whole = _line(report.file, line, source)
    text = whole[column - 1 :][:length] if length else _token(whole, column)
    message, expected, hint = _words(report, printable(text), source, fields)
    return SchemaError(
        printable(message, 400),
        hint=hint,
        file=shown,
        line=line,
        column=column,
        text=printable(text),
        expected=printable(expected, 400),
        excerpt=excerpt(whole, line, column, len(text)),
    )


def _words(
    report: Report, text: str, source: Source, fields: Sequence[str]
) -> tuple[str, str, str]:
    """What is wrong, what was expected, and what to do where that is known."""
    if extra := _EXTRA.search(report.detail):
        expected = f"one of {', '.join(fields)}"
        close = difflib.get_close_matches(extra[1], fields, 1, 0.5)
        hint = f"did you mean {close[0]}?" if close else ""
        return f"there is no field {extra[1]}, expected {expected}", expected, hint
    if broken := _BROKEN.fullmatch(report.headline):
        expected = report.detail.removeprefix("expected ") or "what the contract on it says"
        return f"{broken[1]}: found {text}, expected {expected}", expected, ""
    if imported := _IMPORT.match(report.headline):
        why = _why(imported[1], report, source)
        return f"import of {imported[1]}: {why}", "a file of the repo", ""
    if report.detail == "expected a Record":
        expected = "a record, as in { cpu = 4 }"
        return f"found {text}, expected {expected}", expected, ""
    headline = report.headline.removesuffix(f" when parsing {_ITSELF}")
    more = report.label if "expected" in report.label else report.detail
    shown = "" if not text or text in headline else text
    message = ": ".join(part for part in (headline, shown, more) if part)
    return message, more or "a build spec in Nickel", ""


def excerpt(whole: str, line: int, column: int, length: int) -> tuple[str, ...]:
    """The line, or of a long one the part around the column, and carets under the text."""
    if not whole or column < 1:
        return ()
    column = min(column, len(whole) + 1)
    begin = max(0, column - 1 - WIDTH // 2) if len(whole) > WIDTH else 0
    part = "".join(char if char.isprintable() else " " for char in whole[begin : begin + WIDTH])
    at = column - 1 - begin
    carets = " " * at + "^" * max(1, min(length, len(part) - at))
    return f"{line:>5} | {part}".rstrip(), f"{'':>5} | {carets}"


def printable(text: str, longest: int = WIDTH) -> str:
    """`text` on one line, without what a terminal would act upon, and not too long."""
    clean = "".join(char if char.isprintable() else "�" for char in " ".join(text.split()))
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"


def _line(file: str, line: int, source: Source) -> tuple[str, str]:
    """What people know the file as, and its line; empty when it is not to be had."""
    if not file:
        return source.shown, _nth(source.text, line)
    path = Path(file).resolve()
    try:
        with path.open("rb") as opened:
            text = opened.read(LONGEST_BYTES).decode(errors="replace")
    except OSError:
        text = ""
    return printable(str(path.relative_to(source.root))), _nth(text, line)


def _inside(path: Path, root: Path) -> bool:
    """Whether the path, wherever links lead it, is a regular file of the work tree."""
    try:
        there = path.resolve()
        return there.is_relative_to(root) and there.is_file()
    except (OSError, RuntimeError, ValueError):
        return False


def _nth(text: str, line: int) -> str:
    lines = text.split("\n")
    return lines[line - 1].rstrip("\r") if 0 < line <= len(lines) else ""


def _token(whole: str, column: int) -> str:
    found = _TOKEN.match(whole, max(0, column - 1))
    return found[0] if found else ""


def _of_field(name: str, source: Source) -> tuple[int, int, int] | None:
    """Where the spec's own text defines the field, if it does so once."""
    pattern = re.compile(rf'(?<![\w."-])"?{re.escape(name)}"?(?=\s*[=|])')
    found = list(pattern.finditer(source.text))
    if len(found) != 1:
        return None
    start = found[0].start()
    before = source.text[:start]
    return before.count("\n") + 1, start - before.rfind("\n"), len(found[0][0])


def _first(source: Source) -> tuple[int, int, int]:
    """The first line that says something, for a fault of the whole spec."""
    for number, line in enumerate(source.text.split("\n"), 1):
        if not _EMPTY.fullmatch(line.rstrip("\r")):
            return number, len(line) - len(line.lstrip()) + 1, 0
    return 1, 1, 0


def _why(path: str, report: Report, source: Source) -> str:
    beside = Path(report.file).parent if report.file else source.folder
    try:
        outside = not (beside / path).resolve().is_relative_to(source.root)
    except (OSError, RuntimeError, ValueError):
        outside = False
    if outside:
        return f"it is outside of the repo ({source.root}), and only files in it can be imported"
    return "it is not there, or cannot be read"
