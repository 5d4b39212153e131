"""A whole farm: everything real, on a state of its own, used through the command line.

One for the session, since a golden image and a template take minutes. It is started by `mayfly up`
and ended by `mayfly down --purge`, and ending it checks that nothing of it is left.
"""

from __future__ import annotations

import asyncio
import atexit
import errno
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from mayfly import config as configuration
from mayfly import golden
from mayfly.config import Config
from mayfly.errors import MachineUnfit
from mayfly.host import network
from mayfly.vm.client import DialClient
from tests.stack_fixture import free_port

SUBNET = os.environ.get("MAYFLY_TEST_SUBNET", "198.19.0.0/16")

CONFIG = """\
state = "{state}"
[server]
listen = "127.0.0.1:{port}"
[builders]
listen = "127.0.0.1:{builders}"
[network]
subnet = "{subnet}"
[pool]
cpu_weight = 100
[lease]
heartbeat_s = 1
grace_s = 20
[ladder.t1]
cpu = 1
memory_gb = 1
disk_gb = 4
[ladder.t2]
cpu = 2
memory_gb = 2
disk_gb = 8
[ladder.t3]
cpu = 2
memory_gb = 4
disk_gb = 16
"""


def cached(log: str) -> set[str]:
    """The numbers of the steps that BuildKit calls CACHED. Our own lines have the word too."""
    return set(re.findall(r"^#(\d+) CACHED$", log, re.MULTILINE))


