"""A running stack without VMs: real SeaweedFS, registry and edge, kept by the real supervisor.

It is made for distribution, and where zot is asked for (`-m real`) for that as well.

What stands in: the host (its protocol is real; runners are sockets on loopback) and the
orchestrator (only `/token`, `/healthz` and what tests set in `Stack.routes`). `server.name` is
`localhost`, so no hosts line is needed. Every port is free, the state is a temporary folder.

    @pytest.mark.services
    def test_something(stack: Stack) -> None: ...
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import io
import json
import os
import secrets
import shutil
import socket
import ssl
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiohttp import web

from mayfly import users
from mayfly.config import S3, Config
from mayfly.errors import NotFound
from mayfly.host.server import serve
from mayfly.model import Runner
from mayfly.registry import grants
from mayfly.registry.grants import Access
from mayfly.registry.tokens import Signer
from mayfly.stack import loopback, registry, seaweed
from mayfly.stack.lifecycle import make_state
from mayfly.stack.supervise import Supervisor
from mayfly.vm.protocol import runner_to_json
from mayfly.vm.provider import Progress

T = TypeVar("T")


def free_port() -> int:
    """A port that nothing listens at now, and that no outgoing connection takes meanwhile."""
    (port,) = loopback.free(1)
    return port


def temporary_state() -> Path:
    """A folder that the programs' users may enter, unlike pytest's `tmp_path`."""
    folder = Path(tempfile.mkdtemp(prefix="mayfly-test-"))
    folder.chmod(0o711)
    return folder / "state"


class Background:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 120) -> T:
        """The result of a coroutine, run over there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        self.run(self._end_tasks())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    async def _end_tasks(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass
class FakeHost:
    """Runners that are sockets: `ssh` says where a runner's SSH server is, `ports` what the edge
    listens at for it."""

    ssh: dict[str, int] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)

    def add(self, runner: str, ssh_port: int = 0) -> None:
        self.ssh[runner] = ssh_port

    async def list(self, request: Any, progress: Progress) -> tuple[dict[str, Any], None]:
        return {"runners": [runner_to_json(Runner(name, "t1", True)) for name in self.ssh]}, None

    async def dial(self, request: Any, progress: Progress) -> tuple[dict[str, Any], socket.socket]:
        name = self._known(request)
        connection = socket.create_connection(("127.0.0.1", self.ssh[name]))
        connection.setblocking(False)
        return {}, connection

    async def listen(
        self, request: Any, progress: Progress
    ) -> tuple[dict[str, Any], socket.socket]:
        name = self._known(request)
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(16)
        self.ports[name] = listener.getsockname()[1]
        return {}, listener

    def _known(self, request: Any) -> str:
        name = str(request["runner"])
        if name not in self.ssh:
            raise NotFound(f"there is no runner {name}")
        return name

    # The same three as `mayfly.edge.attach.Dialer`, for an edge in the test's own process.

    def dialer(self) -> FakeDialer:
        return FakeDialer(self)


@dataclass
class FakeDialer:
    host: FakeHost

    async def list(self) -> tuple[Runner, ...]:
        return tuple(Runner(name, "t1", ready=True) for name in self.host.ssh)

    async def dial(self, runner: str) -> socket.socket:
        return (await self.host.dial({"runner": runner}, print))[1]

    async def listen(self, runner: str) -> socket.socket:
        return (await self.host.listen({"runner": runner}, print))[1]


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Stack:
    """The running stack, as tests use it from their own thread."""

    config: Config
    s3: S3
    background: Background
    host: FakeHost
    supervisor: Supervisor
    lines: list[str]
    routes: dict[str, Handler]

    @property
    def address(self) -> str:
        """`localhost:PORT`, the registry's name in image references."""
        return self.config.registry_host

    @property
    def cert_dir(self) -> str:
        return str(self.config.state / "trust")

    @property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.config.state / "trust" / "ca.crt")

    @property
    def admin_token(self) -> str:
        return (self.config.state / "admin.token").read_text().strip()

    @property
    def signer(self) -> Signer:
        return Signer((self.config.state / "keys" / "lease.key").read_bytes())

    def runner(self, repo: str, *, ssh_port: int = 0, life_s: float = 600) -> tuple[str, str]:
        """An attached runner of a new lease of `repo`: its name and its token."""
        lease = f"l{secrets.token_hex(4)}"
        self.host.add(f"{lease}-1", ssh_port)
        self.admin("PUT", f"/runners/{lease}-1")
        return f"{lease}-1", self.token(lease, grants.for_lease(repo), life_s)

    def token(self, lease: str, access: tuple[Access, ...], life_s: float = 600) -> str:
        now = datetime.now(UTC)
        deadline = now + timedelta(seconds=life_s)
        return self.signer.runner_token(lease, 1, access, deadline=deadline, now=now)

    def admin(self, method: str, path: str) -> tuple[int, str]:
        """A request to the edge's admin socket: status and body."""
        done = curl("--unix-socket", str(self.config.run / "edge" / "edge.sock"),
                    "-X", method, f"http://edge{path}")  # fmt: skip
        return done.status, done.body

    def curl(self, path: str, *options: str, token: str = "", port: int = 0) -> Answer:
        """A request to the edge, or to a runner's own listener at `port`."""
        bearer = ("-H", f"Authorization: Bearer {token}") if token else ()
        ca = str(self.config.state / "trust" / "ca.crt")
        address = f"https://localhost:{port or self.config.server.port}"
        return curl("--cacert", ca, *bearer, *options, f"{address}{path}")

    def skopeo(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["skopeo", *arguments], capture_output=True, text=True, timeout=120, check=False
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def wait_for(self, line: str, timeout_s: float = 60) -> None:
        """Until the supervisor has said `line`."""
        deadline = datetime.now(UTC) + timedelta(seconds=timeout_s)
        while not any(line in said for said in self.lines):
            assert datetime.now(UTC) < deadline, f"{line!r} not in {self.lines}"
            threading.Event().wait(0.05)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: str


def curl(*arguments: str) -> Answer:
    done = subprocess.run(
        ["curl", "-sS", "-i", "--http1.1", "--max-time", "60", "--path-as-is", *arguments],
        capture_output=True,
        timeout=70,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    head, _, body = done.stdout.partition(b"\r\n\r\n")
    while head.split(b" ", 2)[1] == b"100":
        head, _, body = body.partition(b"\r\n\r\n")
    first, *rest = head.decode().split("\r\n")
    headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in rest)}
    return Answer(int(first.split()[1]), headers, body.decode(errors="replace"))


