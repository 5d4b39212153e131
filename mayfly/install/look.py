"""`python -m mayfly.install.look PROBES [NAME]`: see that programs serve.

With a name it returns as soon as that program serves, or ends with 1 after `READY_S`, or when it
has died: units call it when they have started theirs. Without, it looks at all of them for ever,
has systemd start again what runs and has not served for `HUNG_S`, and renews certificates: what
`mayfly up` does elsewhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from mayfly import config as configuration
from mayfly.errors import MayflyError
from mayfly.install import units
from mayfly.stack import secrets
from mayfly.stack.lifecycle import UPKEEP_S
from mayfly.stack.probe import answers
from mayfly.stack.services import Probe
from mayfly.stack.supervise import HUNG_S, LOOK_S, READY_S


async def until(probe: Probe, alive: Callable[[], bool]) -> bool:
    """Whether it serves within `READY_S`; returns when it does, or is `alive` no more."""
    end, pause = time.monotonic() + READY_S, 0.02
    while not await answers(probe):
        if time.monotonic() > end or not alive():
            return False
        pause = min(0.25, pause * 1.5)
        await asyncio.sleep(pause)
    return True


async def look(
    probes: Mapping[str, Probe],
    served_at: dict[str, float],
    now: float,
    restart: Callable[[str], None],
) -> None:
    """One look at all programs; `served_at` is kept up, `restart` called for what hangs."""
    for name, probe in probes.items():
        if await answers(probe) or name not in served_at:
            served_at[name] = now
        elif now - served_at[name] > HUNG_S:
            served_at[name] = now
            restart(name)


def _restart(name: str) -> None:
    """Only what runs: what an operator stopped stays so, what is being started has its time."""
    show = ["systemctl", "show", "--property=ActiveState", "--value", units.name(name)]
    done = subprocess.run(show, capture_output=True, text=True, check=False)
    if done.stdout.strip() != "active":
        return
    print(f"{name} runs and has not served for {HUNG_S} s; starting it again", flush=True)
    # Not what it has started: where hierarchies are v1, systemd counts the VMs as the host's.
    kill = ["systemctl", "kill", "--kill-whom=main", "--signal=KILL", units.name(name)]
    subprocess.run(kill, check=False)


async def _for_ever(probes: Mapping[str, Probe]) -> None:
    served_at: dict[str, float] = {}
    kept_at = time.monotonic()
    while True:
        await look(probes, served_at, time.monotonic(), _restart)
        if time.monotonic() - kept_at > UPKEEP_S:
            kept_at = time.monotonic()
            try:
                secrets.ensure(configuration.load(), datetime.now(UTC))
            except (OSError, MayflyError) as error:
                print(error, flush=True)
        await asyncio.sleep(LOOK_S)


def _main_process() -> bool:
    """Whether the unit's process lives (systemd.exec(5), `$MAINPID`); True where that is unsaid."""
    number = os.environ.get("MAINPID", "")
    return not number or Path("/proc", number).exists()


def main() -> int:
    found = json.loads(Path(sys.argv[1]).read_text())
    probes = {name: units.probe(data) for name, data in found.items()}
    if len(sys.argv) > 2:
        return 0 if asyncio.run(until(probes[sys.argv[2]], _main_process)) else 1
    asyncio.run(_for_ever(probes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
