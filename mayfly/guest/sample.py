"""What the builds of this runner use, read from the kernel, cheaply enough for every second.

The agent runs beside the build on emulated CPUs, so files stay open, numbers are cut out of what
the kernel prints without a regular expression, and no history is kept. The source is buildkitd's
control group (v2), in which everything stays that a build starts.
"""

from __future__ import annotations

import os

SCRATCH = "/scratch"
MAX_FILE_BYTES = 16384
"""More than the kernel prints into any of the files below."""


class Sampler:
    """Takes samples: bytes, microseconds and counts, as the names say; 0 where nothing can be read.

    `oom_kill` counts from `rebase`, else from the machine's start, and never goes back. The other
    counters, and `memory_peak_bytes`, begin anew with buildkitd's group when buildkitd does.
    """

    def __init__(self, cgroup: str, proc: str = "/proc", scratch: str = SCRATCH) -> None:
        self._cgroup = cgroup
        self._proc = proc
        self._scratch = scratch
        self._open: dict[str, int] = {}
        self._kills = 0
        self._kills_elsewhere = 0
        self._kills_before = 0

    def follow(self, cgroup: str) -> None:
        """Take samples of another group from now on: BuildKit's builds are there."""
        for fd in self._open.values():
            os.close(fd)
        self._cgroup, self._open = cgroup, {}

    def rebase(self) -> None:
        """Count kills from now on, with every file open: for just before the freeze."""
        self.read()
        self._kills_before = self._kills

    def read(self) -> dict[str, int]:
        """The sample."""
        group, read = self._cgroup, self._read
        kills = self._count_kills()
        stat = b"\n" + read(f"{group}/memory.stat")
        meminfo = read(f"{self._proc}/meminfo")
        cpu = read(f"{group}/cpu.stat")
        pressure = read(f"{group}/memory.pressure")
        shmem = _after(stat, b"\nshmem ")
        need = _after(stat, b"\nanon ") + shmem + _after(stat, b"\nslab_unreclaimable ")
        read_bytes, written_bytes = _io(read(f"{group}/io.stat"))
        disk_total, disk_free = self._disk()
        return {
            "memory_bytes": need,
            "cache_bytes": max(0, _after(stat, b"\nfile ") - shmem),
            "memory_peak_bytes": _after(read(f"{group}/memory.peak"), b""),
            "memory_total_bytes": _after(meminfo, b"MemTotal:") * 1024,
            "memory_available_bytes": _after(meminfo, b"MemAvailable:") * 1024,
            "memory_some_us": _waited(pressure, b"some "),
            "memory_full_us": _waited(pressure, b"full "),
            "cpu_us": _after(cpu, b"usage_usec "),
            "user_us": _after(cpu, b"user_usec "),
            "read_bytes": read_bytes,
            "written_bytes": written_bytes,
            "disk_total_bytes": disk_total,
            "disk_free_bytes": disk_free,
            "oom_kill": kills,
        }

    def _count_kills(self) -> int:
        """Kills in buildkitd's group and, as a group takes its count with it, in those before.

        What the machine counts when a group is first seen, less what that group does, happened
        elsewhere. Afterwards kills of others (sshd) do not count.
        """
        path = f"{self._cgroup}/memory.events"
        before = self._open.get(path)
        events = self._read(path)
        if events:
            kills = _after(b"\n" + events, b"\noom_kill ")
            if self._open.get(path) != before:
                machine = b"\n" + self._read(f"{self._proc}/vmstat")
                self._kills_elsewhere = max(0, _after(machine, b"\noom_kill ") - kills)
            self._kills = max(self._kills, self._kills_elsewhere + kills)
        return self._kills - self._kills_before

    def _disk(self) -> tuple[int, int]:
        try:
            disk = os.statvfs(self._scratch)
        except OSError:
            return 0, 0
        return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize

    def _read(self, path: str) -> bytes:
        """What the file says now; one whose group is gone is opened again, once."""
        fd = self._open.get(path)
        if fd is not None:
            try:
                return os.pread(fd, MAX_FILE_BYTES, 0)
            except OSError:  # ENODEV: the group is gone
                del self._open[path]
        try:
            new = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            if fd is not None:
                os.close(fd)
            return b""
        if fd is not None:  # only now, so that a new number tells a new file
            os.close(fd)
        self._open[path] = new
        try:
            return os.pread(new, MAX_FILE_BYTES, 0)
        except OSError:
            return b""


def _after(text: bytes, name: bytes) -> int:
    """The number that follows `name`; 0 when there is none."""
    at = text.find(name)
    if at < 0:
        return 0
    words = text[at + len(name) : at + len(name) + 32].split(None, 1)
    return int(words[0]) if words and words[0].isdigit() else 0


def _waited(pressure: bytes, kind: bytes) -> int:
    """Microseconds of pressure in all (`some avg10=… total=N`)."""
    at = pressure.find(kind)
    return _after(pressure[at:], b"total=") if at >= 0 else 0


def _io(stat: bytes) -> tuple[int, int]:
    """Bytes read and written, of all disks (`254:0 rbytes=N wbytes=N …`)."""
    lines = stat.splitlines()
    return (
        sum(_after(line, b" rbytes=") for line in lines),
        sum(_after(line, b" wbytes=") for line in lines),
    )
