"""When this machine's disk is full all the same: who goes, so that the others can go on. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mayfly.model import MIB

FULL_BYTES = 64 * MIB
"""With less than this free a write that failed would fail again."""


@dataclass(frozen=True, slots=True)
class Relief:
    """The runner to end, if any, and those to let run again, in that order."""

    end: str | None
    resume: tuple[str, ...]


def relief(waiting: Mapping[str, int], free_bytes: int) -> Relief:
    """What to do for runners that stand still at a write, by the bytes that their disks take.

    While there is no room the one goes that takes most: what it gives back is for the others. With
    room all go on.
    """
    if not waiting or free_bytes >= FULL_BYTES:
        return Relief(None, tuple(sorted(waiting)))
    largest = max(waiting, key=lambda name: (waiting[name], name))
    return Relief(largest, tuple(sorted(name for name in waiting if name != largest)))
