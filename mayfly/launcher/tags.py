"""Tags by themselves, as Woodpecker's docker-buildx plugin makes them (`plugin/tags.go`). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""What a registry takes as a tag (the distribution specification)."""

_TAGS, _HEADS = "refs/tags/", "refs/heads/"
_DATE = re.compile(r"[0-9]{8}|[0-9]{4}-[0-9]{2}-[0-9]{2}")
_VERSION = re.compile(
    r"v?(?P<numbers>[0-9]+(?:\.[0-9]+)*)"
    r"(?:-(?P<pre>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
    r"(?:\+(?P<build>[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*))?"
)


def automatic(ref: str, default_branch: str, default: str, suffix: str) -> tuple[str, ...] | None:
    """The tags for a build of `ref`: after a git tag by its version, `default` for the default
    branch, none for any other. With `suffix` behind each of them, and instead of `default`.

    None for a git tag that is no version.
    """
    if ref.startswith(_TAGS):
        names = of_version(ref.removeprefix(_TAGS))
        return None if names is None else tuple(f"{n}-{suffix}" if suffix else n for n in names)
    if ref.removeprefix(_HEADS) != default_branch or not default_branch:
        return ()
    return (suffix or default,)


def of_version(tag: str) -> tuple[str, ...] | None:
    """`1`, `1.2` and `1.2.3` for v1.2.3 (without `0` alone), a date or a pre-release as it is.

    Numbers lose leading zeros and get zeros behind them until there are three. What a tag may not
    hold, the `+` of build metadata, becomes `-`. None for what is no version.
    """
    if _DATE.fullmatch(tag):
        return (tag,)
    match = _VERSION.fullmatch(tag)
    if match is None:
        return None
    numbers = [str(int(part)) for part in match["numbers"].split(".")]
    major, minor, patch = (*numbers, "0", "0")[:3]
    if match["pre"] or match["build"]:
        parts = [".".join((*numbers, "0", "0")[: max(3, len(numbers))])]
        return ("-".join(parts + [part for part in (match["pre"], match["build"]) if part]),)
    if 999 < int(major) < 10000 and minor == patch == "0":
        return (major,)
    short = () if major == "0" else (major,)
    return (*short, f"{major}.{minor}", f"{major}.{minor}.{patch}")


def version(ref: str) -> str:
    """The version that a git tag's ref names, for a label; empty when it is none."""
    if not ref.startswith(_TAGS):
        return ""
    match = _VERSION.fullmatch(ref.removeprefix(_TAGS))
    return "" if match is None else ref.removeprefix(_TAGS).removeprefix("v")


def in_file(text: str) -> tuple[str, ...]:
    """The tags in a file: one a line, or several with commas between."""
    return tuple(word for part in re.split(r"[,\n]", text) if (word := part.strip()))


def wrong(tags: Sequence[str]) -> tuple[str, ...]:
    """Those that no registry takes."""
    return tuple(tag for tag in tags if not TAG.fullmatch(tag))
