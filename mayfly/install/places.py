"""Where an installation's files are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Below `root`, which is `/`, or a folder to try things out in."""

    root: Path = Path("/")

    @property
    def real(self) -> bool:
        """Whether this machine's systemd is to run it."""
        return self.root == Path("/")

    @property
    def code(self) -> Path:
        """Each version in a folder of its own, named by its content."""
        return self.root / "usr/local/lib/mayfly"

    @property
    def command(self) -> Path:
        """A link to the present version's `mayfly`."""
        return self.root / "usr/local/bin/mayfly"

    @property
    def settings(self) -> Path:
        return self.root / "etc/mayfly"

    @property
    def config(self) -> Path:
        """The operator's file."""
        return self.settings / "mayfly.toml"

    @property
    def secrets(self) -> Path:
        """Root's: settings that are no business of others, as `NAME=VALUE`."""
        return self.settings / "secrets.env"

    @property
    def environment(self) -> Path:
        """Root's: a file with each program's variables."""
        return self.settings / "env"

    @property
    def probes(self) -> Path:
        """How to see that each program serves."""
        return self.settings / "probes.json"

    @property
    def record(self) -> Path:
        """What was made."""
        return self.settings / "installed.json"

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    @property
    def hosts(self) -> Path:
        return self.root / "etc/hosts"
