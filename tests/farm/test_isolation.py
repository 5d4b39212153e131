"""Nobody gets out: from a build step, and as root in a guest, in a farm on a proving ground.

The whole farm runs in a namespace whose only way out is a world of the test's own. Whatever is to
be refused is first shown to answer, to the same probe, from the farm's own machine.
"""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from mayfly.build import ssh
from mayfly.host import network
from mayfly.host.record import read_record
from mayfly.stack import seaweed
from mayfly.wire import LeaseJson
from tests.farm import forge, probe
from tests.farm.conftest import Farm, running_farm
from tests.farm.rooted import as_root, root_the_newest
from tests.farm.test_runner import with_runner
from tests.proving_ground import (
    ALLOWED,
    FORBIDDEN,
    FORBIDDEN_V6,
    MACHINES_OWN,
    MACHINES_OWN_V6,
    OTHER_DNS,
    PORT,
    PUBLIC,
    REGISTRY_NAME,
    RESOLVER,
    Ground,
    answering,
    in_namespace,
    proving_ground,
)

pytestmark = [pytest.mark.vm, pytest.mark.services]

Target = tuple[str, str, int]
PYTHON = "/usr/bin/python3"
GATEWAY, NAME_SERVER, FILE_SERVER = "10.0.2.2", "10.0.2.3", "10.0.2.4"
"""Addresses that QEMU's user network plays itself, or leads to its own loopback."""
TFTP, SMB = 69, 445


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with proving_ground() as made:
        yield made


@pytest.fixture(scope="module")
def fenced(ground: Ground) -> Iterator[Farm]:
    """A farm on the proving ground, whose guests can be broken out of."""
    settings = {
        "MAYFLY_NETWORK__RESOLVERS": json.dumps([RESOLVER]),
        "MAYFLY_NETWORK__ALLOW": json.dumps([f"{ALLOWED}/32"]),
        # Nobody keeps a lease here: it has to last for as long as the probes.
        "MAYFLY_LEASE__GRACE_S": "300",
    }
    with running_farm(settings, ground.prefix, root_the_newest) as farm:
        yield farm


def kinds(address: str, port: int = PORT) -> list[Target]:
    """TCP, UDP and ICMP to an address."""
    return [("tcp", address, port), ("udp", address, port), ("icmp", address, 0)]


def dns(address: str) -> list[Target]:
    return [("dns", address, 53), ("dns-tcp", address, 53)]


def names(targets: list[Target]) -> set[str]:
    return {" ".join(map(str, target)) for target in targets}


def answered(found: dict[str, str]) -> set[str]:
    return {target for target, how in found.items() if how == "answers"}


OPEN = [
    *[("name", REGISTRY_NAME, PORT), ("tcp", REGISTRY_NAME, PORT)],
    *[*kinds(PUBLIC), *kinds(ALLOWED), *dns(RESOLVER)],
]
"""What a build reaches: a package registry by its name, what is configured, its resolver."""


def in_the_world() -> list[Target]:
    """What answers beyond the machine, and must not answer a build."""
    closed = [target for address in (*FORBIDDEN, *FORBIDDEN_V6) for target in kinds(address)]
    closed += [target for each in (PUBLIC, ALLOWED, OTHER_DNS) for target in dns(each)]
    return [*closed, *kinds(RESOLVER), *dns(FORBIDDEN[0]), *dns(FORBIDDEN_V6[0])]


def on_the_machine(neighbour: network.Link) -> list[Target]:
    """What answers on the machine at addresses that a guest could ask for."""
    mine = (MACHINES_OWN, MACHINES_OWN_V6, neighbour.host_address)
    return [target for address in mine for target in kinds(address)]


def on_loopback(farm: Farm) -> list[Target]:
    """What answers on the machine's loopback: a service of its own, the bucket, the API."""
    port = farm.config.server.port
    ports = (PORT, seaweed.ports(seaweed.folder(farm.config))["s3"])
    return [("tcp", "127.0.0.1", p) for p in ports] + [
        ("udp", "127.0.0.1", PORT),
        ("api", "127.0.0.1", port),
    ]