@dataclass
class Farm:
    """The farm as a person at a terminal has it. `prefix` stands before each of its commands."""

    config: Config
    env: dict[str, str]
    prefix: Sequence[str] = ()

    def mayfly(
        self, *words: str | Path, check: bool = True, timeout_s: float = 1200
    ) -> subprocess.CompletedProcess[str]:
        """Run `mayfly WORDS` to its end."""
        done = subprocess.run(
            self.command(*words),
            env=self.env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self, *words: str | Path) -> subprocess.Popen[str]:
        """Start `mayfly WORDS` and do not wait for it."""
        return subprocess.Popen(
            self.command(*words),
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def command(self, *words: str | Path) -> list[str]:
        return [*self.prefix, sys.executable, "-m", "mayfly.cli.main", *map(str, words)]

    def json(self, *words: str) -> Any:
        """What `mayfly WORDS --json` prints."""
        return json.loads(self.mayfly(*words, "--json").stdout)

    def build(self, repo: str, *words: str | Path) -> tuple[str, ...]:
        """The words of `mayfly build` for `repo`, in size t2."""
        return ("build", "--mayfly-repo", repo, "--mayfly-size", "t2", *map(str, words))

    def leases(self, state: str = "ready") -> list[dict[str, Any]]:
        """The leases in a state."""
        return [lease for lease in self.json("lease", "ls") if lease["state"] == state]

    def vms(self) -> list[str]:
        """The VMs that there is anything of on disk."""
        return sorted(path.name for path in (self.config.state / "vms").iterdir())

    def pid(self, program: str) -> int:
        """The process of one of the farm's programs; 0 while it does not run."""
        from mayfly.stack import running

        status = running(self.config)
        assert status is not None
        return next((s.pid for s in status.services if s.name == program and s.alive), 0)

    def until(self, holds: Callable[[], Any], timeout_s: float = 60) -> Any:
        """The first true value of `holds`."""
        deadline = time.monotonic() + timeout_s
        while not (value := holds()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s for {holds}"
            time.sleep(0.2)
        return value

    def clear(self) -> None:
        """End every lease, and wait until the last VM has gone."""
        for lease in self.json("lease", "ls"):
            self.mayfly("lease", "rm", lease["id"], check=False)
        self.until(lambda: not self.vms() and not self.json("lease", "ls"))

    def inside(self, runner: str, key: asyncssh.SSHKey, host_key: str, command: str) -> str:
        """What `command` prints in a runner, over SSH, past the edge."""

        async def run() -> str:
            sock = await DialClient(self.config.run / "dial.sock").dial(runner)
            known: tuple[list[asyncssh.SSHKey], list[str], list[str]]
            known = ([asyncssh.import_public_key(host_key)], [], [])
            async with asyncssh.connect(
                runner, sock=sock, config=(), username="build", client_keys=[key], known_hosts=known
            ) as connection:
                done = await connection.run(command, check=True)
                return str(done.stdout)

        return asyncio.run(run())


@pytest.fixture(scope="session")
def farm() -> Iterator[Farm]:
    """The farm of the session."""
    with running_farm() as farm:
        yield farm


@contextmanager
def running_farm(
    settings: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    golden_image: Callable[[Path], object] = lambda state: None,
) -> Iterator[Farm]:
    """A farm on a state of its own, for as long as the block takes; nothing of it is left.

    `settings` are MAYFLY_* variables that add to its configuration, `prefix` stands before each of
    its commands (nsenter(1), say), and `golden_image` may put another golden image into the state
    that it is called with.
    """
    if os.geteuid() != 0:
        pytest.fail("a farm needs root")
    folder = Path(tempfile.mkdtemp(prefix="mayfly-farm-", dir="/var/tmp"))
    folder.chmod(0o711)
    file = folder / "mayfly.toml"
    ports = {"port": free_port(), "builders": free_port()}
    file.write_text(CONFIG.format(state=folder / "state", subnet=SUBNET, **ports))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAYFLY_", "CI_"))}
    env |= {"MAYFLY_CONFIG": str(file), **(settings or {})}
    if cache := os.environ.get("MAYFLY_CACHE"):
        env["MAYFLY_CACHE"] = cache
    config = configuration.load(env)
    before = footprint(config, prefix)
    farm = Farm(config, env, prefix)
    try:
        _share_golden_images(config)
        golden_image(config.state)
        print(farm.mayfly("up", "--detach").stderr)
        yield farm
    finally:
        done = farm.mayfly("down", "--purge", check=False)
        shutil.rmtree(folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert not config.state.exists()
    assert footprint(config, prefix) == before


@functools.cache
def _golden_images() -> Path:
    """A state with golden images for every farm of this process, with which it goes."""
    state = Path(tempfile.mkdtemp(prefix="mayfly-golden-", dir="/var/tmp"))
    atexit.register(shutil.rmtree, state)
    return state


def _share_golden_images(config: Config) -> None:
    """Make a golden image, unless this machine or another farm has one: those are linked, and used
    only when nothing has changed.
    """
    ours = _golden_images()
    for state in (Config().state, ours):
        for path in sorted(state.glob("golden/[0-9]*")):
            _link(path, config.state / "golden" / path.name)
    golden.make(config, print)
    for path in sorted(config.state.glob("golden/[0-9]*")):
        _link(path, ours / "golden" / path.name)


def _link(path: Path, target: Path) -> None:
    if not target.exists():
        shutil.copytree(path, target, copy_function=link_or_copy)


def link_or_copy(source: str, target: str) -> None:
    """A hard link where one is possible, else a copy (another file system)."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copy2(source, target)


LATER_FORWARD = """
from mayfly.host import network
before = network.forward_before()
print((before if before.exists() else network.FORWARD).read_text())
"""
"""Prints what ip_forward will be when the last farm of the machine has gone."""


def footprint(config: Config, prefix: Sequence[str] = ()) -> dict[str, Any]:
    """All that a farm could leave on a machine besides its state, whatever others do meanwhile."""

    def output(*argv: str) -> str:
        return subprocess.run([*prefix, *argv], check=True, capture_output=True, text=True).stdout

    processes = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(config.state.parent) in command:
            processes.append(command)
    namespaces = network.NETNS.glob(f"mayfly-{network.tag(config)}-*")
    return {
        "processes": processes,
        "namespaces": sorted(path.name for path in namespaces),
        "rules": network.tag(config) in output("nft", "list", "tables"),
        "links": network.tag(config) in output("ip", "-br", "link"),
        "routes": network.tag(config) in output("ip", "route"),
        "hosts": str(config.state) in Path("/etc/hosts").read_text(),
        "mounts": str(config.state) in Path("/proc/self/mounts").read_text(),
        "ip_forward": output(sys.executable, "-c", LATER_FORWARD),
    }


@pytest.fixture(scope="session")
def python_base(farm: Farm) -> str:
    """The name of a base image with a shell and Python, in the farm's registry."""
    farm.mayfly("base", "push", "python")
    return f"{farm.config.registry_host}/images/base/python"


@pytest.fixture(scope="session")
def busybox(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static busybox from Debian, unpacked and not installed: a shell without a base image."""
    folder = tmp_path_factory.mktemp("busybox")
    fetch = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", "busybox-static"]
    if subprocess.run(fetch, cwd=folder, check=False, timeout=120).returncode != 0:
        subprocess.run(["apt-get", "-qq", "update"], check=True, timeout=300)
        subprocess.run(fetch, cwd=folder, check=True, timeout=120)
    (package,) = folder.glob("*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    return next(path for path in (folder / "root").rglob("bin/busybox") if path.is_file())


@pytest.fixture
def context(busybox: Path, tmp_path: Path) -> Callable[..., Path]:
    """Makes a build context whose Dockerfile has one RUN, of the given command."""

    def make(command: str) -> Path:
        shutil.copy(busybox, tmp_path / "sh")
        (tmp_path / "Dockerfile").write_text(f"FROM scratch\nCOPY sh /bin/sh\nRUN {command}\n")
        return tmp_path

    return make


@pytest.fixture
def emulator(farm: Farm) -> Iterator[None]:
    """What runs arm64 here; a machine without it says what to install, and that is done."""
    refused = farm.mayfly(
        "base", "push", "debian", "--platform", "linux/arm64", check=False, timeout_s=1500
    )
    if refused.returncode == 0:
        yield
        return
    assert refused.returncode == MachineUnfit.exit_status, refused.stderr
    mend = re.search(r" - (apt-get) (install) (qemu-user-static)$", refused.stderr, re.M)
    assert mend is not None, refused.stderr
    quietly = ["-qq", "--yes", "-o", "DPkg::Lock::Timeout=200", "-o", "Dpkg::Use-Pty=0"]
    subprocess.run([*mend.groups(), *quietly], check=True, timeout=300)
    try:
        yield
    finally:
        subprocess.run(["apt-get", "purge", *quietly, mend[3]], check=True, timeout=300)


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the session's farm, when it used it, without leases and VMs."""
    yield
    if "farm" in request.fixturenames:
        request.getfixturevalue("farm").clear()


def interrupt(process: subprocess.Popen[str]) -> None:
    """What Ctrl-C does."""
    process.send_signal(signal.SIGINT)
