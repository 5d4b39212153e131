"""A real orchestrator process on its socket, with the fake provider: killed, ended, doubled."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Response

from mayfly.client import Client
from mayfly.errors import MayflyError, Unreachable
from mayfly.model import LeaseRequest, Outcome
from tests.orchestrator.leases import ADMIN, KEY, SIGNING

pytestmark = pytest.mark.services

REQUEST = LeaseRequest(repo="team/app", ssh_public_key=KEY)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "lease.key").write_bytes(SIGNING)
    digest = hashlib.sha256(ADMIN.encode()).hexdigest()
    (tmp_path / "keys" / "admin.sha256").write_text(f"{digest}\n")
    (tmp_path / "keys" / "builders.sha256").write_text(f"{digest}\n")
    (tmp_path / "run" / "edge").mkdir(parents=True)
    return tmp_path


@pytest.fixture
async def edge(state: Path) -> AsyncIterator[set[str]]:
    """An edge that serves names, on its admin socket."""
    serves: set[str] = set()
    app = FastAPI()

    @app.get("/runners")
    def runners() -> dict[str, list[str]]:
        return {"runners": sorted(serves)}

    @app.put("/runners/{name}", status_code=204, response_class=Response)
    def attach(name: str) -> None:
        serves.add(name)

    @app.delete("/runners/{name}", status_code=204, response_class=Response)
    def revoke(name: str) -> None:
        serves.discard(name)

    config = uvicorn.Config(app, uds=str(state / "run" / "edge" / "edge.sock"), log_config=None)
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())
    yield serves
    server.should_exit = True
    await task


Start = Callable[[], subprocess.Popen[bytes]]


@pytest.fixture
def start(state: Path) -> Iterator[Start]:
    """Starts an orchestrator on that state, which does not outlive the test."""
    started: list[subprocess.Popen[bytes]] = []

    def begin() -> subprocess.Popen[bytes]:
        started.append(_start(state))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def _start(state: Path) -> subprocess.Popen[bytes]:
    environ = {
        **os.environ,
        "MAYFLY_STATE": str(state),
        "MAYFLY_VM__PROVIDER": "fake",
        "MAYFLY_POOL__MEMORY_GB": "8",
    }
    return subprocess.Popen(
        [sys.executable, "-m", "mayfly.orchestrator"],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@asynccontextmanager
async def api(state: Path) -> AsyncIterator[Client]:
    socket = state / "run" / "api" / "orchestrator.sock"
    transport = httpx.AsyncHTTPTransport(uds=str(socket))
    async with Client("http://farm", ADMIN, transport=transport) as client:
        async with asyncio.timeout(60):
            while True:
                try:
                    await client.leases()
                    break
                except Unreachable:
                    await asyncio.sleep(0.1)
        yield client


async def ready(client: Client, lease_id: str) -> None:
    async with asyncio.timeout(60):
        state = ""
        while state != "ready":
            state = (await client.lease(lease_id, since=state, wait_s=5))["state"]


async def test_killed_and_started_again_everything_is_as_it_was(
    state: Path, edge: set[str], start: Start
) -> None:
    first = start()
    async with api(state) as client:
        asked = await client.ask(REQUEST, "key")
        holder = client.holding(asked["token"])
        lines = [line async for line in holder.events(asked["id"])]  # ends with readiness
        assert not [line for line in lines if not line.startswith("size ")]
        await ready(holder, asked["id"])
        before = await holder.lease(asked["id"])
        assert edge == {f"{asked['id']}-1"}
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start()
    try:
        async with api(state) as client:
            after = await client.holding(asked["token"]).lease(asked["id"])
            assert {**after, "runner": None} == {**before, "runner": None}
            assert after["runner"] and before["runner"]
            assert after["runner"]["ssh_host_key"] == before["runner"]["ssh_host_key"]
            assert (await client.ask(REQUEST, "key"))["id"] == asked["id"]
            await client.report(asked["id"], outcome=Outcome.SUCCEEDED)
            async with asyncio.timeout(60):
                while (await client.lease(asked["id"]))["state"] != "ended":  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            why = await client.why(asked["id"])
            assert why["sizing"] and why["sizing"]["tier"] == "smallest"
            assert [one["outcome"] for one in why["attempts"]] == ["succeeded"]
            assert edge == set()
            assert list((state / "orchestrator" / "fake").iterdir()) == []
    finally:
        second.terminate()
        second.wait(60)
    assert second.returncode == 0


async def test_who_waits_is_told_over_the_stream(state: Path, edge: set[str], start: Start) -> None:
    process = start()
    try:
        async with api(state) as client:
            one, two = [(await client.ask(REQUEST, ""))["id"] for _ in range(2)]
            await ready(client, one)
            await ready(client, two)
            three = (await client.ask(REQUEST, ""))["id"]
            lines = []
            async with asyncio.timeout(60):
                async for line in client.events(three):
                    lines.append(line)
                    await client.end(one)
            assert lines == ["waiting for room in the pool, place 1"]
            assert (await client.lease(three))["state"] == "ready"
    finally:
        process.terminate()
        process.wait(60)


async def test_ended_by_a_signal_it_leaves_leases_untouched(
    state: Path, edge: set[str], start: Start
) -> None:
    process = start()
    async with api(state) as client:
        lease_id = (await client.ask(REQUEST, ""))["id"]
        await ready(client, lease_id)
        polling = asyncio.create_task(client.lease(lease_id, since="ready", wait_s=25))
        await asyncio.sleep(0.2)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 60) == 0
        with pytest.raises(MayflyError):
            await polling
    assert edge == {f"{lease_id}-1"}
    assert [p.name for p in (state / "orchestrator" / "fake").iterdir()] == [f"{lease_id}-1"]


async def test_two_on_one_state_are_one_too_many(state: Path, edge: set[str], start: Start) -> None:
    process = start()
    try:
        async with api(state):
            other = start()
            out = (await asyncio.to_thread(other.communicate, None, 60))[0].decode()
            assert other.returncode == 2
            assert out.strip() == (
                f"another orchestrator runs on {state / 'orchestrator'} - see `mayfly status`"
            )
    finally:
        process.terminate()
        process.wait(60)


def test_a_missing_key_is_one_line(state: Path, start: Start) -> None:
    (state / "keys" / "lease.key").unlink()
    process = start()
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 20
    assert out.strip().endswith("cannot be read: No such file or directory - `mayfly up` makes it")
    assert "\n" not in out.strip()
