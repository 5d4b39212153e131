"""Takes memory at a steady speed, as a step of a build does that outgrows its size.

    python3 eat.py MIB MIB_PER_S

It is copied into build contexts, so the standard library is all it has. At the end it prints
`ate 2048 MiB at 198 MiB/s`; 0 for the speed is as fast as it goes.
"""

from __future__ import annotations

import sys
import time

PIECE = 8
"""MiB that are taken at once."""

HOLD_S = 2.0
"""For how long it is held then: a sampler is to see it."""


def eat(mib: int, mib_per_s: float) -> tuple[list[bytes], float]:
    """Take so much, every page written; returns it, and the speed that was reached, in MiB/s."""
    held: list[bytes] = []
    began = time.monotonic()
    while len(held) * PIECE < mib:
        held.append(b"\1" * (PIECE << 20))
        due = began + len(held) * PIECE / mib_per_s if mib_per_s else 0.0
        time.sleep(max(0.0, due - time.monotonic()))
    return held, len(held) * PIECE / (time.monotonic() - began)


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    held, speed = eat(wanted, float(sys.argv[2]))
    print(f"ate {wanted} MiB at {speed:.0f} MiB/s", flush=True)
    time.sleep(HOLD_S)
