"""A process that is known by its number and its start time: the two together are never reused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process id alone may by now be another program's; with the start time it is not.

    `start_time` is in clock ticks since boot (proc(5), stat, field 22).
    """

    pid: int
    start_time: int

    @classmethod
    def of(cls, pid: int) -> ProcessId:
        """Raises `ProcessLookupError` when there is no such process, not even as a zombie."""
        return cls(pid, _stat(pid)[1])

    def alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            state, start_time = _stat(self.pid)
        except ProcessLookupError:
            return False
        return start_time == self.start_time and state not in "ZX"


def _stat(pid: int) -> tuple[str, int]:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        raise ProcessLookupError(pid) from None
    return fields[0], int(fields[19])
