"""Has systemd start what does not run, and anew what is run by other files than before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mayfly.install import systemd, units
from mayfly.install.places import Places
from mayfly.stack.supervise import Progress


def start(name: str, before: Mapping[Path, bytes], places: Places, progress: Progress) -> bool:
    """Start a unit that does not run, or anew where a file that it is run by was another `before`.

    Whether either was needed; returns when it serves. Raises `InfrastructureError`.
    """
    runs = systemd.active(name)
    same = all(
        path.read_bytes() == before.get(path)
        for path in _inputs(name, places)
        if path.exists() or path in before
    )
    if runs and same:
        return False
    progress(f"{name}: starting{' the new version' if runs else ''}")
    if runs and name.endswith(".socket"):
        systemd.stop([name.replace(".socket", ".service")])  # it would hold the old socket
    systemd.start(name, again=runs)
    return True


def _inputs(name: str, places: Places) -> list[Path]:
    """The files that a unit is run by."""
    found = [places.units / name]
    if name == units.LOOK:
        found.append(places.probes)
    elif name.endswith(".service"):
        found.append(places.environment / f"{units.program(name)}.env")
    return found
