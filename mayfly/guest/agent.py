"""The host's hand inside a runner: identity, evidence, deadline.

Standard library only, because this folder is copied into the golden image as it is. It runs as
root and speaks over virtio-serial: one JSON object a line, at most 64 KiB a line.

    host   {"id": 1, "op": "identity", …}
    guest  {"id": 1, "ok": true, …}  or  {"id": 1, "ok": false, "error": "one line"}

A host may come and go, also in the middle of a line. It sends an empty line first when it connects,
which ends whatever its predecessor left, and ignores answers whose id it did not send.

Before `identity` nobody can log in. The SSH server is started before the freeze, so that a clone
need not load it, and waits to be told its keys (tools/runner-sshd). A clone gets its identity once;
what it needs between that message and SSH's banner is kept short, since under emulation every
instruction that runs for the first time costs.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import re
import select
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mayfly.guest import buildkit, scratch
from mayfly.guest.sample import SCRATCH, Sampler

VERSION = 1
PORT = "/dev/virtio-ports/mayfly.agent"
MAX_LINE_BYTES = 64 * 1024

BUILD_HOME = "/home/build"
SSHD = ("/usr/lib/mayfly/sshd", "0.0.0.0:22")
SSHD_ENVIRONMENT = {
    "BUILDKIT_HOST": f"unix://{buildkit.SOCKET}",
    "HOME": BUILD_HOME,
    "LOGNAME": "build",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "SHELL": "/bin/sh",
    "USER": "build",
}
# They would answer a clone's new clock, memory and vmgenid, or what their timers missed, just when
# it should answer its host.
RESTING = ("systemd-udevd.service", "systemd-journald.service", "buildkitd.service")
OWN = "run/mayfly"
IDENTIFIED = f"{OWN}/identified"
MEMORY = "sys/devices/system/memory"
CPUS = "sys/devices/system/cpu"

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
EXT4_IOC_RESIZE_FS = 0x40086610
MS_BIND = 4096
MCL_CURRENT, MCL_FUTURE, MCL_ONFAULT = 1, 2, 4
RB_POWER_OFF = 0x4321FEDC

Message = dict[str, Any]


class Refused(Exception):
    """The request cannot be carried out; the text goes to the host."""


class Sshd(NamedTuple):
    """A server that waits: descriptors to tell it its keys, and to hear from it."""

    tell: int
    hear: int


class Kernel(NamedTuple):
    """The acts that need a real machine. Tests put their own in."""

    add_entropy: Callable[[bytes], None]
    set_clock_ns: Callable[[int], None]
    set_hostname: Callable[[str], None]
    stay_in_memory: Callable[[], None]
    bind_mount: Callable[[Path, Path], None]
    rest: Callable[[bool], None]
    start_sshd: Callable[[], Sshd]
    resize_filesystem: Callable[[str, int], None]
    run: scratch.Run
    power_off: Callable[[], None]


class Identity(NamedTuple):
    """Who a clone is, checked. Times in the units of their names."""

    entropy: bytes
    unix_time_ns: int
    machine_id: str
    hostname: str
    ssh_host_key: str
    authorized_key: str
    deadline_unix_s: float
    cpus: int
    disk_bytes: int
    resolvers: tuple[str, ...]


def _is_pem(value: str) -> bool:
    lines = value.rstrip("\n").split("\n")
    return lines[0].startswith("-----BEGIN ") and lines[-1].startswith("-----END ")


def _is_entropy(value: str) -> bool:
    return len(base64.b64decode(value, validate=True)) >= 32


def _is_hex(value: str) -> bool:
    return len(value) == 32 and value.isalnum() and value == value.lower() and int(value, 16) >= 0


def _is_hostname(value: str) -> bool:
    plain = value.replace("-", "")
    return len(value) < 64 and plain.isalnum() and plain.isascii() and value[0] != "-" != value[-1]


def _is_line(value: str) -> bool:
    return value.isascii() and value.isprintable() and value != ""


def _text(message: Message, key: str, good: Callable[[str], bool], limit: int = 16384) -> str:
    """A text for which `good` holds; for a clone these are cheaper than regular expressions."""
    value = message.get(key)
    try:
        if isinstance(value, str) and len(value) <= limit and good(value):
            return value
    except ValueError:
        pass
    raise Refused(f"{key} is missing or malformed")


def _number(message: Message, key: str, low: float, high: float) -> float:
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(f"{key} is missing or not between {low} and {high}")
    return value


def parse_identity(message: Message) -> Identity:
    """The identity in a message. Raises `Refused`, naming the field, before anything is done."""
    return Identity(
        entropy=base64.b64decode(_text(message, "entropy_b64", _is_entropy)),
        unix_time_ns=int(_number(message, "unix_time_ns", 10**18, 9 * 10**18)),
        machine_id=_text(message, "machine_id", _is_hex),
        hostname=_text(message, "hostname", _is_hostname),
        ssh_host_key=_text(message, "ssh_host_key", _is_pem),
        authorized_key=_text(message, "authorized_key", _is_line),
        deadline_unix_s=_number(message, "deadline_unix_s", 0, 9 * 10**9),
        cpus=int(_number(message, "cpus", 1, 1024)),
        disk_bytes=int(_number(message, "disk_bytes", 0, 2**60)),
        resolvers=_addresses(message, "resolvers"),
    )


def _addresses(message: Message, key: str) -> tuple[str, ...]:
    """One to eight IPv4 addresses."""
    value = message.get(key)
    if not isinstance(value, list) or not 1 <= len(value) <= 8:
        raise Refused(f"{key} is not a short list")
    try:
        for item in value:
            socket.inet_pton(socket.AF_INET, item)
    except (OSError, TypeError, ValueError):
        raise Refused(f"{key} has something that is no IPv4 address") from None
    return tuple(value)


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write in place, so that who has the file open or bind-mounted sees the new content."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def prepare(root: Path, kernel: Kernel) -> None:
    """Put a file of ours over the machine id that others read, so that a clone only has to write.

    Until then it is nobody's (machine-id(5)). For when the guest starts. Does nothing where that
    was done. Raises OSError.
    """
    own, read = root / OWN / "machine-id", root / "etc/machine-id"
    if not own.exists():
        for file in (read, own):
            write_file(file, "uninitialized\n", 0o444)
        kernel.bind_mount(own, read)


def boot_id(root: Path) -> Message:
    """The kernel's boot id, and the physical address of the 16 bytes that it keeps it in.

    The kernel makes it up when it is first read (random.c, proc_do_uuid), so whoever puts zeros
    there while the machine stands still gives it another one. Raises `Refused` where the kernel
    does not tell (CONFIG_KALLSYMS_ALL).
    """
    symbols = dict.fromkeys(("__bss_start", "sysctl_bootid"), 0)
    with (root / "proc/kallsyms").open() as lines:
        for line in lines:
            at, _, name = line.split()[:3]
            if name in symbols:
                symbols[name] = int(at, 16)
    bss = re.search(r"([0-9a-f]+)-[0-9a-f]+ : Kernel bss", (root / "proc/iomem").read_text())
    if bss is None or not all(symbols.values()):
        raise Refused("freeze: the kernel does not tell where its boot id is")
    address = int(bss[1], 16) + symbols["sysctl_bootid"] - symbols["__bss_start"]
    value = (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    return {"address": address, "value": value}


def write_names(identity: Identity, root: Path) -> None:
    """Put what others read of the identity under `root`, over what is there. Raises OSError."""
    own = root / OWN
    write_file(own / "machine-id", identity.machine_id + "\n")
    names = "".join(f"nameserver {address}\n" for address in identity.resolvers)
    write_file(own / "resolv.conf", names)


class Lines:
    """Bytes in, complete lines out. A line longer than the limit comes out once, as None."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if self._skipping:
                self._skipping = False
            elif len(line) > self._limit:
                yield None
            else:
                yield line
        if len(self._buffer) > self._limit:
            self._buffer.clear()
            if not self._skipping:
                self._skipping = True
                yield None

    def reset(self) -> None:
        """Forget a partial line: its host has gone."""
        self._buffer.clear()
        self._skipping = False


