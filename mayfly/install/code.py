"""Puts the code that runs now to where an installation has it: a Python environment of its own.

It is a copy of the environment that this process runs in (a checkout's or one that pip has filled),
less what only developers need: no network, no compiler and no pip take part. A version is a folder
that is named by its content, so that an upgrade is made beside the one that runs.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Mapping
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from importlib.util import cache_from_source
from pathlib import Path

import mayfly
from mayfly.errors import MachineUnfit
from mayfly.shipped import shipped
from mayfly.stack.supervise import Progress

SHIPPED = ("catalog", "schemas", "tools")
"""Beside the package in a checkout, in its `data` in a wheel (`pyproject.toml`, force-include)."""

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9._-]+)\s*(?:\[([^\]]*)\])?")


def ensure(code: Path, progress: Progress) -> Path:
    """The folder of this very version below `code`, made when it is missing.

    Raises `MachineUnfit` when the environment lacks a part of Mayfly, and `OSError`.
    """
    files = dict(_files())
    folder = code / _digest(files)
    if folder.is_dir():
        return folder
    progress(f"copying Mayfly {mayfly.__version__} to {folder}")
    code.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".new-", dir=code))
    try:
        staging.chmod(0o755)
        venv.EnvBuilder(symlinks=True, with_pip=False).create(staging)
        for script in (staging / "bin").iterdir():
            if not script.name.startswith("python"):
                script.unlink()  # they activate the folder under the name that it has now
        for name, source in files.items():
            _copy(source, staging / name, folder)
        library = staging / _below_prefix("purelib")
        compiling = (sys.executable, "-I", "-m", "compileall", "-q", "-j", "0", str(library))
        subprocess.run(
            [*compiling, "-s", str(staging), "-p", str(folder)],
            check=False,  # a library may ship a file that this Python does not take
            stdout=subprocess.DEVNULL,
        )
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder


def prune(code: Path, keep: Path) -> None:
    """Remove all versions but `keep`, which every program runs from; nothing where it is not."""
    if keep.parent != code:
        return
    for other in code.iterdir():
        if other != keep:
            shutil.rmtree(other)


def distributions(name: str = "mayfly") -> Iterator[Distribution]:
    """What is installed of `name` and all that it needs, each once. Raises `MachineUnfit`.

    A requirement for another system or Python is one that is not installed.
    """
    seen: set[tuple[str, str]] = set()
    told: set[str] = set()
    waiting = [(name, "")]
    while waiting:
        at = waiting.pop()
        if at in seen:
            continue
        seen.add(at)
        wanted, extra = at
        try:
            found = distribution(wanted)
        except PackageNotFoundError:
            if wanted == name:
                raise MachineUnfit(f"{name} is not installed in {sys.prefix}") from None
            continue
        for line in found.requires or ():
            requirement, _, marker = line.partition(";")
            of = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
            if (of[1] if of else "") not in ("", extra):
                continue
            if match := _REQUIREMENT.match(requirement):
                extras = [each.strip() for each in (match[2] or "").split(",") if each.strip()]
                waiting += [(match[1].lower(), each) for each in ["", *extras]]
        if found.name.lower() not in told:
            told.add(found.name.lower())
            yield found


def _programs() -> Iterator[Distribution]:
    """What golden images are made with and no module imports; `make setup` installs it."""
    try:
        yield from distributions("uv")
    except MachineUnfit:
        return  # whoever wants it says so


def _files() -> Iterator[tuple[str, Path]]:
    """Every file of an installation: its name below the folder, and where it is now."""
    prefix, library = Path(sys.prefix), _below_prefix("purelib")
    for found in (*distributions(), *_programs()):
        own = found.name.lower() == "mayfly"
        for file in found.files or ():
            source = Path(str(found.locate_file(file))).resolve()
            if "__pycache__" in source.parts or not source.is_file():
                continue
            if not source.is_relative_to(prefix.resolve()):
                continue
            name = source.relative_to(prefix.resolve())
            # Its package comes below, from wherever a checkout has it.
            if own and (name.suffix == ".pth" or name.is_relative_to(f"{library}/mayfly")):
                continue
            yield str(name), source
    package = Path(mayfly.__file__).resolve().parent
    for source in _tree(package):
        inside = source.relative_to(package)
        if inside.parts[0] != "data":
            yield f"{library}/mayfly/{inside}", source
    for part in SHIPPED:
        for source in _tree(shipped(part)):
            yield f"{library}/mayfly/data/{part}/{source.relative_to(shipped(part))}", source


def _tree(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise MachineUnfit(f"{folder} is missing", hint="install from a checkout or a wheel")
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _digest(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256(f"{sys.version} {sys.base_prefix}".encode())
    for name, source in sorted(files.items()):
        if _is_script(source):  # it says where it is, which makes no other version of it
            script = source.read_bytes().replace(sys.prefix.encode(), b"")
            content = hashlib.sha256(script).hexdigest()
        else:
            with source.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{name} {content}\n".encode())
    return f"{mayfly.__version__}-{digest.hexdigest()[:12]}"


def _copy(source: Path, target: Path, folder: Path) -> None:
    """Copy one file; a script is made to run in `folder`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if _is_script(source):
        text = source.read_bytes().replace(sys.prefix.encode(), bytes(folder))
        target.write_bytes(text)
    else:
        shutil.copyfile(source, target)
    at = source.stat()
    target.chmod(0o755 if at.st_mode & 0o100 else 0o644)
    if source.suffix == ".py":
        _copy_compiled(source, target, at.st_mtime_ns)


def _copy_compiled(source: Path, target: Path, changed_ns: int) -> None:
    """What Python has compiled of a module goes with it, which saves most of an installation's
    time. It is tied to the module's size and time of change, and to no place: Python sets the
    file's name right when it loads it (importlib, `_compile_bytecode`).
    """
    os.utime(target, ns=(changed_ns, changed_ns))
    compiled = Path(cache_from_source(str(source)))
    if compiled.is_file():
        there = Path(cache_from_source(str(target)))
        there.parent.mkdir(exist_ok=True)
        shutil.copyfile(compiled, there)
        there.chmod(0o644)


def _is_script(source: Path) -> bool:
    with source.open("rb") as file:
        return source.parent.name == "bin" and file.read(2) == b"#!"


def _below_prefix(scheme: str) -> str:
    return str(Path(sysconfig.get_path(scheme)).relative_to(sys.prefix))
