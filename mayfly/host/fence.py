"""What a runner may reach, as nftables rules: the first fence in its namespace, the second outside.

Pure. Both are made from one `Reach`, so that what one refuses the other refuses too. The first
sees the destinations of QEMU's own connections; the second holds when the first is gone, knows what
this machine redirects elsewhere, and does the address translation.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mayfly.config import Network

BOGONS = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/3"),
)
"""What a build has no business to reach (IANA's IPv4 special-purpose registry, RFC 6890, without
the documentation ranges: nothing is there on the internet, and sites are known to use them)."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the rules must know of this machine at the moment: its addresses and resolvers."""

    addresses: tuple[str, ...]
    resolvers: tuple[str, ...]
    mtu: int


@dataclass(frozen=True, slots=True)
class Reach:
    """What runners may reach, as IPv4 addresses and networks.

    In the order in which it is decided: DNS to `resolvers` and no other DNS; the single addresses
    that are `named`, this machine's too; nothing at this machine's `own` ones; the other `allowed`
    networks; nothing of `BOGONS`; everything else. `subnet` is where the runners' links are.
    """

    resolvers: tuple[str, ...]
    named: tuple[str, ...]
    own: tuple[str, ...]
    allowed: tuple[str, ...]
    subnet: str


def reach(configured: Network, around: Surroundings) -> Reach:
    """What the configuration allows in these surroundings. No network is in a list twice.

    A network that is allowed opens no address of this machine that happens to be in it: that takes
    the address itself.
    """
    networks = [ipaddress.IPv4Network(n) for n in configured.allow]
    return Reach(
        resolvers=_collapsed(around.resolvers),
        named=_collapsed(str(n) for n in networks if n.prefixlen == 32),
        own=_collapsed([*around.addresses, configured.subnet]),
        allowed=_collapsed(str(n) for n in networks if n.prefixlen < 32),
        subnet=configured.subnet,
    )


def _collapsed(networks: Iterable[str]) -> tuple[str, ...]:
    """The same addresses in as few networks as possible: nft refuses sets that overlap."""
    found = ipaddress.collapse_addresses(ipaddress.IPv4Network(n) for n in networks)
    return tuple(str(n.network_address if n.prefixlen == 32 else n) for n in found)


def guest_rules(to: Reach) -> str:
    """The first fence, inside a VM's namespace: nothing but what is named here leaves it.

    What is refused is told so at once. Nothing comes in but answers, and the ICMP that belongs to
    them (path MTU discovery needs it).
    """
    return f"""
table inet mayfly {{
  chain output {{
    type filter hook output priority 0; policy drop;
    oifname "lo" accept
    ct state established accept
    meta nfproto != ipv4 reject
    {_lines(_decisions(to, "ip daddr", "th dport", "reject"))}
  }}
  chain input {{
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established accept
    ct state related meta l4proto icmp accept
  }}
  chain forward {{
    type filter hook forward priority 0; policy drop;
  }}
}}
"""


def machine_rules(table: str, devices: str, to: Reach) -> str:
    """The second fence, on this machine, for every link whose name begins with `devices`.

    It drops in silence: what comes here has passed the first fence, or there is none any more.
    What is accepted is still subject to the machine's own firewall. Where the machine redirects
    connections (a container's published port, a cluster's service), the destination that was
    asked for decides about what is accepted, and everything else that is redirected is a service
    of this machine.
    """
    asked, port = "ct original ip daddr", "ct original proto-dst"
    return f"""
table inet {table} {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname "{devices}*" goto to_machine
  }}
  chain to_machine {{
    meta nfproto != ipv4 drop
    ip saddr != {to.subnet} drop
    ct state invalid,untracked drop
    {_lines([_dns(to, asked, port), *_named(to, asked)])}
    drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{devices}*" goto from_runner
    oifname "{devices}*" ct state established,related accept
    oifname "{devices}*" drop
  }}
  chain from_runner {{
    oifname "{devices}*" drop
    meta nfproto != ipv4 drop
    ip saddr != {to.subnet} drop
    ct state invalid,untracked drop
    ct state established accept
    {_lines(_decisions(to, asked, port, "drop", "ct status dnat drop"))}
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {to.subnet} oifname != "{devices}*" masquerade
  }}
}}
"""


def _decisions(to: Reach, address: str, port: str, refuse: str, *rest: str) -> Iterator[str]:
    """One rule for each of `Reach`'s decisions; `rest` goes before what nobody named."""
    yield f"meta l4proto != {{ tcp, udp, icmp }} {refuse}"
    yield _dns(to, address, port)
    yield f"meta l4proto {{ tcp, udp }} {port} 53 {refuse}"
    yield from _named(to, address)
    yield f"{address} {_set(to.own)} {refuse}"
    if to.allowed:
        yield f"{address} {_set(to.allowed)} accept"
    yield from rest
    yield f"{address} {_set(BOGONS)} {refuse}"
    yield "accept"


def _dns(to: Reach, address: str, port: str) -> str:
    return f"meta l4proto {{ tcp, udp }} {address} {_set(to.resolvers)} {port} 53 accept"


def _named(to: Reach, address: str) -> Iterator[str]:
    if to.named:
        yield f"{address} {_set(to.named)} accept"


def _set(elements: Sequence[str]) -> str:
    return f"{{ {', '.join(elements)} }}"


def _lines(rules: Iterable[str]) -> str:
    return "\n    ".join(rules)
