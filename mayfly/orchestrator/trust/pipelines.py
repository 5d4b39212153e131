"""Whether a pipeline has ended, as Woodpecker's API says where one is configured."""

from __future__ import annotations

import ssl
import time
from collections import OrderedDict

import httpx
import structlog

from mayfly.config import Woodpecker as Options

ENDED = frozenset({"success", "failure", "killed", "canceled", "error", "declined", "skipped"})
"""Of the words in Woodpecker's `server/model/const.go`, those after which nothing runs."""

TIMEOUT_S = 3.0
FRESH_S = 2.0
"""For how long a pipeline that runs is not asked about again."""

REMEMBERED = 1000

log = structlog.get_logger("orchestrator.woodpecker")


class Pipelines:
    """Asks the server. Without one, or while it does not answer, no pipeline has ended: its ticket
    expires all the same.
    """

    def __init__(self, options: Options, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._options = options
        self._transport = transport
        self._tls = ssl.create_default_context() if options.url else False  # it takes a while
        self._known: OrderedDict[tuple[int, int], tuple[float, bool]] = OrderedDict()

    async def ended(self, repo: int, number: int) -> bool:
        """Whether that pipeline of the repo with that id has ended. Never raises."""
        if not self._options.url:
            return False
        at, ended = self._known.get((repo, number), (0.0, False))
        if ended or (at and time.monotonic() - at < FRESH_S):
            return ended
        ended = await self._ask(repo, number)
        self._known[repo, number] = time.monotonic(), ended
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return ended

    async def _ask(self, repo: int, number: int) -> bool:
        path = f"/api/repos/{repo}/pipelines/{number}"
        try:
            async with httpx.AsyncClient(
                base_url=self._options.url,
                timeout=TIMEOUT_S,
                trust_env=False,
                verify=self._tls,
                transport=self._transport,
                headers={"Authorization": f"Bearer {self._options.token}"},
            ) as client:
                answer = await client.get(path)
            if answer.status_code == 404:  # deleted, which only one that has ended can be
                return True
            answer.raise_for_status()
            return answer.json().get("status") in ENDED
        except (httpx.HTTPError, ValueError, AttributeError) as error:
            why = str(error) or type(error).__name__
            log.warning("Woodpecker does not say whether a pipeline has ended", error=why)
            return False
