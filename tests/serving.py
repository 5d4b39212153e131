"""A farm without runners at its public address: a real edge, a real orchestrator."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from mayfly import users
from mayfly.client import Client, tls_context
from mayfly.config import Config
from mayfly.stack import secrets
from tests.stack_fixture import free_port, temporary_state


@dataclass
class Serving:
    """A farm without runners at its public address."""

    url: str
    ca: Path
    token: str

    def client(self) -> Client:
        return Client(self.url, self.token, self.ca)


@pytest.fixture(scope="session")
def serving() -> Iterator[Serving]:
    with running() as found:
        yield found


@contextmanager
def running(**settings: str) -> Iterator[Serving]:
    """Such a farm for as long as the block takes; `settings` are MAYFLY_* without that prefix."""
    state, port = temporary_state(), free_port()
    config = Config.model_validate(
        {"state": state, "server": {"listen": f"127.0.0.1:{port}", "name": "localhost"}}
    )
    users.make_folders(state)
    secrets.ensure(config, datetime.now(UTC))
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")},
        "MAYFLY_STATE": str(state),
        "MAYFLY_SERVER__LISTEN": config.server.listen,
        "MAYFLY_SERVER__NAME": "localhost",
        "MAYFLY_VM__PROVIDER": "fake",
        "MAYFLY_POOL__MEMORY_GB": "8",
        **{f"MAYFLY_{name}": value for name, value in settings.items()},
    }
    programs = [
        subprocess.Popen([sys.executable, "-m", name], env=env, stderr=subprocess.DEVNULL)
        for name in ("mayfly.orchestrator", "mayfly.edge")
    ]
    try:
        found = Serving(
            config.url, state / "ca" / "ca.crt", (state / "admin.token").read_text().strip()
        )
        trusted, deadline = tls_context(found.ca), time.monotonic() + 60
        while True:
            try:
                if httpx.get(f"{found.url}/healthz", verify=trusted).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline, "edge and orchestrator do not serve"
            time.sleep(0.1)
        yield found
    finally:
        for program in programs:
            program.terminate()
        for program in programs:
            program.wait(60)
        shutil.rmtree(state.parent)
