"""Into a runner: a key of one's own, streams, a terminal that is given back as it was."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from fcntl import ioctl
from pathlib import Path
from typing import Any, cast

import asyncssh
import pytest

from mayfly.build import shell, ssh
from mayfly.build.keyboard import USUAL, Terminal
from mayfly.errors import Conflict, Denied, InfrastructureError, Terminated
from mayfly.wire import LeaseJson
from tests.build.fake_runner import LEASE, TOKEN, FakeRunner, fake_runner
from tests.build.test_ssh import echo


class Farm:
    """Lets every key in that it is asked for, or says that there is no runner."""

    tls = None

    def __init__(self, runner: FakeRunner, *, there: bool = True) -> None:
        self.runner, self.there, self.asked = runner, there, list[tuple[str, str]]()

    async def authorize(self, lease: str, ssh_public_key: str) -> LeaseJson:
        self.asked.append((lease, ssh_public_key))
        if not self.there:
            raise Conflict(f"build {lease} has no runner now: it is ended")
        runner = {"name": f"{LEASE}-1", "ssh_host_key": self.runner.host_key, "token": TOKEN}
        return cast(LeaseJson, {"id": LEASE, "relay_url": self.runner.url, "runner": runner})


@pytest.fixture
async def farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Farm]:
    made, buildkit = ssh.new_key(), tmp_path / "buildkitd.sock"
    monkeypatch.setattr(ssh, "new_key", lambda: made)
    async with echo(buildkit), fake_runner(ssh.public_line(made), buildkit) as runner:
        yield Farm(runner)


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    """The process's standard input is a pipe with that in it."""
    source, sink = os.pipe()
    os.write(sink, content)
    os.close(sink)
    monkeypatch.setattr(shell, "given", lambda: source)


async def enter(farm: Farm, command: str | None) -> int:
    async with asyncio.timeout(20):
        return await shell.shell(farm, LEASE, command, terminal=False)


async def test_a_command_has_our_streams_and_its_status_is_ours(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    stdin(monkeypatch, b"in\n")
    assert await enter(farm, "cat; echo oops >&2; exit 7") == 7
    assert capfdbinary.readouterr() == (b"in\n", b"oops\n")
    ((lease, key),) = farm.asked
    assert lease == LEASE and key.startswith("ssh-ed25519 ")


async def test_without_a_command_a_shell_reads_what_we_are_given(
    farm: Farm, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    stdin(monkeypatch, b"echo one\nexit 4\n")
    assert await enter(farm, None) == 4
    assert capfdbinary.readouterr().out == b"one\n"


async def test_a_key_that_is_taken_in_late_is_tried_once_more(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "PAUSE_S", 0)
    tries: list[str] = []
    connect, another = ssh.connect, asyncssh.generate_private_key("ssh-ed25519")

    def late(relay: ssh.Relay, key: ssh.Key) -> Any:
        tries.append(relay.lease)
        return connect(relay, another if len(tries) == 1 else key)

    monkeypatch.setattr(ssh, "connect", late)
    stdin(monkeypatch, b"")
    assert await enter(farm, "exit 3") == 3
    assert len(tries) == 2


async def test_a_runner_that_lets_nobody_in_is_said(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shell, "PAUSE_S", 0)
    farm.runner.host_key = ssh.public_line(asyncssh.generate_private_key("ssh-ed25519"))
    with pytest.raises(Denied, match="another host key"):
        await enter(farm, "true")
    farm.there = False
    with pytest.raises(Conflict, match="has no runner now"):
        await enter(farm, "true")


async def test_a_runner_that_goes_is_no_status(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin(monkeypatch, b"")
    entering = asyncio.create_task(enter(farm, "sleep 60"))
    async with asyncio.timeout(20):
        while not farm.runner.commands:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await farm.runner.cut()
    with pytest.raises(InfrastructureError, match="was lost"):
        await entering


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal of 132 columns and 43 rows: the person's end, and ours."""
    person, ours = os.openpty()
    ioctl(ours, termios.TIOCSWINSZ, struct.pack("4H", 43, 132, 0, 0))
    yield person, ours
    os.close(person)
    os.close(ours)


async def test_what_is_typed_goes_there_and_the_terminal_is_as_it_was(
    farm: Farm,
    terminal: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    person, ours = terminal
    before = termios.tcgetattr(ours)
    with os.fdopen(os.dup(ours)) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        async with asyncio.timeout(20):
            entering = asyncio.create_task(
                shell.shell(farm, LEASE, "head -c 7; exit 5", terminal=True)
            )
            while not farm.runner.terminals:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            os.write(person, b"\x03hello\r")
            assert await entering == 5
    assert b"\x03hello\r" in capfdbinary.readouterr().out, "raw: not even ^C is kept here"
    assert farm.runner.terminals == [(132, 43)]
    assert termios.tcgetattr(ours) == before


async def test_a_signal_leaves_no_raw_terminal(
    farm: Farm, terminal: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ours = terminal
    before = termios.tcgetattr(ours)
    with os.fdopen(os.dup(ours)) as keyboard:
        monkeypatch.setattr(sys, "stdin", keyboard)
        async with asyncio.timeout(20):
            entering = asyncio.create_task(shell.shell(farm, LEASE, "sleep 60", terminal=True))
            while not farm.runner.terminals:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert termios.tcgetattr(ours) != before
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Terminated):
                await entering
    assert termios.tcgetattr(ours) == before


def test_a_terminal_is_given_back_whatever_happens(terminal: tuple[int, int]) -> None:
    _, ours = terminal
    before = termios.tcgetattr(ours)
    with pytest.raises(ZeroDivisionError), Terminal(ours) as lent:
        assert termios.tcgetattr(ours)[tty.LFLAG] & termios.ECHO == 0
        assert lent.size() == (132, 43)
        raise ZeroDivisionError
    assert termios.tcgetattr(ours) == before


def test_what_is_no_terminal_is_left_alone() -> None:
    source, sink = os.pipe()
    with Terminal(source) as lent:
        assert lent.size() == USUAL
    os.close(source)
    os.close(sink)
