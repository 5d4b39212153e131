"""What a runner is: nobody's twin, its own size, closed to everyone but its lease's holder."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from mayfly import client, golden, ladder
from mayfly.build import ssh
from mayfly.errors import Denied, InfrastructureError, NotFound, UsageError
from mayfly.model import GIB, LeaseRequest, Outcome
from mayfly.vm.client import ControlClient
from mayfly.wire import LeaseJson
from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]


@asynccontextmanager
async def leased(
    farm: Farm, key: asyncssh.SSHKey, size: str = "t2"
) -> AsyncIterator[tuple[LeaseJson, ssh.Relay]]:
    """A lease that is ready, kept alive and ended."""
    request = LeaseRequest(
        repo="team/runner", ssh_public_key=key.export_public_key().decode().strip(), size=size
    )
    async with client.from_environment(farm.config, farm.env) as api:
        asked = await api.ask(request, "")
        holder = api.holding(asked["token"])
        alive = asyncio.create_task(beat(holder, asked["id"]))
        try:
            view = await holder.lease(asked["id"], wait_s=25, since="creating")
            while view["state"] != "ready":
                assert view["state"] in ("queued", "creating"), view["reason"]
                view = await holder.lease(asked["id"], wait_s=5, since=view["state"])
            yield view, ssh.relay_of(view, api.tls)
        finally:
            alive.cancel()
            await holder.end(asked["id"], Outcome.CANCELLED)


async def beat(holder: client.Client, lease: str) -> None:
    """Heartbeats, until cancelled."""
    while True:
        with suppress(InfrastructureError):  # one that is late is not the last
            await holder.heartbeat(lease)
        await asyncio.sleep(1)


def with_runner(
    farm: Farm, use: Callable[[LeaseJson, ssh.Relay, asyncssh.SSHKey], Any], size: str = "t2"
) -> Any:
    """Run `use` (in a thread) on a runner of its own."""
    key = ssh.new_key()

    async def run() -> Any:
        async with leased(farm, key, size) as (view, relay):
            return await asyncio.to_thread(use, view, relay, key)

    return asyncio.run(run())


FACTS = """\
cat /etc/machine-id; hostname; head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
cat /proc/sys/kernel/random/boot_id
unshare --map-root-user --pid --fork --mount-proc cat /proc/sys/kernel/random/boot_id
date +%s.%N; nproc; awk '/MemTotal/ {print $2}' /proc/meminfo
df -B1 --output=size /scratch | tail -1
"""
OWN = ("machine_id", "hostname", "random", "boot_id", "boot_id_in_a_container", "host_key")
"""What no two clones share. A container's /proc is a new one, over which nothing is mounted."""


async def facts(farm: Farm) -> dict[str, Any]:
    """What a fresh runner says of itself, and between which moments its clock said so."""
    key = ssh.new_key()
    async with leased(farm, key) as (view, relay):
        before = time.time()
        runner = f"{view['id']}-1"
        said = await asyncio.to_thread(farm.inside, runner, key, relay.host_key, FACTS)
        after = time.time()
    names = (*OWN[:-1], "clock", "cpus", "memory", "disk")
    assert len(said.split()) == len(names), said
    found: dict[str, Any] = dict(zip(names, said.split(), strict=True))
    return found | {"host_key": relay.host_key, "before": before, "after": after}


def test_ten_pairs_of_clones_have_nothing_in_common_and_the_right_time(farm: Farm) -> None:
    async def pair() -> tuple[dict[str, Any], dict[str, Any]]:
        return await asyncio.gather(facts(farm), facts(farm))

    clones = [clone for _ in range(10) for clone in asyncio.run(pair())]
    for name in OWN:
        assert len({clone[name] for clone in clones}) == 20, name
    for clone in clones:
        assert clone["boot_id"] == clone["boot_id_in_a_container"]
        assert clone["before"] - 2 <= float(clone["clock"]) <= clone["after"] + 2


