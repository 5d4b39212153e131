"""What a runner is: nobody's twin, its own size, closed to everyone but its lease's holder."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncssh
import pytest

from mayfly import client
from mayfly.build import ssh
from mayfly.errors import Denied
from mayfly.model import LeaseRequest, Outcome
from mayfly.wire import LeaseJson
from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]


@asynccontextmanager
async def leased(
    farm: Farm, key: asyncssh.SSHKey, size: str = "t2"
) -> AsyncIterator[tuple[LeaseJson, ssh.Relay]]:
    """A lease that is ready; it is kept for as long as its grace, and ended."""
    request = LeaseRequest(
        repo="team/runner", ssh_public_key=key.export_public_key().decode().strip(), size=size
    )
    async with client.from_environment(farm.config, farm.env) as api:
        asked = await api.ask(request, "")
        holder = api.holding(asked["token"])
        try:
            view = await holder.lease(asked["id"], wait_s=25, since="creating")
            while view["state"] != "ready":
                await holder.heartbeat(asked["id"])
                view = await holder.lease(asked["id"], wait_s=5, since=view["state"])
            yield view, ssh.relay_of(view, api.tls)
        finally:
            await holder.end(asked["id"], Outcome.CANCELLED)


def with_runner(farm: Farm, use: Callable[[LeaseJson, ssh.Relay, asyncssh.SSHKey], Any]) -> Any:
    """Run `use` (in a thread) on a runner of its own."""
    key = ssh.new_key()

    async def run() -> Any:
        async with leased(farm, key) as (view, relay):
            return await asyncio.to_thread(use, view, relay, key)

    return asyncio.run(run())


FACTS = """\
cat /etc/machine-id; cat /proc/sys/kernel/random/boot_id; hostname
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \\n'; echo
date +%s.%N; nproc; awk '/MemTotal/ {print $2}' /proc/meminfo
df -B1 --output=size /scratch | tail -1
"""


def facts(farm: Farm) -> dict[str, Any]:
    """What a fresh runner says of itself."""

    def look(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> dict[str, Any]:
        before = time.time()
        lines = farm.inside(f"{view['id']}-1", key, relay.host_key, FACTS).split()
        after = time.time()
        names = ("machine_id", "boot_id", "hostname", "random", "clock", "cpus", "memory", "disk")
        found: dict[str, Any] = dict(zip(names, lines, strict=True))
        found |= {"host_key": relay.host_key, "before": before, "after": after}
        return found

    return dict(with_runner(farm, look))


def test_two_clones_have_nothing_in_common_and_the_right_time(farm: Farm) -> None:
    one, other = facts(farm), facts(farm)
    for name in ("machine_id", "boot_id", "hostname", "random", "host_key"):
        assert one[name] != other[name], name
    for each in (one, other):
        assert each["before"] - 0.5 <= float(each["clock"]) <= each["after"] + 0.5


def test_a_runner_has_the_size_that_was_asked_for(farm: Farm) -> None:
    def settled(view: LeaseJson, relay: ssh.Relay, key: asyncssh.SSHKey) -> bool:
        """CPUs and the file system may come a moment after the runner is ready."""

        def sized() -> bool:
            lines = farm.inside(f"{view['id']}-1", key, relay.host_key, FACTS).split()
            cpus, memory, disk = (int(n) for n in lines[-3:])
            return cpus == 2 and 1.8e6 < memory < 2.1e6 and 7.5e9 < disk < 8.7e9

        return bool(farm.until(sized, 20))

    assert with_runner(farm, settled)


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
