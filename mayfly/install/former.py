"""What there was before an upgrade, to be put back where that fails."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mayfly.config import Config
from mayfly.errors import InfrastructureError
from mayfly.install import starting, systemd
from mayfly.install.places import Places
from mayfly.install.record import Record
from mayfly.stack import hosts, settings
from mayfly.stack.files import place
from mayfly.stack.supervise import Progress


@dataclass(frozen=True, slots=True)
class File:
    """One file as it was."""

    data: bytes
    owner: int
    mode: int


@dataclass(frozen=True, slots=True)
class Former:
    """An installation's units, variables and settings in the order of making, where the command
    led to, and its line in the file of hosts (both empty where there was none).
    """

    state: Path
    files: Mapping[Path, File]
    command: str
    line: str

    def data(self) -> Mapping[Path, bytes]:
        """What was in each file."""
        return {path: file.data for path, file in self.files.items()}


def keep(made: Record, places: Places, config: Config) -> Former:
    """What there is now. Raises `OSError`."""
    # What programs read when they start: those of another version may not take it.
    read = (*(config.state / "registry").glob("*.*"), *(config.state / "ca").glob("public.*"))
    state = (settings.file(config), *sorted(read))
    files: dict[Path, File] = {}
    for path in (*_written(made, places), *state):
        if path.is_file() and not path.is_symlink():
            at = path.stat()
            files[path] = File(path.read_bytes(), at.st_uid, at.st_mode & 0o7777)
    link = places.command
    command = str(link.readlink()) if link.is_symlink() else ""
    return Former(config.state, files, command, hosts.line(config.state, places.hosts))


def put_back(former: Former, made: Record, places: Places, progress: Progress) -> None:
    """Have it as it was, and running: what is new goes, what has gone is there again.

    A program that does not come up is left to systemd, which goes on trying: the fault that led
    here is the one to tell of. Raises `OSError`.
    """
    failed = {path: path.read_bytes() for path in _written(made, places) if path.is_file()}
    for path in [path for path in failed if path not in former.files]:
        if places.real and path.parent == places.units:
            systemd.stop([path.name])
        made.forget(path)
    for path, file in former.files.items():
        if path.parent in (places.units, places.environment):
            made.note("file", path)
        place(path, file.data, owner=file.owner, mode=file.mode)
    if former.command:
        made.link(places.command, former.command)
    hosts.put_back(former.line, former.state, places.hosts)
    if not places.real:
        return
    systemd.reload()
    names = [path.name for path in former.files if path.parent == places.units]
    for name in names:
        if name.endswith((".socket", ".service")):
            try:
                starting.start(name, failed, places, progress)
            except InfrastructureError as error:
                progress(str(error))


def _written(made: Record, places: Places) -> list[Path]:
    folders = (places.units, places.environment)
    return [path for path in made.made if path.parent in folders or path == places.probes]
