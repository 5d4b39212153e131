"""What is known of a VM, on disk beside it: written before the act, found again after a crash."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mayfly.model import Outcome, Runner
from mayfly.pid import ProcessId

FIRST_UID = 61000
SLOTS = 180
"""VMs run under the uids from `FIRST_UID` on, one each: 60706-61183 is the range that systemd's
list of reserved ranges (UIDS-GIDS.md) leaves unused."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a VM, on disk beside it.

    `ready_at_s` and `ends_at_s`, when its watchdog ends it, are seconds since the machine started
    (`deadline.boottime`); 0 before it is ready. `ended` is the outcome that the host gave it.
    """

    name: str
    slot: int
    size: str
    template: str
    process: ProcessId | None = None
    ready: bool = False
    ssh_host_key: str = ""
    timings_s: dict[str, float] = field(default_factory=dict)
    ready_at_s: float = 0.0
    ends_at_s: float = 0.0
    ended: Outcome | None = None
    cpus: int = 1
    memory_bytes: int = 0
    cold: str = ""

    @property
    def uid(self) -> int:
        """Whom the VM's processes run as."""
        return FIRST_UID + self.slot

    @property
    def alive(self) -> bool:
        """Whether the VM is ready and its process runs."""
        return self.ready and self.process is not None and self.process.alive()

    def runner(self, now_s: float) -> Runner:
        """The VM as others know it, at `now_s` seconds since the machine started."""
        age_s = max(0.0, now_s - self.ready_at_s) if self.ready else 0.0
        return Runner(
            self.name,
            self.size,
            self.ready,
            self.ssh_host_key,
            self.timings_s,
            age_s=age_s,
            ended=self.ended,
            cold=self.cold,
        )


def write_record(directory: Path, record: Record) -> None:
    """Put the record on disk, whole or not at all."""
    partial = directory / ".vm.json"
    partial.write_text(json.dumps(asdict(record)))
    partial.rename(directory / "vm.json")


def read_record(directory: Path) -> Record | None:
    """The record of a VM's directory; none when it is missing or is not that VM's."""
    try:
        data = json.loads((directory / "vm.json").read_text())
        process = ProcessId(**data.pop("process")) if data["process"] else data.pop("process")
        word = data.pop("ended", None)
        ended = Outcome(word) if word else None
        record = Record(process=process, ended=ended, **data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if record.name == directory.name else None
