"""Somebody else's registry in a network of its own: distribution with a token service, both TLS.

It stands in a namespace that is reached from this machine over one link, by a private address.
`python -m tests.farm.elsewhere FOLDER ADDRESS` is its token service.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from mayfly import tools
from mayfly.registry import grants, tokens
from mayfly.stack import certificates

REGISTRY, TOKENS = 5443, 5444
USER, PASSWORD = "farm", "the-farms-password"
NAMESPACE, DEVICE = f"mayfly-test-{os.getpid()}", f"mft{os.getpid()}"
_NETWORK = ipaddress.IPv4Address("10.213.0.0") + 4 * (os.getpid() % 16384)
OURS, ADDRESS = str(_NETWORK + 1), str(_NETWORK + 2)
"""Of this process, so that others' tests are elsewhere."""


@dataclass(frozen=True)
class Elsewhere:
    """A running one; `folder` holds `ca.crt` (alone in `trust/` too), `password` and its data."""

    folder: Path

    @property
    def host(self) -> str:
        return f"{ADDRESS}:{REGISTRY}"

    @property
    def asked(self) -> list[dict[str, Any]]:
        """What came to the token service, in order."""
        lines = (self.folder / "asked").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def skopeo(self, *words: str) -> str:
        """What skopeo says, as somebody who has the password."""
        trust = ["--cert-dir", str(self.folder / "trust"), "--creds", f"{USER}:{PASSWORD}"]
        argv = ["skopeo", words[0], *trust, *words[1:]]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@contextmanager
def elsewhere(folder: Path) -> Iterator[Elsewhere]:
    """Run it, for as long as the block takes."""
    _write(folder)
    ip = ["ip", "-batch", "-"]
    inside = ["nsenter", f"--net=/run/netns/{NAMESPACE}"]
    subprocess.run(["ip", "netns", "add", NAMESPACE], check=True)
    try:
        link = f"link add {DEVICE} type veth peer name out netns {NAMESPACE}\n"
        up = f"address add {OURS}/30 dev {DEVICE}\nlink set {DEVICE} up\n"
        subprocess.run(ip, input=link + up, check=True, text=True)
        up = f"link set lo up\naddress add {ADDRESS}/30 dev out\nlink set out up\n"
        subprocess.run([*inside, *ip], input=up, check=True, text=True)
        registry = [str(tools.tools_dir() / "registry"), "serve", str(folder / "config.yml")]
        service = [sys.executable, "-m", "tests.farm.elsewhere", str(folder), ADDRESS]
        with (folder / "log").open("wb") as log:
            programs = [
                subprocess.Popen([*inside, *argv], stdout=log, stderr=log, cwd=Path.cwd(), env=env)
                for argv, env in ((registry, {"OTEL_TRACES_EXPORTER": "none"}), (service, None))
            ]
        try:
            _wait(folder)
            yield Elsewhere(folder)
        finally:
            for program in programs:
                program.terminate()
                program.wait(20)
    finally:
        subprocess.run(["ip", "netns", "delete", NAMESPACE], check=True)
        subprocess.run(["ip", "link", "delete", DEVICE], check=False, capture_output=True)


def _write(folder: Path) -> None:
    now = datetime.now(UTC)
    signing = tokens.generate()
    (folder / "signing.pem").write_bytes(signing)
    (folder / "jwks").write_text(tokens.jwks(tokens.public(signing)))
    (folder / "password").write_text(f"{PASSWORD}\n")
    (folder / "asked").touch()
    ca_pem, pem = tokens.generate(), tokens.generate()
    ca_key, key = certificates.load_key(ca_pem), certificates.load_key(pem)
    ca = certificates.authority(ca_key, now)
    (folder / "trust").mkdir()
    for place in (folder / "ca.crt", folder / "trust" / "ca.crt"):
        place.write_bytes(certificates.dump(ca))
    served = certificates.server(key, [ADDRESS], ca, ca_key, now)
    (folder / "tls.crt").write_bytes(certificates.dump(served))
    (folder / "tls.key").write_bytes(pem)
    config = {
        "version": 0.1,
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {
            "addr": f"{ADDRESS}:{REGISTRY}",
            "tls": {"certificate": str(folder / "tls.crt"), "key": str(folder / "tls.key")},
        },
        "auth": {
            "token": {
                "realm": f"https://{ADDRESS}:{TOKENS}/token",
                "service": tokens.REGISTRY,
                "issuer": "elsewhere",
                "jwks": str(folder / "jwks"),
                "signingalgorithms": [tokens.ALGORITHM],
            }
        },
    }
    (folder / "config.yml").write_text(json.dumps(config))


def _wait(folder: Path) -> None:
    deadline = time.monotonic() + 30
    for port in (REGISTRY, TOKENS):
        curl = ["curl", "-sS", "--cacert", str(folder / "ca.crt"), f"https://{ADDRESS}:{port}/v2/"]
        while subprocess.run(curl, check=False, capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.2)


def serve_tokens(folder: Path, address: str) -> None:
    """Answer who knows the password with whatever was asked for, and note who asked."""
    signer = tokens.Signer((folder / "signing.pem").read_bytes(), "elsewhere")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            scopes = parse_qs(url.query).get("scope", [])
            kind, _, given = self.headers.get("Authorization", "").partition(" ")
            login = base64.b64decode(given).decode() if kind == "Basic" else ""
            known = login == f"{USER}:{PASSWORD}"
            agent = self.headers.get("User-Agent", "")
            if url.path == "/token":
                with (folder / "asked").open("a") as asked:
                    print(
                        json.dumps({"agent": agent, "scopes": scopes, "known": known}), file=asked
                    )
            access = [each for scope in scopes for each in grants.parse_scope(scope)]
            token = signer.gateway_token(access if known else [], now=datetime.now(UTC))
            body = json.dumps({"token": token, "expires_in": tokens.GATEWAY_TOKEN_S}).encode()
            self.send_response(200 if known or not login else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer((address, TOKENS), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.serve_forever()


if __name__ == "__main__":
    serve_tokens(Path(sys.argv[1]), sys.argv[2])
