"""Debian's headless Chromium, spoken to by its own protocol (Chrome DevTools Protocol).

`scripts/setup-tests` installs it. One page a browser, which is all that these tests need.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

PROGRAM = "chromium-headless-shell"

FLAGS = (
    "--no-sandbox",  # as root; it sees nothing but what the test serves
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-port=0",
    "--window-size=1000,800",
)


class Page:
    """A page, in a browser of its own."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._session = ""
        self._asked = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        """Exceptions of the page's script, and what its policy refused."""
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for frame in self._socket:
            message = frame.json()
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif message["method"] == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.errors.append(details.get("exception", details).get("description", "?"))
            elif message["method"] == "Log.entryAdded":
                entry = message["params"]["entry"]
                if entry["source"] == "security":
                    self.errors.append(entry["text"])

    async def call(self, method: str, **params: object) -> dict[str, Any]:
        """One command of the protocol; its result. Fails with the browser's words."""
        self._asked += 1
        answer = self._answers[self._asked] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        await self._socket.send_json(
            {"id": self._asked, "method": method, "params": params, **session}
        )
        message = await asyncio.wait_for(answer, 60)
        assert "error" not in message, f"{method}: {message['error']}"
        found: dict[str, Any] = message["result"]
        return found

    async def attach(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def open(self, address: str) -> None:
        """Go to `address`; its script has begun to run."""
        found = await self.call("Page.navigate", url=address)
        assert "errorText" not in found, found["errorText"]
        there = f"(location.href === 'about:blank') === {json.dumps(address == 'about:blank')}"
        await self.until(f"{there} && document.readyState === 'complete'")

    async def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, a promise's when it is one, as JSON."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    async def until(self, expression: str, seconds: float = 30) -> None:
        """Return as soon as `expression` is true."""
        end = asyncio.get_running_loop().time() + seconds
        while not await self.ask(expression):
            assert asyncio.get_running_loop().time() < end, f"never so: {expression}"
            await asyncio.sleep(0.02)

    async def press(self, key: str, code: int, text: str = "") -> None:
        """One key, down and up; `code` is its virtual key code."""
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            extra: Mapping[str, object] = {"text": text} if text and kind == "keyDown" else {}
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind, key=key, code=key, windowsVirtualKeyCode=code, **extra,
            )  # fmt: skip

    async def close(self) -> None:
        self._reader.cancel()
        await self._socket.close()


@asynccontextmanager
async def page(url: str, ca: Path) -> AsyncIterator[Page]:
    """A page of a new browser that trusts who serves at `url`, as far as `ca` (a PEM file) does."""
    program = shutil.which(PROGRAM)
    if program is None:
        pytest.fail(f"{PROGRAM} is not installed: run scripts/setup-tests")
    with tempfile.TemporaryDirectory(prefix="mayfly-browser-") as home:
        browser = await asyncio.create_subprocess_exec(
            *(program, *FLAGS, f"--user-data-dir={home}"),
            f"--ignore-certificate-errors-spki-list={_pin(url, ca)}",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert browser.stderr
        address = ""
        try:
            async with asyncio.timeout(60):
                while not address:
                    line = (await browser.stderr.readline()).decode(errors="replace")
                    assert line, "the browser does not start"
                    if found := re.search(r"DevTools listening on (ws://\S+)", line):
                        address = found[1]
        finally:
            rest = asyncio.create_task(browser.stderr.read())  # or it waits for a reader
        try:
            async with (
                aiohttp.ClientSession() as http,
                http.ws_connect(address, max_msg_size=0) as socket,
            ):
                found_page = Page(socket)
                try:
                    await found_page.attach()
                    yield found_page
                finally:
                    await found_page.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(browser.pid, signal.SIGKILL)  # it is several processes
            await rest
            await browser.wait()


def _pin(url: str, ca: Path) -> str:
    """The public key of who serves at `url`, by `ca`'s word, as Chromium wants it named."""
    at = urlsplit(url)
    assert at.hostname and at.port
    text = ssl.get_server_certificate((at.hostname, at.port), ca_certs=str(ca))
    key = x509.load_pem_x509_certificate(text.encode()).public_key()
    info = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()
