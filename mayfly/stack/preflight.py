"""What must hold before anything is started. Every fault is found, none is stumbled over later."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Container, Iterator
from pathlib import Path

import pydantic

import mayfly
from mayfly import users
from mayfly.config import Config
from mayfly.errors import Conflict, MachineUnfit, MayflyError
from mayfly.host import network
from mayfly.stack import loopback, record, registry, seaweed, supervise
from mayfly.stack.files import read
from mayfly.tools import tools_dir

VERSION = "1"
"""Of the state's layout; in `<state>/version`."""

SOCKETS = (
    "/run/api/orchestrator.sock",
    f"/vms/{36 * 'r'}/qemu/agent.sock",
    f"/templates/.{16 * 'k'}.partial/agent.sock",
)
"""The longest paths of sockets below the state: runners' names and templates' keys at most."""

LONGEST_STATE = 107 - max(map(len, SOCKETS))
"""Bytes; unix sockets' addresses have no more room (unix(7))."""

FILE_SYSTEMS = "lost+found"
"""What a file system has of its own."""

KNOWN = {folder.path.partition("/")[0] for folder in users.FOLDERS} | {
    "admin.auth.json",
    "admin.token",
    "base",
    "cache",
    "golden",
    "kvm-probe.img",
    "kvm-probe.json",
    "templates",
    "version",
    "vms",
}
"""What others of Mayfly may have put into the state before the first `up`."""

LEFT = (*(f".{name}." for name in sorted(KNOWN) if name), ".base-")
"""How names begin that killed attempts have left (`files.place`)."""


def check(config: Config) -> None:
    """Return when `mayfly up` may go on.

    Raises `Conflict` (already running; a folder that is not a Mayfly state, or one of another
    version), else `MachineUnfit` with one line for each thing that this machine lacks.
    """
    left = record.load(config.run) if config.state.is_dir() else None
    if left is not None and left.alive:
        raise record.already_running(left)
    check_state(config.state)
    kept = left.services if left else {}
    running = {name for name, each in kept.items() if each.process.alive()}
    found = [str(fault) for fault in faults(config, running)]
    if found:
        raise MachineUnfit("\n".join(found))


def ours(name: str) -> bool:
    """Whether something of this name in a state is Mayfly's."""
    return name in KNOWN or name.startswith(LEFT)


def check_state(state: Path) -> None:
    """Return when `state` is Mayfly's, of this version, or not there; raises `Conflict`."""
    try:
        version = read(state / "version")
        entries = {entry.name for entry in state.iterdir()} if state.is_dir() else set()
        foreign = {name for name in entries - {FILE_SYSTEMS} if not ours(name)}
    except OSError as error:
        raise Conflict(f"{state} cannot be read: {error.strerror}") from None
    if version is not None and version.decode(errors="replace").strip() != VERSION:
        raise Conflict(
            f"{state} is the state of another version of Mayfly "
            f"({version.decode(errors='replace').strip()[:20]}, this one has {VERSION})",
            hint="set MAYFLY_STATE to another folder, or remove it with the version that made it",
        )
    if version is None and foreign:
        raise Conflict(
            f"{state} holds something else ({min(foreign)})",
            hint="set MAYFLY_STATE to a folder of Mayfly's own",
        )


def faults(config: Config, running: Container[str]) -> Iterator[MayflyError]:
    """What this machine lacks; `running` are the programs of this state that run already."""
    if os.geteuid() != 0:
        yield MachineUnfit("VMs and their networks need root", hint="run it as root")
    if config.vm.provider == "qemu":
        yield from network.faults(config)
    if len(os.fsencode(config.state)) > LONGEST_STATE:
        yield MachineUnfit(
            f"the state's path is longer than {LONGEST_STATE} bytes: {config.state}",
            hint="set MAYFLY_STATE to a shorter one",
        )
    for file, whole in (
        (mayfly.__file__, Path(mayfly.__file__).parents[1]),
        (pydantic.__file__, sys.prefix),
    ):
        if not Path(file).stat().st_mode & stat.S_IROTH:
            yield MachineUnfit(
                f"{file} cannot be read by the users that programs run as",
                hint=f"chmod -R go+rX {whole}",
            )
    folder = next(p for p in (config.state, *config.state.absolute().parents) if p.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield MachineUnfit(f"{folder} is not a folder to write in", hint="set MAYFLY_STATE")
    try:
        tools_dir(config.cache)
    except MayflyError as error:
        yield error
    yield from registry.faults(config)
    if not config.s3.endpoint and not config.registry.external:
        try:
            seaweed.binary()
        except MayflyError as error:
            yield error
        if "s3" not in running and (seaweed.folder(config) / "ports.json").exists():
            taken = loopback.taken(seaweed.ports(seaweed.folder(config)).values())
            if taken:
                yield MachineUnfit(
                    f"port {taken[0]} of the embedded S3 service is used by another program",
                    hint=f"end it, or remove {seaweed.folder(config) / 'ports.json'}",
                )
    if "edge" not in running:
        try:
            supervise.listen(config.server.listen).close()
        except MayflyError as error:
            yield error