SECRETS = (
    re.compile(rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----\r?\n[A-Za-z0-9+/=]{16}"),
    # What stands in an OpenSSH key's base64: its name, and that it has no passphrase.
    re.compile(rb"openssh-key-v1\x00\x00\x00\x00\x04none\x00\x00\x00\x04none"),
    re.compile(base64.b64encode(b"openssh-key-v1\0\0\0\0\4none").rstrip(b"=")[:-1]),
    # An ed25519 or P-256 key in DER (RFC 8410, RFC 5915).
    re.compile(rb"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"),
    re.compile(rb"\x30\x77\x02\x01\x01\x04\x20.{32}\xa0\x0a\x06\x08", re.DOTALL),
)


def secrets(file: Path) -> list[str]:
    """Private keys in a file of any size, holes left out."""
    found = []
    for data in pieces(file):
        found += [f"{file.name}: {m[0][:40]!r}" for kind in SECRETS for m in kind.finditer(data)]
    return found


def pieces(file: Path, size: int = 64 << 20) -> Iterator[bytes]:
    """The data of a sparse file, in pieces that overlap a little."""
    with file.open("rb") as content:
        end = content.seek(0, os.SEEK_END)
        at = 0
        while at < end:
            try:
                at = os.lseek(content.fileno(), at, os.SEEK_DATA)
            except OSError:  # ENXIO: nothing but a hole is left
                return
            stop = min(os.lseek(content.fileno(), at, os.SEEK_HOLE), at + size)
            yield os.pread(content.fileno(), stop - at, at)
            at = stop if stop - at < size else stop - 4096


@pytest.mark.parametrize("kind", ["ed25519", "ec"])
def test_a_key_would_be_found(tmp_path: Path, kind: str) -> None:
    key: Any = ed25519.Ed25519PrivateKey.generate()
    der = PrivateFormat.PKCS8
    if kind == "ec":
        key, der = ec.generate_private_key(ec.SECP256R1()), PrivateFormat.TraditionalOpenSSL
    forms = {
        "openssh": (Encoding.PEM, PrivateFormat.OpenSSH),
        "pem": (Encoding.PEM, PrivateFormat.PKCS8),
        "der": (Encoding.DER, der),
    }
    for name, (encoding, form) in forms.items():
        file = tmp_path / name
        with file.open("wb") as out:
            out.truncate(1 << 20)
            out.seek(3 << 20)
            out.write(b"x" * 100 + key.private_bytes(encoding, form, NoEncryption()) + b"y" * 100)
        assert secrets(file), name


def test_golden_image_and_template_have_no_identity(farm: Farm) -> None:
    """Their disks and the template's memory: no private key, no machine id."""
    (template,) = (farm.config.state / "templates").iterdir()
    image = golden.newest(farm.config.state)
    assert image is not None
    files = [*template.iterdir(), *image.path.iterdir()]
    assert {"ram", "state", "root.qcow2", "scratch.raw", "disk.raw"} <= {f.name for f in files}
    assert [found for file in files for found in secrets(file)] == []
    dump = ["debugfs", "-R", "cat /etc/machine-id", str(image.disk)]
    assert subprocess.run(dump, check=True, capture_output=True, text=True).stdout.strip() == ""


def test_a_runner_has_the_size_that_was_asked_for(farm: Farm) -> None:
    def settled(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> bool:
        """CPUs and the file system may come a moment after the runner is ready."""

        def sized() -> bool:
            lines = farm.inside(f"{view['id']}-1", key, relay.host_key, FACTS).split()
            cpus, memory, disk = (int(n) for n in lines[-3:])
            return cpus == 2 and 1.8e6 < memory < 2.1e6 and 7.5e9 < disk < 8.7e9

        return bool(farm.until(sized))

    assert with_runner(farm, settled)


def test_a_runner_can_be_given_memory_while_it_runs(farm: Farm) -> None:
    host = ControlClient(farm.config.run / "host.sock")

    def grown(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
        runner = f"{view['id']}-1"

        def memory() -> int:
            said = farm.inside(runner, key, relay.host_key, "grep MemTotal /proc/meminfo")
            return int(said.split()[1]) * 1024

        farm.until(lambda: memory() > 1.8 * GIB)
        for _ in range(2):  # the same again is nothing
            asyncio.run(host.grow(runner, 3 * GIB - 1))
        farm.until(lambda: 2.8 * GIB < memory() < 3 * GIB)
        asyncio.run(host.grow(runner, GIB))
        assert memory() > 2.8 * GIB, "memory is never taken away"
        with pytest.raises(UsageError, match="this machine must have them"):
            asyncio.run(host.grow(runner, 2 * ladder.physical(farm.config.state)[0]))
        with pytest.raises(NotFound):
            asyncio.run(host.grow("nobody-1", GIB))

    with_runner(farm, grown)


def test_a_wrong_host_key_is_refused_by_the_client(farm: Farm) -> None:
    def use(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
        other = ssh.public_line(ssh.new_key())
        with pytest.raises(Denied, match="another host key"):
            asyncio.run(connect(replace(relay, host_key=other), key))

    with_runner(farm, use)


def test_only_the_leases_key_can_log_in(farm: Farm) -> None:
    def use(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
        with pytest.raises(Denied, match="refuses this build's key"):
            asyncio.run(connect(relay, ssh.new_key()))
        asyncio.run(connect(relay, key))

    with_runner(farm, use)


def test_a_token_of_another_lease_opens_nothing(farm: Farm) -> None:
    def use(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
        def other(second: LeaseJson, second_relay: ssh.Relay, _: asyncssh.SSHKey) -> None:
            with pytest.raises(Denied):
                asyncio.run(connect(replace(relay, token=second_relay.token), key))

        with_runner(farm, other)

    with_runner(farm, use)


async def connect(relay: ssh.Relay, key: asyncssh.SSHKey) -> None:
    async with ssh.connect(relay, key) as tunnel:
        assert await tunnel.alive()
