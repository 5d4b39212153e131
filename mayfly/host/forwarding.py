"""Whether this machine's own firewall lets through what runners send out.

A packet must be accepted in every table, so no rule of Mayfly's can help where another firewall
(Docker's, ufw's, firewalld's) drops what it does not know. This finds such a one and says what
to tell it; the decision is the operator's.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mayfly.config import Config
from mayfly.errors import InfrastructureError
from mayfly.host.network import devices
from mayfly.host.process import PATH, run

LETS_OTHERS_IN = "DOCKER-USER"
"""Docker's chain for other people's rules: unlike FORWARD's own it survives Docker's restart."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A firewall chain that drops runners' packets: its name for a person, and what mends it."""

    chain: str
    mend: str


async def obstacles(config: Config) -> tuple[Obstacle, ...]:
    """What of this machine's firewall stands in the way of this installation's runners.

    Changes nothing. Needs root. Raises `InfrastructureError` when nft fails, `FileNotFoundError`
    when it is not there.
    """
    found = list(closed(json.loads(await run("nft", "-j", "list", "ruleset")), devices(config)))
    if shutil.which("iptables-legacy", path=PATH) is not None:
        with suppress(InfrastructureError):  # a kernel without them has none of their rules
            rules = await run("iptables-legacy", "-S", "FORWARD")
            found += closed_legacy(rules, devices(config))
    return tuple(found)


def closed(ruleset: Mapping[str, Any], prefix: str) -> Iterator[Obstacle]:
    """The chains for forwarded IPv4 that drop in the end and know nothing of our links. Pure.

    `ruleset` is what `nft -j list ruleset` prints, `prefix` what our links' names begin with. A
    chain drops in the end by its policy, or by a last rule without a condition.
    """
    items = ruleset.get("nftables", [])
    chains = [item["chain"] for item in items if "chain" in item]
    rules = [item["rule"] for item in items if "rule" in item]
    for chain in chains:
        if chain.get("hook") != "forward" or chain["family"] not in ("ip", "inet"):
            continue
        if chain["table"].startswith("mayfly_"):
            continue
        own = [r for r in rules if _place(r) == (*_place(chain)[:2], chain["name"])]
        beside = [r for r in rules if _place(r)[:2] == _place(chain)[:2]]
        if not _drops(chain, [rule["expr"] for rule in own]):
            continue
        if any(prefix in json.dumps(rule["expr"]) for rule in beside):
            continue
        inside = (c["name"] for c in chains if _place(c)[:2] == _place(chain)[:2])
        into = LETS_OTHERS_IN if LETS_OTHERS_IN in inside else chain["name"]
        where = f"{chain['family']} {chain['table']} {into}"
        yield Obstacle(
            f"{chain['family']} {chain['table']} {chain['name']}",
            f'nft \'insert rule {where} iifname "{prefix}*" accept; '
            f'insert rule {where} oifname "{prefix}*" ct state established,related accept\'',
        )


def closed_legacy(rules: str, prefix: str) -> Iterator[Obstacle]:
    """The same for what `iptables-legacy -S FORWARD` prints, which nft does not show. Pure."""
    if "-P FORWARD DROP" in rules and f" {prefix}+" not in rules:
        yield Obstacle(
            "FORWARD (iptables-legacy)",
            f"iptables-legacy -I FORWARD -i {prefix}+ -j ACCEPT; iptables-legacy -I FORWARD "
            f"-o {prefix}+ -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT",
        )


def _place(item: Mapping[str, Any]) -> tuple[str, str, str]:
    """Family, table and chain of a rule, or of a chain (which has a name instead)."""
    return item["family"], item["table"], item.get("chain", "")


def _drops(chain: Mapping[str, Any], rules: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether a packet that no condition fits is dropped."""
    for expressions in rules:
        verdicts = [e for e in expressions if "counter" not in e and "xt" not in e]
        if len(verdicts) == 1:
            if "accept" in verdicts[0]:
                return False
            if "drop" in verdicts[0] or "reject" in verdicts[0]:
                return True
    return bool(chain.get("policy") == "drop")