def oci_image(folder: Path, size: int = 200_000) -> tuple[str, str]:
    """Write an OCI image `folder:t` with one layer of random bytes; manifest and layer digest."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def blob(data: bytes, media: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media, "digest": f"sha256:{digest}", "size": len(data)}

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        entry = tarfile.TarInfo("data")
        entry.size = size
        archive.addfile(entry, io.BytesIO(os.urandom(size)))
    media = "application/vnd.oci.image"
    # Compressed, or skopeo does it and the digests are others.
    layer_ = blob(gzip.compress(layer.getvalue(), 1), f"{media}.layer.v1.tar+gzip")
    diff_id = f"sha256:{hashlib.sha256(layer.getvalue()).hexdigest()}"
    rootfs = {"type": "layers", "diff_ids": [diff_id]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{media}.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), f"{media}.config.v1+json"),
        "layers": [layer_],
    }
    top = blob(json.dumps(manifest).encode(), f"{media}.manifest.v1+json")
    named = {**top, "annotations": {"org.opencontainers.image.ref.name": "t"}}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return top["digest"], layer_["digest"]


@pytest.fixture(
    scope="session", params=["distribution", pytest.param("zot", marks=pytest.mark.real)]
)
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    state = temporary_state()
    port = free_port()
    config = Config.model_validate(
        {
            "state": state,
            "server": {"listen": f"127.0.0.1:{port}", "name": "localhost"},
            "registry": {"kind": request.param},
        }
    )
    now = datetime.now(UTC)
    table = make_state(config, now)
    config = registry.settle(config)
    wanted = [service for service in table if service.name in ("s3", "bucket", "registry", "edge")]
    background = Background()
    lines: list[str] = []
    supervisor = Supervisor(wanted, config.run, state / "log", lines.append, now)
    stack = Stack(
        config, seaweed.prepare(config, now), background, FakeHost(), supervisor, lines, {}
    )
    asyncio.run_coroutine_threadsafe(_stand_ins(stack), background.loop)
    try:
        background.run(supervisor.start())
        yield stack
    finally:
        background.run(supervisor.stop())
        background.close()
        shutil.rmtree(state.parent)


async def _stand_ins(stack: Stack) -> None:
    """The host's dial socket, and an orchestrator that knows one password."""
    run = stack.config.run
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", partial(_orchestrator, stack))
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(run / "api" / "orchestrator.sock")).start()
    (run / "api" / "orchestrator.sock").chmod(0o666)
    try:
        await serve_host(stack.host, run)
    finally:
        await runner.cleanup()


async def serve_host(host: FakeHost, run: Path) -> None:
    """Answer for ever at the host's dial socket."""
    operations = {"list": host.list, "dial": host.dial, "listen": host.listen}
    await serve(run / "dial.sock", uid=users.EDGE, operations=operations)


async def _orchestrator(stack: Stack, request: web.Request) -> web.StreamResponse:
    if request.path in stack.routes:
        return await stack.routes[request.path](request)
    if request.path == "/healthz":
        return web.json_response({"status": "ok"})
    if request.path != "/token":
        return web.json_response({"error": {"code": "usage", "message": "no"}}, status=404)
    kind, _, given = request.headers.get("Authorization", "").partition(" ")
    password = base64.b64decode(given).decode().partition(":")[2] if kind == "Basic" else ""
    if password != stack.admin_token:
        return web.json_response({"errors": [{"code": "UNAUTHORIZED"}]}, status=401)
    asked = grants.parse_scope(" ".join(request.query.getall("scope", [])))
    access = grants.intersect(asked, grants.EVERYTHING)
    access += tuple(g for repo in grants.caches_asked(asked) for g in grants.for_caches(repo))
    token = stack.signer.registry_token("admin", access, now=datetime.now(UTC))
    return web.json_response({"token": token, "expires_in": 300})
