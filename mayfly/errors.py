"""The whole error tree: one class for each way a build or a command can end badly.

    MayflyError                  internal             70   500
    ├── BuildFailed              failed                1   422   the user's own build
    ├── UsageError               usage                 2   400
    │   └── ConfigError          usage                 2   500   all its faults at once
    ├── SchemaError              spec_invalid          3   422   with the line and a caret
    ├── TooBig                   too_big               4   422
    ├── OutOfMemory              oom                   5   422
    ├── DiskFull                 disk_full             6   422
    ├── BudgetExceeded           budget_exceeded       7   410
    ├── QueueTimeout             queue_timeout         8   503
    ├── NotPublished             not_published         9   502
    ├── Denied                   denied               10   403
    │   └── Unauthenticated      denied               10   401
    ├── NotFound                 usage                 2   404
    ├── Conflict                 usage                 2   409
    ├── InfrastructureError      infrastructure       20   503   the only one worth retrying
    │   └── Unreachable          infrastructure       20   503
    ├── MachineUnfit             machine_unfit        21   503
    ├── Cancelled                cancelled           130   409
    └── Terminated               terminated          143   409

`code` is stable and appears in JSON; `exit_status` is what a process ends with; `http_status`
is what a route answers. Codes and exit statuses are those of the interface document
(`docs/reference.md`); nothing else in the project spells one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar


class MayflyError(Exception):
    """A fault that a person reads: what was wrong and where, and what to do about it.

    `message` is one line. `hint`, when there is one, is the next step in the imperative; it is
    printed on the same line after a dash, so that one fault stays one line. `also` are faults
    that were found at the same time (`together`).
    """

    code: ClassVar[str] = "internal"
    exit_status: ClassVar[int] = 70
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.also: tuple[MayflyError, ...] = ()

    def __str__(self) -> str:
        return f"{self.message} - {self.hint}" if self.hint else self.message


class BuildFailed(MayflyError):
    """The user's own build failed; BuildKit's message has already been shown."""

    code, exit_status, http_status = "failed", 1, 422


class UsageError(MayflyError):
    """A flag, name or path given by the caller is wrong."""

    code, exit_status, http_status = "usage", 2, 400


class ConfigError(UsageError):
    """The configuration has faults; all of them are in `faults`, one line each."""

    http_status = 500

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)

    def __str__(self) -> str:
        return "\n".join(self.faults)


class SchemaError(MayflyError):
    """`.build-spec.ncl` does not evaluate, or does not satisfy its contract.

    `line` and `column` count from 1, and are 0 where the fault has no place; `text` is what stands
    there and `expected` what should. `excerpt` is shown below the message: that line, and carets
    under `text`. All of it is printable.
    """

    code, exit_status, http_status = "spec_invalid", 3, 422

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        file: str = "",
        line: int = 0,
        column: int = 0,
        text: str = "",
        expected: str = "",
        excerpt: Sequence[str] = (),
    ) -> None:
        where = "".join(f"{part}:" for part in (file, line, column) if part)
        super().__init__(f"{where} {message}" if where else message, hint=hint)
        self.file, self.line, self.column = file, line, column
        self.text, self.expected, self.excerpt = text, expected, tuple(excerpt)

    def __str__(self) -> str:
        return "\n".join((super().__str__(), *self.excerpt))


class TooBig(MayflyError):
    """No rung of the ladder that this machine holds is large enough."""

    code, exit_status, http_status = "too_big", 4, 422


class OutOfMemory(MayflyError):
    """The build needed more memory than its runner could be given."""

    code, exit_status, http_status = "oom", 5, 422


class DiskFull(MayflyError):
    """The build needed more disk than its runner, or the machine, had."""

    code, exit_status, http_status = "disk_full", 6, 422


class BudgetExceeded(MayflyError):
    """The time budget ran out; the VM was ended."""

    code, exit_status, http_status = "budget_exceeded", 7, 410


class QueueTimeout(MayflyError):
    """The pool stayed full for as long as the caller was willing to wait."""

    code, exit_status, http_status = "queue_timeout", 8, 503


class NotPublished(MayflyError):
    """The image was built and could not be pushed."""

    code, exit_status, http_status = "not_published", 9, 502


class Denied(MayflyError):
    """The token does not allow this."""

    code, exit_status, http_status = "denied", 10, 403


class Unauthenticated(Denied):
    """No token, or one that cannot be verified."""

    http_status = 401


class NotFound(UsageError):
    """The named thing does not exist, or no longer does."""

    http_status = 404


class Conflict(UsageError):
    """The named thing is in a state that does not allow this."""

    http_status = 409


class InfrastructureError(MayflyError):
    """Something of Mayfly's, or under it, failed; the same request may succeed later."""

    code, exit_status, http_status, retryable = "infrastructure", 20, 503, True


class Unreachable(InfrastructureError):
    """A program of Mayfly's does not answer at its address."""


class MachineUnfit(MayflyError):
    """This machine lacks what builds need (QEMU, root, memory); `mayfly doctor` says more."""

    code, exit_status, http_status = "machine_unfit", 21, 503


class Cancelled(MayflyError):
    """Ended by the person who started it (Ctrl-C)."""

    code, exit_status, http_status = "cancelled", 130, 409


class Terminated(MayflyError):
    """Ended by SIGTERM."""

    code, exit_status, http_status = "terminated", 143, 409


def together(found: Sequence[MayflyError]) -> MayflyError:
    """Several faults as one error: the one with the lowest exit status, with the others in `also`.

    So a wrong use (2) goes before a wrong build spec (3), and that before a denied push (10).
    `found` has at least one; the order within it is kept otherwise.
    """
    first, *others = sorted(found, key=lambda error: error.exit_status)
    first.also = tuple(others)
    return first


def from_code(code: str, message: str, *, hint: str = "", http_status: int = 0) -> MayflyError:
    """The error that a peer reported by its `code`, as the class that raises here.

    Where classes share a code, `http_status` tells them apart; without it, or with another one, it
    is the general class. An unknown code (a newer peer's) becomes a plain `MayflyError`.
    """
    sharing = [cls for cls in _classes(MayflyError) if cls.code == code and cls is not ConfigError]
    exact = [cls for cls in sharing if cls.http_status == http_status]
    return (exact or sharing or [MayflyError])[0](message, hint=hint)


def _classes(cls: type[MayflyError]) -> Iterator[type[MayflyError]]:
    """The tree's own classes, a parent before its children."""
    if cls.__module__ == __name__:
        yield cls
        for child in cls.__subclasses__():
            yield from _classes(child)
