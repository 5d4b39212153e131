"""One thing that was looked at, and what came of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum

from mayfly.errors import MayflyError


class State(StrEnum):
    """`warn`: builds work, and something will surprise somebody. `fail`: they do not."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at: what was `found`, and how to `mend` it: a command, or a line for the
    configuration file; empty when it is well.
    """

    name: str
    state: State
    found: str
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        return asdict(self)


def ok(name: str, found: str) -> Check:
    return Check(name, State.OK, found)


def warn(name: str, found: str, mend: str) -> Check:
    return Check(name, State.WARN, found, mend)


def fail(name: str, found: str, mend: str) -> Check:
    return Check(name, State.FAIL, found, mend)


def safely(name: str, look: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """The checks of `look`; one that says so where it fails at looking."""
    try:
        yield from look()
    except MayflyError as error:
        yield fail(name, error.message, error.hint)
    except OSError as error:
        yield fail(
            name, f"{error.filename or name} cannot be looked at: {error.strerror}", as_root()
        )


def as_root(command: str = "mayfly doctor") -> str:
    """How to run a command as root on this machine."""
    return f"sudo {command}" if shutil.which("sudo") else f"su -c '{command}'"
