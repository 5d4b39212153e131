"""The host's hand inside a runner: identity, evidence, deadline.

One file, standard library only, because it is copied into the golden image as it is. It runs as
root and speaks over virtio-serial: one JSON object a line, at most 64 KiB a line.

    host   {"id": 1, "op": "identity", …}
    guest  {"id": 1, "ok": true, …}  or  {"id": 1, "ok": false, "error": "one line"}

A host may come and go, also in the middle of a line. It sends an empty line first when it connects,
which ends whatever its predecessor left, and ignores answers whose id it did not send.

Before `identity` nobody can log in. sshd is started before the freeze, so that a clone need not
load it and its configuration, but waits for its host key: a FIFO that `identity` writes. What it
needs random numbers for, it does in processes of their own, begun after that. A clone gets its
identity once; what it needs between that message and sshd's banner is kept short, since under
emulation every instruction that runs for the first time costs.
"""

from __future__ import annotations

import base64
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

VERSION = 1
PORT = "/dev/virtio-ports/mayfly.agent"
MAX_LINE_BYTES = 64 * 1024

BUILD_UID = 1000
BUILDKIT_SOCKET = "/run/buildkit/buildkitd.sock"
BUILDKIT_CGROUP = "/sys/fs/cgroup/system.slice/buildkitd.service"
SSHD = "/usr/sbin/sshd"
SSHD_CONFIG = "etc/mayfly/sshd_config"
HOST_KEY = "run/mayfly/ssh_host_ed25519_key"
# They would answer a clone's new clock, memory and vmgenid just when it should answer its host.
RESTING = ("systemd-udevd.service", "systemd-journald.service")
OWN = "run/mayfly"
IDENTIFIED = f"{OWN}/identified"
SCRATCH = "/scratch"

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
EXT4_IOC_RESIZE_FS = 0x40086610
MS_BIND = 4096
RB_POWER_OFF = 0x4321FEDC

Message = dict[str, Any]


class Refused(Exception):
    """The request cannot be carried out; the text goes to the host."""


class Kernel(NamedTuple):
    """The acts that need a real machine. Tests put their own in."""

    add_entropy: Callable[[bytes], None]
    set_clock_ns: Callable[[int], None]
    set_hostname: Callable[[str], None]
    bind_mount: Callable[[Path, Path], None]
    rest: Callable[[bool], None]
    start_sshd: Callable[[], None]
    resize_filesystem: Callable[[str, int], None]
    power_off: Callable[[], None]


class Identity(NamedTuple):
    """Who a clone is, checked. Times in the units of their names."""

    entropy: bytes
    unix_time_ns: int
    machine_id: str
    hostname: str
    ssh_host_key: str
    authorized_key: str
    registry_ca_pem: str
    deadline_unix_s: float
    cpus: int
    disk_bytes: int
    resolvers: tuple[str, ...]


# Compiled here and not in a clone.
_PEM = r"-----BEGIN [A-Z ]+-----\n[A-Za-z0-9+/=\n]+-----END [A-Z ]+-----\n?"
PEM = re.compile(_PEM)
PEMS = re.compile(f"({_PEM})*")
BASE64 = re.compile(r"[A-Za-z0-9+/=]{44,2048}")
MACHINE_ID = re.compile(r"[0-9a-f]{32}")
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
ADDRESS = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
ONE_LINE = re.compile(r"[!-~][ -~]*")


def _text(message: Message, key: str, pattern: re.Pattern[str], limit: int = 16384) -> str:
    value = message.get(key)
    if not isinstance(value, str) or len(value) > limit or not pattern.fullmatch(value):
        raise Refused(f"identity: {key} is missing or malformed")
    return value


def _number(message: Message, key: str, low: float, high: float) -> float:
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(f"{key} is missing or not between {low} and {high}")
    return value