def closed_to(farm: Farm, neighbour: network.Link) -> list[Target]:
    """All that a guest must not reach, as a guest would address it."""
    closed = [*in_the_world(), *on_the_machine(neighbour)]
    for kind, _, port in on_loopback(farm):
        closed += [(kind, a, port) for a in (GATEWAY, NAME_SERVER, FILE_SERVER, MACHINES_OWN)]
    # The mapped form is IPv4 by another system call.
    closed += [("tcp", f"::ffff:{address}", PORT) for address in (FORBIDDEN[0], MACHINES_OWN)]
    closed += [("tcp", neighbour.guest_address, p) for p in (22, network.SSH_PORT, PORT)]
    closed += [("udp", neighbour.guest_address, PORT), ("icmp", neighbour.guest_address, 0)]
    closed += [("udp", "255.255.255.255", PORT), ("udp", "203.0.113.255", PORT)]
    closed += [("tcp", "0.0.0.0", PORT), ("udp", "224.0.0.251", PORT)]
    closed += [("udp", FILE_SERVER, TFTP), ("tcp", FILE_SERVER, SMB), ("tcp", "fec0::2", PORT)]
    return closed


def shown_to_answer(
    farm: Farm, ground: Ground, neighbour: network.Link, of_neighbour: list[Target]
) -> None:
    """All of it answers from where it may be asked for: to the machine, to the neighbour itself."""
    wanted = [*OPEN[2:], *in_the_world(), *on_the_machine(neighbour), *on_loopback(farm)]
    found = ground.on_machine(lambda: probe.attempts(wanted))
    assert answered(found) == names(wanted), found
    found = in_namespace(neighbour.namespace, lambda: probe.attempts(of_neighbour))
    assert answered(found) == names(of_neighbour), found


def nothing_else_left(ground: Ground) -> None:
    """What arrived in the world is what may, from the machine's address and no other."""
    reached = {line.partition(" > ")[2] for line in ground.seen}
    sources = {line.split()[1] for line in ground.seen}
    allowed = {f"{RESOLVER}:53", *(f"{a}{p}" for a in (PUBLIC, ALLOWED) for p in ("", f":{PORT}"))}
    assert reached == allowed
    assert sources == {MACHINES_OWN}


def of_its_own(farm: Farm, view: LeaseJson) -> network.Link:
    """The namespace of a lease's runner."""
    record = read_record(farm.config.state / "vms" / f"{view['id']}-1")
    assert record is not None
    return network.link(farm.config, record.slot)


