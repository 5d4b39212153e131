"""An orchestrator in memory: what flow asks of it is recorded, what it answers is scripted."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from mayfly.errors import MayflyError, Unreachable
from mayfly.model import LeaseRequest, Outcome
from mayfly.wire import AskedJson, BeatJson, LeaseJson, TermsJson, VerdictJson
from tests.build.fake_runner import LEASE, TOKEN, FakeRunner


def trusted() -> TermsJson:
    return {
        "principal": "admin",
        "trusted": True,
        "why": "",
        "slot": "",
        "images": [],
        "cache_to": "trusted",
        "cache_from": ["trusted"],
        "largest": None,
    }


@dataclass
class FakeFarm:
    """`runner` is what the lease gets; None: it never becomes ready."""

    runner: FakeRunner | None = None
    verdicts: list[str] = field(default_factory=lambda: ["done"])
    refuse: MayflyError | None = None
    ask_s: float = 0.0
    away: int = 0  # so many calls in a row are not answered
    overruled: str = ""  # the outcome that a report is answered with
    ended: tuple[str, str] | None = None  # the orchestrator's own outcome and reason
    attempt: int = 1
    request: LeaseRequest | None = None
    beats: int = 0
    log: bytes = b""
    reports: list[dict[str, object]] = field(default_factory=list)
    deleted: list[Outcome] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    terms: TermsJson = field(default_factory=trusted)

    def holding(self, token: str) -> FakeFarm:
        self.tokens.append(token)
        return self

    def _answer(self) -> None:
        if self.away:
            self.away -= 1
            raise Unreachable("the fake farm is away")

    async def ask(self, request: LeaseRequest, idempotency_key: str) -> AskedJson:
        await asyncio.sleep(self.ask_s)
        if self.refuse:
            raise self.refuse
        self.request = request
        return {
            "id": LEASE,
            "token": "lease-token",
            "state": "queued",
            "relay_url": self.runner.url if self.runner else "",
            "expires_at": "",
            "page_url": f"https://farm/builds/{LEASE}#token=t",
        }

    async def lease(self, lease: str, *, wait_s: float = 0, since: str = "") -> LeaseJson:
        self._answer()
        state = "ended" if self.ended else "ready" if self.runner else "creating"
        if state == since:
            await asyncio.sleep(0.05)
        return {
            "id": lease,
            "repo": "",
            "state": state,
            "desired": "running",
            "observed": "",
            "operation": "",
            "attempt": self.attempt,
            "size": {"name": f"t{self.attempt}", "cpus": 1, "memory_bytes": 1, "disk_bytes": 1},
            "queue_position": None,
            "created_at": "",
            "expires_at": "",
            "ready_at": None,
            "deadline": None,
            "ended_at": None,
            "outcome": self.ended[0] if self.ended else None,
            "exit_code": None,
            "reason": self.ended[1] if self.ended else "",
            "timings_s": {"queue": 0.25, "ready": 0.5},
            "relay_url": self.runner.url if self.runner else "",
            "runner": {
                "name": f"{lease}-{self.attempt}",
                "ssh_host_key": self.runner.host_key,
                "token": TOKEN,
            }
            if self.runner and not self.ended
            else None,
            "terms": self.terms,
        }

    async def events(self, lease: str) -> AsyncIterator[str]:
        yield "template: booting" if self.attempt == 1 else "going on"

    async def heartbeat(self, lease: str) -> BeatJson:
        self._answer()
        self.beats += 1
        return {"expires_at": "", "state": "ended" if self.ended else "ready"}

    async def append_log(self, lease: str, offset: int, data: bytes) -> int:
        self._answer()
        assert offset <= len(self.log), "a gap in the log"
        self.log = self.log[:offset] + data
        return len(self.log)

    async def report(
        self,
        lease: str,
        *,
        outcome: Outcome,
        attempt: int,
        digest: str,
        timings_s: Mapping[str, float],
        images: Sequence[str],
    ) -> VerdictJson:
        self._answer()
        self.reports.append(
            {
                "outcome": outcome,
                "attempt": attempt,
                "digest": digest,
                "timings_s": timings_s,
                "images": images,
            }
        )
        verdict = self.verdicts.pop(0) if self.verdicts else "done"
        moved = attempt < self.attempt
        if verdict == "retry" and not moved:
            self.attempt += 1
        again = verdict == "retry" or moved
        return {
            "verdict": "retry" if again else verdict,
            "attempt": self.attempt,
            "outcome": self.overruled or ("oom" if again else str(outcome)),
            "reason": "",
        }

    async def end(self, lease: str, outcome: Outcome) -> None:
        self.deleted.append(outcome)
