"""Woodpecker's own code signs, sends and reads the answers: a live farm meets the real server.

The code is that of a checkout of github.com/woodpecker-ci/woodpecker, which WOODPECKER_SOURCE
names; nothing is written there.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from mayfly.errors import Unauthenticated
from mayfly.orchestrator.trust import signature
from tests.orchestrator.trust.live import Live, living
from tests.orchestrator.trust.test_signature import SIGNED, changed

pytestmark = [pytest.mark.services, pytest.mark.real]

MAIN = Path(__file__).parent / "signed" / "main.go"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`signed/main.go`, built as if it lay in the checkout."""
    source = os.environ.get("WOODPECKER_SOURCE", "")
    if not source:
        pytest.skip("WOODPECKER_SOURCE names no checkout of Woodpecker")
    folder = tmp_path_factory.mktemp("signed")
    overlay = {"Replace": {f"{source}/cmd/mayfly-signed/main.go": str(MAIN)}}
    (folder / "overlay.json").write_text(json.dumps(overlay))
    words: list[str | Path] = [
        "go",
        "-C",
        source,
        "build",
        "-overlay",
        folder / "overlay.json",
        "-buildvcs=false",
    ]
    words += ["-o", folder / "signed", "./cmd/mayfly-signed"]
    subprocess.run(words, check=True, timeout=550)
    return folder / "signed"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    with living() as farm:
        yield farm


@pytest.fixture
def key(live: Live, tmp_path: Path) -> Path:
    """The private half of what the farm has pinned."""
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    path = tmp_path / "key.pem"
    path.write_bytes(live.server.key.private_bytes(*form, serialization.NoEncryption()))
    return path


def signed(live: Live, *words: str | Path) -> Any:
    """What the program prints, in a second of its own: what the server signs twice in one second
    is the same request, and the second a replay.
    """
    time.sleep(1)
    env = {**os.environ, "SSL_CERT_FILE": str(live.config.state / "trust" / "ca.crt")}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_server_gets_a_ticket_for_its_pipeline_and_reads_it(
    live: Live, program: Path, key: Path
) -> None:
    got = signed(live, program, key, live.config.url)
    pull, push = got["secrets"]
    assert (pull["events"], push["events"]) == (["pull_request"], ["push"])
    for secret in (pull, push):
        assert secret["name"] == "mayfly_token"
        assert all("images/mayfly/buildkit-launcher" in image for image in secret["images"])
    assert live.ask(push["value"], pushes=["images/team/app"]).status_code == 201
    assert live.ask(pull["value"], pushes=["images/team/app"]).status_code == 403
    assert live.ask(pull["value"], pushes=["images/pr/team/app/7"]).status_code == 201
    assert len(got["registries"]) == 2
    for login in got["registries"]:
        assert (login["address"], login["username"]) == (live.config.registry_host, "mayfly")


def test_what_it_signed_is_refused_when_one_byte_is_changed_and_when_it_comes_again(
    live: Live, program: Path, key: Path
) -> None:
    sent = signed(live, program, key)["requests"]
    public = live.server.key.public_key()
    tried = 0
    for one in sent[:2]:
        for target, headers, body in changed(one):
            with pytest.raises(Unauthenticated):
                signature.verify(public, target, headers, body, datetime.now(UTC), 60)
            tried += 1
    assert tried > 3000
    print(f"{tried} requests with one byte changed")

    def post(target: str, headers: Any, body: bytes) -> int:
        told = {name: values[0] for name, values in headers.items() if name in SIGNED}
        return live.http.post(target, content=body, headers=told).status_code

    variants = list(changed(sent[0]))
    for variant in variants[:: len(variants) // 40]:
        assert post(*variant) in (401, 404), variant
    genuine = {name.lower(): values for name, values in sent[0]["headers"].items()}
    told = (sent[0]["target"], genuine, base64.b64decode(sent[0]["body"]))
    assert post(*told) == 200
    assert post(*told) == 503, "a replay"
