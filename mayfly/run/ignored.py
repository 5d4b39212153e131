"""Which files of a directory travel: what `.dockerignore` says, else what git does not ignore.

Without either everything does, but for `.git`, which is large and may hold credentials. Patterns
are those of `.dockerignore` in all cases, since BuildKit reads them too: they mean here what they
mean there (moby/patternmatcher).
"""

from __future__ import annotations

import os
import re
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mayfly.errors import UsageError

FILE = ".dockerignore"
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line: what it matches, and whether it takes files back in."""

    regex: re.Pattern[str]
    back: bool

    def matches(self, path: str) -> bool:
        """Whether the path (with `/` between its parts), or a folder that it is in, matches."""
        parts = path.split("/")
        return any(self.regex.fullmatch("/".join(parts[:n])) for n in range(len(parts), 0, -1))


def lines(folder: Path) -> tuple[str, ...] | None:
    """The patterns that are not the user's own: None where there is a `.dockerignore`.

    Raises `UsageError` when git does not answer.
    """
    if (folder / FILE).is_file():
        return None
    return (".git", *(literal(path) for path in _ignored_by_git(folder)))


def patterns(folder: Path) -> tuple[Pattern, ...]:
    """All patterns that count for `folder`. Raises `UsageError` for one that is none."""
    given = lines(folder)
    if given is None:
        given = tuple((folder / FILE).read_text(errors="surrogateescape").splitlines())
    return tuple(parsed(given))


def parsed(given: Iterable[str]) -> Iterator[Pattern]:
    """The patterns in the lines of a `.dockerignore`; comments and empty lines are none."""
    for line in given:
        text = line.lstrip("\ufeff")
        if text.startswith("#") or not text.strip():
            continue
        text = text.strip()
        back = text.startswith("!")
        path = os.path.normpath(text.removeprefix("!").strip()).lstrip("/")
        if path in ("", "."):
            continue
        try:
            yield Pattern(re.compile(_regex(path), re.DOTALL), back)
        except re.error as error:
            raise UsageError(f"{FILE}: {line!r} is no pattern: {error}") from None


def literal(path: str) -> str:
    """A pattern that matches this path only."""
    return re.sub(r"([\\*?\[\]!#])", r"\\\1", path.rstrip("/"))


def excluded(path: str, given: Sequence[Pattern]) -> bool:
    """Whether a path (below the directory) stays here: the last pattern that says so counts."""
    out = False
    for pattern in given:
        if out is pattern.back and pattern.matches(path):
            out = not pattern.back
    return out


def files(folder: Path, given: Sequence[Pattern]) -> Iterator[str]:
    """The paths that travel, folders before what is in them. What cannot be read is left out."""
    returning = any(pattern.back for pattern in given)
    for here, folders, names in os.walk(folder):
        inside = Path(here).relative_to(folder)
        kept = []
        for name in sorted(folders):
            path = str(inside / name)
            if excluded(path, given):
                kept += [name] if returning else []  # something in it may be taken back in
            else:
                kept.append(name)
                yield path
        folders[:] = kept
        yield from (p for n in sorted(names) if not excluded(p := str(inside / n), given))


def packed(folder: Path, given: Sequence[Pattern], into: IO[bytes]) -> int:
    """Write a tar of what travels; the number of its entries. Sockets and devices stay here."""
    count = 0
    with tarfile.open(fileobj=into, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in files(folder, given):
            try:
                kind = (folder / path).lstat().st_mode
                if stat.S_ISREG(kind) or stat.S_ISDIR(kind) or stat.S_ISLNK(kind):
                    tar.add(folder / path, path, recursive=False)
                    count += 1
            except PermissionError as error:
                raise UsageError(
                    f"{path} cannot be read: {error.strerror}", hint=f"name it in {FILE}"
                ) from None
            except FileNotFoundError:  # it went meanwhile
                continue
    return count


def _regex(pattern: str) -> str:
    """As moby/patternmatcher has it: `**` is any number of parts, `*` and `?` are within one."""
    out, at = "", 0
    while at < len(pattern):
        char, rest = pattern[at], pattern[at + 1 :]
        if char == "*" and rest.startswith("*"):
            at += 1
            if pattern[at + 1 : at + 2] == "/":
                at += 1
            out += ".*" if at + 1 >= len(pattern) else "(.*/)?"
        elif char == "*":
            out += "[^/]*"
        elif char == "?":
            out += "[^/]"
        elif char == "\\" and rest:
            at += 1
            out += re.escape(pattern[at])
        elif char == "[" and "]" in rest:
            end = pattern.index("]", at + 1)
            out += "[" + pattern[at + 1 : end].replace("\\", "\\\\") + "]"
            at = end
        else:
            out += re.escape(char)
        at += 1
    return out


def _ignored_by_git(folder: Path) -> list[str]:
    """What git ignores below `folder`, folders as one; nothing where there is no work tree.

    Raises `UsageError` where there is one that git will not read: what it ignores (passwords,
    perhaps) is not to travel for that.
    """
    argv = ["git", "-C", str(folder), "ls-files", "--others", "--ignored", "--exclude-standard"]
    argv += ["--directory", "-z"]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            timeout=PATIENCE_S,
            check=False,
        )
    except FileNotFoundError as error:
        if not any((above / ".git").exists() for above in (folder, *folder.absolute().parents)):
            return []
        raise _unread(error) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _unread(error) from None
    if done.returncode:
        words = os.fsdecode(done.stderr).strip()
        if "not a git repository" in words:
            return []
        raise _unread(words.partition("\n")[0].removeprefix("fatal: ") or done.returncode)
    return [os.fsdecode(path) for path in done.stdout.split(b"\0") if path]


def _unread(why: object) -> UsageError:
    return UsageError(f"git does not say what it ignores: {why}", hint=f"write a {FILE}")
