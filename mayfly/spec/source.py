"""Finding and reading a `.build-spec.ncl`, as text that somebody else wrote."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from mayfly.errors import SchemaError

NAME = ".build-spec.ncl"
LONGEST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Source:
    """A spec's text. `folder` is where its imports start and `root` what they may not leave, both
    without symbolic links; `shown` is what people know the file as.
    """

    text: str
    folder: Path
    root: Path
    shown: str


def root_of(folder: Path) -> Path:
    """The root of the work tree that `folder` is in; `folder` itself when it is in none."""
    here = folder.resolve()
    return next((place for place in (here, *here.parents) if (place / ".git").exists()), here)


def nearest(folder: Path, root: Path) -> Path | None:
    """The spec that counts for `folder`: the nearest from there up to `root`, which is above it.

    A broken symbolic link counts too: it is not passed over in silence.
    """
    here = folder.resolve()
    for place in (here, *here.parents):
        if os.path.lexists(place / NAME):
            return place / NAME
        if place == root:
            break
    return None


def read(file: Path, root: Path, shown: str) -> Source:
    """The file's text. `root` is the work tree's, and the file must be below it.

    Raises `SchemaError` for a link out of the work tree, what is no regular file, what may not be
    read, more than 64 KiB, and what is not UTF-8.
    """
    try:
        there = file.resolve(strict=True)
        if not there.is_relative_to(root):
            raise SchemaError(
                f"is a link that leads out of {root}", file=shown, expected="a file of the repo"
            )
        data = _bytes(there)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        why = getattr(error, "strerror", None) or "its links go in a circle"
        raise SchemaError(f"cannot be read: {why}", file=shown, expected="a file") from None
    if data is None:
        raise SchemaError("is not a regular file", file=shown, expected="a file")
    if len(data) > LONGEST_BYTES:
        most = f"at most {LONGEST_BYTES >> 10} KiB"
        raise SchemaError(f"is too large: expected {most}", file=shown, expected=most)
    return Source(_text(data, shown), there.parent, root, shown)


def _bytes(file: Path) -> bytes | None:
    """The first bytes, one more than are allowed; None when that is not a regular file."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as opened:
        regular = stat.S_ISREG(os.fstat(handle).st_mode)
        return opened.read(LONGEST_BYTES + 1) if regular else None


def _text(data: bytes, shown: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        found = f"byte 0x{data[error.start]:02x}"
        raise SchemaError(
            f"found {found}, expected text in UTF-8",
            file=shown,
            line=before.count("\n") + 1,
            column=len(before) - before.rfind("\n"),
            text=found,
            expected="text in UTF-8",
        ) from None
