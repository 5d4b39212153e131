"""Another firewall that stands in the way is named, and what is advised opens it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from mayfly.host import forwarding
from mayfly.host.network import devices
from tests.host.test_network import answered, config, ground, kinds, names, runners
from tests.proving_ground import PUBLIC, Ground, sh

__all__ = ["ground"]

DOCKER = """
table ip filter {
  chain DOCKER-USER {
  }
  chain FORWARD {
    type filter hook forward priority 0; policy drop;
    jump DOCKER-USER
    oifname "docker0" ct state established,related accept
    iifname "docker0" accept
  }
}
"""
LAST_RULE = """
table inet site {
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname "eth7" accept
    counter reject with icmpx admin-prohibited
  }
}
"""
OPEN = """
table inet site {
  chain forward {
    type filter hook forward priority 0; policy drop;
    counter accept
  }
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
  }
}
"""


@pytest.mark.parametrize(
    ("firewall", "chain"), [(DOCKER, "ip filter FORWARD"), (LAST_RULE, "inet site forward")]
)
async def test_a_firewall_in_the_way_is_named_and_the_advice_opens_it(
    ground: Ground, tmp_path: Path, firewall: str, chain: str
) -> None:
    settings = config(tmp_path)
    async with runners(settings) as (link, _, _):
        sh("nft", "-f", "-", stdin=firewall)
        assert await answered(link.namespace, kinds(PUBLIC)) == set()
        (obstacle,) = await forwarding.obstacles(settings)
        assert obstacle.chain == chain
        sh(*shlex.split(obstacle.mend))
        assert await forwarding.obstacles(settings) == ()
        assert await answered(link.namespace, kinds(PUBLIC)) == names(kinds(PUBLIC))
        if firewall is DOCKER:
            assert "iifname" in sh("nft", "list", "chain", "ip", "filter", "DOCKER-USER")


async def test_a_firewall_that_is_not_in_the_way_is_left_alone(
    ground: Ground, tmp_path: Path
) -> None:
    settings = config(tmp_path)
    async with runners(settings) as (link, _, _):
        sh("nft", "-f", "-", stdin=OPEN)
        assert await forwarding.obstacles(settings) == ()
        assert await answered(link.namespace, kinds(PUBLIC)) == names(kinds(PUBLIC))


def test_the_older_firewall_is_read_too(tmp_path: Path) -> None:
    prefix = devices(config(tmp_path))
    (obstacle,) = forwarding.closed_legacy("-P FORWARD DROP\n-A FORWARD -i x -j ACCEPT\n", prefix)
    assert prefix in obstacle.mend
    assert not list(forwarding.closed_legacy("-P FORWARD ACCEPT\n", prefix))
    told = f"-P FORWARD DROP\n-A FORWARD -i {prefix}+ -j ACCEPT\n"
    assert not list(forwarding.closed_legacy(told, prefix))


def test_no_ruleset_is_no_obstacle() -> None:
    nothing: dict[str, Any] = json.loads('{"nftables": [{"metainfo": {"version": "1.0.6"}}]}')
    assert not list(forwarding.closed(nothing, "mf"))
