"""A network namespace for each VM, and the rules that keep a build away from this machine.

QEMU runs inside the namespace; its user-mode network turns the guest's packets into connections
of the QEMU process, so that the rules of the namespace's output chain see the true destination
whatever the guest forges. A veth pair is the only way out. The table on the machine's side is the
second fence and does the address translation.
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
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mayfly.config import Config
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.host.process import run

NETNS = Path("/run/netns")
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
FORWARD_BEFORE = Path("/run/mayfly-ip_forward.before")
"""What ip_forward was before the first of this machine's installations started."""

BOGONS = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
)
"""What a build has no business to reach (IANA's IPv4 special-purpose registry, RFC 6890, without
the documentation ranges: nothing is there on the internet, and sites are known to use them)."""

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
        device=f"mf{tag(config)}{slot}",
        host_address=str(ipaddress.IPv4Address(base + 1)),
        guest_address=str(ipaddress.IPv4Address(base + 2)),
    )


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules must know of this machine at the moment: its addresses and resolvers."""

    addresses: tuple[str, ...]
    resolvers: tuple[str, ...]
    mtu: int


async def surroundings(config: Config) -> Surroundings:
    """Read the machine's IPv4 addresses, the MTU of its way out, and its DNS servers."""
    links = json.loads(await run("ip", "-j", "-4", "addr"))
    addresses = [a["local"] for item in links for a in item.get("addr_info", []) if "local" in a]
    route = json.loads(await run("ip", "-j", "-4", "route", "show", "default"))
    out = {item.get("dev") for item in route}
    mtu = min([item["mtu"] for item in links if item["ifname"] in out], default=1500)
    return Surroundings(tuple(sorted(set(addresses))), resolvers(config), mtu)


def resolvers(config: Config, resolv_conf: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """DNS servers that a runner can use: configured, or this machine's own that are not loopback.

    A stub resolver on loopback (systemd-resolved) is looked through to its upstream file.
    Raises `MachineUnfit` when none is found.
    """
    if config.network.resolvers:
        return config.network.resolvers
    for path in (resolv_conf, Path("/run/systemd/resolve/resolv.conf")):
        text = path.read_text() if path.exists() else ""
        found = [m[1] for m in re.finditer(r"^\s*nameserver\s+([0-9.]+)\s*$", text, re.M)]
        usable = tuple(a for a in found if not ipaddress.ip_address(a).is_loopback)
        if usable:
            return usable
    raise MachineUnfit(
        f"{resolv_conf} names no DNS server that a runner could use",
        hint="set network.resolvers",
    )


def guest_rules(around: Surroundings, allow: Sequence[str], bogons: Sequence[str] = BOGONS) -> str:
    """nftables rules inside a VM's namespace: nothing but what is named here leaves it."""
    exceptions = f"ip daddr {{ {', '.join(allow)} }} accept" if allow else ""
    refused = ", ".join([*bogons, *(a for a in around.addresses if not _within(a, bogons))])
    names = ", ".join(around.resolvers)
    return f"""
table inet mayfly {{
  chain output {{
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    ct state established,related accept
    ip daddr {{ {names} }} udp dport 53 accept
    ip daddr {{ {names} }} tcp dport 53 accept
    {exceptions}
    meta nfproto ipv6 reject
    ip daddr {{ {refused} }} reject
    accept
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established,related accept
    icmp type {{ destination-unreachable, time-exceeded }} accept
  }}
}}
"""


def _within(address: str, networks: Sequence[str]) -> bool:
    ip = ipaddress.ip_address(address)
    return any(ip in ipaddress.ip_network(n) for n in networks)


def host_rules(table: str, devices: str, subnet: str) -> str:
    """nftables rules of the machine: runners are translated outwards and reach nothing of ours."""
    return f"""
table inet {table} {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{devices}*" drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{devices}*" oifname "{devices}*" drop
    iifname "{devices}*" ip saddr != {subnet} drop
    iifname "{devices}*" meta nfproto ipv6 drop
    oifname "{devices}*" ct state established,related accept
    oifname "{devices}*" drop
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {subnet} oifname != "{devices}*" masquerade
  }}
}}
"""


async def open_machine(config: Config) -> None:
    """Install this installation's table and let packets through; what was there is kept on file.

    Idempotent. `close_machine` undoes it.
    """
    if not FORWARD_BEFORE.exists():
        FORWARD_BEFORE.write_text(FORWARD.read_text())
    FORWARD.write_text("1\n")
    table = f"mayfly_{tag(config)}"
    rules = host_rules(table, f"mf{tag(config)}", config.network.subnet)
    await run("nft", "-f", "-", stdin=f"table inet {table}\ndelete table inet {table}\n{rules}")


async def close_machine(config: Config) -> None:
    """Take away the table and every namespace of this installation.

    ip_forward is as it was once no other installation on this machine needs it. Idempotent.
    """
    if NETNS.is_dir():
        for path in sorted(NETNS.glob(f"mayfly-{tag(config)}-*")):
            await remove_namespace(path.name)
    table = f"mayfly_{tag(config)}"
    await run("nft", "-f", "-", stdin=f"table inet {table}\ndelete table inet {table}\n")
    others = "table inet mayfly_" in await run("nft", "list", "tables")
    if FORWARD_BEFORE.exists() and not others:
        FORWARD.write_text(FORWARD_BEFORE.read_text())
        FORWARD_BEFORE.unlink()


async def make_namespace(config: Config, to: Link, around: Surroundings) -> None:
    """Make a VM's namespace with its link and rules. Half-made ones are removed by the caller.

    One that is there already is what an interrupted command left, and goes first.
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
            stdin=guest_rules(around, config.network.allow),
        ),
    )


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
