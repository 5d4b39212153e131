"""What an installation has made: written down before it is made, so that all of it can go again."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from mayfly.errors import Conflict
from mayfly.stack.files import PUBLIC, place, read

Kind = Literal["file", "folder", "tree"]
"""A file or link; a folder that goes when it is empty; one that goes with all that is in it."""

VERSION = 1


@dataclass
class Record:
    """`made` is in the order of making. `state` and `cache` are the configured folders."""

    file: Path
    state: Path = Path("/var/lib/mayfly")
    made: dict[Path, Kind] = field(default_factory=dict)

    def save(self) -> None:
        data = {
            "version": VERSION,
            "state": str(self.state),
            "made": [[kind, str(path)] for path, kind in self.made.items()],
        }
        place(self.file, json.dumps(data, indent=2).encode() + b"\n", mode=PUBLIC)

    def note(self, kind: Kind, path: Path) -> None:
        """Write down what is about to be made."""
        if path not in self.made:
            self.made[path] = kind
            self.save()

    def folder(self, path: Path) -> None:
        """Make a folder, and those above it, when they are missing."""
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for each in reversed(missing):
            if each != self.file.parent:
                self.note("folder", each)
            each.mkdir()
            each.chmod(0o755)

    def write(self, path: Path, text: str, mode: int = PUBLIC) -> bool:
        """Make a file hold `text`; whether that changed it. Raises `Conflict` for another's."""
        self._claim(path)
        before = read(path)
        place(path, text.encode(), mode=mode)
        return before != text.encode()

    def link(self, path: Path, target: str) -> bool:
        """Make a symbolic link; whether that changed it. Raises `Conflict` for another's."""
        self._claim(path)
        if path.is_symlink() and str(path.readlink()) == target:
            return False
        fresh = path.with_name(f".{path.name}.new")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(target)
        fresh.replace(path)
        return True

    def _claim(self, path: Path) -> None:
        if path in self.made:
            return
        if path.is_symlink() or path.exists():
            raise Conflict(
                f"{path} is there and was not made by `mayfly install`", hint="move it away"
            )
        self.folder(path.parent)
        self.note("file", path)

    def forget(self, path: Path) -> None:
        """Remove one thing that was made; nothing happens when it has gone."""
        unmake(self.made.pop(path, "file"), path)
        self.save()

    def unmake(self) -> None:
        """Remove everything, the last made first, and the record itself."""
        for path, kind in reversed(self.made.items()):
            unmake(kind, path)
        self.file.unlink(missing_ok=True)
        unmake("folder", self.file.parent)


def unmake(kind: Kind, path: Path) -> None:
    """Remove one thing; nothing happens when it has gone, or others have put things into it."""
    if kind == "tree":
        shutil.rmtree(path, ignore_errors=True)
        return
    if kind == "file":
        path.unlink(missing_ok=True)
        return
    try:
        path.rmdir()
    except OSError:
        return


def load(file: Path) -> Record | None:
    """The record of an installation, or None. Raises `Conflict` for one of another version, or that
    cannot be read: without it nobody knows what may be removed.
    """
    text = read(file)
    if text is None:
        return None
    try:
        data = json.loads(text)
        version = data["version"]
        if version == VERSION:
            return Record(file, Path(data["state"]), _made(data["made"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Conflict(
            f"{file} is no record of an installation ({type(error).__name__}: {error})",
            hint="put it back from a backup, or remove it and what docs/install.md says is made",
        ) from None
    raise Conflict(
        f"{file} was written by another version of Mayfly", hint="uninstall with that version"
    )


def _made(entries: Iterable[tuple[str, str]]) -> dict[Path, Kind]:
    """Raises `ValueError` and `TypeError` for what is no such list."""
    kinds: dict[str, Kind] = {each: each for each in get_args(Kind)}
    found: dict[Path, Kind] = {}
    for kind, path in entries:
        if kind not in kinds or not Path(path).is_absolute():
            raise ValueError(f"{kind!r}, {path!r}")
        found[Path(path)] = kinds[kind]
    return found


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Be the only one who installs or uninstalls below `root`. Raises `Conflict` for a second.

    The kernel lets go of it when the process ends, however it ends; no file is made for it.
    """
    folder = next(path for path in (root, *root.parents) if path.is_dir())
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                "another `mayfly install` or `uninstall` is at work", hint="wait for its end"
            ) from None
        yield
    finally:
        os.close(descriptor)


def refuse(file: Path, state: Path, instead: str) -> None:
    """Raises `Conflict` where an installation keeps its state in `state`: systemd runs that."""
    known = load(file)
    if known is not None and known.state == state:
        raise Conflict(f"Mayfly is installed here, on {state}", hint=f"use `{instead}`")
