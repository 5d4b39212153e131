"""A network namespace for each VM, and the two fences (`fence`) that keep a build away from here.

QEMU runs inside the namespace; its user-mode network turns the guest's packets into connections
of the QEMU process, so that the rules of the namespace's output chain see the true destination
whatever the guest forges. A veth pair is the only way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import ipaddress
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mayfly.config import Config
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.host import fence
from mayfly.host.fence import Surroundings
from mayfly.host.process import PATH, run

NETNS = Path("/run/netns")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
PING = Path("/proc/sys/net/ipv4/ping_group_range")

UPSTREAM = Path("/run/systemd/resolve/resolv.conf")
"""The DNS servers behind systemd-resolved's stub (systemd-resolved(8))."""

MOST_RESOLVERS = 3
"""A resolver asks no more of those in a resolv.conf (MAXNS, resolv.conf(5))."""

SSH_PORT = 2222
"""Where QEMU takes connections for the guest's port 22, on the namespace's loopback."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Link:
    """One VM's namespace and its link to the machine; everything is derived from the slot."""

    namespace: str
    device: str
    host_address: str
    guest_address: str
    prefix: int = 30

    @property
    def path(self) -> Path:
        return NETNS / self.namespace


def tag(config: Config) -> str:
    """A short name for this installation, so that two on one machine never meet."""
    return hashlib.sha256(str(config.state).encode()).hexdigest()[:4]


def link(config: Config, slot: int) -> Link:
    """The names and addresses of slot `slot` (0 and up).

    Raises `InfrastructureError` when the configured subnet has no room for it.
    """
    subnet = ipaddress.IPv4Network(config.network.subnet)
    base = int(subnet.network_address) + 4 * slot
    if base + 3 > int(subnet.broadcast_address):
        raise InfrastructureError(
            f"network.subnet {subnet} has no room for VM number {slot}",
            hint="configure a larger network.subnet",
        )
    return Link(
        namespace=f"mayfly-{tag(config)}-{slot}",
        device=f"{devices(config)}{slot}",
        host_address=str(ipaddress.IPv4Address(base + 1)),
        guest_address=str(ipaddress.IPv4Address(base + 2)),
    )


async def surroundings(config: Config) -> Surroundings:
    """Read the machine's IPv4 addresses, the MTU of its way out, and its DNS servers.

    The addresses of the links to runners are left out: all of `network.subnet` is refused anyway.
    """
    links = json.loads(await run("ip", "-j", "-4", "addr"))
    subnet = ipaddress.IPv4Network(config.network.subnet)
    found = [a["local"] for item in links for a in item.get("addr_info", []) if "local" in a]
    addresses = {a for a in found if ipaddress.IPv4Address(a) not in subnet}
    route = json.loads(await run("ip", "-j", "-4", "route", "show", "default"))
    out = {item.get("dev") for item in route}
    mtu = min([item["mtu"] for item in links if item["ifname"] in out], default=1500)
    return Surroundings(tuple(sorted(addresses)), resolvers(config), mtu)


