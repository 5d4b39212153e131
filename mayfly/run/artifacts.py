"""Files that come back from a runner.

A runner may be anybody's by the end: of what it sends only regular files are taken that were asked
for, and they are written below the directory without following a link there.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import tarfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from mayfly.errors import UsageError

SHOWN = 20
"""Refusals that are told, at most."""

_GLOB = re.compile(r"[*?]+")


@dataclass(slots=True)
class Taken:
    """What came back: `files` that were written, and `refused` with a reason each."""

    files: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def checked(patterns: Iterable[str]) -> tuple[str, ...]:
    """The patterns, each a path below the directory with `*` and `?` in its parts.

    Raises `UsageError` for one that leaves the directory or is all of it.
    """
    made = []
    for pattern in patterns:
        parts = PurePosixPath(pattern).parts
        if not parts or parts[0] == "/" or ".." in parts or pattern.startswith("-"):
            raise UsageError(
                f"--artifact {pattern!r} is no path below this directory",
                hint="write it as target/report.xml or 'reports/*.xml'",
            )
        if not pattern.isprintable():
            raise UsageError(f"--artifact {pattern!r} has a character that no shell should see")
        made.append("/".join(parts))
    return tuple(made)


def shell_words(patterns: Iterable[str]) -> str:
    """The patterns for a shell, which expands `*` and `?` in them and nothing else."""
    return " ".join(_word(pattern) for pattern in patterns)


def _word(pattern: str) -> str:
    words = _GLOB.split(pattern)
    globs = [*_GLOB.findall(pattern), ""]
    return "".join(
        (shlex.quote(word) if word else "") + glob for word, glob in zip(words, globs, strict=True)
    )


def asked_for(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path is one of the artifacts, or below one."""
    parts = PurePosixPath(path).parts
    for pattern in patterns:
        wanted = PurePosixPath(pattern).parts
        if len(parts) >= len(wanted) and all(map(_fits, parts, wanted)):
            return True
    return False


def _fits(part: str, wanted: str) -> bool:
    """As a shell has it: no `*` or `?` stands for the dot that hides a file."""
    hidden = part.startswith(".") and not wanted.startswith(".")
    return not hidden and fnmatchcase(part, wanted.replace("[", "[[]"))


def take(source: IO[bytes], patterns: Sequence[str], folder: Path, below: str = "") -> Taken:
    """Write the artifacts in a tar to `folder`, over what is there; `below` is where in the tar.

    Entries that were not asked for, and links and devices, are refused, but for hard links to what
    was taken before. Raises `UsageError` when a file cannot be written here.
    """
    taken, here = Taken(), set[str]()
    try:
        with tarfile.open(fileobj=source, mode="r|") as tar:
            for entry in tar:
                path = _place(entry.name, below)
                if not path or entry.isdir():
                    continue
                if path.startswith("/") or not asked_for(path, patterns) or ".." in path.split("/"):
                    taken.refused.append(f"{path!a}: nobody asked for it")
                    continue
                make: Callable[[Path], None] | None = None
                if entry.islnk():
                    if (first := _place(entry.linkname, below)) in here:
                        make = partial(_link, folder / first)
                # Of a sparse file a few bytes could stand for a whole disk.
                elif entry.isreg() and not entry.issparse() and (data := tar.extractfile(entry)):
                    mode = 0o777 if entry.mode & 0o100 else 0o666
                    make = partial(_copy, data, mode=mode & ~_umask())
                if make is None:
                    taken.refused.append(f"{path!a}: it is no plain file")
                    continue
                _put(folder, path, make)
                here.add(path)
                taken.files.append(path)
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:  # it raises them all
        taken.refused.append(f"the rest: it cannot be read: {error}")
    return taken


def tell(taken: Taken, patterns: Sequence[str], show: Callable[[str], None]) -> None:
    """Say which artifacts were not there, and what was refused."""
    for pattern in patterns:
        if not any(asked_for(file, (pattern,)) for file in taken.files):
            show(f"warning: there is no {pattern} to bring back")
    for reason in taken.refused[:SHOWN]:
        show(f"warning: refused {reason}")


def _place(name: str, below: str) -> str:
    """Where an entry of a tar belongs; empty when it is not `below` there."""
    path = os.path.normpath(name).removeprefix("./")
    if not below:
        return path
    return path.removeprefix(f"{below}/") if path.startswith(f"{below}/") else ""


def _put(folder: Path, path: str, make: Callable[[Path], None]) -> None:
    """One file, whole or not at all; folders on the way are made, links on it refused."""
    target, here = folder / path, folder
    try:
        for part in PurePosixPath(path).parts[:-1]:
            here /= part
            if here.is_symlink():
                raise UsageError(f"artifact {path}: {here.relative_to(folder)} is a link here")
            here.mkdir(exist_ok=True)
        new = here / f".mayfly-{os.getpid()}.partial"
        try:
            make(new)
            new.replace(target)
        finally:
            new.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"artifact {path} cannot be written here: {error.strerror}") from None


def _link(first: Path, new: Path) -> None:
    try:
        new.hardlink_to(first)
    except OSError:  # not every file system has them
        shutil.copy(first, new)


def _copy(data: IO[bytes], new: Path, *, mode: int) -> None:
    with new.open("xb") as file:
        shutil.copyfileobj(data, file)
    new.chmod(mode)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
