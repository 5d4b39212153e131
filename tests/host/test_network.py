"""The fence around a runner, on a machine and in a world of the test's own.

Probes go out from a runner's namespace as QEMU's would. Each of them is shown to be answered when
there is no fence, so that a silent one means that it was kept back.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from mayfly.config import Config, Network
from mayfly.errors import MachineUnfit
from mayfly.host import network, process
from mayfly.host.process import run
from tests import proving_ground
from tests.farm import probe
from tests.host.waiting import until
from tests.proving_ground import (
    ALLOWED,
    FORBIDDEN,
    FORBIDDEN_V6,
    MACHINES_OWN,
    MACHINES_OWN_V6,
    OTHER_DNS,
    PORT,
    PUBLIC,
    RESOLVER,
    Ground,
    answering,
    in_namespace,
    sh,
)

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

Target = tuple[str, str, int]


@pytest.fixture
def ground() -> Iterator[Ground]:
    """The thread of the test stands on "the machine"; the world is one hop away."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    with proving_ground.proving_ground() as ground:
        try:
            network._setns(os.open(network.NETNS / ground.machine, os.O_RDONLY))
            yield ground
        finally:
            network._setns(home)
            os.close(home)


def config(tmp_path: Path, resolver: str = RESOLVER, allow: tuple[str, ...] = ()) -> Config:
    allowed = (f"{ALLOWED}/32", *allow)
    return Config(state=tmp_path, network=Network(resolvers=(resolver,), allow=allowed))


def kinds(address: str, port: int = PORT) -> list[Target]:
    """TCP, UDP and ICMP to an address."""
    return [("tcp", address, port), ("udp", address, port), ("icmp", address, 0)]


def dns(address: str) -> list[Target]:
    return [("dns", address, 53), ("dns-tcp", address, 53)]


async def answered(namespace: str, targets: list[Target]) -> set[str]:
    """Those that answer to probes from inside `namespace`."""
    found = await asyncio.to_thread(in_namespace, namespace, lambda: probe.attempts(targets))
    return {target for target, how in found.items() if how == "answers"}


def names(targets: list[Target]) -> set[str]:
    return {" ".join(map(str, target)) for target in targets}


@asynccontextmanager
async def runners(
    settings: Config,
) -> AsyncIterator[tuple[network.Link, network.Link, network.Fence]]:
    """The namespaces of two runners, and the fence; all of it goes with the block."""
    around = network.Fence(settings)
    await around.open()
    try:
        links = network.link(settings, 0), network.link(settings, 1)
        for to in links:
            await network.make_namespace(settings, to, await network.surroundings(settings))
        yield *links, around
    finally:
        await network.close_machine(settings)


def take_away(settings: Config, link: network.Link, other: network.Link, fences: str) -> None:
    """Leave only the first fence, the second, both or none; give IPv6 a way out, as for IPv4."""
    if fences in ("second", "none"):
        for each in (link, other):
            sh("nsenter", f"--net={each.path}", "nft", "flush", "ruleset")
    if fences in ("first", "none"):
        sh("nft", "delete", "table", "inet", f"mayfly_{network.tag(settings)}")
    sh(
        *("ip", "-batch", "-"),
        stdin=f"address add fd00:f::1/64 dev {link.device} nodad\n",
    )
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1\n")
    sh(
        *("nsenter", f"--net={link.path}", "ip", "-batch", "-"),
        stdin="address add fd00:f::2/64 dev out nodad\nroute add default via fd00:f::1\n",
    )


