"""Give up privileges, then become another program.

Started as root by the supervisor for every program that needs no root, as a file: a module would
load all of its package first, which takes 20 times as long.

    --uid N          user, and group of the same number; no other group
    --need PATH      a path that the program uses (repeated); everything else below a covered
                     folder is out of its sight
    -- PROGRAM ...   what to become; the process id stays

The program gets a mount namespace of its own, in which /tmp, and any folder that its user may not
enter (a checkout in root's home, say), is covered by an empty one that holds just the needed paths.
So nothing is changed for others, nothing is left behind, and no mount of ours shows outside.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import resource
import stat
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

CLONE_NEWNS = 0x00020000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_SLAVE = 2, 4, 4096, 16384, 1 << 19
PR_SET_NO_NEW_PRIVS = 38

TEMPORARY = Path("/tmp")  # noqa: S108 - it is covered, not used


def covers(
    needed: Iterable[Path], enterable: Callable[[Path], bool]
) -> Mapping[Path, tuple[Path, ...]]:
    """Which folders to cover, each with the needed paths to show below it. Pure.

    `enterable` says whether the program's user may pass through a folder. /tmp is always covered.
    """
    found: dict[Path, list[Path]] = {TEMPORARY: []}
    for path in sorted(set(needed)):
        ancestors = reversed(path.parents)  # from the root down
        closed = next((a for a in ancestors if a == TEMPORARY or not enterable(a)), None)
        shown = found.setdefault(closed, []) if closed is not None else []
        if not any(path.is_relative_to(other) for other in shown):
            shown.append(path)
    return {folder: tuple(paths) for folder, paths in found.items()}


def _enterable(folder: Path) -> bool:
    return bool(folder.stat().st_mode & stat.S_IXOTH)


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: Path, kind: str, flags: int, data: str = "") -> None:
    target_ = os.fsencode(target)
    done = _libc.mount(source.encode(), target_, kind.encode(), flags, data.encode())
    _check(done, f"mount {target}")


def _cover(folder: Path, shown: Iterable[Path]) -> None:
    handles = [(path, os.open(path, os.O_PATH)) for path in shown]
    mode = "1777" if folder == TEMPORARY else "755"
    _mount("mayfly", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"mode={mode}")
    for path, handle in handles:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        _mount(f"/proc/self/fd/{handle}", path, "", MS_BIND | MS_REC)
        os.close(handle)


def _stand_on_a_mount() -> None:
    """Make `/` a mount that is ours alone, where it is a plain folder (in a chroot).

    Mounts made in such a root may show outside. /proc is a mount of its own everywhere: this root
    is bound over it once more, out of others' sight, and entered.
    """
    folder, over = Path.cwd(), Path("/proc")
    _mount("", over, "", MS_SLAVE)
    _mount("/", over, "", MS_BIND | MS_REC)
    _mount("", over, "", MS_REC | MS_SLAVE)
    os.chroot(over)
    os.chdir(folder)


def enter(uid: int, needed: Iterable[Path]) -> None:
    """Become `uid` in a mount namespace of its own. Raises `OSError`; then exit, half-way in."""
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    try:
        _mount("", Path("/"), "", MS_REC | MS_SLAVE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _stand_on_a_mount()
    os.umask(0o022)
    for folder, shown in covers(needed, _enterable).items():
        _cover(folder, shown)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    os.umask(0o007)
    _check(_libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def main() -> None:
    """See the module. Exits 70 with one line when it cannot be done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uid", type=int, required=True)
    parser.add_argument("--need", type=Path, action="append", default=[])
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    try:
        enter(options.uid, options.need)
        os.execv(options.program[0], options.program)  # noqa: S606 - argument list, no shell
    except OSError as error:
        print(f"{options.program[0]} cannot be started: {error}", file=sys.stderr)
        raise SystemExit(70) from None


if __name__ == "__main__":
    main()
