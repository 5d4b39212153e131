"""How much slower programs run in a guest here than on the machine itself, measured.

With a golden image: its kernel starts with Python as its only process, which compiles a piece of
source text, over and over; the same is done by the Python here. That is what compilers do (much
code, many small objects, pointers), by two versions of one program, so it is an order of magnitude
and no promise about a build: what waits for disks or networks is slowed down less.

Without one, a loop of a few instructions runs in a QEMU guest that has nothing else in it, and
natively: the same machine code, byte for byte, and both must come to the same result. Emulation is
at its best there, so that this is the least that programs are slowed down by.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import json
import mmap
import os
import re
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mayfly.errors import MachineUnfit
from mayfly.golden import Golden

SLOW = 1.5
"""From how many times as long on a person should know before the first build."""

TIMES = 20
"""How often the source text is compiled: 0.1 s natively, 1 to 2 s under TCG."""

SOURCE = f"""
lines = "def f(a, b=1, *c, **d):", " for k, v in d.items():", "  a += len(k) * v", \\
    " return [x*b for x in c if x > a]", "f(1, 2)"
text = "\\n".join(lines * 150)
def work(times):
    for _ in range(times):
        compile(text, "x", "exec")
work(2)
print("MAYFLY begins", flush=True)
work({TIMES})
print("MAYFLY ends", flush=True)
"""
"""Python that says when it begins and when it ends; whoever started it looks at the time."""

BOOT_S = 180
"""How long the guest may take to boot and to do it: 10 s under TCG on two idle cores."""

ROUNDS = 10_000_000
"""Some 200 million instructions: a twentieth of a second natively, a second or so under TCG."""

REPEATS = 3
"""Of each; the shortest counts, since whatever else runs here can only lengthen one."""

GUEST_S = 60
"""How long the guest may take: a machine that needs longer is not worth waiting for."""

_LOAD, _STACK, _TABLE = 0x100000, 0x180000, 0x200000
_TABLE_BYTES = 64 * 1024
_EXITED = 33  # isa-debug-exit: (0x10 << 1) | 1

# Encoded so that it means the same in 32-bit and in 64-bit mode. In: ebx/rbx the table, ecx the
# rounds. Out: eax.
_WORK = bytes.fromhex(
    "b8b979379e"  # mov eax, 0x9e3779b9
    "89c2 c1e20d 31d0"  # next: eax ^= eax << 13
    "89c2 c1ea11 31d0"  # eax ^= eax >> 17
    "89c2 c1e205 31d0"  # eax ^= eax << 5
    "89c2 81e2fcff0000"  # edx = eax & 0xfffc
    "030413 890413"  # eax += table[edx]; table[edx] = eax
    "a81f 7502 31c8"  # one time in 32: eax ^= ecx
    "e806000000"  # call leaf
    "83e901 75cd"  # until --ecx == 0: next
    "c3"
    "0515cd5b07 c3"  # leaf: eax += 123456789
)
_NATIVE = bytes.fromhex("53 4889fb 89f1 e802000000 5b c3")  # (table, rounds) as the ABI has them


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds that `what` took natively and in a guest under `accelerator`.

    `least`: it is of the kind that a guest is best at.
    """

    accelerator: str
    what: str
    native_s: float
    guest_s: float
    least: bool = False

    @property
    def slowdown(self) -> float:
        return self.guest_s / self.native_s

    def __str__(self) -> str:
        times = f"{self.what} takes {self.guest_s * 1000:.3g} ms in a guest, "
        times += f"{self.native_s * 1000:.3g} ms on this machine itself"
        if self.least:
            more = "; real programs are slowed down several times more, measured once there is a "
            return f"at least {self.slowdown:.1f} times slower: {times}{more}golden image"
        if self.slowdown < SLOW:
            return f"nearly as fast as this machine: {times} (measured)"
        return f"compiling is about {self.slowdown:.0f} times slower: {times} (measured)"


