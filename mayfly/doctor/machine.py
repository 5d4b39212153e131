"""What the kernel, its programs and the machine's settings offer to VMs and their networks."""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mayfly import golden
from mayfly.config import Config
from mayfly.doctor import speed
from mayfly.doctor.check import Check, as_root, fail, ok, warn
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.host import cgroup, forwarding, machine
from mayfly.host import network as networks
from mayfly.host.process import PATH
from mayfly.ladder import physical
from mayfly.model import GIB

PROGRAMS = {
    "qemu-img": "qemu-utils",
    "mmdebstrap": "mmdebstrap",
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "mkfs.ext4": "e2fsprogs",
}
"""Programs that builds need here, and the Debian package of each."""

DNS_S = 2
TRIAL_S = 20

_TRIAL = """\
add table inet t
add chain inet t out { type filter hook output priority 0; policy drop; }
add rule inet t out ct state established accept
add rule inet t out meta nfproto ipv6 reject
add table ip n
add chain ip n post { type nat hook postrouting priority 100; policy accept; }
add rule ip n post masquerade
"""
"""What runners' rules need of nftables, in few lines."""

_MODULES = "nf_tables nft_ct nft_reject_inet nft_masq nft_chain_nat veth"
_STA_UNSYNC = 0x0040  # adjtimex(2)


def root() -> Iterator[Check]:
    if os.geteuid() == 0:
        yield ok("root", "yes")
    else:
        yield fail("root", "no: runners need namespaces and firewall rules", as_root())


def packages() -> Iterator[Check]:
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    wanted = " ".join(sorted({PROGRAMS[name] for name in missing}))
    if missing:
        yield fail("packages", f"missing: {', '.join(missing)}", f"apt-get install {wanted}")
    else:
        yield ok("packages", "all there")


def inspected(config: Config) -> machine.Machine:
    """What `host.machine.inspect` finds, noting nothing in the state. Raises `MachineUnfit`."""
    with tempfile.TemporaryDirectory(prefix="mayfly-doctor-") as scratch:
        found = asyncio.run(_inspect(config.model_copy(update={"state": Path(scratch)})))
    return replace(found, disk_bytes=physical(config.state)[2])


def virtualisation(config: Config, found: machine.Machine) -> Iterator[Check]:
    """QEMU, its accelerator, the speed under it, and the sizes that this machine holds."""
    yield ok("QEMU", found.qemu)
    if found.accelerator == "kvm":
        yield ok("acceleration", f"KVM: {found.reason}")
    else:
        yield warn(
            "acceleration",
            f"none, guests are emulated (TCG): {found.reason}",
            "modprobe -a kvm_intel kvm_amd"
            if not machine.DEVICE.exists()
            else "use a machine, or a kind of cloud server, that offers nested virtualisation",
        )
    yield _speed(config, found)
    yield from sizes(config, found)


async def _inspect(config: Config) -> machine.Machine:
    try:
        return await machine.inspect(config)
    finally:
        await asyncio.sleep(0)  # lets asyncio close its pipes before the loop is gone


def _speed(config: Config, found: machine.Machine) -> Check:
    try:
        measured = speed.measured(
            config.vm.qemu, found.qemu, found.accelerator, golden.newest(config.state), config.cache
        )
    except MachineUnfit as error:
        return warn("speed", f"not measured: {error.message}", error.hint)
    if found.accelerator == "kvm" and measured.slowdown < speed.SLOW:
        return ok("speed", str(measured))
    return warn(
        "speed",
        str(measured),
        "mend acceleration, or give builds more time: MAYFLY_LEASE__BUDGET_MIN=240 mayfly up",
    )


def sizes(config: Config, found: machine.Machine) -> Iterator[Check]:
    """The rungs that do not fit are named; that is no fault as long as one fits."""
    room = machine.room(config, found)
    holds = (
        f"{room.memory_bytes / GIB:.1f} GiB memory, {room.cpus} vCPUs and "
        f"{room.disk_bytes / GIB:.0f} GiB disk"
    )
    refused = [str(size) for size in config.sizes if not room.fits(size)]
    fitting = ", ".join(size.name for size in room.fitting)
    if not fitting:
        yield fail(
            "sizes",
            f"not even {refused[0]} fits into {holds}",
            "MAYFLY_LADDER__SMALL='{cpu = 1, memory_gb = 1, disk_gb = 4}' mayfly up",
        )
    elif refused:
        yield ok("sizes", f"{fitting}; too large for {holds}: {', '.join(refused)}")
    else:
        yield ok("sizes", fitting)
    if room.memory_bytes > found.memory_bytes:
        yield warn(
            "pool",
            f"pool.memory_gb is {config.pool.memory_gb}, and this machine has "
            f"{found.memory_bytes / GIB:.1f} GiB",
            f"MAYFLY_POOL__MEMORY_GB={max(1, found.memory_bytes // GIB - 1)} mayfly up",
        )


