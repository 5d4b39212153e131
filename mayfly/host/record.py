"""What is known of a VM, on disk beside it: written before the act, found again after a crash."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mayfly.model import Runner
from mayfly.pid import ProcessId


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of a VM, on disk beside it."""

    name: str
    slot: int
    size: str
    template: str
    process: ProcessId | None = None
    ready: bool = False
    ssh_host_key: str = ""
    timings_s: dict[str, float] = field(default_factory=dict)

    @property
    def runner(self) -> Runner:
        return Runner(self.name, self.size, self.ready, self.ssh_host_key, self.timings_s)


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
        record = Record(process=process, **data)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record if record.name == directory.name else None
