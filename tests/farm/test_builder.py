"""Stock buildx, with nothing of ours but a socket or a certificate: build, bake, compose, push."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mayfly.tools import tools_dir
from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]

Context = Callable[[str], Path]
HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""How a client of HTTP/2 begins: preface, and empty SETTINGS."""


@dataclass
class Docker:
    """Somebody with docker's configuration and buildx, who is logged in to the farm's registry."""

    farm: Farm
    home: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "DOCKER_CONFIG": str(self.home / ".docker"),
            "SSL_CERT_FILE": str(self.farm.config.state / "trust" / "ca.crt"),
        }

    def buildx(
        self, *words: str | Path, check: bool = True, cwd: Path | None = None, **env: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `buildx WORDS` to its end; once more where BuildKit did not begin in the 3 s that it
        gives itself, which on a busy machine are too few for a VM that has just woken.
        """
        program = tools_dir(self.farm.config.cache) / "buildx"
        for _ in range(2):
            done = subprocess.run(
                [str(program), *map(str, words)],
                env={**self.env, **env},
                cwd=cwd,
                capture_output=True,
                text=True,
                timeout=900,
                check=False,
            )
            if "no such job" not in done.stderr:
                break
        log = self.farm.config.state / "log" / "builders.log"
        assert not check or done.returncode == 0, f"{done.stderr}\n{log.read_text()[-3000:]}"
        return done

    def mayfly(self, *words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        own = {"DOCKER_CONFIG": self.env["DOCKER_CONFIG"], "HOME": self.env["HOME"]}
        return subprocess.run(
            self.farm.command(*words),
            env={**self.farm.env, **own},
            capture_output=True,
            text=True,
            timeout=120,
            check=check,
        )

    @contextmanager
    def builder(self, name: str, *words: str | Path) -> Iterator[str]:
        """A builder of size t2, and its name."""
        made = ("builder", "create", name, "--repo", f"team/{name}", "--size", "t2")
        done = self.mayfly(*made, *words)
        assert "whole Docker configuration" in done.stderr
        try:
            yield name
        finally:
            self.mayfly("builder", "rm", name, check=False)

    def compose(self) -> list[str]:
        """How docker's compose is called here, with our buildx as docker's; nothing without it.

        Compose 1 (Debian's `docker-compose`) has the daemon build, not buildx.
        """
        plugin = self.home / ".docker" / "cli-plugins" / "docker-buildx"
        plugin.parent.mkdir()
        plugin.symlink_to(tools_dir(self.farm.config.cache) / "buildx")
        for words in (["docker", "compose"], ["docker-compose"]):
            if shutil.which(words[0]) is None:
                continue
            asked = subprocess.run(
                [*words, "version", "--short"],
                env=self.env,
                capture_output=True,
                text=True,
                check=False,
            )
            if asked.returncode == 0 and not asked.stdout.startswith("1."):
                return words
        return []

    def listed(self, name: str) -> dict[str, Any]:
        (one,) = (b for b in self.farm.json("builder", "ls") if b["name"] == name)
        return dict(one)

    def connect(self, name: str) -> socket.socket:
        """A connection of a client that has said hello, and stays. It tries until it gets in, as
        docker's does.
        """

        def tried() -> socket.socket | None:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(60)
            try:
                client.connect(self.listed(name)["address"].removeprefix("unix://"))
            except OSError:
                client.close()
                return None
            client.sendall(HELLO)
            return client

        connected: socket.socket = self.farm.until(tried)
        return connected


@pytest.fixture
def docker(farm: Farm, tmp_path_factory: pytest.TempPathFactory) -> Docker:
    home = tmp_path_factory.mktemp("home")
    (home / ".docker").mkdir()
    shutil.copy(farm.config.state / "admin.auth.json", home / ".docker" / "config.json")
    return Docker(farm, home)


def test_plain_buildx_builds_exports_and_pushes_what_its_repo_may(
    farm: Farm, docker: Docker, context: Context, tmp_path: Path
) -> None:
    folder, out = context("echo built > /made"), tmp_path / "out.tar"
    host = farm.config.registry_host
    with docker.builder("plain", "--linger", "3") as name:
        assert docker.listed(name)["state"] == "idle"
        build = ("build", "--builder", name)
        stays = docker.connect(name)  # between two commands the linger may be over
        docker.buildx(*build, "-o", f"type=oci,dest={out}", folder)
        with tarfile.open(out) as archive:
            assert "index.json" in archive.getnames()
        lease = docker.listed(name)["lease"]
        cache = f"type=registry,ref={host}/cache/trusted/team/plain/x"
        pushed = docker.buildx(
            *build, "--push", "-t", f"{host}/images/team/plain:1", "--cache-to", cache, folder
        )
        assert "CACHED" in pushed.stderr  # in the same runner
        assert docker.listed(name)["lease"] == lease
        back = tmp_path / "back"
        back.mkdir()
        (back / "Dockerfile").write_text(f"FROM {host}/images/team/plain:1\nRUN test -s /made\n")
        docker.buildx(*build, back)
        # The login is the administrator's; the runner is team/plain's all the same.
        denied = docker.buildx(
            *build, "--push", "-t", f"{host}/images/team/other:1", folder, check=False
        )
        assert denied.returncode == 1
        assert re.search(r"denied: \S+-1 may not pull(/push)? images/team/other", denied.stderr)
        stays.close()
        farm.until(lambda: not farm.vms())
        build_ = farm.json("status")["builds"][0]
        assert (build_["id"], build_["outcome"], build_["repo"]) == (
            lease,
            "succeeded",
            "team/plain",
        )
        assert docker.listed(name)["state"] == "idle"


def test_two_builders_are_two_runners_and_removing_one_cuts_it(
    farm: Farm, docker: Docker, tmp_path: Path
) -> None:
    link = tmp_path / "mine.sock"
    with docker.builder("first", "--socket", link), docker.builder("second") as second:
        assert link.is_socket()
        with docker.connect("first") as one, docker.connect(second) as two:
            assert one.recv(9)[3] == two.recv(9)[3] == 4  # SETTINGS
            assert len({lease["id"] for lease in farm.leases("ready")}) == 2
            docker.mayfly("builder", "rm", "first")
            while one.recv(65536):
                pass
            assert not link.exists()
            assert docker.buildx("inspect", "first", check=False).returncode == 1
            farm.until(lambda: len(farm.vms()) == 1)
            # The program is killed: what is connected is cut, the next connection has a new runner.
            killed = farm.pid("builders")
            os.kill(killed, signal.SIGKILL)
            while two.recv(65536):
                pass
        left = docker.listed(second)["lease"]
        farm.until(lambda: farm.pid("builders") not in (0, killed))
        with docker.connect(second) as again:
            assert again.recv(9)[3] == 4
            assert docker.listed(second)["lease"] != left
            farm.until(lambda: len(farm.vms()) == 1)


def test_a_client_elsewhere_comes_by_tls_until_its_builder_is_removed(
    farm: Farm, docker: Docker, context: Context
) -> None:
    folder = context("true")
    with docker.builder("away", "--tls") as name:
        files = docker.home / ".docker" / "mayfly" / name
        assert {file.name for file in files.iterdir()} >= {"ca.pem", "cert.pem", "key.pem"}
        docker.buildx("build", "--builder", name, folder)
        kept = {file.name: file.read_bytes() for file in files.iterdir()}
        instance = docker.home / ".docker" / "buildx" / "instances" / name
        known = instance.read_bytes()
        docker.mayfly("builder", "rm", name)
        assert not files.exists()
        assert not instance.exists()
        farm.until(lambda: not farm.vms())
        files.mkdir()
        for file, data in kept.items():
            (files / file).write_bytes(data)
        instance.write_bytes(known)
        refused = docker.buildx("build", "--builder", name, folder, check=False)
        assert refused.returncode == 1
        assert not farm.leases()


@pytest.mark.long
def test_bake_and_compose_files_secrets_and_ssh(
    docker: Docker, context: Context, tmp_path: Path
) -> None:
    folder = context("echo hello")
    (folder / "docker-bake.hcl").write_text(
        'group "default" { targets = ["a", "b"] }\n'
        'target "a" { args = { WHO = "a" } }\ntarget "b" { args = { WHO = "b" } }\n'
    )
    (folder / "compose.yaml").write_text(
        "services:\n  one:\n    build: .\n  two:\n    build:\n      context: .\n"
        "      dockerfile_inline: |\n        FROM scratch\n        COPY sh /bin/sh\n"
    )
    (folder / "secret").write_text("hush\n")
    (folder / "Dockerfile.mounts").write_text(
        "FROM scratch\nCOPY sh /bin/sh\n"
        "RUN --mount=type=secret,id=s read it < /run/secrets/s; test $it = hush\n"
        "RUN --mount=type=ssh test -S $SSH_AUTH_SOCK\n"
    )
    agent = subprocess.run(["ssh-agent", "-s"], capture_output=True, text=True, check=True).stdout
    env = dict(re.findall(r"(SSH_[A-Z_]+)=([^;]+);", agent))
    with docker.builder("more") as name:
        baked = docker.buildx(
            *("bake", "--builder", name, "--progress=plain", "-f", "docker-bake.hcl"), cwd=folder
        )
        assert re.search(r"\[[ab] .*RUN echo hello", baked.stderr)
        composed = docker.buildx(
            *("bake", "--builder", name, "--progress=plain", "-f", "compose.yaml"), cwd=folder
        )
        assert {"one", "two"} <= set(re.findall(r"\[(\w+) ", composed.stderr))
        try:
            mounts = ("--secret", f"id=s,src={folder / 'secret'}", "--ssh", "default")
            file = folder / "Dockerfile.mounts"
            docker.buildx("build", "--builder", name, *mounts, "-f", file, folder, **env)
        finally:
            os.kill(int(env["SSH_AGENT_PID"]), signal.SIGTERM)


@pytest.mark.long
def test_docker_compose_builds_and_pushes(docker: Docker, context: Context) -> None:
    if not (compose := docker.compose()):
        pytest.skip("there is no docker compose")
    folder = context("echo composed > /made")
    image = f"{docker.farm.config.registry_host}/images/team/composed/one:1"
    (folder / "compose.yaml").write_text(f"services:\n  one:\n    build: .\n    image: {image}\n")
    with docker.builder("composed") as name:
        built = subprocess.run(
            [*compose, "build", "--builder", name, "--push"],
            env=docker.env,
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert built.returncode == 0, built.stderr
        back = folder / "back"
        back.mkdir()
        (back / "Dockerfile").write_text(f"FROM {image}\nRUN test -s /made\n")
        docker.buildx("build", "--builder", name, back)


@pytest.mark.long
@pytest.mark.usefixtures("emulator")
@pytest.mark.timeout(3600)
def test_an_arm64_base_of_ours_runs_beside_the_machines_own(
    farm: Farm, docker: Docker, tmp_path: Path
) -> None:
    platforms = "linux/amd64,linux/arm64"
    farm.mayfly("base", "push", "debian", "--platform", platforms, timeout_s=1500)
    base = f"{farm.config.registry_host}/images/base/debian"
    (tmp_path / "Dockerfile").write_text(f"FROM {base}\nRUN uname -m\n")
    out = tmp_path / "out.tar"
    with docker.builder("arms") as name:
        done = docker.buildx(
            *("build", "--builder", name, "--platform", platforms, "--progress=plain"),
            *("-o", f"type=oci,dest={out}", tmp_path),
        )
    assert re.search(r"^#\d+ [\d.]+ aarch64$", done.stderr, re.M)
    assert re.search(r"^#\d+ [\d.]+ x86_64$", done.stderr, re.M)
    with tarfile.open(out) as archive:
        index = archive.extractfile("index.json")
        assert index is not None
        assert json.load(index)["manifests"]
