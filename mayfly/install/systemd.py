"""What systemd is told, and asked."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

from mayfly.errors import InfrastructureError

BOOTED = Path("/run/systemd/system")
"""There where systemd is the system's manager (sd_booted(3))."""


def booted() -> bool:
    return BOOTED.is_dir()


def reload() -> None:
    """Have it read the units anew."""
    _control("daemon-reload")


def active(unit: str) -> bool:
    return _ask("is-active", "--quiet", unit).returncode == 0


def start(unit: str, *, again: bool) -> None:
    """Start a unit, or `again` when it runs; returns when it serves.

    Raises `InfrastructureError` with its last words.
    """
    done = _ask("restart" if again else "start", unit)
    if done.returncode != 0:
        raise InfrastructureError(
            f"{unit} does not start: {_last_words(unit)}", hint=f"see journalctl -u {unit}"
        )


def stop(names: Iterable[str]) -> None:
    """Stop units, each after the one before; nothing happens for those that do not run."""
    for unit in names:
        _ask("stop", unit)


def forget(names: Iterable[str]) -> None:
    """Have it forget how the units failed."""
    for unit in names:
        _ask("reset-failed", unit)


def _last_words(unit: str) -> str:
    journal = ("journalctl", "--unit", unit, "--lines", "20", "--output", "cat", "--no-pager")
    done = subprocess.run(journal, capture_output=True, text=True, check=False)
    own = [line for line in done.stdout.splitlines() if line.startswith("mayfly")]
    said = [line for line in own if ":" in line and not line.startswith("mayfly-look")]
    words = [line for line in said if not line.startswith(unit)]
    return (words or done.stdout.splitlines() or ["no message"])[-1][:500]


def _control(*words: str) -> None:
    done = _ask(*words)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise InfrastructureError(f"`systemctl {' '.join(words)}` failed: {said[-1]}")


def _ask(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