def measured(qemu: str, version: str, accelerator: str, image: Golden | None, cache: Path) -> Speed:
    """The speed of guests of `image` under `accelerator` (`kvm` or `tcg`), by the program `qemu`.

    It is kept in the folder `cache` for this machine and this `version` of QEMU; one that cannot
    be written to is gone without. Measuring takes 10 to 20 s under TCG, some seconds without an
    image. Raises `MachineUnfit` when this machine runs no code of ours, natively or in a guest.
    """
    file = cache / "speed.json"
    kernel = os.uname().release
    key = [version, accelerator, kernel, _cpu(), image.digest if image else "", SOURCE, ROUNDS]
    try:
        kept = json.loads(file.read_text())
        if kept["key"] == key:
            return Speed(**kept["speed"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    found = programs(qemu, accelerator, image) if image else loop(qemu, accelerator)
    with contextlib.suppress(OSError):
        cache.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"key": key, "speed": asdict(found)}))
    return found


def programs(qemu: str, accelerator: str, image: Golden) -> Speed:
    """By Python, in a guest that boots `image` and changes nothing of it. Raises `MachineUnfit`."""
    code = base64.b64encode(SOURCE.encode()).decode()
    words = f"-I -S -c exec(__import__('base64').b64decode('{code}'))"
    before = _took([sys.executable, "-I", "-S", "-c", SOURCE])
    guest = _took(
        [*_machine(qemu, accelerator), "-m", "512", "-kernel", str(image.kernel),
         "-initrd", str(image.initrd), "-serial", "stdio",
         "-drive", f"file={image.disk},format=raw,if=virtio,snapshot=on",
         "-append", f"{image.cmdline} init=/usr/bin/python3 -- {words}"]
    )  # fmt: skip
    after = _took([sys.executable, "-I", "-S", "-c", SOURCE])
    return Speed(accelerator, "compiling a piece of Python", min(before, after), guest)


def _took(argv: Sequence[str], limit_s: float = BOOT_S) -> float:
    """The CPU seconds that a program takes to compile once, between its two words.

    Its own CPU time, so that whatever else runs here hardly shows. It is ended then, or after
    `limit_s` seconds.
    """
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    ending = threading.Timer(limit_s, process.kill)
    ending.start()
    began_s, last = 0.0, b""
    try:
        for line in process.stdout or ():
            if b"MAYFLY begins" in line:
                began_s = _cpu_s(process.pid)
            elif b"MAYFLY ends" in line:
                return (_cpu_s(process.pid) - began_s) / TIMES
            last = line.strip() or last
    finally:
        ending.cancel()
        process.kill()
        process.communicate()
    raise MachineUnfit(
        f"{Path(argv[0]).name} did not end what is measured within {limit_s:.3g} s; its last line: "
        f"{last.decode(errors='replace')[-100:]!r}",
        hint="mayfly golden build --force",
    )


def _cpu_s(pid: int) -> float:
    """The CPU time that a process has used, all its threads, in seconds (proc(5), schedstat)."""
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def loop(qemu: str, accelerator: str) -> Speed:
    """By the bare loop. Raises `MachineUnfit`."""
    native_s, expected = _best(_natively)
    guest_s, found = _best(lambda: _in_guest(qemu, accelerator))
    if found != expected:
        raise MachineUnfit(
            f"a guest under {accelerator} computes {found:#x}, not {expected:#x}",
            hint="apt-get install --reinstall qemu-system-x86",
        )
    return Speed(accelerator, "a loop of integer code", native_s, guest_s, accelerator == "tcg")


def _machine(qemu: str, accelerator: str) -> list[str]:
    """What both kinds of guest have in common: hardly anything."""
    cpu = "host" if accelerator == "kvm" else "max"
    return [
        *(qemu, "-accel", accelerator, "-cpu", cpu, "-machine", "pc", "-nodefaults"),
        *("-no-user-config", "-display", "none", "-no-reboot"),
    ]


