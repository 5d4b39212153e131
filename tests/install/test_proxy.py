"""Behind a reverse proxy as `docs/install.md` says: all that a client does goes through it.

The proxies are Debian's, in a root of their own; their configuration is the page's, with other
ports and files. Behind them are the real edge, orchestrator, registry and object store; a runner is
a socket that echoes.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mayfly.client import Client
from mayfly.config import Config
from mayfly.debian import sources
from mayfly.debian.bootstrap import bootstrap, own_mounts, remove_tree
from mayfly.errors import Denied
from mayfly.model import LeaseRequest, Outcome
from mayfly.registry import tokens
from mayfly.stack import certificates, registry
from mayfly.stack.lifecycle import make_state
from mayfly.stack.supervise import Supervisor
from tests.stack_fixture import (
    Background,
    FakeHost,
    free_port,
    oci_image,
    serve_host,
    temporary_state,
)

pytestmark = [pytest.mark.services, pytest.mark.long, pytest.mark.timeout(900)]

PAGE = Path(__file__).parents[2] / "docs/install.md"
KEY = "ssh-ed25519 " + "AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
LAYER_BYTES = 20_000_000
"""Far above what proxies take of a body where they are not told."""

NGINX = (
    "daemon off; worker_processes 1; error_log stderr; events {{}} http {{ access_log off; {} }}"
)
CADDY = "{{\n admin off\n auto_https disable_redirects\n}}\n{}"


class EchoingHost(FakeHost):
    """Every runner is there, and echoes what it is sent."""

    echo = 0

    def _known(self, request: object) -> str:
        name = str(request["runner"])  # type: ignore[index]
        self.ssh.setdefault(name, self.echo)
        return name


@dataclass
class Farm:
    """Programs that run behind a proxy that does not run yet."""

    config: Config
    folder: Path
    proxies: Path

    @property
    def ca(self) -> Path:
        return self.folder / "public-ca.crt"

    @property
    def token(self) -> str:
        return (self.config.state / "admin.token").read_text().strip()

    def from_page(self, first_line: str) -> str:
        """The page's block that begins with a line, for these ports and files."""
        text = PAGE.read_text()
        found = re.search(rf"^    {re.escape(first_line)}\n(?:    .*\n|\n(?=    ))*", text, re.M)
        assert found, first_line
        block = textwrap.dedent(found[0])
        for theirs, ours in {
            "listen 443 ssl": f"listen 127.0.0.1:{self.config.server.port} ssl",
            "builds.example.org:443": f"localhost:{self.config.server.port}",
            "builds.example.org": self.config.server.name,
            "127.0.0.1:5000": self.config.server.listen,
            "/etc/ssl/builds": "/tmp/builds",
            "/var/lib/mayfly/ca/ca.crt": "/tmp/ca.crt",
        }.items():
            block = block.replace(theirs, ours)
        assert "example.org" not in block and "/var/lib" not in block
        return block


@pytest.fixture(scope="module")
def farm() -> Iterator[Farm]:
    state = temporary_state()
    folder = Path(tempfile.mkdtemp(prefix="mayfly-proxy-"))
    listen, port = f"127.0.0.1:{free_port()}", free_port()
    config = Config.model_validate(
        {
            "state": state,
            "server": {"listen": listen, "name": "localhost", "public_port": port},
            "registry": {"kind": "distribution"},
            "vm": {"provider": "fake"},
            "pool": {"memory_gb": 8, "disk_gb": 100},
        }
    )
    now = datetime.now(UTC)
    wanted = ("s3", "bucket", "registry", "edge", "orchestrator")
    table = [service for service in make_state(config, now) if service.name in wanted]
    background, host = Background(), EchoingHost()
    supervisor = Supervisor(table, config.run, state / "log", print, now)
    proxies = folder / "root"
    try:
        bootstrap(
            proxies,
            suite="bookworm",
            variant="essential",
            packages=["nginx-light", "caddy", "passwd"],
            architecture="amd64",
            epoch=int(time.time()),
            progress=print,
            mirror=sources.host_sources("bookworm"),
        )
        made = Farm(registry.settle(config), folder, proxies)
        _certificate(made, now)
        shutil.copy(state / "ca/ca.crt", proxies / "tmp/ca.crt")
        host.echo = background.run(_echoing())
        asyncio.run_coroutine_threadsafe(serve_host(host, config.run), background.loop)
        background.run(supervisor.start())
        yield made
    finally:
        background.run(supervisor.stop())
        background.close()
        remove_tree(folder)
        shutil.rmtree(state.parent)


def _certificate(farm: Farm, now: datetime) -> None:
    """The public one: an authority's that Mayfly does not know."""
    authority_key, key = (certificates.load_key(tokens.generate()) for _ in range(2))
    authority = certificates.authority(authority_key, now)
    server = certificates.server(key, ("localhost",), authority, authority_key, now)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    farm.ca.write_bytes(certificates.dump(authority))
    (farm.proxies / "tmp/builds.pem").write_bytes(certificates.dump(server))
    (farm.proxies / "tmp/builds.key").write_bytes(pem)
    (farm.proxies / "tmp/builds.key").chmod(0o644)