@pytest.mark.parametrize("fences", ["none", "both", "first", "second"])
async def test_a_runner_reaches_the_world_and_nothing_of_the_site(
    ground: Ground, tmp_path: Path, fences: str
) -> None:
    settings = config(tmp_path)
    async with runners(settings) as (link, other, _):
        take_away(settings, link, other, fences)
        open_to_all = [*kinds(PUBLIC), *kinds(ALLOWED), *dns(RESOLVER)]
        closed = [target for address in FORBIDDEN for target in kinds(address)]
        closed += [target for address in FORBIDDEN_V6 for target in kinds(address)]
        closed += [target for each in (PUBLIC, ALLOWED, OTHER_DNS) for target in dns(each)]
        closed += [*kinds(RESOLVER), *dns(FORBIDDEN[0])]
        for address in (MACHINES_OWN, MACHINES_OWN_V6, link.host_address, other.host_address):
            closed += kinds(address)
        closed += kinds(other.guest_address)
        with answering(ground.machine), answering(other.namespace):
            ground.seen.clear()
            found = await answered(link.namespace, [*open_to_all, *closed])
        if fences == "none":
            assert found == names([*open_to_all, *closed]), "a probe cannot succeed"
        else:
            assert found == names(open_to_all)
            reached = {line.split(" > ")[1].partition(":")[0] for line in ground.seen}
            assert reached == {PUBLIC, ALLOWED, RESOLVER}


async def test_dns_at_the_machines_own_address_is_all_that_the_machine_answers(
    ground: Ground, tmp_path: Path
) -> None:
    settings = config(tmp_path, resolver=MACHINES_OWN)
    async with runners(settings) as (link, _, _):
        with answering(ground.machine, dns=True):
            wanted = [*dns(MACHINES_OWN), *kinds(MACHINES_OWN), *dns(link.host_address)]
            assert await answered(link.namespace, wanted) == names(dns(MACHINES_OWN))
            sh("nsenter", f"--net={link.path}", "nft", "flush", "ruleset")
            assert await answered(link.namespace, wanted) == names(dns(MACHINES_OWN))


@pytest.mark.parametrize(
    ("allow", "opens"), [(f"{MACHINES_OWN}/32", True), ("203.0.113.0/24", False)]
)
async def test_an_address_of_the_machine_is_opened_by_its_own_name_only(
    ground: Ground, tmp_path: Path, allow: str, opens: bool
) -> None:
    async with runners(config(tmp_path, allow=(allow,))) as (link, _, _):
        with answering(ground.machine):
            wanted = [("tcp", MACHINES_OWN, PORT), ("udp", MACHINES_OWN, PORT)]
            assert await answered(link.namespace, wanted) == (names(wanted) if opens else set())


async def test_an_address_that_the_machine_gets_later_is_closed_at_once(
    ground: Ground, tmp_path: Path
) -> None:
    later = "203.0.113.77"
    async with runners(config(tmp_path)) as (link, _, _):
        sh("ip", "address", "add", f"{later}/24", "dev", "uplink")
        with answering(ground.machine):
            assert await answered(ground.machine, kinds(later)) == names(kinds(later))
            assert await answered(link.namespace, kinds(later)) == set()


async def test_the_fence_follows_the_machine(ground: Ground, tmp_path: Path) -> None:
    """A machine whose DNS server changes: new runners have the new one, and only that."""
    settings = config(tmp_path)
    async with runners(settings) as (link, _, around):
        changed = replace(await network.surroundings(settings), resolvers=(OTHER_DNS,))
        await around.follow(changed)
        await network.make_namespace(settings, link, changed)
        wanted = [*dns(RESOLVER), *dns(OTHER_DNS)]
        assert await answered(link.namespace, wanted) == names(dns(OTHER_DNS))


async def test_what_the_machine_redirects_is_a_service_of_the_machine(
    ground: Ground, tmp_path: Path
) -> None:
    """A published port and a virtual DNS address, as containers and clusters have them."""
    published, virtual_dns = "203.0.113.99", "10.96.0.10"
    settings = config(tmp_path, resolver=virtual_dns)
    async with runners(settings) as (link, other, _):
        sh(
            *("nft", "-f", "-"),
            stdin=f"""
table ip elsewhere {{
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    ip daddr {published} tcp dport 80 dnat to {FORBIDDEN[0]}:{PORT}
    ip daddr {virtual_dns} meta l4proto {{ tcp, udp }} th dport 53 dnat to {RESOLVER}
  }}
}}
""",
        )
        wanted = [("tcp", published, 80), *dns(virtual_dns)]
        assert await answered(link.namespace, wanted) == names(dns(virtual_dns))
        take_away(settings, link, other, "none")
        assert await answered(link.namespace, wanted[:1]) == names(wanted[:1])