def image() -> bytes:
    """A multiboot kernel that says `a`, does the work, says its result and `b`, and ends QEMU."""
    flags = 0x00010000  # where to load it stands in the header
    header_bytes = 32
    start = _LOAD + header_bytes
    say = "66bae900"  # mov dx, 0xe9
    head = bytes.fromhex(f"bc{_le(_STACK)} {say} b061 ee bb{_le(_TABLE)} b9{_le(ROUNDS)}")
    tail = bytes.fromhex(
        f"{say} ee c1e808 ee c1e808 ee c1e808 ee b062 ee"  # eax, low byte first, then `b`
        "b010 66baf400 ee f4 ebfd"  # 0x10 to isa-debug-exit; hlt
    )
    code = head + b"\xe8" + struct.pack("<i", len(tail)) + tail + _WORK
    magic = 0x1BADB002
    header = struct.pack(
        "<8I", magic, flags, -(magic + flags) & 0xFFFFFFFF, _LOAD, _LOAD, 0, 0, start
    )
    return header + code


def _le(value: int) -> str:
    return struct.pack("<I", value).hex()


def _best(run: Callable[[], tuple[float, int]]) -> tuple[float, int]:
    return min(run() for _ in range(REPEATS))


def _natively() -> tuple[float, int]:
    code = _NATIVE + _WORK
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError as error:
        raise MachineUnfit(
            f"this process may not run code of its own: {error.strerror}",
            hint="mayfly golden build",
        ) from None
    page.write(code)
    table = ctypes.create_string_buffer(_TABLE_BYTES)
    anchor = ctypes.c_char.from_buffer(page)
    work = ctypes.CFUNCTYPE(ctypes.c_uint32, ctypes.c_void_p, ctypes.c_uint32)(
        ctypes.addressof(anchor)
    )
    started_at = time.perf_counter()
    found = int(work(ctypes.addressof(table), ROUNDS))
    took = time.perf_counter() - started_at
    del work, anchor
    page.close()
    return took, found


def _in_guest(qemu: str, accelerator: str) -> tuple[float, int]:
    with tempfile.TemporaryDirectory(prefix="mayfly-speed-") as folder:
        kernel = Path(folder) / "loop"
        kernel.write_bytes(image())
        process = subprocess.Popen(
            [*_machine(qemu, accelerator), "-m", "32", "-kernel", str(kernel),
             "-chardev", "stdio,id=says", "-device", "isa-debugcon,iobase=0xe9,chardev=says",
             "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )  # fmt: skip
        try:
            return _listen(process, accelerator)
        finally:
            process.kill()
            process.communicate()


def _listen(process: subprocess.Popen[bytes], accelerator: str) -> tuple[float, int]:
    """The time between the guest's first and last word, and its result."""
    out = process.stdout
    if out is None:
        raise MachineUnfit("no pipe to QEMU")
    os.set_blocking(out.fileno(), False)
    said, began_at, give_up_at = b"", 0.0, time.perf_counter() + GUEST_S
    while len(said) < 6 and process.poll() is None and time.perf_counter() < give_up_at:
        data = out.read(16)
        if data:
            began_at = began_at or time.perf_counter()
            said += data
        else:
            time.sleep(0.0005)
    ended_at = time.perf_counter()
    said += out.read(16) or b""
    if len(said) != 6 or said[:1] != b"a" or said[5:] != b"b":
        why = f"said {said!r}" if process.poll() in (None, _EXITED) else "ended"
        raise MachineUnfit(
            f"a guest under {accelerator} did not run the measured loop: it {why}",
            hint="apt-get install --reinstall qemu-system-x86 seabios",
        )
    return ended_at - began_at, int.from_bytes(said[1:5], "little")


def _cpu() -> str:
    match = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return match[1] if match else ""
