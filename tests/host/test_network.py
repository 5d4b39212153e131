"""The fence around a runner, in namespaces of the test's own: a broken rule leaks nothing.

    runner's namespace -- veth -- "the machine" (a namespace) -- veth -- "the world" (a namespace)

The world answers at a public address and at addresses that a build has no business to reach; each
is shown to answer from the machine first.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.config import Config, Network
from mayfly.host import network
from mayfly.host.process import run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

MACHINE, WORLD = f"mftest-m{os.getpid()}", f"mftest-w{os.getpid()}"
PUBLIC = "203.0.113.10"
RESOLVER = "10.9.9.53"
ALLOWED = "10.8.8.8"
FORBIDDEN = ("10.9.9.9", "172.16.3.3", "192.168.7.7", "100.64.1.1", "169.254.169.254")
MACHINES_OWN = "203.0.113.1"


def sh(*argv: str, stdin: str = "") -> None:
    subprocess.run(argv, check=True, input=stdin, text=True, timeout=20)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The thread of the test stands inside "the machine"; the world is one hop away."""
    monkeypatch.setattr(network, "FORWARD_BEFORE", tmp_path / "before")
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        sh("ip", "netns", "add", MACHINE)
        sh("ip", "netns", "add", WORLD)
        sh(
            *("ip", "-n", MACHINE, "-batch", "-"),
            stdin=f"""\
link set lo up
link add uplink type veth peer name out netns {WORLD}
address add {MACHINES_OWN}/24 dev uplink
link set uplink up
route add default via {PUBLIC}
""",
        )
        addresses = "\n".join(f"address add {a}/32 dev lo" for a in (*FORBIDDEN, ALLOWED, RESOLVER))
        sh(
            *("ip", "-n", WORLD, "-batch", "-"),
            stdin=f"""\
link set lo up
address add {PUBLIC}/24 dev out
link set out up
{addresses}
""",
        )
        network._setns(os.open(network.NETNS / MACHINE, os.O_RDONLY))
        yield
    finally:
        network._setns(home)
        os.close(home)
        for name in (MACHINE, WORLD):
            subprocess.run(["ip", "netns", "delete", name], check=False)


def config(tmp_path: Path) -> Config:
    return Config(
        state=tmp_path,
        network=Network(resolvers=(RESOLVER,), allow=(f"{ALLOWED}/32",)),
    )


def server(namespace: str, address: str, port: int) -> socket.socket:
    def make() -> socket.socket:
        made = network.tcp_socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(8)
        return made

    return network.inside(network.NETNS / namespace, make)


async def answers(namespace: str, address: str, port: int) -> bool:
    """Whether a TCP connection from inside `namespace` is taken."""
    with network.inside(network.NETNS / namespace, network.tcp_socket) as made:
        try:
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(made, (address, port)), 1.5)
        except (OSError, TimeoutError):
            return False
        return True


async def test_a_runner_reaches_the_world_and_nothing_of_the_site(
    machine: None, tmp_path: Path
) -> None:
    settings = config(tmp_path)
    await network.open_machine(settings)
    link, other = network.link(settings, 0), network.link(settings, 1)
    around = await network.surroundings(settings)
    assert MACHINES_OWN in around.addresses
    for to in (link, other):
        await network.make_namespace(settings, to, around)
    servers = [server(WORLD, a, 80) for a in (PUBLIC, ALLOWED, *FORBIDDEN)]
    servers += [server(WORLD, RESOLVER, 53), server(WORLD, RESOLVER, 80)]
    servers += [server(MACHINE, "0.0.0.0", 80), server(other.namespace, "0.0.0.0", 80)]
    try:
        for address in (PUBLIC, ALLOWED, *FORBIDDEN, MACHINES_OWN, link.host_address):
            namespace = WORLD if address in (*FORBIDDEN, ALLOWED) else MACHINE
            assert await answers(namespace, address, 80), f"{address} answers nobody"

        assert await answers(link.namespace, PUBLIC, 80)
        assert await answers(link.namespace, ALLOWED, 80)
        assert await answers(link.namespace, RESOLVER, 53)
        assert not await answers(link.namespace, RESOLVER, 80)
        for address in (*FORBIDDEN, MACHINES_OWN, link.host_address, other.guest_address):
            assert not await answers(link.namespace, address, 80), f"{address} answers a runner"
    finally:
        for made in servers:
            made.close()
        await network.close_machine(settings)


async def test_the_machines_side_holds_when_a_runners_own_rules_are_gone(
    machine: None, tmp_path: Path
) -> None:
    settings = config(tmp_path)
    await network.open_machine(settings)
    link, other = network.link(settings, 0), network.link(settings, 1)
    around = await network.surroundings(settings)
    for to in (link, other):
        await network.make_namespace(settings, to, around)
        sh("nsenter", f"--net={to.path}", "nft", "flush", "ruleset")
    servers = [server(MACHINE, "0.0.0.0", 80), server(other.namespace, "0.0.0.0", 80)]
    try:
        for address in (MACHINES_OWN, link.host_address, other.guest_address):
            assert not await answers(link.namespace, address, 80), f"{address} answers a runner"
    finally:
        for made in servers:
            made.close()
        await network.close_machine(settings)


async def test_the_last_installation_restores_forwarding(machine: None, tmp_path: Path) -> None:
    one, other = config(tmp_path / "one"), config(tmp_path / "other")
    network.FORWARD.write_text("0\n")
    await network.open_machine(one)
    await network.open_machine(other)
    await network.close_machine(one)
    assert network.FORWARD.read_text() == "1\n"
    await network.close_machine(other)
    assert network.FORWARD.read_text() == "0\n"


async def test_a_link_that_is_not_gone_yet_is_in_nobodys_way(machine: None, tmp_path: Path) -> None:
    """The kernel takes a deleted namespace apart later, and its end of the link with it."""
    settings = config(tmp_path)
    link = network.link(settings, 0)
    await run("ip", "link", "add", link.device, "type", "veth")
    await network.make_namespace(settings, link, await network.surroundings(settings))
    await network.remove_namespace(link.namespace)


async def test_closing_leaves_the_machine_as_it_was(machine: None, tmp_path: Path) -> None:
    settings = config(tmp_path)
    network.FORWARD.write_text("0\n")

    def state() -> str:
        def output(*argv: str) -> str:
            return subprocess.run(argv, check=True, capture_output=True, text=True).stdout

        names = sorted(path.name for path in network.NETNS.iterdir())
        links = output("ip", "-br", "link")
        return f"{output('nft', 'list', 'ruleset')}{links}{names}{network.FORWARD.read_text()}"

    before = state()
    await network.open_machine(settings)
    await network.open_machine(settings)
    link = network.link(settings, 3)
    await network.make_namespace(settings, link, await network.surroundings(settings))
    assert state() != before
    await network.close_machine(settings)
    await asyncio.sleep(0.2)
    assert state() == before
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