def parse_identity(message: Message) -> Identity:
    """The identity in a message. Raises `Refused`, naming the field, before anything is done."""
    try:
        entropy = base64.b64decode(_text(message, "entropy_b64", BASE64))
    except ValueError as fault:
        raise Refused("identity: entropy_b64 is not base64") from fault
    return Identity(
        entropy=entropy,
        unix_time_ns=int(_number(message, "unix_time_ns", 10**18, 9 * 10**18)),
        machine_id=_text(message, "machine_id", MACHINE_ID),
        hostname=_text(message, "hostname", HOSTNAME),
        ssh_host_key=_text(message, "ssh_host_key", PEM),
        authorized_key=_text(message, "authorized_key", ONE_LINE),
        registry_ca_pem=_text(message, "registry_ca_pem", PEMS, limit=49152),
        deadline_unix_s=_number(message, "deadline_unix_s", 0, 9 * 10**9),
        cpus=int(_number(message, "cpus", 1, 1024)),
        disk_bytes=int(_number(message, "disk_bytes", 0, 2**60)),
        resolvers=_addresses(message, "resolvers"),
    )


def _addresses(message: Message, key: str) -> tuple[str, ...]:
    """One to eight IPv4 addresses."""
    value = message.get(key)
    if not isinstance(value, list) or not 1 <= len(value) <= 8:
        raise Refused(f"identity: {key} is not a short list")
    if not all(isinstance(item, str) and ADDRESS.fullmatch(item) for item in value):
        raise Refused(f"identity: {key} has something that is no IPv4 address")
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

    For when the guest starts. Does nothing where that was done. Raises OSError.
    """
    own, read = root / OWN / "machine-id", root / "etc/machine-id"
    if not own.exists():
        write_file(own, read.read_text(), 0o444)
        kernel.bind_mount(own, read)
    listens = root / OWN / "sshd_listens"
    if not listens.exists():
        os.mkfifo(listens, 0o600)


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
    write_file(own / "hostname", identity.hostname + "\n")
    write_file(own / "registry-ca.pem", identity.registry_ca_pem)
    names = "".join(f"nameserver {address}\n" for address in identity.resolvers)
    write_file(root / "etc/resolv.conf", names)


def give_host_key(key: str, path: Path) -> None:
    """Let the sshd go that waits for the FIFO `path` to be its host key; the key stays as a file.

    It may open the name once more, so that is the file's before the FIFO ends. Raises OSError.
    """
    waiting = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        beside = path.with_name("host_key.new")
        write_file(beside, key, 0o600)
        beside.rename(path)
        os.write(waiting, key.encode())
    finally:
        os.close(waiting)


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


def _first_number(path: str) -> int:
    try:
        return int(Path(path).read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _table(path: str) -> dict[str, int]:
    """`key value` lines (memory.events, cpu.stat, meminfo) as a dict; empty when unreadable."""
    found: dict[str, int] = {}
    try:
        for line in Path(path).read_text().splitlines():
            words = line.replace(":", " ").split()
            if len(words) >= 2 and words[1].isdigit():
                found[words[0]] = int(words[1])
    except OSError:
        pass
    return found


def usage(cgroup: str = BUILDKIT_CGROUP, proc: str = "/proc") -> dict[str, int]:
    """What the builds of this runner have used so far. A value that cannot be read is 0."""
    events = _table(f"{cgroup}/memory.events")
    memory = _table(f"{proc}/meminfo")
    stat = _table(f"{cgroup}/memory.stat")
    try:
        disk = os.statvfs(SCRATCH)
        disk_total, disk_free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
    except OSError:
        disk_total = disk_free = 0
    return {
        "memory_current_bytes": _first_number(f"{cgroup}/memory.current"),
        "memory_peak_bytes": _first_number(f"{cgroup}/memory.peak"),
        "memory_anon_bytes": stat.get("anon", 0),
        "memory_total_bytes": memory.get("MemTotal", 0) * 1024,
        "memory_available_bytes": memory.get("MemAvailable", 0) * 1024,
        "oom_kill": events.get("oom_kill", 0),
        "cpu_usage_us": _table(f"{cgroup}/cpu.stat").get("usage_usec", 0),
        "disk_total_bytes": disk_total,
        "disk_free_bytes": disk_free,
    }


def buildkit_listens() -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(BUILDKIT_SOCKET) == 0


def buildkit_answers(timeout_s: float) -> bool:
    """Ask buildkitd for its workers, as the user whose socket it is."""
    try:
        done = subprocess.run(
            ["/usr/bin/buildctl", "--addr", f"unix://{BUILDKIT_SOCKET}", "debug", "workers"],
            user=BUILD_UID,
            group=BUILD_UID,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin", "HOME": "/"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and len(done.stdout.splitlines()) >= 2


def set_cpus(online: int, root: Path = Path("/sys/devices/system/cpu")) -> None:
    """Bring CPUs 1..online-1 up and the others down. CPU 0 and absent ones are left alone."""
    for directory in sorted(root.glob("cpu[0-9]*"), key=lambda path: int(path.name[3:])):
        switch = directory / "online"
        wanted = "1" if int(directory.name[3:]) < online else "0"
        if switch.exists() and switch.read_text().strip() != wanted:
            switch.write_text(wanted)


def warm_up() -> None:
    """Be sshd's first guest: what its second one needs has then run once (see the top)."""
    banner(30)