async def _echoing() -> int:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    started = await asyncio.start_server(echo, "127.0.0.1", 0)
    return int(started.sockets[0].getsockname()[1])


@pytest.fixture(scope="module", params=["nginx", "caddy"])
def proxied(farm: Farm, request: pytest.FixtureRequest) -> Iterator[Farm]:
    """The farm behind one of the page's proxies."""
    configuration = farm.proxies / "tmp/configuration"
    if request.param == "nginx":
        configuration.write_text(NGINX.format(farm.from_page("server {")))
        argv = ["nginx", "-c", "/tmp/configuration"]
    else:
        configuration.write_text(CADDY.format(farm.from_page("builds.example.org:443 {")))
        argv = ["caddy", "run", "--adapter", "caddyfile", "--config", "/tmp/configuration"]
    words = 'mount --rbind /dev "$0/dev"; exec chroot "$0" "$@"'
    process = subprocess.Popen(
        [*own_mounts(), "sh", "-c", words, farm.proxies, *argv],
        env={"PATH": os.defpath + ":/usr/sbin", "HOME": "/tmp"},
        stdin=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not _serves(farm.config.server.port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield farm
    finally:
        process.terminate()
        process.wait(20)


def _serves(port: int) -> bool:
    done = subprocess.run(
        ["curl", "-ksS", "-o", "/dev/null", f"https://localhost:{port}/healthz"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def skopeo(*words: str, status: int = 0) -> str:
    done = subprocess.run(
        ["skopeo", *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def test_images_are_pushed_and_pulled(proxied: Farm, tmp_path: Path) -> None:
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    shutil.copy(proxied.ca, trusted / "ca.crt")
    address = proxied.config.registry_host
    login = ["login", "--cert-dir", str(trusted), "--authfile", str(tmp_path / "auth.json")]
    skopeo(*login, "-u", "mayfly", "-p", proxied.token, address)
    (tmp_path / "image").mkdir()
    digest, _ = oci_image(tmp_path / "image", LAYER_BYTES)
    image = f"docker://{address}/images/team/app:t"
    auth = ["--authfile", str(tmp_path / "auth.json")]
    skopeo("copy", "-q", *auth, "--dest-cert-dir", str(trusted), f"oci:{tmp_path}/image:t", image)
    skopeo("copy", "-q", *auth, "--src-cert-dir", str(trusted), image, f"oci:{tmp_path}/again:t")
    assert digest in (tmp_path / "again/index.json").read_text()
    skopeo(*login, "-u", "mayfly", "-p", "wrong", address, status=1)


async def test_a_lease_is_held_and_what_happens_comes_as_it_happens(proxied: Farm) -> None:
    url = proxied.config.url
    async with Client(url, "wrong", proxied.ca) as other:
        with pytest.raises(Denied):
            await other.leases()
    async with Client(url, proxied.token, proxied.ca) as farm:
        asked = await farm.ask(LeaseRequest("team/app", KEY), "")
        lease, holder = asked["id"], farm.holding(asked["token"])
        assert asked["relay_url"] == url.replace("https", "wss")
        # The stream of events ends with the lease: its lines come before that.
        async with asyncio.timeout(30):
            async for _ in farm.events(lease):
                pass
        assert (await farm.lease(lease, since="queued", wait_s=20))["state"] == "ready"
        assert (await holder.heartbeat(lease))["state"] == "ready"
        began = time.monotonic()
        assert (await farm.lease(lease, since="ready", wait_s=3))["state"] == "ready"
        assert time.monotonic() - began >= 2.5, "it was asked to wait"

        tls = ssl.create_default_context(cafile=proxied.ca)
        bearer = {"Authorization": f"Bearer {proxied.token}"}
        async with aiohttp.ClientSession(headers=bearer) as session:
            following = f"{url}/v1/builds/{lease}/log?follow=true"
            async with session.get(following, ssl=tls) as log:
                for number in range(3):  # each line arrives before the next one is written
                    await holder.append_log(lease, 2 * number, f"{number}\n".encode())
                    async with asyncio.timeout(20):
                        assert await log.content.readline() == f"{number}\n".encode()
        await holder.end(lease, Outcome.CANCELLED)


async def test_the_way_to_a_runner_is_open_both_ways(proxied: Farm) -> None:
    async with Client(proxied.config.url, proxied.token, proxied.ca) as farm:
        asked = await farm.ask(LeaseRequest("team/app", KEY), "")
        lease, holder = asked["id"], farm.holding(asked["token"])
        async for _ in holder.events(lease):
            pass
        runner = (await holder.lease(lease))["runner"]
        assert runner is not None
        tls = ssl.create_default_context(cafile=proxied.ca)
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {runner['token']}"}) as there,
            there.ws_connect(
                f"{asked['relay_url']}/v1/leases/{lease}/ssh", ssl=tls, max_msg_size=0
            ) as relay,
        ):
            sent = os.urandom(3_000_000)
            received = bytearray()
            for at in range(0, len(sent), 100_000):
                await relay.send_bytes(sent[at : at + 100_000])
            while len(received) < len(sent):
                received += await relay.receive_bytes(timeout=30)
            assert bytes(received) == sent
        await holder.end(lease, Outcome.CANCELLED)
