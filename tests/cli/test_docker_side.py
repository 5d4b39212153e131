"""`mayfly builder create` and `rm` on docker's side, with the real buildx and no runner."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mayfly import users
from mayfly.builders.service import Builders
from mayfly.cli import builder, docker_side
from mayfly.client import Client
from mayfly.config import Builders as Builders_
from mayfly.config import Config
from mayfly.errors import Conflict, NotFound, UsageError
from mayfly.stack import secrets
from tests.builders.relayed import relayed
from tests.orchestrator.leases import LADDER, Farm, farm
from tests.stack_fixture import free_port


@dataclass
class Side:
    """A farm that serves builders, and somebody's docker configuration."""

    f: Farm
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            **{name: os.environ[name] for name in ("MAYFLY_CACHE",) if name in os.environ},
        }

    @property
    def instance(self) -> Path:
        return self.home / ".docker" / "buildx" / "instances" / "one"

    @property
    def folder(self) -> Path:
        return self.home / ".docker" / "mayfly" / "one"

    @property
    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.f.config.builders.port)) == 0

    def wanted(self, **more: Any) -> docker_side.Wanted:
        given: dict[str, Any] = {
            "name": "one",
            "repo": "team/app",
            "size": "",
            "linger_s": None,
            "named_socket": "",
            "tls": False,
            "register": True,
            "environ": self.environ,
            "cwd": self.home,
        }
        return docker_side.wanted(**given | more)

    async def make(self, **more: Any) -> str:
        return await docker_side.made(self.f.api, self.wanted(**more), self.environ)

    async def names(self) -> list[str]:
        return [one["name"] for one in (await self.f.api.builders())["builders"]]


@pytest.fixture
async def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Side]:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    (tmp_path / "home").mkdir()
    state = tmp_path / "state"
    config = Config.model_validate(
        {
            "state": state,
            "ladder": LADDER,
            "pool": {"memory_gb": 4},
            "server": {"name": "localhost"},
            "builders": {"listen": f"127.0.0.1:{free_port()}"},
        }
    )
    users.make_folders(state)
    secrets.ensure(config, datetime.now(UTC))
    async with farm(config) as f, relayed(f, tmp_path) as api:
        following = asyncio.create_task(Builders(config, api).run(api.api))
        yield Side(f, tmp_path / "home")
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


async def test_what_is_made_is_known_to_buildx_and_goes_without_a_trace(side: Side) -> None:
    link = side.home / "mine.sock"
    endpoint = await side.make(named_socket="mine.sock")
    assert endpoint == f"unix://{link}"
    assert link.is_socket()
    assert endpoint in side.instance.read_text()
    assert (await side.f.api.builders())["builders"][0]["uid"] == os.getuid()
    assert side.f.ledger.recent(1) == ()  # to be known costs no runner
    docker_side.forget("one", side.environ)
    assert not link.is_symlink()
    assert not side.instance.exists()
    assert list((side.home / ".docker" / "mayfly").iterdir()) == []
    docker_side.forget("one", side.environ)