async def test_answers_of_routers_come_in(ground: Ground, tmp_path: Path) -> None:
    """Path MTU discovery: a smaller link behind the machine, and a datagram that does not fit."""
    async with runners(config(tmp_path)) as (link, _, _):
        sh("ip", "route", "add", f"{ALLOWED}/32", "via", PUBLIC, "mtu", "600")

        def learns() -> bool:
            return probe.path_mtu(ALLOWED, PORT, 1400) == 600

        assert await asyncio.to_thread(in_namespace, link.namespace, learns)


async def test_without_nftables_there_are_no_runners(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "ip").symlink_to("/usr/sbin/ip")
    monkeypatch.setattr(process, "PATH", str(tools))
    network.FORWARD.write_text("0\n")
    with pytest.raises(MachineUnfit, match="no nftables"):
        await network.Fence(config(tmp_path)).open()
    assert network.FORWARD.read_text() == "0\n"
    (tools / "nft").write_text("#!/bin/sh\necho Error: Operation not supported >&2; exit 1\n")
    (tools / "nft").chmod(0o755)
    with pytest.raises(MachineUnfit, match="Operation not supported"):
        await network.Fence(config(tmp_path)).open()


def test_what_a_machine_lacks_is_said_without_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not list(network.faults(config(tmp_path)))
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nnameserver not-an-address\n")
    of_nobody = partial(network.resolvers, resolv_conf=tmp_path / "resolv.conf")
    monkeypatch.setattr(network, "resolvers", of_nobody)
    monkeypatch.setattr(network, "UPSTREAM", tmp_path / "missing")
    said = [str(fault) for fault in network.faults(Config(state=tmp_path))]
    assert [line.split()[0] for line in said[:3]] == ["ip", "nft", "nsenter"]
    assert "set network.resolvers" in said[3]


async def test_the_last_installation_restores_forwarding(ground: Ground, tmp_path: Path) -> None:
    one, other = config(tmp_path / "one"), config(tmp_path / "other")
    network.FORWARD.write_text("0\n")
    await network.Fence(one).open()
    await network.Fence(other).open()
    await network.close_machine(one)
    assert network.FORWARD.read_text() == "1\n"
    await network.close_machine(other)
    assert network.FORWARD.read_text() == "0\n"


async def test_a_link_that_is_not_gone_yet_is_in_nobodys_way(
    ground: Ground, tmp_path: Path
) -> None:
    """The kernel takes a deleted namespace apart later, and its end of the link with it."""
    settings = config(tmp_path)
    link = network.link(settings, 0)
    await run("ip", "link", "add", link.device, "type", "veth")
    await network.make_namespace(settings, link, await network.surroundings(settings))
    await network.remove_namespace(link.namespace)


async def test_closing_leaves_the_machine_as_it_was(ground: Ground, tmp_path: Path) -> None:
    settings = config(tmp_path)
    network.FORWARD.write_text("0\n")

    def state() -> str:
        names = sorted(network.NETNS.glob(f"mayfly-{network.tag(settings)}-*"))
        links = sh("ip", "-br", "link")
        return f"{sh('nft', 'list', 'ruleset')}{links}{names}{network.FORWARD.read_text()}"

    before = state()
    await network.Fence(settings).open()
    await network.Fence(settings).open()
    link = network.link(settings, 3)
    await network.make_namespace(settings, link, await network.surroundings(settings))
    assert state() != before
    await network.close_machine(settings)
    await until(lambda: state() == before)  # the kernel takes its time with a link's other end
    await network.close_machine(settings)
    assert state() == before


def test_slots_never_share_an_address(tmp_path: Path) -> None:
    settings = config(tmp_path)
    links = [network.link(settings, slot) for slot in range(180)]
    for attribute in ("namespace", "device", "host_address", "guest_address"):
        assert len({getattr(to, attribute) for to in links}) == 180
    assert all(len(to.device) <= 15 for to in links)


def test_stub_resolvers_are_looked_through(tmp_path: Path) -> None:
    stub = tmp_path / "resolv.conf"
    stub.write_text("nameserver 127.0.0.53\nnameserver 192.0.2.53\nnameserver ::1\n")
    assert network.resolvers(Config(state=tmp_path), stub) == ("192.0.2.53",)
