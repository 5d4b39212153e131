"""An operator's own certificate at the public address, of a real edge."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mayfly import users
from mayfly.config import Config
from mayfly.registry import tokens
from mayfly.stack import certificates, own_certificate, secrets
from mayfly.stack.probe import answers
from mayfly.stack.services import Probe
from tests.stack_fixture import free_port, temporary_state


@pytest.mark.services
async def test_it_is_served_there_and_the_farms_own_is_kept_for_runners() -> None:
    state, port = temporary_state(), free_port()
    key = certificates.load_key(tokens.generate())
    now = datetime.now(UTC)
    own = certificates.dump(certificates.self_signed(key, ("builds.example.org",), now))
    files = {"certificate": state.parent / "own.crt", "key": state.parent / "own.key"}
    files["certificate"].write_bytes(own)
    files["key"].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    listen = f"127.0.0.1:{port}"
    server = {"listen": listen, "name": "builds.example.org", "public_port": 443}
    config = Config.model_validate(
        {"state": state, "server": {**server, **{n: str(p) for n, p in files.items()}}}
    )
    assert config.url == "https://builds.example.org:443"
    users.make_folders(state)
    secrets.ensure(config, now)
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")}
    env |= {f"MAYFLY_SERVER__{n.upper()}": str(v) for n, v in {**server, **files}.items()}
    edge = subprocess.Popen(  # noqa: ASYNC220 - waited for below
        [sys.executable, "-m", "mayfly.edge"],
        env={**env, "MAYFLY_STATE": str(state)},
        stderr=subprocess.DEVNULL,
    )
    try:
        probe = Probe(listen, "/v2/", frozenset({401}), tls=True)
        deadline = time.monotonic() + 60
        while not await answers(probe):
            assert time.monotonic() < deadline and edge.poll() is None
            await asyncio.sleep(0.1)
        # Whatever lies there since, it serves.
        expired = certificates.self_signed(key, ("x.example",), now - timedelta(days=4000))
        (state / "ca/public.crt").write_bytes(certificates.dump(expired))
        assert await answers(probe)
        assert ssl.get_server_certificate(("127.0.0.1", port)).encode() == own
        assert certificates.load((state / "ca/edge.crt").read_bytes()) is not None
        assert (state / "ca/public.key").stat().st_mode & 0o077 == 0
    finally:
        edge.terminate()
        edge.wait(60)
    plain = Config(state=state)
    secrets.ensure(plain, now)
    assert not (state / "ca/public.key").exists(), "no copy of a key stays that is not used"
    shutil.rmtree(state.parent)


def test_a_key_of_another_kind_will_do() -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    other = certificates.load_key(tokens.generate())
    now = datetime.now(UTC)
    made = certificates.dump(certificates.self_signed(other, ("a.example",), now))
    assert list(own_certificate.faults(made, pem, "a.example", now)) == ["does not go with the key"]
