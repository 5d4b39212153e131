"""QEMU's user network as the way out of a runner, with forged frames, and without a guest.

    "guest" (a namespace) -- tap -- QEMU without a machine, in the runner's namespace -- the fences

What stands in the place of a guest may do with its card what root in a guest may. The same scripts
run in real guests in tests/farm/test_isolation.py.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mayfly.host import argv, network
from tests.farm import forge, probe
from tests.host.test_network import answered, config, dns, ground, kinds, names, runners, take_away
from tests.proving_ground import (
    ALLOWED,
    FORBIDDEN,
    FORBIDDEN_V6,
    MACHINES_OWN,
    OTHER_DNS,
    PUBLIC,
    RESOLVER,
    Ground,
    answering,
    in_namespace,
    sh,
)

__all__ = ["ground"]

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

GUEST = f"mftest-g{os.getpid()}"


def card() -> int:
    """A tap that the thread's namespace knows as the guest's card; its descriptor."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH", forge.CARD.encode(), 0x1002))  # TUNSETIFF
    return fd


@contextmanager
def guest(link: network.Link) -> Iterator[None]:
    """A namespace that is connected as a runner's guest is; it goes with the block."""
    sh("ip", "netns", "add", GUEST)
    qemu = None
    try:
        fd = in_namespace(GUEST, card)
        user = argv.user_network(network.SSH_PORT)
        words = ["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none"]
        words += ["-netdev", user, "-netdev", "hubport,id=one,hubid=0,netdev=net"]
        words += ["-netdev", f"tap,id=card,fd={fd}"]
        words += ["-netdev", "hubport,id=two,hubid=0,netdev=card"]
        qemu = subprocess.Popen(["nsenter", f"--net={link.path}", *words], pass_fds=[fd])
        os.close(fd)
        sh(
            *("nsenter", f"--net={network.NETNS / GUEST}", "ip", "-batch", "-"),
            stdin=f"""\
link set lo up
address add 10.0.2.15/24 dev {forge.CARD}
address add fec0::99/64 dev {forge.CARD} nodad
link set {forge.CARD} up
route add default via {forge.GATEWAY}
route add default via fec0::2
""",
        )
        in_namespace(GUEST, lambda: network.PING.write_text("0 2147483647\n"))
        reached = [("icmp", forge.GATEWAY, 0)]
        deadline = time.monotonic() + 20
        while "answers" not in in_namespace(GUEST, lambda: probe.attempts(reached)).values():
            assert qemu.poll() is None and time.monotonic() < deadline, "QEMU does not answer"
        yield
    finally:
        if qemu is not None:
            qemu.kill()
            qemu.wait()
        subprocess.run(["ip", "netns", "delete", GUEST], check=False)


@pytest.mark.parametrize("fences", ["none", "both"])
async def test_no_forged_frame_reaches_more_than_an_honest_one(
    ground: Ground, tmp_path: Path, fences: str
) -> None:
    settings = config(tmp_path)
    async with runners(settings) as (link, other, _):
        take_away(settings, link, other, fences)
        reached = [*kinds(PUBLIC), *kinds(ALLOWED)]
        closed = [target for address in FORBIDDEN for target in kinds(address)]
        closed += [*kinds(MACHINES_OWN), *kinds(other.guest_address), *kinds(link.host_address)]
        closed += [*kinds(RESOLVER), ("tcp", OTHER_DNS, 53)]
        by_ipv6 = [target for address in FORBIDDEN_V6 for target in kinds(address)]
        with answering(ground.machine), answering(other.namespace), guest(link):
            ground.seen.clear()
            honest = [*reached, *dns(RESOLVER), *closed, *by_ipv6]
            found = await answered(GUEST, honest)
            raw = [*reached, ("tcp", RESOLVER, 53)]
            told: dict[str, list[Any]] = {
                "to": [*raw, *closed, *by_ipv6],
                "from": ["10.0.2.99", MACHINES_OWN, other.guest_address, "fec0::77"],
            }
            forged = in_namespace(GUEST, lambda: forge.send(told))
        if fences == "none":
            assert found == names([*reached, *dns(RESOLVER), *closed]), "a probe cannot succeed"
            assert set(forged["answered"]) == names([*raw, *closed]), "no forgery can succeed"
            return
        assert found == names([*reached, *dns(RESOLVER)])
        assert set(forged["answered"]) == names(raw), forged
        destinations = {line.split(" > ")[1].partition(":")[0] for line in ground.seen}
        sources = {line.split()[1] for line in ground.seen}
        assert destinations == {PUBLIC, ALLOWED, RESOLVER}
        assert sources == {MACHINES_OWN}