def set_cpus(online: int, directory: Path) -> None:
    """Bring CPUs 1..online-1 up and the others down. CPU 0 and absent ones are left alone."""
    for cpu in sorted(directory.glob("cpu[0-9]*"), key=lambda path: int(path.name[3:])):
        switch = cpu / "online"
        wanted = "1" if int(cpu.name[3:]) < online else "0"
        if switch.exists() and switch.read_text().strip() != wanted:
            switch.write_text(wanted)


def hold_memory(root: Path) -> None:
    """Let memory that is plugged in from now on wait: to take it in means to write its map."""
    write_file(root / MEMORY / "auto_online_blocks", "offline")


def take_memory(root: Path) -> None:
    """Take in what waits, and from now on what is plugged in at once. Blocks that do not come
    are left out (no room for their map).

    Raises OSError where the kernel has no memory hot-plug.
    """
    write_file(root / MEMORY / "auto_online_blocks", "online")
    for block in sorted((root / MEMORY).glob("memory[0-9]*"), key=lambda path: int(path.name[6:])):
        with contextlib.suppress(OSError):
            if (block / "state").read_text() == "offline\n":
                write_file(block / "state", "online")


class Agent:
    """Answers one request at a time. `root` is / but in tests."""

    def __init__(self, kernel: Kernel, root: Path = Path("/")) -> None:
        self._kernel = kernel
        self._root = root
        self._identified = (root / IDENTIFIED).exists()  # also by an agent that died since
        self._sshd: Sshd | None = None
        self._sampler = Sampler()
        self._afterwards: Callable[[], None] | None = None
        self._operations: dict[str, Callable[[Message], Message]] = {
            "hello": self._hello,
            "wait_buildkit": self._wait_buildkit,
            "freeze": self._freeze,
            "identity": self._identity,
            "sample": lambda _: {"sample": self._sampler.read()},
            "steps": self._steps,
            "quiesce": self._quiesce,
            "take_scratch": self._take_scratch,
            "poweroff": self._poweroff,
        }

    def handle(self, line: bytes | None) -> Message | None:
        """The answer to one line; None to an empty one. Never raises; errors are one line."""
        if line is None:
            return {"id": None, "ok": False, "error": "line too long"}
        if not line.strip():
            return None
        number: object = None
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise Refused("not an object")
            if isinstance(message.get("id"), int):
                number = message["id"]
            operation = self._operations.get(str(message.get("op")))
            if operation is None:
                raise Refused("unknown op")
            return {"id": number, "ok": True, **operation(message)}
        except (RecursionError, ValueError):
            return {"id": number, "ok": False, "error": "not JSON"}
        except Refused as refusal:
            return {"id": number, "ok": False, "error": str(refusal)}
        except Exception as fault:
            text = f"{type(fault).__name__}: {fault}".splitlines()[0][:500]
            return {"id": number, "ok": False, "error": text}

    def after_reply(self) -> None:
        """Do what was put off until the answer was out."""
        work, self._afterwards = self._afterwards, None
        if work is not None:
            work()

    def _hello(self, _: Message) -> Message:
        return {"version": VERSION, "buildkit": buildkit.listens(), "identified": self._identified}

    def _wait_buildkit(self, message: Message) -> Message:
        start = time.monotonic()
        end = start + _number(message, "timeout_s", 0, 3600)
        while (left := end - time.monotonic()) > 0:
            if buildkit.listens() and buildkit.answers(left):
                return {"seconds": round(time.monotonic() - start, 3)}
            time.sleep(0.1)
        raise Refused("buildkitd did not answer in time")

    def _freeze(self, message: Message) -> Message:
        online = int(_number(message, "online_cpus", 1, 1024))
        if self._identified:
            raise Refused("freeze: this guest has an identity")
        authority = _text(message, "registry_ca_pem", _is_pem, limit=49152)
        write_file(self._root / OWN / "registry-ca.pem", authority)
        buildkit.answers(60)
        self._sshd = self._kernel.start_sshd()
        hold_memory(self._root)
        set_cpus(online, self._root / CPUS)
        self._sampler.rebase()
        os.sync()
        answer = {"boot_id": boot_id(self._root)}
        self._kernel.rest(True)
        return answer

    def _identity(self, message: Message) -> Message:
        timings: dict[str, float] = {}
        last = time.perf_counter()

        def took(step: str) -> None:
            nonlocal last
            now = time.perf_counter()
            timings[step] = round(now - last, 4)
            last = now

        identity = parse_identity(message)
        if self._identified:
            raise Refused("identity: this guest has one already")
        write_file(self._root / IDENTIFIED, "")
        self._identified = True
        took("message")
        self._kernel.add_entropy(identity.entropy)
        took("entropy")
        self._kernel.set_clock_ns(identity.unix_time_ns)
        took("clock")
        sshd = self._sshd or self._kernel.start_sshd()
        keys = {"host_key": identity.ssh_host_key, "authorized_key": identity.authorized_key}
        os.write(sshd.tell, json.dumps(keys).encode() + b"\n")
        took("keys")
        write_names(identity, self._root)
        self._kernel.set_hostname(identity.hostname)
        took("names")

        seconds_left = identity.deadline_unix_s - identity.unix_time_ns / 1e9
        self._afterwards = lambda: self._settle(identity, seconds_left, sshd)
        return {"timings_s": timings}

    def _settle(self, identity: Identity, seconds_left: float, sshd: Sshd) -> None:
        """After the answer: the deadline; after the first login, what a build can begin without.

        Under emulation the login would take twice as long beside it, and a runner that nobody
        logs in to needs none of it.
        """
        deadline = threading.Timer(max(0.0, seconds_left), self._kernel.power_off)
        deadline.daemon = True
        deadline.start()

        steps: tuple[Callable[[], None], ...] = (
            lambda: self._kernel.rest(False),
            lambda: write_file(self._root / "proc/self/oom_score_adj", "-1000"),
            lambda: set_cpus(identity.cpus, self._root / CPUS),
            lambda: take_memory(self._root),
            lambda: self._kernel.resize_filesystem(SCRATCH, identity.disk_bytes),
        )

        def grow() -> None:
            says(sshd.hear, b"login")
            for step in steps:
                try:
                    step()
                except (OSError, Refused) as fault:
                    print(f"after identity: {fault}", flush=True)

        threading.Thread(target=grow, daemon=True).start()

    def _steps(self, message: Message) -> Message:
        """Together with what this machine's clock says, for it is the clock of their times."""
        found = buildkit.steps(_number(message, "timeout_s", 0, 60))
        return {"steps": found, "unix_time_s": time.time()}

    def _quiesce(self, message: Message) -> Message:
        """Put the scratch disk down, for another runner to take it up; this one is of no more use.

        The answer says so once more: it is not to be taken for another's.
        """
        scratch.put_down(self._kernel.run, _number(message, "timeout_s", 1, 60))
        return {"quiesced": True}

    def _take_scratch(self, message: Message) -> Message:
        """Have BuildKit go on with the disk that the host has plugged in, grown to this size."""
        timeout_s = _number(message, "timeout_s", 1, 60)
        disk_bytes = int(_number(message, "disk_bytes", 0, 2**60))
        cpus = int(_number(message, "cpus", 1, 1024))
        if not self._identified:
            raise Refused("take_scratch: this guest has no identity")
        set_cpus(cpus, self._root / CPUS)
        timings = scratch.take_up(
            self._kernel.run,
            lambda: self._kernel.rest(False),
            buildkit.listens,
            timeout_s,
            self._root,
        )
        self._kernel.resize_filesystem(SCRATCH, disk_bytes)
        self._sampler.rebase()
        return {"taken": True, "timings_s": timings}

    def _poweroff(self, _: Message) -> Message:
        self._afterwards = self._kernel.power_off
        return {}


