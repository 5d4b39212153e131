"""A live farm without VMs: real bucket, registry, edge and orchestrator, kept by the supervisor.

The provider is `fake`; the host is a stand-in that opens a socket for any runner, so that the edge
serves those of leases. A Woodpecker server of the test's own is pinned, and its API is asked.
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web

from mayfly import users
from mayfly.config import Config
from mayfly.host.server import serve
from mayfly.registry.tokens import Signer
from mayfly.stack import registry
from mayfly.stack.lifecycle import make_state
from mayfly.stack.supervise import Supervisor
from tests.orchestrator.leases import KEY, LADDER
from tests.orchestrator.trust.forge import REPO, SECRETS, Woodpecker
from tests.stack_fixture import Background, FakeHost, free_port, temporary_state

PROGRAMS = ("s3", "bucket", "registry", "edge", "orchestrator")


class AnyHost(FakeHost):
    """A host that has every runner that it is asked about."""

    def _known(self, request: Any) -> str:
        return str(request["runner"])


@dataclass
class Live:
    """The farm at its public address, as a pipeline and its steps meet it."""

    config: Config
    server: Woodpecker
    http: httpx.Client
    ended: set[int] = field(default_factory=set)

    @property
    def admin(self) -> str:
        return (self.config.state / "admin.token").read_text().strip()

    @property
    def signer(self) -> Signer:
        return Signer((self.config.state / "keys" / "lease.key").read_bytes())

    def send(
        self,
        pipeline: Mapping[str, Any],
        *,
        target: str = SECRETS,
        repo: Mapping[str, Any] = REPO,
        server: Woodpecker | None = None,
        off_s: float = 0,
    ) -> httpx.Response:
        """What the Woodpecker server sends when a pipeline is triggered."""
        who, body = server or self.server, self.server.body(pipeline, repo)
        at = datetime.fromtimestamp(time.time() + off_s, UTC)
        return self.http.post(target, content=body, headers=who.headers(target, body, at))

    def ask(self, token: str, **more: Any) -> httpx.Response:
        body = {"repo": "team/app", "ssh_public_key": KEY, **more}
        return self.http.post("/v1/leases", json=body, headers=bearer(token))

    def runner(self, asked: Mapping[str, Any]) -> str:
        """The runner token of a lease that was granted, as soon as there is a runner."""
        state = ""
        for _ in range(20):
            view = self.http.get(
                f"/v1/leases/{asked['id']}",
                params={"wait_s": 10, "since": state},
                headers=bearer(asked["token"]),
            ).json()
            if view["runner"]:
                return str(view["runner"]["token"])
            state = view["state"]
        raise AssertionError(view)


def bearer(token: str) -> dict[str, str]:
    """What is sent with a token; nothing without one."""
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def living() -> Iterator[Live]:
    state, port, api = temporary_state(), free_port(), free_port()
    server = Woodpecker()
    config = Config.model_validate(
        {
            "state": state,
            "server": {"listen": f"127.0.0.1:{port}", "name": "localhost"},
            "registry": {"kind": "distribution"},
            "vm": {"provider": "fake"},
            "ladder": LADDER,
            "pool": {"memory_gb": 64, "disk_gb": 900, "cpu_overcommit": 16},
            "lease": {"grace_s": 300},
            "woodpecker": {**server.options, "url": f"http://127.0.0.1:{api}", "token": "hush"},
        }
    )
    now = datetime.now(UTC)
    table = make_state(config, now)
    config = registry.settle(config)
    wanted = [service for service in table if service.name in PROGRAMS]
    background = Background()
    supervisor = Supervisor(wanted, config.run, state / "log", lambda _: None, now)
    tls = ssl.create_default_context(cafile=config.state / "trust" / "ca.crt")
    try:
        with httpx.Client(base_url=config.url, verify=tls, timeout=30) as http:
            live = Live(config, server, http)
            asyncio.run_coroutine_threadsafe(_stand_ins(live, api), background.loop)
            background.run(supervisor.start())
            yield live
    finally:
        background.run(supervisor.stop())
        background.close()
        shutil.rmtree(Path(state).parent)


async def _stand_ins(live: Live, port: int) -> None:
    """The host's dial socket, and Woodpecker's API."""

    async def pipeline(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer hush"
        number = int(request.match_info["number"])
        return web.json_response({"status": "success" if number in live.ended else "running"})

    application = web.Application()
    application.router.add_get("/api/repos/{repo}/pipelines/{number}", pipeline)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    host = AnyHost()
    operations = {"list": host.list, "dial": host.dial, "listen": host.listen}
    try:
        await serve(live.config.run / "dial.sock", uid=users.EDGE, operations=operations)
    finally:
        await runner.cleanup()