def banner(timeout_s: float, address: tuple[str, int] = ("127.0.0.1", 22)) -> None:
    """Wait until an SSH server says its first word. Raises `Refused` when it doesn't in time."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(max(0.01, end - time.monotonic()))
            try:
                if probe.connect_ex(address) == 0 and probe.recv(4) == b"SSH-":
                    return
            except OSError:
                pass
        time.sleep(0.002)
    raise Refused("sshd did not answer")


class Agent:
    """Answers one request at a time. `root` is / but in tests."""

    def __init__(self, kernel: Kernel, root: Path = Path("/")) -> None:
        self._kernel = kernel
        self._root = root
        self._identified = (root / IDENTIFIED).exists()  # also by an agent that died since
        self._afterwards: Callable[[], None] | None = None
        self._operations: dict[str, Callable[[Message], Message]] = {
            "hello": self._hello,
            "wait_buildkit": self._wait_buildkit,
            "freeze": self._freeze,
            "identity": self._identity,
            "usage": lambda _: {"usage": usage()},
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
        return {"version": VERSION, "buildkit": buildkit_listens(), "identified": self._identified}

    def _wait_buildkit(self, message: Message) -> Message:
        start = time.monotonic()
        end = start + _number(message, "timeout_s", 0, 3600)
        while (left := end - time.monotonic()) > 0:
            if buildkit_listens() and buildkit_answers(left):
                return {"seconds": round(time.monotonic() - start, 3)}
            time.sleep(0.1)
        raise Refused("buildkitd did not answer in time")

    def _freeze(self, message: Message) -> Message:
        online = int(_number(message, "online_cpus", 1, 1024))
        if self._identified:
            raise Refused("freeze: this guest has an identity")
        buildkit_answers(60)
        rehearse(self._root)
        self._start_sshd()
        set_cpus(online)
        os.sync()
        answer = {"boot_id": boot_id(self._root)}
        self._kernel.rest(True)
        return answer

    def _start_sshd(self) -> None:
        """Let sshd wait for its host key, unless one does (it outlives an agent)."""
        key = self._root / HOST_KEY
        if not key.exists():
            os.mkfifo(key, 0o600)
            self._kernel.start_sshd()

    def _identity(self, message: Message) -> Message:
        identity = parse_identity(message)
        if self._identified:
            raise Refused("identity: this guest has one already")
        write_file(self._root / IDENTIFIED, "")
        self._identified = True
        timings: dict[str, float] = {}
        last = time.perf_counter()

        def took(step: str) -> None:
            nonlocal last
            now = time.perf_counter()
            timings[step] = round(now - last, 4)
            last = now

        self._kernel.add_entropy(identity.entropy)
        took("entropy")
        self._kernel.set_clock_ns(identity.unix_time_ns)
        took("clock")
        self._start_sshd()
        # sshd reads this one as the user who logs in; it is a public key.
        write_file(self._root / OWN / "authorized_keys", identity.authorized_key + "\n")
        listens = os.open(self._root / OWN / "sshd_listens", os.O_RDONLY | os.O_NONBLOCK)
        give_host_key(identity.ssh_host_key.rstrip("\n") + "\n", self._root / HOST_KEY)
        took("keys")
        # Meanwhile, on another CPU, sshd loads it.
        write_names(identity, self._root)
        self._kernel.set_hostname(identity.hostname)
        took("names")
        if not select.select([listens], [], [], 30)[0]:
            raise Refused("sshd does not listen")
        os.close(listens)
        took("sshd_listens")

        seconds_left = identity.deadline_unix_s - identity.unix_time_ns / 1e9
        self._afterwards = lambda: self._settle(identity, seconds_left)
        return {"timings_s": timings}

    def _settle(self, identity: Identity, seconds_left: float) -> None:
        """After the answer: the deadline, then what a build can begin without."""
        deadline = threading.Timer(max(0.0, seconds_left), self._kernel.power_off)
        deadline.daemon = True
        deadline.start()

        steps: tuple[Callable[[], None], ...] = (
            warm_up,
            lambda: self._kernel.rest(False),
            lambda: write_file(self._root / "proc/self/oom_score_adj", "-1000"),
            lambda: set_cpus(identity.cpus),
            lambda: self._kernel.resize_filesystem(SCRATCH, identity.disk_bytes),
        )

        def grow() -> None:
            for step in steps:
                try:
                    step()
                except (OSError, Refused) as fault:
                    print(f"after identity: {fault}", flush=True)

        threading.Thread(target=grow, daemon=True).start()

    def _poweroff(self, _: Message) -> Message:
        self._afterwards = self._kernel.power_off
        return {}


def rehearse(root: Path) -> None:
    """Serve SSH once with a key that is thrown away, so that a clone finds all it needs in memory.

    No clone can be reached by it: key and server are gone before the freeze.
    """
    key = root / OWN / "rehearsal"
    subprocess.run(
        ["/usr/bin/ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)],
        check=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    server = subprocess.Popen(
        [SSHD, "-D", "-f", str(root / SSHD_CONFIG), "-h", str(key), "-o", "PidFile=none"]
    )
    try:
        banner(60)
        subprocess.run(
            ["/usr/bin/ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
             "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR",
             "build@127.0.0.1", "true"],
            check=False, timeout=60, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
    finally:
        server.terminate()
        server.wait(10)
        key.unlink(missing_ok=True)
        key.with_suffix(".pub").unlink(missing_ok=True)


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
            processes = Path("/sys/fs/cgroup/system.slice", unit, "cgroup.procs")
            for process in processes.read_text().split():
                os.kill(int(process), signal.SIGSTOP if yes else signal.SIGCONT)

    def start_sshd() -> None:
        argv = [SSHD, "-D", "-f", f"/{SSHD_CONFIG}"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        waits_in = Path(f"/proc/{process.pid}/wchan")
        end = time.monotonic() + 10
        while time.monotonic() < end and waits_in.read_text() != "wait_for_partner":
            time.sleep(0.02)

    return Kernel(
        add_entropy=add_entropy,
        set_clock_ns=set_clock_ns,
        set_hostname=socket.sethostname,
        bind_mount=bind_mount,
        rest=rest,
        resize_filesystem=resize_filesystem,
        power_off=power_off,
        start_sshd=start_sshd,
    )


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    kernel = real_kernel()
    prepare(Path("/"), kernel)
    while True:
        try:
            fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError:
            time.sleep(0.1)
    serve(Agent(kernel), fd)


if __name__ == "__main__":
    main()
