"""How a guest becomes somebody: frozen as nobody, told once who it is, settled when that is used.

Before its identity nobody can log in. The SSH server is started before the freeze, so that a clone
need not load it, and waits to be told its keys (tools/runner-sshd). A clone gets its identity once;
what it needs between that message and SSH's banner is kept short, since under emulation every
instruction that runs for the first time costs.
"""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from mayfly.guest import buildkit, machine, pair
from mayfly.guest.clock import Took
from mayfly.guest.kernel import Kernel, Sshd, says, write_file
from mayfly.guest.message import (
    Message,
    Refused,
    addresses,
    is_entropy,
    is_hex,
    is_hostname,
    is_line,
    is_pem,
    number,
    text,
)
from mayfly.guest.sample import SCRATCH, Sampler

OWN = "run/mayfly"
IDENTIFIED = f"{OWN}/identified"

STANDBY_S = 30
"""Seconds for systemd to start the BuildKit on standby, and as many for that to come to where it
waits."""


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


def parse_identity(message: Message) -> Identity:
    """The identity in a message. Raises `Refused`, naming the field, before anything is done."""
    return Identity(
        entropy=base64.b64decode(text(message, "entropy_b64", is_entropy)),
        unix_time_ns=int(number(message, "unix_time_ns", 10**18, 9 * 10**18)),
        machine_id=text(message, "machine_id", is_hex),
        hostname=text(message, "hostname", is_hostname),
        ssh_host_key=text(message, "ssh_host_key", is_pem),
        authorized_key=text(message, "authorized_key", is_line),
        deadline_unix_s=number(message, "deadline_unix_s", 0, 9 * 10**9),
        cpus=int(number(message, "cpus", 1, 1024)),
        disk_bytes=int(number(message, "disk_bytes", 0, 2**60)),
        resolvers=addresses(message, "resolvers"),
    )


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


def write_names(identity: Identity, root: Path) -> None:
    """Put what others read of the identity under `root`, over what is there. Raises OSError."""
    own = root / OWN
    write_file(own / "machine-id", identity.machine_id + "\n")
    names = "".join(f"nameserver {address}\n" for address in identity.resolvers)
    write_file(own / "resolv.conf", names)


class Life:
    """The operations of a guest that is not anybody's yet. `root` is / but in tests."""

    def __init__(self, kernel: Kernel, root: Path, sampler: Sampler) -> None:
        self._kernel = kernel
        self._root = root
        self._sampler = sampler
        self._sshd: Sshd | None = None
        self.identified = (root / IDENTIFIED).exists()
        """Whether it is somebody: also when an agent was told that has died since."""

    def freeze(self, message: Message) -> Message:
        """Make ready for the machine to be stopped and cloned; the answer has its `boot_id`."""
        online = int(number(message, "online_cpus", 1, 1024))
        if self.identified:
            raise Refused("freeze: this guest has an identity")
        authority = text(message, "registry_ca_pem", is_pem, limit=49152)
        write_file(self._root / OWN / "registry-ca.pem", authority)
        buildkit.answers(60)
        self._kernel.run(("systemctl", "start", pair.STANDBY), STANDBY_S)
        pair.waiting(time.monotonic() + STANDBY_S, self._root)
        self._sshd = self._kernel.start_sshd()
        machine.hold_memory(self._root)
        machine.set_cpus(online, self._root / machine.CPUS)
        self._sampler.rebase()
        os.sync()
        answer = {"boot_id": machine.boot_id(self._root)}
        self._kernel.rest(True)
        return answer

    def identity(self, message: Message) -> tuple[Message, Callable[[], None]]:
        """Become somebody; returns the answer, and what is to be done once it is out."""
        took = Took()
        identity = parse_identity(message)
        if self.identified:
            raise Refused("identity: this guest has one already")
        write_file(self._root / IDENTIFIED, "")
        self.identified = True
        took("message")
        self._kernel.add_entropy(identity.entropy)
        took("entropy")
        self._kernel.set_clock_ns(identity.unix_time_ns)
        took("clock")
        sshd = self._sshd = self._sshd or self._kernel.start_sshd()
        keys = {"host_key": identity.ssh_host_key, "authorized_key": identity.authorized_key}
        os.write(sshd.tell, json.dumps(keys).encode() + b"\n")
        took("keys")
        write_names(identity, self._root)
        self._kernel.set_hostname(identity.hostname)
        took("names")

        seconds_left = identity.deadline_unix_s - identity.unix_time_ns / 1e9
        return {"timings_s": took.seconds}, lambda: self._settle(identity, seconds_left, sshd)

    def authorize(self, message: Message) -> Message:
        """Let one more key log in. Whoever owns the build's user can keep sshd from reading: that
        is not waited for.
        """
        key = text(message, "authorized_key", is_line)
        if self._sshd is None or not self.identified:
            raise Refused("authorize: there is no sshd that could be told")
        os.set_blocking(self._sshd.tell, False)
        try:
            os.write(self._sshd.tell, json.dumps({"authorized_key": key}).encode() + b"\n")
        except OSError as fault:
            raise Refused(f"authorize: sshd takes no key: {fault.strerror}") from None
        return {}

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
            lambda: machine.set_cpus(identity.cpus, self._root / machine.CPUS),
            lambda: machine.take_memory(self._root),
            lambda: self._kernel.resize_filesystem(SCRATCH, identity.disk_bytes),
            lambda: pair.leave_one(self._root),
        )

        def grow() -> None:
            says(sshd.hear, b"login")
            for step in steps:
                try:
                    step()
                except (OSError, Refused) as fault:
                    print(f"after identity: {fault}", flush=True)

        threading.Thread(target=grow, daemon=True).start()