def resolvers(config: Config, resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """DNS servers that a runner can use: configured, or this machine's own that are not loopback.

    A stub resolver on loopback (systemd-resolved) is looked through to its upstream file.
    Raises `MachineUnfit` when none is found.
    """
    if config.network.resolvers:
        return config.network.resolvers
    for path in (resolv_conf, UPSTREAM):
        text = path.read_text() if path.exists() else ""
        usable = tuple(filter(_usable, re.findall(r"^\s*nameserver\s+(\S+)\s*$", text, re.M)))
        if usable:
            return usable[:MOST_RESOLVERS]
    raise MachineUnfit(
        f"{resolv_conf} names no DNS server that a runner could use",
        hint="set network.resolvers",
    )


def _usable(resolver: str) -> bool:
    try:
        address = ipaddress.IPv4Address(resolver)
    except ValueError:
        return False
    return not address.is_loopback and not address.is_unspecified


def faults(config: Config) -> Iterator[MachineUnfit]:
    """What keeps this machine from having runners' networks, as far as it shows without root."""
    for program, package in (("ip", "iproute2"), ("nft", "nftables"), ("nsenter", "util-linux")):
        if shutil.which(program, path=PATH) is None:
            yield MachineUnfit(f"{program} is not installed", hint=f"apt-get install {package}")
    try:
        resolvers(config)
    except MachineUnfit as fault:
        yield fault


class Fence:
    """The machine's side of this installation: its table, and that packets are let through."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stands: Surroundings | None = None
        self._building = asyncio.Lock()

    async def open(self) -> None:
        """Put up the fence and let packets through; `close_machine` undoes it. Idempotent.

        Raises `MachineUnfit` when this machine has no DNS server for runners, or its kernel no
        nftables: without a fence there are no runners.
        """
        around = await surroundings(self._config)
        table = _table(self._config)
        try:
            await run("nft", "-f", "-", stdin=f"table inet {table}\n")
        except (InfrastructureError, FileNotFoundError) as error:
            raise MachineUnfit(
                f"this machine has no nftables to keep runners in: {error}",
                hint="install nftables, and a kernel with nf_tables, nf_nat and nf_conntrack",
            ) from None
        await self.follow(around)
        before = forward_before()
        if not before.exists():
            before.write_text(FORWARD.read_text())
        FORWARD.write_text("1\n")

    async def follow(self, around: Surroundings) -> None:
        """Make the fence anew where the machine's addresses or resolvers have changed.

        In one transaction: there is no moment without it.
        """
        async with self._building:
            if around == self._stands:
                return
            table = _table(self._config)
            to = fence.reach(self._config.network, around)
            rules = fence.machine_rules(table, devices(self._config), to)
            await run(
                "nft", "-f", "-", stdin=f"table inet {table}\ndelete table inet {table}\n{rules}"
            )
            self._stands = around


def devices(config: Config) -> str:
    """What the names of this installation's links to runners begin with."""
    return f"mf{tag(config)}"


def _table(config: Config) -> str:
    return f"mayfly_{tag(config)}"


def _without(table: str) -> str:
    """Commands for nft that delete a table, whether it is there or not."""
    return f"table inet {table}\ndelete table inet {table}\n"


def forward_before() -> Path:
    """Where it stands what ip_forward was before the first of this machine's installations.

    As ip_forward is, it is one of the network namespace that this thread is in.
    """
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    return Path(f"/run/mayfly-ip_forward.{inode}.before")


async def close_machine(config: Config) -> None:
    """Take away the table and every namespace of this installation.

    ip_forward is as it was once no other installation on this machine needs it. Idempotent.
    """
    if NETNS.is_dir():
        for path in sorted(NETNS.glob(f"mayfly-{tag(config)}-*")):
            await remove_namespace(path.name)
    table = _table(config)
    await run("nft", "-f", "-", stdin=_without(table))
    others = "table inet mayfly_" in await run("nft", "list", "tables")
    before = forward_before()
    if before.exists() and not others:
        FORWARD.write_text(before.read_text())
        before.unlink()


async def make_namespace(config: Config, to: Link, around: Surroundings) -> None:
    """Make a VM's namespace with its link and rules. Half-made ones are removed by the caller.

    One that is there already is what an interrupted command left, and goes first. Whoever is in
    it may ping: QEMU sends a guest's ICMP echo by a socket that needs leave, and without it as a
    datagram to UDP port 7.
    """
    await remove_namespace(to.namespace)
    await _remove_device(to.device)
    await run("ip", "netns", "add", to.namespace)
    await run(
        *("ip", "-batch", "-"),
        stdin=f"""\
link add {to.device} mtu {around.mtu} type veth peer name out mtu {around.mtu} netns {to.namespace}
address add {to.host_address}/{to.prefix} dev {to.device}
link set {to.device} up
""",
    )
    await asyncio.gather(
        run(
            *("nsenter", f"--net={to.path}", "ip", "-batch", "-"),
            stdin=f"""\
link set lo up
address add {to.guest_address}/{to.prefix} dev out
link set out up
route add default via {to.host_address}
""",
        ),
        run(
            *("nsenter", f"--net={to.path}", "nft", "-f", "-"),
            stdin=fence.guest_rules(fence.reach(config.network, around)),
        ),
    )
    inside(to.path, lambda: PING.write_text("0 2147483647\n"))


async def _remove_device(device: str) -> None:
    """Delete this end of a link whose other end's namespace the kernel still takes apart."""
    with contextlib.suppress(OSError, InfrastructureError):  # it may go by itself at any moment
        socket.if_nametoindex(device)
        await run("ip", "link", "delete", device)


async def remove_namespace(namespace: str) -> None:
    """Delete the namespace; its end of the link, and so the whole link, goes with it."""
    if (NETNS / namespace).exists():
        await run("ip", "netns", "delete", namespace)


_libc = ctypes.CDLL(None, use_errno=True)


def inside(namespace: Path, make: Callable[[], T]) -> T:
    """Call `make` with this thread inside a network namespace; sockets made there stay there.

    `make` must not wait: everything else on this thread stands still meanwhile. Raises `OSError`
    when the namespace is gone.
    """
    with Path("/proc/thread-self/ns/net").open() as here, namespace.open() as there:
        _setns(there.fileno())
        try:
            return make()
        finally:
            _setns(here.fileno())


def _setns(fd: int) -> None:
    if _libc.setns(fd, 0x40000000) != 0:  # CLONE_NEWNET, setns(2)
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def tcp_socket() -> socket.socket:
    """A non-blocking TCP socket of the namespace that the thread is in."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def listener(port: int) -> socket.socket:
    """A socket that listens on loopback of the namespace that the thread is in."""
    made = tcp_socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(("127.0.0.1", port))
        made.listen(128)
    except OSError:
        made.close()
        raise
    return made