def says(fd: int, word: bytes, timeout_s: float | None = None) -> bool:
    """Whether `word` is the next line from `fd`, within so many seconds where that is limited."""
    line, end = b"", time.monotonic() + (timeout_s or 0)
    while not line.endswith(b"\n"):
        left = None if timeout_s is None else max(0.0, end - time.monotonic())
        if not select.select([fd], [], [], left)[0]:
            return False
        byte = os.read(fd, 1)
        if not byte:
            return False
        line += byte
    return line.strip() == word


def serve(agent: Agent, fd: int) -> None:
    """Answer lines from `fd` until it is closed for good (OSError but for a host that left).

    A virtio port whose host has gone reads as end of file and polls as hung up without end;
    edge-triggered epoll tells when a host comes, without waking up in between.
    """
    os.set_blocking(fd, False)
    lines = Lines()
    with select.epoll() as poll:
        poll.register(fd, select.EPOLLIN | select.EPOLLET)
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                poll.poll()
                continue
            if not data:
                lines.reset()
                poll.poll()
                continue
            for line in lines.feed(data):
                answer = agent.handle(line)
                if answer is not None:
                    send(fd, json.dumps(answer).encode() + b"\n")
                agent.after_reply()


def send(fd: int, data: bytes, timeout_s: float = 5.0) -> bool:
    """Write all of `data`; False when the host has gone or does not read for `timeout_s`."""
    view = memoryview(data)
    end = time.monotonic() + timeout_s
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            left = end - time.monotonic()
            if left <= 0:
                return False
            select.select([], [fd], [], min(left, 0.05))
        except OSError as fault:
            if fault.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENODEV):
                return False
            raise
    return True