def beside_a_neighbour(farm: Farm, ground: Ground, use: Any) -> None:
    """Call `use(neighbour's link)` while there is another runner and everything answers."""

    def run(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
        neighbour = of_its_own(farm, view)
        of_neighbour = [*kinds(neighbour.guest_address), ("tcp", "127.0.0.1", network.SSH_PORT)]
        with answering(ground.machine), answering(neighbour.namespace):
            shown_to_answer(farm, ground, neighbour, of_neighbour)
            ground.forget()
            use(neighbour)
            nothing_else_left(ground)
            found = in_namespace(neighbour.namespace, lambda: probe.attempts(of_neighbour))
            assert answered(found) == names(of_neighbour), "the neighbour has gone meanwhile"

    ground.on_machine(lambda: with_runner(farm, run))


def test_a_build_step_reaches_registries_and_nothing_of_the_site(
    fenced: Farm, ground: Ground, tmp_path: Path
) -> None:
    gateway = ("gateway", GATEWAY, fenced.config.server.port)

    def use(neighbour: network.Link) -> None:
        wanted = [*OPEN, gateway, *closed_to(fenced, neighbour)]
        context = tmp_path / "context"
        portable_python(context / "root")
        shutil.copy(probe.__file__, context / "probe.py")
        command = [PYTHON, "-I", "-S", "/probe.py", json.dumps(wanted), "/found.json"]
        (context / "Dockerfile").write_text(
            f"FROM scratch AS probe\nCOPY root/ /\nCOPY probe.py /\nRUN {json.dumps(command)}\n"
            "FROM scratch\nCOPY --from=probe /found.json /\n"
        )
        out = f"type=local,dest={tmp_path / 'out'}"
        fenced.mayfly(*fenced.build("team/probe", "-o", out, context))
        found = json.loads((tmp_path / "out/found.json").read_text())
        assert answered(found) == names([*OPEN, gateway]), found

    beside_a_neighbour(fenced, ground, use)


def test_root_in_a_guest_reaches_no_more_whatever_it_forges(fenced: Farm, ground: Ground) -> None:
    gateway = ("gateway", GATEWAY, fenced.config.server.port)

    def use(neighbour: network.Link) -> None:
        def attack(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
            def run(command: str) -> Any:
                runner = f"{view['id']}-1"
                return json.loads(fenced.inside(runner, key, relay.host_key, as_root(command)))

            closed = closed_to(fenced, neighbour)
            # A card with IPv6 and a way, whoever answers for it.
            for command in (
                "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6",
                "ip address add fec0::99/64 dev eth0 nodad",
                "ip route add default via fec0::2 dev eth0",
            ):
                run(f"{command} && echo 0")
            found = run(python(probe.__file__, [*OPEN, gateway, *closed]))
            assert answered(found) == names([*OPEN, gateway]), found

            raw = [target for target in OPEN if target[0] in ("tcp", "udp", "icmp")][1:]
            raw += [("tcp", RESOLVER, 53)]
            told = {
                "to": [*raw, *(forgeable(closed))],
                "from": ["10.0.2.99", MACHINES_OWN, neighbour.guest_address, "fec0::77"],
            }
            found = run(python(forge.__file__, told))
            assert set(found["answered"]) == names(raw), found

        with_runner(fenced, attack)

    beside_a_neighbour(fenced, ground, use)


def forgeable(targets: list[Target]) -> list[Target]:
    """The same destinations as far as a frame can name them, by protocol and port."""
    as_packets = {"dns": "udp", "dns-tcp": "tcp", "api": "tcp"}
    wanted = {(as_packets.get(kind, kind), address, port) for kind, address, port in targets}
    # The gateway's port at an address of QEMU's is the runner's own door, however it is called.
    return sorted(t for t in wanted if not t[1].startswith(("::ffff", "10.0.2.")))


def python(script: str, told: object) -> str:
    """A command that runs a script of ours in a guest."""
    code = base64.b64encode(Path(script).read_bytes()).decode()
    words = f"{PYTHON} -I -S /tmp/script.py {shlex.quote(json.dumps(told))}"
    return f"echo {code} | base64 -d > /tmp/script.py && {words}"


def portable_python(root: Path) -> None:
    """This machine's Python, with what the probe loads, as files for an image without a base."""
    use = "[('tcp', '127.0.0.1', 1), ('name', 'localhost', 1), ('gateway', '127.0.0.1', 1)]"
    code = f"""
import runpy, sys
runpy.run_path({probe.__file__!r})["attempts"]({use})
print("\\n".join(m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)))
"""
    modules = run_here(PYTHON, "-I", "-S", "-X", "frozen_modules=off", "-c", code).splitlines()
    binaries = [str(Path(PYTHON).resolve()), *(m for m in modules if m.endswith(".so"))]
    libraries = [
        word
        for line in run_here("ldd", *binaries).splitlines()
        for word in line.split()
        if word.startswith("/") and not word.endswith(":")
    ]
    for name in {PYTHON, *binaries, *modules, *libraries}:
        if name != probe.__file__:
            target = root / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target)
    stdlib = sysconfig.get_path("stdlib", vars={"installed_base": "/usr"})
    (root / stdlib.lstrip("/") / "lib-dynload").mkdir(parents=True, exist_ok=True)


def run_here(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True, timeout=60).stdout
