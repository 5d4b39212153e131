"""A lease and its keeping: asked for, kept alive by heartbeats, waited for, always given back."""

from __future__ import annotations

import asyncio
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Protocol, TypeVar

from mayfly.build.result import ended
from mayfly.build.stop import Stop
from mayfly.errors import (
    Cancelled,
    Denied,
    InfrastructureError,
    MayflyError,
    Terminated,
    UsageError,
)
from mayfly.model import LeaseRequest, Outcome
from mayfly.wire import AskedJson, BeatJson, LeaseJson, VerdictJson

# How long the orchestrator, or the edge before it, may be away before a build gives up on it: one
# that keeps dying is started again after 30 s at most (`stack.supervise.backoff`).
PATIENCE_S = 60.0
ENDING_S = 8.0  # how long we try to tell it that we stop
POLL_S = 20.0
NEWS_S = 1.0  # how long the last lines about a runner may take longer than the runner
LOST = "lost"
OVER = frozenset({"destroying", "ended", LOST})
_T = TypeVar("_T")

Show = Callable[[str], None]
"""Takes one line that the person who builds should see."""


class Api(Protocol):
    """What a build asks of the orchestrator; `mayfly.client.Client` is one.

    Every method raises `Unreachable` when nobody answers, else the error that the answer names.
    """

    @property
    def tls(self) -> ssl.SSLContext | None: ...
    def holding(self, token: str) -> Api: ...
    async def ask(self, request: LeaseRequest, idempotency_key: str) -> AskedJson: ...
    async def lease(self, lease: str, *, wait_s: float = 0, since: str = "") -> LeaseJson: ...
    def events(self, lease: str) -> AsyncIterator[str]: ...
    async def heartbeat(self, lease: str) -> BeatJson: ...
    async def append_log(self, lease: str, offset: int, data: bytes) -> int: ...
    async def report(
        self,
        lease: str,
        *,
        outcome: Outcome,
        attempt: int,
        digest: str,
        timings_s: Mapping[str, float],
        images: Sequence[str],
    ) -> VerdictJson: ...
    async def end(self, lease: str, outcome: Outcome) -> None: ...


@asynccontextmanager
async def held(
    api: Api, request: LeaseRequest, *, every_s: float, stop: Stop
) -> AsyncIterator[tuple[str, Api, str]]:
    """A lease for `request`, the API as its holder sees it, and the address of the build's page.

    Heartbeats go on `every_s`.

    Leaving by an exception ends the lease with the outcome that the exception (or the reason of
    `stop`) stands for. When the orchestrator ends the lease, `stop` is called with how. Raises
    what `api.ask` raises.
    """
    asking = asyncio.create_task(api.ask(request, secrets.token_hex(16)))
    try:
        asked = await asyncio.shield(asking)
    except asyncio.CancelledError as error:
        with suppress(MayflyError, TimeoutError):
            asked = await asyncio.wait_for(asking, ENDING_S)
            await _give_back(api.holding(asked["token"]), asked["id"], stop.reason or error)
        raise
    lease, holder = asked["id"], api.holding(asked["token"])
    beats = asyncio.create_task(_heartbeats(lease, holder, every_s, stop))
    try:
        yield lease, holder, asked["page_url"]
    except BaseException as error:
        with suppress(MayflyError, TimeoutError):
            await _give_back(holder, lease, stop.reason or error)
        raise
    finally:
        beats.cancel()
        await asyncio.gather(beats, return_exceptions=True)


async def ready(api: Api, lease: str, show: Show) -> LeaseJson:
    """Wait, telling `show` what goes on, until the lease has a runner; its `runner` is set then.

    The orchestrator bounds the wait. Raises how the lease ended when it ended instead.
    """
    telling = asyncio.create_task(_tell(api, lease, show))
    try:
        state = ""
        while True:
            view = await patiently(lambda: api.lease(lease, wait_s=POLL_S, since=state))  # noqa: B023
            state = view["state"]
            if state == "ready" and view["runner"]:
                # A runner may be there before we have listened to what there is to say of it.
                await asyncio.wait({telling}, timeout=NEWS_S)
                return view
            if state in OVER:
                raise await _ending(api, view)
    finally:
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


async def still_ready(api: Api, view: LeaseJson, *, wait_s: float) -> LeaseJson:
    """The ready lease of `view` as it is now, with the same runner and a fresh token for it.

    It is returned when it has been ready for `wait_s` seconds more; at once when the lease is in a
    later attempt. Raises how the lease ended, at once, when it has; `InfrastructureError` when it
    has another runner, and when the orchestrator is away for too long.
    """
    now = await patiently(lambda: api.lease(view["id"], wait_s=wait_s, since=view["state"]))
    if now["state"] in OVER:
        raise await _ending(api, now)
    if now["attempt"] > view["attempt"]:
        return now
    if not (view["runner"] and now["runner"] and now["runner"]["name"] == view["runner"]["name"]):
        raise InfrastructureError(f"build {view['id']} lost its runner", hint="build again")
    return now


async def patiently(call: Callable[[], Awaitable[_T]]) -> _T:
    """`call`, again while the orchestrator is away (it may be restarting), for at most a minute."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return await call()
        except InfrastructureError:
            if time.monotonic() > give_up_at:
                raise
            await asyncio.sleep(0.5)


async def _give_back(api: Api, lease: str, error: BaseException) -> None:
    """End the lease, saying why, within 8 s; nothing happens to one that has ended."""
    # Not asyncio.timeout(): in a cancelled task Python 3.11.2's raises CancelledError.
    if isinstance(error, Cancelled | Terminated):
        await asyncio.wait_for(api.end(lease, Outcome(error.code)), ENDING_S)
        return
    outcome = Outcome.INTERNAL
    if isinstance(error, InfrastructureError | UsageError | Denied):
        outcome = Outcome(error.code)
    report = api.report(lease, outcome=outcome, attempt=0, digest="", timings_s={}, images=())
    await asyncio.wait_for(report, ENDING_S)


async def _heartbeats(lease: str, api: Api, every_s: float, stop: Stop) -> None:
    """Until cancelled. A missed one is no harm (the lease outlives several); an ended lease is."""
    while True:
        await asyncio.sleep(every_s)
        try:
            beat = await api.heartbeat(lease)
            if beat["state"] in OVER:
                view = await api.lease(lease)
                if view["outcome"] != Outcome.SUCCEEDED:  # then our own report is being answered
                    stop(await _ending(api, view))
        except InfrastructureError:
            continue
        except MayflyError as error:
            stop(error)


async def _tell(api: Api, lease: str, show: Show) -> None:
    """Show what the orchestrator says while we wait; without it, waiting is only silent."""
    with suppress(MayflyError):
        async for line in api.events(lease):
            show(line)


async def _ending(api: Api, view: LeaseJson) -> MayflyError:
    """A lease that ended while it was held, as the error that says so.

    The outcome follows the loss of a runner in a moment: that much is waited for.
    """
    if view["state"] == LOST:
        view = await patiently(lambda: api.lease(view["id"], wait_s=ENDING_S, since=LOST))
    return ended(view["id"], Outcome(view["outcome"] or Outcome.RUNNER_LOST), view["reason"] or "")
