"""The API's client: what flow, CLI and plugin speak. One method for each route.

An error that the service reports is raised as the class of `errors.py` that has its code. A
service that does not answer, or an edge that cannot reach it, raises `Unreachable`: leases and
runners outlive both, so the same call may be made again (a creation with the same key).

Asking for a lease takes the standard library only: httpx and what comes with it are loaded while
the runner is being made, and not before it is asked for.
"""

from __future__ import annotations

import asyncio
import copy
import http.client
import ipaddress
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote, urlsplit

from mayfly import errors
from mayfly.config import Config
from mayfly.errors import Denied, NotFound, Unreachable, UsageError
from mayfly.model import LeaseRequest, Outcome
from mayfly.wire import (
    AskedJson,
    BeatJson,
    BuildersJson,
    BuildJson,
    GivenJson,
    LeaseJson,
    LoggedJson,
    MadeBuilderJson,
    NewTokenJson,
    SizingJson,
    StatusJson,
    UsageJson,
    VerdictJson,
    WhyJson,
)

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 10.0
REPORT_TIMEOUT_S = 40.0
"""A report is answered once the runner has been asked what it used, for 30 s at most."""
LONGEST_WAIT_S = 25.0
"""What the service holds a long poll for at most."""

WAITING = frozenset({"queued", "creating"})

HINT = "start it with `mayfly up`, or set MAYFLY_URL"


