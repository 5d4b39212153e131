"""Which images a Dockerfile names, read as far as it can be read without building it.

What only a build can know (a variable that a frontend sets, an image named by another image's
ONBUILD) is left out: a build then pulls it as anybody may.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mayfly.build.args import Target

_DIRECTIVE = re.compile(r"#\s*([A-Za-z]+)\s*=\s*(\S.*?)\s*$")
_HEREDOC = re.compile(r"<<(-?)\s*([\"']?)([A-Za-z_][A-Za-z0-9_]*)\2")
_VARIABLE = re.compile(
    r"\$(?:(?P<bare>\w+)|\{(?P<name>\w+)(?:(?P<how>:?[-+])(?P<word>[^{}$]*))?\})", re.ASCII
)
_MOUNT_FROM = re.compile(r"--mount=(\S+)")
_COPY_FROM = re.compile(r"--from=(\S+)")
_IMAGE = re.compile(r"[A-Za-z0-9\[][\w.:/@\[\]-]*", re.ASCII)


LONGEST_BYTES = 1024 * 1024
"""Of a Dockerfile, this much is read."""


def named(targets: Iterable[Target], cwd: Path) -> tuple[str, ...]:
    """The images that the Dockerfiles of `targets` name, each once.

    None for those that are not on this machine (git contexts, standard input) or cannot be read.
    """
    found = [name for each in targets for name in images(_text(each, cwd), each.build_args)]
    return tuple(dict.fromkeys(found))


def _text(target: Target, cwd: Path) -> str:
    if target.inline or target.dockerfile is None:
        return target.inline
    if target.remote or target.dockerfile == "-":
        return ""
    usual = (cwd / target.context / name for name in ("Dockerfile", "dockerfile"))
    places = (cwd / target.dockerfile,) if target.dockerfile else usual
    file = next((path for path in places if path.is_file()), None)
    try:
        with file.open("rb") if file else io.BytesIO() as opened:
            return opened.read(LONGEST_BYTES).decode(errors="replace")
    except OSError:
        return ""


@dataclass
class _Reading:
    """What is known so far: the stages' names, the arguments before the first FROM."""

    given: Mapping[str, str]
    stages: set[str] = field(default_factory=set)
    arguments: dict[str, str] = field(default_factory=dict)
    found: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        known = name.lower() in self.stages or name == "scratch" or name.isdigit()
        if not known and _IMAGE.fullmatch(name):
            self.found.append(name)


def images(text: str, build_args: Mapping[str, str]) -> tuple[str, ...]:
    """The image references in `# syntax`, FROM, COPY --from and RUN --mount=from=, in order. Pure.

    `build_args` are those of the command line; they win over the Dockerfile's defaults. Each
    reference comes once. A text that is no Dockerfile names nothing.
    """
    reading = _Reading(build_args)
    syntax, escape, body = _directives(text.lstrip("\ufeff").splitlines())
    if syntax:
        reading.add(syntax)
    for line in _instructions(body, escape):
        keyword, _, rest = line.partition(" ")
        match keyword.upper():
            case "ARG" if not reading.stages and not reading.found[bool(syntax) :]:
                _arguments(rest, reading)
            case "FROM":
                _from(rest, reading)
            case "COPY":
                for name in _COPY_FROM.findall(rest):
                    reading.add(name)
            case "RUN":
                for mount in _MOUNT_FROM.findall(rest):
                    for option in mount.split(","):
                        if option.startswith("from="):
                            reading.add(option.removeprefix("from="))
            case _:
                pass
    return tuple(dict.fromkeys(reading.found))


def _directives(lines: list[str]) -> tuple[str, str, list[str]]:
    """`# syntax`, the escape character, and what follows the directives."""
    found = {"syntax": "", "escape": "\\"}
    for number, line in enumerate(lines):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or match[1].lower() not in {"syntax", "escape", "check"}:
            return found["syntax"], found["escape"], lines[number:]
        found[match[1].lower()] = match[2]
    return found["syntax"], found["escape"], []


def _instructions(lines: list[str], escape: str) -> Iterator[str]:
    """Whole instructions on one line each, without comments and here-documents."""
    rest = iter(lines)
    parts: list[str] = []
    for line in rest:
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        if stripped.endswith(escape):
            parts.append(stripped.removesuffix(escape))
            continue
        whole = " ".join("".join([*parts, stripped]).split())
        parts = []
        yield whole
        if whole.partition(" ")[0].upper() in {"RUN", "COPY", "ADD"}:
            for dash, _, end in _HEREDOC.findall(whole):
                for inner in rest:
                    if (inner.lstrip("\t") if dash else inner) == end:
                        break
    if parts:
        yield " ".join("".join(parts).split())


def _arguments(rest: str, reading: _Reading) -> None:
    for word in rest.split():
        name, equals, default = word.partition("=")
        if name in reading.given:
            reading.arguments[name] = reading.given[name]
        elif equals:
            value = _expanded(default.strip("\"'"), reading.arguments)
            if value is not None:
                reading.arguments[name] = value


def _from(rest: str, reading: _Reading) -> None:
    words = [word for word in rest.split() if not word.startswith("--")]
    image = _expanded(words[0], reading.arguments) if words else None
    if image:
        reading.add(image)
    # A stage without a name has a number, which no image has.
    named = len(words) == 3 and words[1].lower() == "as"
    reading.stages.add(words[2].lower() if named else f"{len(reading.stages)}")


def _expanded(text: str, values: Mapping[str, str]) -> str | None:
    """`text` with its variables; None where one is unknown or is spelt in a way not read here."""
    unknown = False

    def value(match: re.Match[str]) -> str:
        nonlocal unknown
        name, how, word = match["bare"] or match["name"], match["how"] or "", match["word"] or ""
        there = name in values and (bool(values[name]) or not how.startswith(":"))
        if how.endswith("+"):
            return word if there else ""
        if there:
            return values[name]
        unknown = unknown or not how
        return word

    found = _VARIABLE.sub(value, text)
    return None if unknown or "$" in found else found.strip("\"'")
