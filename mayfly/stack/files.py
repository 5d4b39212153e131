"""Files that are whole or not there, with the right owner from their first moment.

Root reads and writes them, in folders of root's own. A service may own a file in there, so what is
read is looked at first: no link of a service's making leads root elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from pathlib import Path

PUBLIC, PRIVATE = 0o644, 0o600


def read(path: Path, owner: int = 0) -> bytes | None:
    """What is in `path`, or None when it does not exist.

    Raises `PermissionError` when it is not a regular file, of one name, of root's or `owner`'s
    (a user id); `OSError` for the rest, a symbolic link (ELOOP) among it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        regular = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if not regular or status.st_uid not in (0, owner):
            wanted = "root" if owner == 0 else f"root or user {owner}"
            why = f"not a regular file with one name that belongs to {wanted}"
            raise PermissionError(errno.EPERM, why, str(path))
        return file.read()


def place(path: Path, data: bytes, *, owner: int = 0, mode: int = PRIVATE) -> None:
    """Make `path` hold `data` with this owner (user and group) and mode; untouched when it does.

    What `read` refuses is replaced, never followed. Atomic and durable: whoever reads meanwhile
    sees the old file or the new one, and a crash leaves one of them. The folder is root's, or
    others could rename in it. Raises `OSError`.
    """
    with contextlib.suppress(OSError):
        if read(path, owner) == data:
            status = path.lstat()
            if (status.st_uid, status.st_gid, status.st_mode & 0o7777) == (owner, owner, mode):
                return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchown(file.fileno(), owner, owner)
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