def control_groups() -> Iterator[Check]:
    """What holds runners back beside the services of this machine."""
    tree = cgroup.survey()
    if tree.missing:
        yield warn(
            "control groups",
            cgroup.words(tree),
            "; ".join(
                f"mkdir -p /sys/fs/cgroup/{name} && mount -t cgroup -o {name} none "
                f"/sys/fs/cgroup/{name}"
                for name in (cgroup.V1_NAMES.get(each, each) for each in tree.missing)
            )
            if tree.controllers
            else "mount -t cgroup2 none /sys/fs/cgroup",
        )
    else:
        versions = sorted({place.version for place in tree.controllers.values()})
        yield ok("control groups", f"{cgroup.words(tree)} (v{', v'.join(map(str, versions))})")


def network(config: Config) -> Iterator[Check]:
    """Whether a namespace with a link, and with rules like a runner's, can be made: one is."""
    if os.geteuid() != 0:
        yield warn("network", "not looked at without root", as_root())
        return
    for name, argv, rules in (
        (
            "namespaces",
            ("ip", "link", "add", "name", "mf0", "type", "veth", "peer", "name", "mf1"),
            "",
        ),
        ("nftables", ("nft", "-f", "-"), _TRIAL),
    ):
        said = _tried("unshare", "--net", *argv, stdin=rules)
        if said:
            yield fail(name, f"cannot be used: {said}", f"modprobe -a {_MODULES}")
        else:
            yield ok(name, "a trial stood and is gone")
    yield from _firewall(config)
    if networks.FORWARD.read_text().strip() != "1":
        yield ok("forwarding", "off; `mayfly up` turns it on for as long as it runs")
    else:
        yield ok("forwarding", "on")


def _firewall(config: Config) -> Iterator[Check]:
    """Docker and firewalls set the forward chain to drop, and runners' packets with it."""
    try:
        found = asyncio.run(asyncio.wait_for(forwarding.obstacles(config), TRIAL_S))
    except (OSError, InfrastructureError) as error:
        why = str(error) or f"nft did not end within {TRIAL_S} s"
        yield warn("firewall", f"not looked at: {why}", "nft list ruleset")
        return
    for obstacle in found:
        yield warn(
            "firewall",
            f"{obstacle.chain} drops what nobody allows, so that runners reach nothing",
            obstacle.mend,
        )
    if not found:
        yield ok("firewall", "no forward chain of others stands in the way")


def _tried(*argv: str, stdin: str = "") -> str:
    """What a command says when it fails, in one line; empty when it does not."""
    try:
        done = subprocess.run(
            argv, env={**os.environ, "PATH": PATH}, input=stdin, capture_output=True, text=True,
            timeout=TRIAL_S, check=False,
        )  # fmt: skip
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{argv[0]} did not end within {TRIAL_S} s"
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[0]


def resolvers(config: Config) -> Iterator[Check]:
    """Ask each DNS server that runners get for something; any answer is one."""
    found = networks.resolvers(config)
    silent = [address for address in found if not answers(address)]
    if silent:
        yield warn(
            "DNS",
            f"{', '.join(silent)}: no answer within {DNS_S} s",
            "MAYFLY_NETWORK__RESOLVERS='[\"ADDRESS\"]' mayfly up, with a DNS server that answers",
        )
    else:
        yield ok("DNS", ", ".join(found))


def answers(address: str, port: int = 53) -> bool:
    """Whether a DNS server answers a question for the root's name servers within `DNS_S`."""
    number = secrets.token_bytes(2)
    question = number + bytes.fromhex("0100 0001 0000 0000 0000 00 0002 0001")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(DNS_S)
        try:
            asking.connect((address, port))
            asking.send(question)
            return asking.recv(512)[:2] == number
        except OSError:
            return False


def clock(config: Config) -> Iterator[Check]:
    """A clock before the golden image's day is wrong; one that nothing keeps may become so."""
    image = golden.newest(config.state)
    now = datetime.now(UTC)
    if image is not None and now < image.created_at:
        yield fail(
            "clock",
            f"it is {now:%Y-%m-%d %H:%M} UTC here, and the golden image was made at "
            f"{image.created_at:%Y-%m-%d %H:%M}: certificates and tokens are not valid yet",
            "apt-get install systemd-timesyncd && timedatectl set-ntp true",
        )
        return
    # struct timex begins with `unsigned int modes`, and `int status` is its sixth long.
    timex = ctypes.create_string_buffer(256)
    state = ctypes.CDLL(None).adjtimex(timex)
    status = ctypes.c_int.from_buffer(timex, 5 * ctypes.sizeof(ctypes.c_long)).value
    if state < 0 or status & _STA_UNSYNC:
        yield warn(
            "clock",
            f"{now:%Y-%m-%d %H:%M} UTC, and nothing says that it is kept right",
            "apt-get install systemd-timesyncd && timedatectl set-ntp true",
        )
    else:
        yield ok("clock", f"{now:%Y-%m-%d %H:%M} UTC, kept right by NTP")
