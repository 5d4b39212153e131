"""What of an installation runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from mayfly.install import record, units
from mayfly.install.places import Places
from mayfly.stack import ServiceStatus


def running(state: Path, places: Places) -> tuple[ServiceStatus, ...] | None:
    """The programs of an installation that keeps its state in `state`, in the order of starting.

    None where there is none. Raises `Conflict` for one of another version, `OSError` where systemd
    cannot be asked.
    """
    known = record.load(places.record)
    if known is None or known.state != state:
        return None
    names = [path.name for path in known.made if path.parent == places.units]
    services = [name for name in names if name.endswith(".service")]
    show = ("systemctl", "show", "--property=Id,Type,ActiveState,MainPID,NRestarts")
    done = subprocess.run([*show, *services], capture_output=True, text=True, check=False)
    return tuple(programs(done.stdout))


def programs(shown: str) -> Iterator[ServiceStatus]:
    """The programs of which `systemctl show` says these properties; not those that end. Pure."""
    for block in shown.strip().split("\n\n"):
        found = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if found.get("Type", "oneshot") == "oneshot":
            continue
        yield ServiceStatus(
            units.program(found["Id"]),
            int(found["MainPID"]),
            found["ActiveState"] == "active",
            int(found["NRestarts"]),
        )
