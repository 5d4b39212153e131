"""One marked line in /etc/hosts, so that the registry has its name on this machine too."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mayfly.config import Config
from mayfly.errors import InfrastructureError

FILE = Path("/etc/hosts")


def add(config: Config, path: Path = FILE) -> None:
    """Add this state's line, or set it right; nothing is written when it is as it must be.

    Everything else in the file stays as it is. Raises `InfrastructureError`.
    """
    address = ipaddress.ip_address(config.server.listen.rpartition(":")[0].strip("[]"))
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    _edit(path, lambda text: added(text, str(address), config.server.name, config.state))


def remove(config: Config, path: Path = FILE) -> None:
    """Take this state's line away; nothing happens when there is none. Raises as `add` does."""
    _edit(path, lambda text: removed(text, config.state))


def line(state: Path, path: Path = FILE) -> str:
    """This state's line; empty where there is none. Raises `OSError`."""
    text = path.read_text(errors="surrogateescape") if path.exists() else ""
    return next((each for each in text.splitlines() if each.endswith(_mark(state))), "")


def put_back(former: str, state: Path, path: Path = FILE) -> None:
    """Make this state's line what `line` found before. Raises as `add` does."""
    address, name, *_ = [*former.split(), "", ""]
    if address:
        _edit(path, lambda text: added(text, address, name, state))
    else:
        _edit(path, lambda text: removed(text, state))


def added(text: str, address: str, name: str, state: Path) -> str:
    """The file's text with this state's one line in it (at its end when it is new)."""
    line = f"{address} {name}{_mark(state)}\n"
    lines = text.splitlines(keepends=True)
    mine = [at for at, each in enumerate(lines) if each.rstrip("\r\n").endswith(_mark(state))]
    if mine:
        lines[mine[0]] = line
        return "".join(each for at, each in enumerate(lines) if at not in mine[1:])
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    return "".join([*lines, line])


def removed(text: str, state: Path) -> str:
    """The file's text without this state's lines."""
    lines = text.splitlines(keepends=True)
    return "".join(each for each in lines if not each.rstrip("\r\n").endswith(_mark(state)))


def _mark(state: Path) -> str:
    return f" # mayfly {state}"


def _edit(path: Path, change: Callable[[str], str]) -> None:
    try:
        target = path.resolve()
        with _locked(target.parent):
            # Bytes that are not UTF-8 survive the round trip.
            old = target.read_text(errors="surrogateescape") if target.exists() else ""
            new = change(old)
            if new != old:
                _write(target, new.encode(errors="surrogateescape"))
    except OSError as error:
        raise InfrastructureError(
            f"{path} cannot be changed: {error.strerror}",
            hint="make it writable, or add the registry's name there yourself",
        ) from None


def _write(path: Path, data: bytes) -> None:
    """Atomically; in place where the file cannot be replaced (a bind mount, a folder that nobody
    may write to), and not where there is no room: then it would be emptied.
    """
    try:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        _in_place(path, data, error)
        return
    try:
        with os.fdopen(descriptor, "wb") as file:
            if path.exists():
                status = path.stat()
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
                os.fchmod(file.fileno(), status.st_mode & 0o7777)
            else:
                os.fchmod(file.fileno(), 0o644)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        _in_place(path, data, error)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _in_place(path: Path, data: bytes, error: OSError) -> None:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise error
    path.write_bytes(data)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two stacks of one machine do not edit the file at once. Leaves no file behind."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
