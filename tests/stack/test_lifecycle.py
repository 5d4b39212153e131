"""`mayfly up` and `down` with every real program, and what is left of it: nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly import stack, users
from mayfly.config import Config
from mayfly.errors import Conflict
from mayfly.pid import ProcessId
from tests.stack_fixture import curl, free_port, temporary_state

pytestmark = pytest.mark.services

PROGRAMS = ("s3", "registry", "host", "edge", "orchestrator", "builders")


@pytest.fixture
def config() -> Iterator[Config]:
    state = temporary_state()
    config = Config.model_validate(
        {
            "state": state,
            "server": {"listen": f"127.0.0.1:{free_port()}", "name": "test.mayfly.internal"},
            "vm": {"provider": "fake"},
        }
    )
    yield config
    stack.down(config, True, print)
    shutil.rmtree(state.parent)


def processes(state: Path) -> set[int]:
    """Every process that names the state in its command line or environment."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            about = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(state).encode() in about:
            found.add(int(entry.name))
    return found


def own_lines() -> list[str]:
    """The hosts file without the lines of Mayfly's (others may be starting and stopping)."""
    return [each for each in Path("/etc/hosts").read_text().splitlines() if "# mayfly" not in each]


def test_up_again_after_a_kill_down_and_nothing_left(config: Config) -> None:
    hosts = own_lines()
    lines: list[str] = []
    status = stack.up(config, True, lines.append)
    assert status is not None
    assert status.ready
    assert tuple(service.name for service in status.services) == PROGRAMS
    assert all(service.alive for service in status.services)
    assert lines[-1] == f"ready: {config.url}"
    line = f"127.0.0.1 test.mayfly.internal # mayfly {config.state}\n"
    assert line in Path("/etc/hosts").read_text()

    ca = str(config.state / "trust" / "ca.crt")
    assert curl("--cacert", ca, f"{config.url}/healthz").status == 200
    assert curl("--cacert", ca, f"{config.url}/v2/").status == 401

    uids = {service.name: Path(f"/proc/{service.pid}").stat().st_uid for service in status.services}
    assert uids == {
        "s3": users.S3,
        "registry": users.REGISTRY,
        "host": users.ROOT,
        "edge": users.EDGE,
        "orchestrator": users.ORCHESTRATOR,
        "builders": users.BUILDERS,
    }

    with pytest.raises(Conflict, match="already running"):
        stack.up(config, True, print)

    before = {service.name: service.pid for service in status.services}
    supervisor = ProcessId.of(status.pid)
    os.kill(status.pid, signal.SIGKILL)
    while supervisor.alive():
        pass
    assert stack.running(config) is None
    again = stack.up(config, True, print)
    assert again is not None
    assert {service.name: service.pid for service in again.services} == before

    # The supervisor that took them over starts them again, all at once.
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 180
    while True:
        now = stack.running(config)
        assert now is not None
        if all(service.alive and service.pid != before[service.name] for service in now.services):
            break
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    assert [service.restarts for service in now.services] == [1] * len(PROGRAMS)
    while curl("--cacert", ca, f"{config.url}/healthz").status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)

    stack.down(config, False, lines.append)
    assert stack.running(config) is None
    assert processes(config.state) == set()
    assert line not in Path("/etc/hosts").read_text()
    assert (config.state / "admin.token").exists()

    stack.down(config, True, print)
    assert not config.state.exists()
    assert own_lines() == hosts
    assert str(config.state) not in Path("/proc/self/mounts").read_text()
    assert not list(Path("/tmp").glob("seaweedfs*"))


def test_beside_somebody_elses_registry_no_registry_and_no_bucket_run(config: Config) -> None:
    registry = config.registry.model_copy(update={"kind": "external", "images": "ghcr.io/acme"})
    config = config.model_copy(update={"registry": registry})
    status = stack.up(config, True, print)
    assert status is not None
    assert tuple(service.name for service in status.services) == (
        "host",
        "edge",
        "orchestrator",
        "builders",
    )
    ca = str(config.state / "trust" / "ca.crt")
    assert curl("--cacert", ca, f"{config.url}/healthz").status == 200
    answer = curl("--cacert", ca, f"{config.url}/v2/")
    assert answer.status == 404
    assert "images are at ghcr.io/acme" in answer.body


def test_down_ends_what_a_killed_supervisor_left(config: Config) -> None:
    status = stack.up(config, True, print)
    assert status is not None
    os.kill(status.pid, signal.SIGKILL)
    lines: list[str] = []
    stack.down(config, False, lines.append)
    assert [line.partition(":")[0] for line in lines if "left running" in line] == [
        *reversed(PROGRAMS)
    ]
    assert processes(config.state) == set()


def test_what_does_not_come_up_is_said_and_nothing_is_left(config: Config) -> None:
    config = config.model_copy(
        update={"s3": config.s3.model_copy(update={"endpoint": f"http://127.0.0.1:{free_port()}",
                                                   "access_key": "a", "secret_key": "b"})}
    )  # fmt: skip
    with pytest.raises(Exception, match=r"bucket .* does not answer") as caught:
        stack.up(config, True, print)
    assert "\n" not in str(caught.value)
    assert processes(config.state) == set()
    assert str(config.state) not in Path("/etc/hosts").read_text()


def test_in_the_foreground_an_interrupt_ends_all_of_it(config: Config) -> None:
    program = (
        "import sys; from mayfly import stack; from mayfly.config import Config\n"
        "config = Config.model_validate_json(sys.argv[1])\n"
        "stack.up(config, False, lambda line: print(line, flush=True))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("ready"):
            break
    child.send_signal(signal.SIGINT)
    rest = child.stdout.read().splitlines()
    assert child.wait(60) == 0
    assert rest == [f"{name}: stopping" for name in reversed(PROGRAMS)]
    assert processes(config.state) == set()
