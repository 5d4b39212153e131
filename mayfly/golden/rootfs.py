"""From installed packages to the root that a guest boots: our files, its user, its units."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from mayfly.debian.bootstrap import remove_tree
from mayfly.errors import InfrastructureError
from mayfly.golden.recipe import Recipe, User, install

UNITS = "etc/systemd/system"


def add_user(root: Path, user: User) -> None:
    """Who builds run as: no password, so only a key lets anybody in."""
    n, first, count = user.id, user.subordinate_first, user.subordinate_count
    lines = {
        "etc/passwd": f"{user.name}:x:{n}:{n}:{user.name}:/home/{user.name}:/bin/sh",
        "etc/group": f"{user.name}:x:{n}:",
        "etc/shadow": f"{user.name}:*:19700:0:99999:7:::",
        "etc/gshadow": f"{user.name}:*::",
        "etc/subuid": f"{user.name}:{first}:{count}",
        "etc/subgid": f"{user.name}:{first}:{count}",
    }
    for name, line in lines.items():
        with (root / name).open("a") as file:
            file.write(line + "\n")
    home = root / "home" / user.name
    home.mkdir(mode=0o755)
    os.chown(home, n, n)


def copy_files(root: Path, recipe: Recipe, tools: Mapping[str, Path]) -> None:
    """The recipe's files and the programs (`tools`: path in the guest -> file here)."""
    for name, source in {**recipe.own_files(), **tools}.items():
        install(source, root / name)
    (root / "scratch").mkdir()


def unit_file(unit: str) -> str:
    """The file that a unit is in: of an instance, its template's (systemd.unit(5))."""
    name, at, instance = unit.partition("@")
    return f"{name}@{Path(instance).suffix}" if at else unit


def arrange_units(root: Path, recipe: Recipe) -> None:
    """Enable and mask units by the links that systemctl would make.

    Raises `InfrastructureError` for a unit that is enabled and not there.
    """
    units = root / UNITS
    for leftover in (*units.glob("*.wants"), *units.glob("*.requires")):
        shutil.rmtree(leftover)
    for leftover in [path for path in units.iterdir() if path.is_symlink()]:
        leftover.unlink()
    (units / "default.target").symlink_to(f"/usr/lib/systemd/system/{recipe.default_target}")
    wants = units / f"{recipe.default_target}.wants"
    wants.mkdir()
    for unit in recipe.enable:
        file = unit_file(unit)
        if not (units / file).is_file():
            raise InfrastructureError(f"the recipe enables {unit}, which it has not")
        (wants / unit).symlink_to(f"/{UNITS}/{file}")
    for unit in recipe.mask:
        (units / unit).symlink_to("/dev/null")


def take_boot_files(root: Path, folder: Path) -> None:
    """Move kernel and initrd out of the root, to `vmlinuz` and `initrd.img` in `folder`."""
    for pattern, name in (("vmlinuz-*", "vmlinuz"), ("initrd.img-*", "initrd.img")):
        found = sorted((root / "boot").glob(pattern))
        if len(found) != 1:
            raise InfrastructureError(f"expected one {pattern} in the image, found {len(found)}")
        shutil.move(found[0], folder / name)


def strip(root: Path, recipe: Recipe) -> None:
    """Take out what the recipe removes, and every identity: a guest is nobody until told."""
    for pattern in recipe.remove:
        for path in root.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink(missing_ok=True)
    (root / "etc/machine-id").write_text("")
    (root / "etc/hostname").write_text(recipe.hostname + "\n")
    (root / "etc/fstab").write_text("")


def clamp_times(root: Path, epoch: int) -> None:
    """No file of the image is younger than `epoch` (Unix seconds)."""
    for folder, folders, files in os.walk(root):
        for name in [*files, *folders, "."]:
            path = os.path.join(folder, name)  # noqa: PTH118
            if os.lstat(path).st_mtime > epoch:
                os.utime(path, (epoch, epoch), follow_symlinks=False)