async def test_one_that_the_farm_has_forgotten_goes_from_this_side_too(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    await side.make()
    await side.f.api.remove_builder("one")

    def ask(question: Callable[[Client], Awaitable[None]]) -> None:
        raise NotFound("there is no such builder")

    monkeypatch.setattr("mayfly.cli.farm.ask", ask)
    for name, value in side.environ.items():
        monkeypatch.setenv(name, value)
    for other in ("two", "..", "", "."):
        with pytest.raises(NotFound):
            builder.rm(other)
    assert side.folder.is_dir()
    builder.rm("one")
    assert not side.folder.exists()
    assert not side.instance.exists()
    with pytest.raises(NotFound):
        builder.rm("one")


async def test_without_a_name_of_ones_own_the_link_is_beside_dockers_configuration(
    side: Side,
) -> None:
    assert await side.make() == f"unix://{side.folder}/socket"
    assert (side.folder / "socket").is_socket()
    docker_side.forget("one", side.environ)
    assert not side.instance.exists()


async def test_with_sudo_the_socket_is_the_callers(side: Side) -> None:
    made = docker_side.made(side.f.api, side.wanted(), {**side.environ, "SUDO_UID": "1234"})
    await made
    assert (await side.f.api.builders())["builders"][0]["uid"] == 1234


async def test_a_name_that_buildx_has_already_leaves_both_as_they_were(side: Side) -> None:
    side.instance.parent.mkdir(parents=True)
    argv = side.wanted().argv("unix:///somebody/elses.sock", docker_side.buildx(side.environ))
    docker_side._run(argv, side.environ)
    before = side.instance.read_text()
    with pytest.raises(UsageError, match="buildx does not take it: existing instance"):
        await side.make()
    assert side.instance.read_text() == before
    assert await side.names() == []
    assert not side.folder.exists()


async def test_a_name_that_the_farm_has_leaves_its_builder_alone(side: Side) -> None:
    await side.f.api.make_builder("one", "team/app", uid=0)
    with pytest.raises(Conflict):
        await side.make()
    assert await side.names() == ["one"]
    assert not side.instance.exists()


async def test_a_farm_on_another_machine_wants_tls(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UsageError, match="sockets are not on this machine") as refused:
        await side.make()
    assert refused.value.hint == "use --tls"
    assert await side.names() == []


async def test_with_tls_key_and_certificates_are_beside_dockers_configuration(side: Side) -> None:
    await side.f.settled(lambda: side.listens)
    assert await side.make(tls=True) == f"tcp://localhost:{side.f.config.builders.port}"
    files = {file.name: file.stat().st_mode & 0o777 for file in side.folder.iterdir()}
    assert files == dict.fromkeys(("ca.pem", "cert.pem", "key.pem", "endpoint"), 0o600)
    assert str(side.folder / "key.pem") in side.instance.read_text()
    assert side.f.ledger.recent(1) == ()
    docker_side.forget("one", side.environ)
    assert not side.folder.exists()
    assert not side.instance.exists()


async def test_where_nobody_listens_nothing_is_left(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Builders_, "port", property(lambda _: free_port()))
    with pytest.raises(UsageError, match="nobody answers at tcp://localhost"):
        await side.make(tls=True)
    assert await side.names() == []
    assert not side.folder.exists()
    assert not side.instance.exists()


async def test_without_buildx_the_line_is_printed(side: Side) -> None:
    wanted = side.wanted(register=False, tls=True)
    assert wanted.buildx == ()
    assert wanted.by_hand("tcp://farm:5001") == (
        "docker buildx create --name one --driver remote --driver-opt "
        f"cacert={side.folder}/ca.pem,cert={side.folder}/cert.pem,key={side.folder}/key.pem "
        "tcp://farm:5001"
    )


async def test_where_docker_has_no_buildx_the_way_to_it_is_said(
    side: Side, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    wanted = side.wanted()
    (program,) = wanted.buildx
    plugin = side.home / ".docker" / "cli-plugins" / "docker-buildx"
    assert f"say {program} in its place" in wanted.without_dockers
    assert wanted.without_dockers.endswith(f"`install -D {program} {plugin}`")
    docker = tmp_path / "bin" / "docker"
    docker.write_text("#!/bin/sh\n")
    docker.chmod(0o755)
    assert side.wanted().without_dockers == ""
    assert side.wanted(register=False).without_dockers == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"named_socket": "x.sock", "tls": True}, "exclude each other"),
        ({"named_socket": "."}, "there is something already"),
        ({"named_socket": "no/such/x.sock"}, "there is no folder"),
        ({"name": "x" * 33}, "no name for a builder"),
        ({"name": "../one"}, "no name for a builder"),
        ({"named_socket": "x" * 90}, "too long for a socket's path"),
        ({"repo": "base/app"}, "names below 'base' are Mayfly's own"),
    ],
)
async def test_what_cannot_be_is_said_before_the_farm_is_asked(
    side: Side, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        side.wanted(**given)
