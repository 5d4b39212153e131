"""Tokens for as long as a build takes, and the login never where a runner could ask for it.

BuildKit asks the client (buildx) for a token, naming the token service that the registry told it
of; buildx goes there with the name and password of its configuration. A build's configuration holds
a password that is good for nothing but this: buildx's way out leads through here (HTTPS_PROXY), and
where it is to a token service that this build has to do with, we answer in its place. For what was
asked and is the build's, the real login buys a fresh token; what is not gets what anybody gets.

Whatever else buildx asks for by HTTPS (tokens for anybody) passes through unseen. Plain HTTP does
not: a runner could name any address, and a cloud's metadata service among them.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import os
import secrets
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mayfly.errors import MayflyError, UsageError
from mayfly.registry import grants
from mayfly.registry.credentials import ANONYMOUS, Exchange, Given
from mayfly.registry.grants import Access

USER = "mayfly"
HEAD_BYTES = 16 * 1024
"""Of what comes before the blank line of a request."""
CONNECT_S = 10.0

Buy = Callable[[Exchange, tuple[Access, ...]], Awaitable[tuple[str, float]]]
"""A fresh token for a part of what an exchange is for, and the seconds that it lives."""


@asynccontextmanager
async def brokered(
    given: Given, folder: Path, environ: Mapping[str, str], buy: Buy
) -> AsyncIterator[tuple[dict[str, object], dict[str, str]]]:
    """Docker's config.json for the build, and what to add to buildx's environment.

    `folder` is the build's own (0700). Where there is nothing to exchange nothing is started and
    the environment stays as it is.
    """
    # What is on loopback, Go's programs reach past any proxy: there it is the first token.
    exchanges = {k: e for k, e in given.exchanges.items() if not _on_loopback(e.realm)}
    if not exchanges:
        yield given.config({}), {}
        return
    word = secrets.token_urlsafe(24)
    entry = {"auth": base64.b64encode(f"{USER}:{word}".encode()).decode()}
    services = {_authority(each.realm): None for each in exchanges.values()}
    tls, pem = _certificate(urlsplit(f"//{name}").hostname or "" for name in services)
    bundle = folder / "trust.pem"
    bundle.write_bytes(_trusted(environ) + b"\n" + pem)
    broker = _Broker(tuple(exchanges.values()), word, buy)
    async with AsyncExitStack() as stack:
        inner = folder / "tokens.sock"
        stack.callback(inner.unlink, missing_ok=True)
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", broker.answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.UnixSite(runner, str(inner), ssl_context=tls).start()
        tunnel = _Tunnel(frozenset(services), inner, word, environ)
        server = await asyncio.start_server(tunnel.serve, "127.0.0.1", 0, limit=HEAD_BYTES)
        stack.push_async_callback(tunnel.close, server)
        port = server.sockets[0].getsockname()[1]
        proxy = f"http://{USER}:{word}@127.0.0.1:{port}"
        names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
        ours = {**dict.fromkeys(names, proxy), "NO_PROXY": "", "no_proxy": ""}
        yield (
            given.config(dict.fromkeys(exchanges, entry)),
            {**ours, "SSL_CERT_FILE": str(bundle)},
        )


class _Broker:
    """Stands where token services are."""

    def __init__(self, exchanges: tuple[Exchange, ...], word: str, buy: Buy) -> None:
        self._exchanges = exchanges
        self._word = word
        self._buy = buy

    async def answer(self, request: web.Request) -> web.Response:
        """A token as OAuth2 and the distribution specification have it, or 403."""
        form = await request.post()
        asked = [*request.query.getall("scope", []), *map(str, form.getall("scope", []))]
        exchange = next((e for e in self._exchanges if self._is_for(e, request)), None)
        if exchange is None or not self._known(request, str(form.get("password", ""))):
            return web.json_response({"error": "access_denied"}, status=403)
        try:
            all_ = grants.parse_scope(" ".join(asked))
            ours = grants.intersect(all_, exchange.access)
            if all_ and not ours:
                exchange = replace(exchange, login=ANONYMOUS)
            text, lives_s = await self._buy(exchange, ours or all_)
        except UsageError:
            return web.json_response({"error": "invalid_scope"}, status=400)
        except MayflyError as error:
            return web.json_response({"error": "access_denied", "details": str(error)}, status=403)
        told = {"token": text, "access_token": text, "expires_in": int(lives_s)}
        return web.json_response(told)

    def _is_for(self, exchange: Exchange, request: web.Request) -> bool:
        realm = urlsplit(exchange.realm)
        return (_authority(exchange.realm), realm.path) == (_full(request.host), request.path)

    def _known(self, request: web.Request, password: str) -> bool:
        given = password or _password(request.headers.get("Authorization", ""))
        return hmac.compare_digest(given.encode(), self._word.encode())


class _Tunnel:
    """An HTTPS proxy that leads to the broker for its token services, and out for all others."""

    def __init__(
        self, services: frozenset[str], inner: Path, word: str, environ: Mapping[str, str]
    ) -> None:
        self._services = services
        self._inner = inner
        self._word = word
        self._environ = environ
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
                await self._serve(reader, writer)
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, _, rest = first.partition(" ")
        target = rest.partition(" ")[0]
        fields = (line.partition(":") for line in lines)
        said = next((v for name, _, v in fields if name.lower() == "proxy-authorization"), "")
        if not hmac.compare_digest(_password(said.strip()).encode(), self._word.encode()):
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        if method != "CONNECT":
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                there, back = await self._open(target)
        except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
            return
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        try:
            await asyncio.gather(_pipe(reader, back), _pipe(there, writer))
        finally:
            back.close()

    async def _open(self, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The way to `HOST:PORT`. Raises `OSError` and `ValueError`."""
        if _full(target) in self._services:
            return await asyncio.open_unix_connection(str(self._inner))
        host, _, port = target.rpartition(":")
        proxy = self._proxy(host.strip("[]"))
        if proxy:
            return await _through(proxy, target)
        found = await asyncio.get_running_loop().getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
        address = found[0][4][0]
        there = ipaddress.ip_address(str(address).partition("%")[0])
        there = getattr(there, "ipv4_mapped", None) or there
        if there.is_link_local or there.is_loopback or there.is_unspecified:
            raise OSError("not a place for a token service")
        return await asyncio.open_connection(str(address), int(port))

    def _proxy(self, host: str) -> str:
        """The user's own proxy for a host; empty when there is none."""
        names = ("HTTPS_PROXY", "https_proxy")
        proxy = next((self._environ[n] for n in names if self._environ.get(n)), "")
        no = self._environ.get("NO_PROXY") or self._environ.get("no_proxy") or ""
        names_ = (name.strip().lstrip(".*") for name in no.split(","))
        direct = no.strip() == "*" or any(n and f".{host}".endswith(f".{n}") for n in names_)
        return "" if direct else proxy

    async def close(self, server: asyncio.Server) -> None:
        """End every connection."""
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _through(proxy: str, target: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to `HOST:PORT` by another proxy (`http://[USER:PASSWORD@]HOST:PORT`)."""
    url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    reader, writer = await asyncio.open_connection(
        url.hostname, url.port or 80, ssl=url.scheme == "https" or None
    )
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if url.username:
        pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
        request += f"Proxy-Authorization: Basic {base64.b64encode(pair.encode()).decode()}\r\n"
    writer.write(f"{request}\r\n".encode())
    answer = await reader.readuntil(b"\r\n\r\n")
    if answer.split(b" ", 2)[1:2] != [b"200"]:
        writer.close()
        raise OSError("the proxy refuses")
    return reader, writer


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()


def _password(authorization: str) -> str:
    kind, _, pair = authorization.partition(" ")
    try:
        text = base64.b64decode(pair).decode() if kind.lower() == "basic" else ""
    except ValueError:
        return ""
    return unquote(text.partition(":")[2])


def _authority(url: str) -> str:
    return _full(urlsplit(url).netloc.rpartition("@")[2])


def _on_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _full(netloc: str) -> str:
    """`HOST:PORT`, lower case."""
    host, colon, port = netloc.lower().rpartition(":")
    return netloc.lower() if colon and port.isdigit() and host else f"{netloc.lower()}:443"


def _trusted(environ: Mapping[str, str]) -> bytes:
    """What the system trusts, PEM."""
    paths = ssl.get_default_verify_paths()
    usual = "/etc/ssl/certs/ca-certificates.crt"
    for name in (environ.get("SSL_CERT_FILE"), paths.cafile, usual):
        with suppress(OSError):
            if name:
                return Path(name).read_bytes()
    return b""


def _certificate(names: Iterable[str]) -> tuple[ssl.SSLContext, bytes]:
    """A server's context with a certificate for `names` that nobody else trusts; the PEM of it."""
    now = datetime.now(UTC)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mayfly build")])
    alternatives = [_alternative(name) for name in names]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    descriptor = os.memfd_create("mayfly")
    try:
        os.write(descriptor, pem + secret)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
    return context, pem


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