class Client:
    """A farm's API as seen with one token. Use it as an async context manager.

    `ca` is a PEM file trusted beside the system's certificates. Proxies of the environment are
    not used: a farm is dialled directly, as its relay is. Raises `UsageError` for a bad `ca`.
    `on_lease` is told the id and the token of each lease that is asked for.
    """

    def __init__(
        self,
        url: str,
        token: str,
        ca: Path | None = None,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.tls = tls_context(ca) if self.url.startswith("https:") else None
        self.token = token
        self.on_lease: Callable[[str, str], None] = lambda lease, token: None
        self._transport = transport
        self._made: list[httpx.AsyncClient] = []

    @property
    def _http(self) -> httpx.AsyncClient:
        """The connections, shared with the clients that `holding` makes."""
        if not self._made:
            import httpx

            self._made.append(
                httpx.AsyncClient(
                    base_url=self.url,
                    timeout=TIMEOUT_S,
                    trust_env=False,
                    verify=self.tls or False,
                    transport=self._transport,
                )
            )
        return self._made[0]

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for made in self._made:
            await made.aclose()

    def holding(self, token: str) -> Client:
        """The same farm with a lease's token; it lives and closes with this client."""
        other = copy.copy(self)
        other.token = token
        return other

    async def ask(self, request: LeaseRequest, idempotency_key: str) -> AskedJson:
        """Ask for a lease. The same key and request again answer the same lease.

        Raises `UsageError`, `TooBig`, `MachineUnfit`, `Denied`.
        """
        headers = {"Idempotency-Key": idempotency_key}
        if self._transport is None:
            body = json.dumps(asdict(request)).encode()
            headers |= {"Content-Type": "application/json", **self._bearer}
            told = json.loads(await asyncio.to_thread(self._post, "/v1/leases", headers, body))
        else:
            answer = await self._call("POST", "/v1/leases", json=asdict(request), headers=headers)
            told = answer.json()
        asked = cast(AskedJson, told)
        self.on_lease(asked["id"], asked["token"])
        return asked

    def _post(self, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
        """The answer's body. Raises as `_call` does."""
        where = urlsplit(self.url)
        link = (
            http.client.HTTPSConnection(where.netloc, timeout=TIMEOUT_S, context=self.tls)
            if self.tls
            else http.client.HTTPConnection(where.netloc, timeout=TIMEOUT_S)
        )
        try:
            link.request("POST", f"{where.path}{path}", body, dict(headers))
            answer = link.getresponse()
            said = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from error
        finally:
            link.close()
        if not 200 <= answer.status < 300:
            raise _error(answer.status, answer.reason, said, self.url)
        return said

    async def lease(self, lease: str, *, wait_s: float = 0, since: str = "") -> LeaseJson:
        """The lease, as soon as its state is not `since`, or after `wait_s` seconds (25 at most).

        Raises `NotFound`.
        """
        wait_s = min(wait_s, LONGEST_WAIT_S)
        answer = await self._call(
            "GET",
            _lease(lease),
            params={"since": since, "wait_s": wait_s},
            timeout=TIMEOUT_S + wait_s,
        )
        return cast(LeaseJson, answer.json())

    async def events(self, lease: str) -> AsyncIterator[str]:
        """Lines for the person who waits, those so far first, until the lease is ready or ended.

        Raises `Unreachable` when the stream breaks: call again, it begins with where things are.
        """
        kind = ""
        async with self._stream(f"{_lease(lease)}/events") as answer:
            async for line in answer.aiter_lines():
                name, _, value = line.partition(": ")
                kind = value if name == "event" else kind
                text = json.loads(value)["text"] if name == "data" else ""
                if text and kind == "progress":
                    yield text
                elif text and kind == "state" and text not in WAITING:
                    return

    async def heartbeat(self, lease: str) -> BeatJson:
        """Say that the client lives; `state` tells when the lease has ended meanwhile."""
        return cast(BeatJson, (await self._call("POST", f"{_lease(lease)}/heartbeat")).json())

    async def append_log(self, lease: str, offset: int, data: bytes) -> int:
        """Append to the build's log; returns the next offset. The same again does no harm.

        At most 1 MiB a call. Raises `Conflict` when the log ends before `offset`.
        """
        answer = await self._call(
            "POST", f"{_lease(lease)}/log", params={"offset": offset}, content=data
        )
        return cast(LoggedJson, answer.json())["size_bytes"]

    async def report(
        self,
        lease: str,
        *,
        outcome: Outcome,
        attempt: int = 0,
        reason: str = "",
        digest: str = "",
        timings_s: Mapping[str, float] | None = None,
        images: Sequence[str] = (),
    ) -> VerdictJson:
        """Tell how an attempt of the build ended (0: the present one), which ends the lease.

        The answer's `outcome` is the one that counts: another when the lease had ended before. With
        the verdict `retry` the lease goes on with another runner, to be waited for.
        Raises `UsageError` for an outcome that a client cannot claim.
        """
        answer = await self._call(
            "POST",
            f"{_lease(lease)}/report",
            json={
                "outcome": outcome,
                "attempt": attempt,
                "reason": reason,
                "digest": digest,
                "timings_s": dict(timings_s or {}),
                "images": list(images),
            },
            timeout=REPORT_TIMEOUT_S,
        )
        return cast(VerdictJson, answer.json())

    async def authorize(self, lease: str, ssh_public_key: str) -> LeaseJson:
        """Have the lease's runner let one more key in; `runner` of the answer is the way there.

        Raises `NotFound`, `Conflict` when there is no runner now, `Denied`.
        """
        answer = await self._call(
            "POST",
            f"{_lease(lease)}/keys",
            json={"ssh_public_key": ssh_public_key},
            timeout=2 * TIMEOUT_S,
        )
        return cast(LeaseJson, answer.json())

    async def end(self, lease: str, outcome: Outcome = Outcome.CANCELLED) -> None:
        """End the lease as cancelled or terminated; nothing happens to one that has ended."""
        await self._call("DELETE", _lease(lease), params={"outcome": outcome})

    async def leases(self) -> list[LeaseJson]:
        """Every open lease that the token may see, oldest first."""
        return cast(list[LeaseJson], (await self._call("GET", "/v1/leases")).json())

    async def builders(self, *, wait_s: float = 0, since: str = "") -> BuildersJson:
        """Every builder that the token may see, as soon as the revision is not `since`, or after
        `wait_s` seconds (25 at most).
        """
        wait_s = min(wait_s, LONGEST_WAIT_S)
        answer = await self._call(
            "GET",
            "/v1/builders",
            params={"since": since, "wait_s": wait_s},
            timeout=TIMEOUT_S + wait_s,
        )
        return cast(BuildersJson, answer.json())

    async def make_builder(
        self,
        name: str,
        repo: str,
        size: str = "",
        linger_s: float | None = None,
        *,
        uid: int | None = None,
        public_key: str = "",
    ) -> MadeBuilderJson:
        """Make a builder with a socket for the user `uid`, or with TLS for the client whose key
        (P-256, PEM) this is the public half of; its leases have the rights of this token.

        Raises `Conflict` for a name that is taken, `UsageError`, `TooBig`, `Denied`.
        """
        form = {"name": name, "repo": repo, "size": size, "linger_s": linger_s, "uid": uid}
        form |= {"public_key": public_key}
        answer = await self._call("POST", "/v1/builders", json=form)
        return cast(MadeBuilderJson, answer.json())

    async def remove_builder(self, name: str) -> None:
        """Remove a builder. Raises `NotFound`, also for one that the token may not see."""
        await self._call("DELETE", f"/v1/builders/{_part(name, 'builder', 'mayfly builder ls')}")

    async def builds(self) -> list[BuildJson]:
        """The last builds that the token may see, youngest first."""
        return cast(list[BuildJson], (await self._call("GET", "/v1/builds")).json())

    async def build(self, build: str) -> BuildJson:
        """One build. Raises `NotFound`."""
        return cast(BuildJson, (await self._call("GET", _build(build))).json())

    async def why(self, build: str) -> WhyJson:
        """Why a build had its size, and what its attempts took. Raises `NotFound`."""
        return cast(WhyJson, (await self._call("GET", f"{_build(build)}/why")).json())

    async def size(self, request: LeaseRequest) -> SizingJson:
        """What such a request would get now, and why. Raises as `ask` does."""
        told = asdict(request)
        asked = {name: told[name] for name in ("repo", "size", "target", "languages", "spec")}
        return cast(SizingJson, (await self._call("POST", "/v1/size", json=asked)).json())

    async def usage(self, build: str) -> UsageJson:
        """What the build has used, as far as its farm knows. Raises `NotFound`."""
        return cast(UsageJson, (await self._call("GET", f"{_build(build)}/usage")).json())

    async def log(self, build: str, offset: int = 0) -> AsyncIterator[bytes]:
        """The build's log from byte `offset` on, in pieces, as far as it goes now."""
        async with self._stream(f"{_build(build)}/log", params={"offset": offset}) as answer:
            async for piece in answer.aiter_bytes():
                yield piece

    async def give_token(
        self, name: str, repos: Sequence[str], *, trusted: bool, life_s: float | None
    ) -> NewTokenJson:
        """A new static token for builds of `repos`, patterns (admin). Raises `Conflict`."""
        body = {"name": name, "repos": list(repos), "trusted": trusted, "life_s": life_s}
        return cast(NewTokenJson, (await self._call("POST", "/v1/tokens", json=body)).json())

    async def tokens(self) -> list[GivenJson]:
        """Every static token that was not revoked (admin)."""
        return cast(list[GivenJson], (await self._call("GET", "/v1/tokens")).json())

    async def revoke_token(self, name: str) -> None:
        """Refuse a static token from now on (admin). Raises `NotFound`."""
        await self._call("DELETE", f"/v1/tokens/{_part(name, 'token', 'mayfly token ls')}")

    async def status(self) -> StatusJson:
        """What `mayfly status --json` prints (admin)."""
        return cast(StatusJson, (await self._call("GET", "/v1/status")).json())

    async def _call(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, **more: Any
    ) -> httpx.Response:
        import httpx

        try:
            answer = await self._http.request(
                method, path, headers={**(headers or {}), **self._bearer}, **more
            )
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            raise _error(answer.status_code, answer.reason_phrase, answer.content, self.url)
        return answer

    @property
    def _bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    @asynccontextmanager
    async def _stream(self, path: str, **more: Any) -> AsyncIterator[httpx.Response]:
        import httpx

        try:
            # Silence is normal in a stream; the service sends a comment every 10 s.
            timeout = httpx.Timeout(TIMEOUT_S, read=3 * TIMEOUT_S)
            async with self._http.stream(
                "GET", path, headers=self._bearer, timeout=timeout, **more
            ) as answer:
                if not answer.is_success:
                    said = await answer.aread()
                    raise _error(answer.status_code, answer.reason_phrase, said, self.url)
                yield answer
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> Unreachable:
        why = str(error) or type(error).__name__
        ca = "set MAYFLY_CA (the plugin's `ca`) to the farm's ca.crt"
        hint = ca if "CERTIFICATE_VERIFY" in why else HINT
        return Unreachable(f"Mayfly does not answer at {self.url}: {why}", hint=hint)


def from_environment(config: Config, environ: Mapping[str, str] | None = None) -> Client:
    """The farm that MAYFLY_URL, MAYFLY_TOKEN and MAYFLY_CA name, else this machine's own.

    This machine's admin token goes nowhere else: with MAYFLY_URL there must be MAYFLY_TOKEN. Raises
    `Denied` when there is no token to be found, `UsageError` for a URL or token that cannot be one,
    for `http://` to another machine, and for a CA that cannot be read.
    """
    environ = os.environ if environ is None else environ
    given = environ.get("MAYFLY_URL", "")
    if given:
        _check_url(given)
    if given and not environ.get("MAYFLY_TOKEN"):
        raise Denied(f"no token for MAYFLY_URL={given}", hint="set MAYFLY_TOKEN")
    url = given or local_url(config)
    ca: Path | None = config.state / "ca" / "ca.crt"
    if named := environ.get("MAYFLY_CA"):
        ca = Path(named)
        if not os.access(ca, os.R_OK):
            raise UsageError(f"MAYFLY_CA={named}: cannot be read")
    elif ca and not os.access(ca, os.R_OK):
        ca = None
    return Client(url, token(config, environ), ca)


def _check_url(url: str) -> None:
    """Raises `UsageError` for a MAYFLY_URL that cannot be dialled, or not without being read."""
    try:
        parsed = urlsplit(url)
        host = parsed.hostname or ""
        is_url = parsed.scheme in ("https", "http") and host.encode("idna").decode("idna") != ""
        is_url = is_url and parsed.port != 0 and url.isprintable() and " " not in url
    except ValueError:  # idna's errors are ValueErrors
        is_url = False
    if not is_url:
        raise UsageError(f"MAYFLY_URL={url!r} is not a URL", hint="as in https://farm.example:5000")
    if parsed.scheme == "http" and not _is_loopback(host):
        raise UsageError(
            f"MAYFLY_URL={url!r} would send the token unencrypted", hint="use https://"
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_url(config: Config) -> str:
    """This machine's farm: by its name where that resolves, else by the address it listens on."""
    try:
        socket.getaddrinfo(config.server.name, config.server.port, type=socket.SOCK_STREAM)
    except OSError:
        host = config.server.listen.rpartition(":")[0]
        if ipaddress.ip_address(host.strip("[]")).is_unspecified:
            host = "127.0.0.1"
        return f"https://{host}:{config.server.port}"
    return config.url


def tls_context(ca: Path | None) -> ssl.SSLContext:
    """The system's certificates, and those in `ca`. Raises `UsageError` when it is not PEM."""
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(ca)
        except (OSError, ssl.SSLError) as error:
            raise UsageError(f"{ca}: not a PEM certificate that can be read: {error}") from None
    return context


def token(config: Config, environ: Mapping[str, str] | None = None) -> str:
    """MAYFLY_TOKEN, else this machine's admin token. Raises `Denied` when there is neither.

    Raises `UsageError` for a MAYFLY_TOKEN that no header can carry; it is not shown.
    """
    environ = os.environ if environ is None else environ
    if given := environ.get("MAYFLY_TOKEN"):
        if not (given.isascii() and given.isprintable()):
            raise UsageError("MAYFLY_TOKEN is not a token", hint="copy it anew, without line ends")
        return given
    path = config.state / "admin.token"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise Denied(
            f"no token: MAYFLY_TOKEN is not set and {path} does not exist",
            hint="start the farm with `mayfly up`, or set MAYFLY_URL and MAYFLY_TOKEN",
        ) from None
    except OSError as error:
        raise Denied(
            f"no token: {path} cannot be read: {error.strerror}",
            hint="run as root, or set MAYFLY_TOKEN",
        ) from None


def _lease(lease: str) -> str:
    return f"/v1/leases/{_id(lease)}"


def _build(build: str) -> str:
    return f"/v1/builds/{_id(build)}"


def _id(given: str) -> str:
    return _part(given, "lease", "mayfly lease ls")


def _part(given: str, what: str, see: str) -> str:
    """A name as a part of a path. Raises `NotFound` for what would be no single part of one."""
    if not given or given in (".", "..") or not given.isprintable() or "/" in given:
        raise NotFound(f"there is no {what} {given!r}", hint=f"see `{see}`")
    return quote(given, safe="")


def _error(status: int, reason: str, said: bytes, url: str) -> errors.MayflyError:
    """The error in an answer's body; `Unreachable` when a proxy answered for the service."""
    try:
        body = json.loads(said)["error"]
        code, message, hint = str(body["code"]), str(body["message"]), str(body.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        answered = f"{status} {reason}"
        return Unreachable(f"{url} answered {answered}, which is not Mayfly's", hint=HINT)
    return errors.from_code(code, message, hint=hint, http_status=status)