def real_kernel() -> Kernel:
    """The acts themselves. Each raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)

    def checked(result: int) -> None:
        if result != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def add_entropy(data: bytes) -> None:
        fd = os.open("/dev/random", os.O_WRONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, RNDADDENTROPY, struct.pack("ii", len(data) * 8, len(data)) + data)
            fcntl.ioctl(fd, RNDRESEEDCRNG)
        finally:
            os.close(fd)

    def set_clock_ns(unix_time_ns: int) -> None:
        time.clock_settime_ns(time.CLOCK_REALTIME, unix_time_ns)

    def bind_mount(source: Path, target: Path) -> None:
        checked(libc.mount(os.fsencode(source), os.fsencode(target), None, MS_BIND, None))

    def stay_in_memory() -> None:
        """What runs once is not given up again: a guest that thrashes is to be looked at."""
        checked(libc.mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT))

    def resize_filesystem(mount: str, size_bytes: int) -> None:
        fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            now = os.fstatvfs(fd)
            if size_bytes > now.f_blocks * now.f_frsize:
                fcntl.ioctl(fd, EXT4_IOC_RESIZE_FS, struct.pack("Q", size_bytes // now.f_bsize))
        finally:
            os.close(fd)

    def power_off() -> None:
        flush = threading.Thread(target=os.sync, daemon=True)
        flush.start()
        flush.join(3)
        libc.reboot(RB_POWER_OFF)

    def rest(yes: bool) -> None:
        for unit in RESTING:
            switch = Path("/sys/fs/cgroup/system.slice", unit, "cgroup.freeze")
            write_file(switch, "1" if yes else "0")

    def start_sshd() -> Sshd:
        """Returns when it has rehearsed and waits."""
        tell, hear = os.pipe(), os.pipe()
        subprocess.Popen(
            SSHD,
            user=buildkit.UID,
            group=buildkit.UID,
            extra_groups=[],
            cwd=BUILD_HOME,
            env=SSHD_ENVIRONMENT,
            stdin=tell[0],
            stdout=hear[1],
        )
        os.close(tell[0])
        os.close(hear[1])
        if not says(hear[0], b"waiting", 60):
            raise Refused("sshd did not start")
        return Sshd(tell[1], hear[0])

    return Kernel(
        add_entropy=add_entropy,
        set_clock_ns=set_clock_ns,
        set_hostname=socket.sethostname,
        stay_in_memory=stay_in_memory,
        bind_mount=bind_mount,
        rest=rest,
        resize_filesystem=resize_filesystem,
        run=scratch.run,
        power_off=power_off,
        start_sshd=start_sshd,
    )


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    kernel = real_kernel()
    kernel.stay_in_memory()
    prepare(Path("/"), kernel)
    while True:
        try:
            fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError:
            time.sleep(0.1)
    serve(Agent(kernel), fd)
