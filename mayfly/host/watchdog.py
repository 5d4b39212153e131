"""The watchdog of one VM: ends its QEMU at a point in time, with nobody's help.

    watchdog.py ENDS_AT PIDFD [FILE ...]

Run by root as `python3 -I -S`, from this file alone, in a session of its own. `ENDS_AT` is in
seconds of CLOCK_BOOTTIME, which no step of the wall clock moves and which counts on while the
machine sleeps. `PIDFD` is an inherited descriptor of QEMU's process (pidfd_open(2)), so that it
can only ever hit that one. It writes itself into every `FILE`, its control groups. It ends when
QEMU does.
"""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import time

LOOK_S = 1.0
"""poll(2) counts by a clock that stands still while the machine sleeps: look again this often."""


def main(ends_at: float, pidfd: int, groups: list[str]) -> None:
    """Wait for QEMU's end or for `ends_at`, and then end QEMU."""
    for path in groups:
        with contextlib.suppress(OSError), open(path, "w") as file:  # noqa: PTH123 - start fast
            file.write("0")
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:  # noqa: PTH123
        file.write("-1000")
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    while (left_s := ends_at - time.clock_gettime(time.CLOCK_BOOTTIME)) > 0:
        if waiting.poll(min(left_s, LOOK_S) * 1000 + 1):
            return
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
