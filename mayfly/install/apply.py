"""`mayfly install`: from the first check to programs that serve.

The first half (`install`) looks whether it can be done and puts the code in its place; the second
(`apply`) is done by that code, which names itself in the units. A second time the same changes
nothing; a newer version is put beside the running one, and each program is started anew from it.
Builds go on: their VMs are no children of a program (`host/process.py`), and a client whose
connection went with the edge connects again.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mayfly import users
from mayfly.build.stop import undisturbed
from mayfly.config import Config
from mayfly.errors import Conflict, MachineUnfit, MayflyError
from mayfly.install import code, former, record, remove, settings, starting, systemd, units
from mayfly.install.places import Places
from mayfly.install.record import Record
from mayfly.install.settings import Options
from mayfly.stack import hosts, lifecycle, own_certificate, preflight
from mayfly.stack.files import PRIVATE, place
from mayfly.stack.record import already_running
from mayfly.stack.record import load as supervised
from mayfly.stack.services import Service
from mayfly.stack.supervise import Progress

Secrets = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ready:
    """All that the second half needs to know."""

    places: Places
    text: str
    secrets: Secrets
    config: Config


def check(options: Options, places: Places, environ: Mapping[str, str]) -> Ready:
    """Whether it can be done; nothing is changed.

    Raises `MachineUnfit` with a line for each thing that is wrong with this machine, `Conflict` for
    a state or a record of another version and where `mayfly up` runs, `UsageError`, `ConfigError`.
    """
    if os.geteuid() != 0:
        raise MachineUnfit("`mayfly install` writes to the system", hint="run it as root")
    if places.real and not systemd.booted():
        raise MachineUnfit(
            "systemd does not run this machine", hint="use `mayfly up`, which needs none"
        )
    known = record.load(places.record)
    text = settings.settle(options, places, environ)
    secrets = settings.secret(places, environ)
    config = settings.load(text, secrets, places.config)
    if known is not None and known.state != config.state:
        raise Conflict(
            f"the installation keeps its state in {known.state}, not in {config.state}",
            hint="uninstall it first, or set state back",
        )
    left = supervised(config.run) if config.state.is_dir() else None
    if left is not None and left.alive:
        raise already_running(left)
    preflight.check_state(config.state)
    faults = [str(fault) for fault in preflight.faults(config, _running(places))]
    try:
        own_certificate.check(config, datetime.now(UTC))
    except MayflyError as error:
        faults.append(str(error))
    faults += [
        f"user id {number} is {name}'s, and Mayfly's programs run under it"
        for number in users.IDS
        if (name := _name_of(number))
    ]
    if faults:
        raise MachineUnfit("\n".join(faults))
    return Ready(places, text, secrets, config)


def _name_of(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return ""


def _running(places: Places) -> frozenset[str]:
    """The programs of an installation that run now and hold their ports."""
    if not places.real:
        return frozenset()
    found = {name for name in ("s3", "registry") if systemd.active(units.name(name))}
    if systemd.active("mayfly-edge.socket"):
        found.add("edge")
    return frozenset(found)


def place_code(ready: Ready, progress: Progress) -> Path:
    """Put the code where it belongs; its folder."""
    made = _record(ready)
    made.folder(ready.places.code.parent)
    made.note("tree", ready.places.code)
    return code.ensure(ready.places.code, progress)


def _keep_settings(ready: Ready, made: Record) -> bool:
    """Write what was said down for the next time; whether that is news.

    An operator's file that was there before is no part of the installation, and stays after it; who
    may read it stays as it was, for it may hold secrets.
    """
    places, news = ready.places, False
    if not places.config.exists():
        news = made.write(places.config, ready.text)
    elif places.config.read_text() != ready.text:
        at = places.config.stat()
        place(places.config, ready.text.encode(), mode=stat.S_IMODE(at.st_mode))
        os.chown(places.config, at.st_uid, at.st_gid)
        news = True
    if ready.secrets:
        lines = "".join(f"{name}={value}\n" for name, value in sorted(ready.secrets.items()))
        news |= made.write(places.secrets, lines, PRIVATE)
    return news


def apply(ready: Ready, progress: Progress) -> bool:
    """Make state, units and links by the code that runs now, have systemd start what is new, and
    write the settings down.

    Whether anything was changed. Raises `InfrastructureError` when a program does not come up,
    `Terminated`, `OSError`: everything is then as it was before, and an installation that was none
    is taken away again, but for a state that was there before it.
    """
    places, config = ready.places, ready.config
    made = _record(ready)
    first, had_data = not (places.units / units.TARGET).exists(), remove.has_data(config)
    made.folder(config.state.parent)
    made.note("tree", config.state)
    before = former.keep(made, places, config)
    try:
        table = lifecycle.make_state(config, datetime.now(UTC))
        changed = _write(ready, made, table)
        if not places.hosts.exists():
            made.note("file", places.hosts)
        hosts_before = places.hosts.read_bytes() if places.hosts.exists() else b""
        hosts.add(config, places.hosts)
        changed |= places.hosts.read_bytes() != hosts_before
        if places.real:
            changed |= _start(table, before.data(), places, progress)
        changed |= _keep_settings(ready, made)
    except BaseException:
        with undisturbed():
            if first:
                remove.everything(made, config, places, progress, keep_data=had_data)
            else:
                progress("putting back what there was before")
                former.put_back(before, made, places, progress)
        raise
    code.prune(places.code, Path(sys.prefix))
    return changed


def _record(ready: Ready) -> Record:
    known = record.load(ready.places.record)
    if known is not None:
        return known
    ready.places.settings.mkdir(parents=True, exist_ok=True)
    fresh = Record(ready.places.record, ready.config.state)
    fresh.save()
    return fresh


def _write(ready: Ready, made: Record, table: Sequence[Service]) -> bool:
    """Write units, variables and links, and take away what is no more; whether that changed any."""
    places = ready.places
    texts = units.render(table, Path(sys.executable), places)
    changed = False
    made.folder(places.environment)
    places.environment.chmod(0o700)
    for name, text in units.environments(table).items():
        changed |= made.write(places.environment / f"{name}.env", text, PRIVATE)
    changed |= made.write(places.probes, units.probes(table))
    for name, text in texts.items():
        changed |= made.write(places.units / name, text)
    wanted = {places.units / name for name in texts}
    for path in [p for p in made.made if p.parent == places.units and p not in wanted]:
        if path.suffix in (".service", ".socket"):
            if places.real:
                systemd.stop([path.name])
            made.forget(path)
            changed = True
    wants = places.units / "multi-user.target.wants" / units.TARGET
    changed |= made.link(wants, str(places.units / units.TARGET))
    changed |= made.link(places.command, str(Path(sys.prefix) / "bin" / "mayfly"))
    return changed


def _start(
    table: Sequence[Service], before: Mapping[Path, bytes], places: Places, progress: Progress
) -> bool:
    """Start what does not run, and anew what has changed, in the table's order."""
    systemd.reload()
    names = [*units.sockets(table), *(units.name(each.name) for each in table), units.LOOK]
    did = False
    for name in names:
        did |= starting.start(name, before, places, progress)
    systemd.start(units.TARGET, again=False)
    return did
