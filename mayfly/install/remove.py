"""`mayfly uninstall`: what `mayfly install` has made goes, the last made first."""

from __future__ import annotations

import asyncio
import os

from mayfly.config import Config
from mayfly.errors import MachineUnfit, MayflyError
from mayfly.host.runners import teardown
from mayfly.install import record, settings, systemd, units
from mayfly.install.places import Places
from mayfly.install.record import Record
from mayfly.stack import hosts, preflight
from mayfly.stack.supervise import Progress


def has_data(config: Config) -> bool:
    """Whether the state is there already, of an installation before or of `mayfly up`."""
    return (config.state / "version").exists()


def everything(
    made: Record, config: Config, places: Places, progress: Progress, *, keep_data: bool = False
) -> None:
    """Stop all programs, end all VMs, and remove everything; but for the state with `keep_data`.

    Idempotent. A state that is not Mayfly's is left alone. Raises `InfrastructureError`.
    """
    names = [path.name for path in made.made if path.parent == places.units]
    if places.real:
        progress("stopping every program")
        # Who looks after the others first; the sockets before what they would start again.
        order = sorted(names, key=lambda n: (n != units.LOOK, not n.endswith(".socket")))
        systemd.stop([units.TARGET, *order])
    if config.state.is_dir():
        asyncio.run(teardown(config))
    hosts.remove(config, places.hosts)
    if places.hosts.exists() and places.hosts.read_bytes().strip():
        made.made.pop(places.hosts, None)  # others have lines in it by now
    if keep_data:
        made.made.pop(config.state, None)
    else:
        try:
            preflight.check_state(config.state)
        except MayflyError as error:
            progress(f"left as it is: {error}")
            made.made.pop(config.state, None)
    progress(f"removing what was made{', all but the data' if keep_data else ''}")
    made.unmake()
    if places.real:
        systemd.forget(names)
        systemd.reload()


def uninstall(places: Places, keep_data: bool, progress: Progress) -> bool:
    """Take an installation away; whether there was one. Raises as `everything` does."""
    if os.geteuid() != 0:
        raise MachineUnfit("`mayfly uninstall` writes to the system", hint="run it as root")
    with record.alone(places.root):
        made = record.load(places.record)
        if made is None:
            return False
        everything(made, _config(made, places), places, progress, keep_data=keep_data)
        return True


def _config(made: Record, places: Places) -> Config:
    """As it is configured, as far as that can be read still, with the state that was installed."""
    try:
        text = places.config.read_text()
        found = settings.load(text, settings.secret(places, {}), places.config)
    except (OSError, MayflyError):
        found = Config()
    return found.model_copy(update={"state": made.state})
