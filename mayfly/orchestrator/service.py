"""What the API's routes do, without HTTP.

Every method that names a lease raises `NotFound` for one that does not exist. Rights are checked
by the caller (`api.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta

from mayfly.config import Config, LeaseOptions
from mayfly.errors import Conflict, Denied, InfrastructureError, NotFound, TooBig
from mayfly.ladder import up_to
from mayfly.model import (
    GIB,
    BuildSpec,
    Desired,
    Lease,
    LeaseRequest,
    Observed,
    Operation,
    Outcome,
)
from mayfly.orchestrator import docker, plan, registry_tokens, retry, states, views, watch
from mayfly.orchestrator.builders import Builders
from mayfly.orchestrator.events import Event
from mayfly.orchestrator.evidence import EvidenceFiles
from mayfly.orchestrator.forms import BuilderForm, ReportForm, TokenForm
from mayfly.orchestrator.ledger import Ledger
from mayfly.orchestrator.limits import Limits
from mayfly.orchestrator.logs import Logs
from mayfly.orchestrator.metrics import Metrics
from mayfly.orchestrator.reconcile import Reconciler
from mayfly.orchestrator.sizing import explain
from mayfly.orchestrator.sizing.decide import Decision as SizeDecision
from mayfly.orchestrator.sizing.records import Records
from mayfly.orchestrator.trust import Principal, Trust, policy
from mayfly.orchestrator.trust import static as static_tokens
from mayfly.registry import grants
from mayfly.registry.tokens import Signer
from mayfly.usage import Evidence, needs
from mayfly.vm.provider import About
from mayfly.wire import (
    AskedJson,
    BeatJson,
    BuildJson,
    LeaseJson,
    MadeBuilderJson,
    NewTokenJson,
    SizingJson,
    StatusJson,
    TokenJson,
    UsageJson,
    VerdictJson,
    WhyJson,
)

LONGEST_WAIT_S = 25.0
KEEP_ALIVE_S = 10.0
BUILDS_SHOWN, BUILDS_SEARCHED = 100, 1000
ABOUT_S = 3.0
"""How long the status waits for the machine's side, which may hang."""

PAGE_LIFE = timedelta(days=1)
"""How much longer than the lease the address of its page is good."""

_MORE = "more than builds get that are not trusted"
_RAISE = "the farm's operator can raise trust.untrusted_size"

FOLLOW_S = 0.5
"""How often a log that is followed is looked at."""


def new_id() -> str:
    """An id for a lease: 8 characters, a letter first, so that it can name almost anything."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    rest = (secrets.choice(letters + "234567") for _ in range(7))
    return secrets.choice(letters) + "".join(rest)


class Service:
    """One orchestrator: leases, their logs, their tokens."""

    def __init__(
        self,
        config: Config,
        limits: Limits,
        ledger: Ledger,
        reconciler: Reconciler,
        trust: Trust,
        signer: Signer,
        logs: Logs,
        evidence: EvidenceFiles,
        metrics: Metrics,
        clock: Callable[[], datetime],
        about: Callable[[], Awaitable[About]],
        records: Records,
        builders: Builders,
        *,
        new_id: Callable[[], str] = new_id,
    ) -> None:
        self._config = config
        self._limits = limits
        self._ledger = ledger
        self._reconciler = reconciler
        self.trust = trust
        self._signer = signer
        self._logs = logs
        self._evidence = evidence
        self._metrics = metrics
        self._clock = clock
        self._about = about
        self._records = records
        self.builders = builders
        self._new_id = new_id

    async def verify(self, credential: str) -> Principal:
        """Who is asking. Raises `Unauthenticated`."""
        return await self.trust.verify(credential, self._clock())

    def require(self, lease_id: str, who: Principal, *, reading: bool = False) -> None:
        """Raises `Denied` unless the caller is the administrator, the lease's holder, or the one
        who asked for it; to read a build, the token of its page will do.
        """
        if who.admin or lease_id in (who.lease, who.reads if reading else ""):
            return
        if who.origin is not None:
            with suppress(NotFound):
                if _sees(who, self._ledger.get(lease_id)):
                    return
        raise Denied("this token belongs to another lease")

    async def ask(self, asked_for: LeaseRequest, key: str, who: Principal) -> AskedJson:
        """A new lease, on disk before this returns; or the one that `key` made before.

        Raises `UsageError`, `TooBig` or `MachineUnfit` for the size, `Denied` for what the
        principal may not, `Conflict` for a key that was used with another request. An empty key
        makes a new lease each time. A request for a builder gets what its record says, with the
        rights of whoever made it, and ends the lease that it had: one builder is one runner. Raises
        `NotFound` when there is no such builder.
        """
        if asked_for.builder:
            asked_for, builder = self.builders.lease_of(asked_for)
            who = self.trust.named(builder.principal, builder.created_at, self._clock())
        terms = self._terms(asked_for, who)
        request = terms.request
        decision = await self._sized(request, terms.terms.largest)
        now = self._clock()
        asked = Lease(
            id=self._new_id(),
            request=request,
            size=decision.size,
            desired=Desired.RUNNING,
            observed=Observed.ABSENT,
            operation=Operation.NONE,
            attempt=1,
            created_at=now,
            expires_at=now + timedelta(seconds=self._limits.grace_s),
            budget_s=budget_s(request.spec, self._config.lease, terms.budget_min),
            trusted=terms.trusted,
            terms=terms.terms,
        )
        body = json.dumps(asdict(request), sort_keys=True).encode()
        key = key and f"{who.key}:{key}"
        lease = self._ledger.add(asked, key=key, body_hash=hashlib.sha256(body).hexdigest())
        if lease is asked:
            self._end_others(lease)
            self._records.decided(lease, decision)
            for line in (*apart(lease), *explain.remarks(decision), *shortened(lease)):
                self._ledger.tell(lease.id, line)
            for older in plan.superseded(self._ledger.open(), lease):
                self.end(older.id, Outcome.CANCELLED, f"superseded by build {lease.id}")
        end = token_end(lease, self._limits)
        return views.asked(
            lease,
            self._signer.lease_token(lease.id, expires_at=end, now=now),
            self._signer.page_token(lease.id, expires_at=end + PAGE_LIFE, now=now),
            self._config,
        )

    def _end_others(self, lease: Lease) -> None:
        name = lease.request.builder
        for other in self.builders.leases(name) if name else ():
            if other.id != lease.id:
                self.end(other.id, Outcome.TERMINATED, f"builder {name} asked for another runner")

    async def make_builder(self, form: BuilderForm, who: Principal) -> MadeBuilderJson:
        """A new builder. Raises as `ask` does, else as `Builders.make`."""
        terms = self._terms(LeaseRequest(form.repo, "", form.size), who)
        await self._sized(terms.request, terms.terms.largest)
        return self.builders.make(form, who, trusted=terms.trusted)

    def remove_builder(self, name: str, who: Principal) -> None:
        """Forget a builder and end its lease. Raises `NotFound`, also for somebody else's."""
        self.builders.remove(name, who)
        for lease in self.builders.leases(name):
            self.end(lease.id, Outcome.CANCELLED, f"builder {name} was removed by {who.name}")

    async def lease(self, lease_id: str, who: Principal, since: str, wait_s: float) -> LeaseJson:
        """The lease, once its state is not `since`, or after `wait_s` seconds (25 at most)."""
        with self._ledger.hub.listen(lease_id) as news, suppress(TimeoutError):
            async with asyncio.timeout(min(wait_s, LONGEST_WAIT_S)):
                while states.word(self._ledger.get(lease_id)) == since:
                    await news.get()
        return self._view(self._ledger.get(lease_id), who)

    def _terms(self, request: LeaseRequest, who: Principal) -> policy.Decision:
        """The terms for a request. Raises `Denied`.

        A commit that this shows to be on a trusted branch is remembered, for a tag on it.
        """
        options, largest = self._config.trust, self._config.untrusted_size.name
        seen = self.trust.seen(who.origin)
        terms = policy.decide(who, request, options, largest, seen=seen)
        if who.origin is not None and not seen and policy.proves_commit(who.origin, options):
            self.trust.store.see(who.origin.repo, who.origin.commit, self._clock())
        return terms

    def give_token(self, form: TokenForm) -> NewTokenJson:
        """A new static token. Raises `Conflict` for a name that is taken."""
        token, one = static_tokens.create(
            self.trust.store,
            form.name,
            form.repos,
            trusted=form.trusted,
            life_s=form.life_s,
            now=self._clock(),
        )
        return {**views.given(one), "token": token}

    async def _sized(self, request: LeaseRequest, largest: str) -> SizeDecision:
        """The size for a request, none larger than `largest`. Raises as `ask` does."""
        names = [size.name for size in self._limits.sizes]
        allowed = [size.name for size in up_to(self._limits.sizes, largest)]
        if request.size in names and request.size not in allowed:
            raise TooBig(f"size {request.size} is {_MORE} ({largest} at most)", hint=_RAISE)
        try:
            return await self._records.decide(request, largest)
        except TooBig as error:
            if len(allowed) == len(names):
                raise
            told = f"{error.message}; builds that are not trusted get {largest} at most"
            raise TooBig(told, hint=_RAISE) from None

    def leases(self, who: Principal) -> list[LeaseJson]:
        """Every open lease that the caller may see, oldest first."""
        return [self._view(lease, who) for lease in self._ledger.open() if _sees(who, lease)]

    async def events(self, lease_id: str) -> AsyncIterator[Event | None]:
        """The progress lines so far and the state, then news until the lease is closed.

        None comes every 10 s without news, so that whoever carries this sees it is alive.
        """
        with self._ledger.hub.listen(lease_id) as news:
            state = states.word(self._ledger.get(lease_id))
            for line in self._ledger.hub.lines(lease_id):
                yield Event("progress", line)
            yield Event("state", state)
            while state != states.ENDED:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        event = await news.get()
                except TimeoutError:
                    yield None
                    continue
                if event.kind == "state":
                    state = event.text
                yield event

    def heartbeat(self, lease_id: str) -> BeatJson:
        """The client lives; ended leases stay ended, which `state` says."""
        now = self._clock()
        lease = self._ledger.change(
            lease_id, lambda row: states.alive(row, now, self._limits.grace_s)
        )
        return {"expires_at": views.time(lease.expires_at), "state": states.word(lease)}

    def append_log(self, lease_id: str, offset: int, data: bytes) -> int:
        """See `Logs.append`. Takes the last lines of an ended lease too."""
        self._ledger.get(lease_id)
        return self._logs.append(lease_id, offset, data)

    async def report(self, lease_id: str, form: ReportForm) -> VerdictJson:
        """The client's outcome, unless the lease has one already; the answer has the one it has.

        What the runner's side has seen goes before what the client says (`watch.verdict`). A
        connection that breaks around the deadline was broken by the runner's watchdog, so that
        `infrastructure` is then an exceeded budget. Out of memory, policy may give it another
        attempt (`retry.refusal`), and so does a kept scratch disk that is damaged: the verdict is
        then `retry`, and the same to a report that comes again, also while the first is looked
        into. Raises `Conflict` for a success without a runner.
        """
        now, told = self._clock(), self._ledger.get(lease_id)
        if 0 < form.attempt < told.attempt:
            return _verdict(told, form.attempt)
        about = told
        if form.outcome is Outcome.SUCCEEDED and told.ready_at is None and not told.outcome:
            raise Conflict(f"lease {lease_id} never had a runner, so nothing succeeded on it")
        outcome, reason = form.outcome, form.reason
        if outcome is Outcome.INFRASTRUCTURE and (
            over := plan.over_budget(told, now, plan.WATCHDOG_SLACK_S)
        ):
            outcome, reason = over.outcome, over.reason
        elif states.is_ready(told):
            grace_s = self._limits.grace_s
            told = self._ledger.change(lease_id, lambda row: states.alive(row, now, grace_s))
            told = await self._reconciler.measure(told)
            now = self._clock()
            outcome, reason = watch.verdict(outcome, reason, told.usage, told)
            if outcome in retry.FAULTS and retry.goes_on(told):
                told = await self._reconciler.measure(told, final=True)
                if sign := retry.damage(self._errors(told)):
                    lease = self._reconciler.damaged(about, sign, form.timings_s)
                    if lease.attempt > about.attempt:
                        return _verdict(lease, about.attempt)
                now = self._clock()
        if outcome is Outcome.OOM:
            if retry.refusal(told, self._limits, now):
                told = await self._reconciler.measure(told, final=True)
                reason += _where(self._evidence.read(told.runner))
            lease = self._reconciler.out_of_memory(about, reason, form.timings_s)
            return _verdict(lease, about.attempt)
        if states.is_ready(told) and told.request.keep_min and outcome in states.LOOKED_INTO:
            told = await self._reconciler.measure(told, final=True)  # what follows is no build's

        def change(row: Lease) -> Lease:
            if row.attempt != about.attempt:  # it went on while the runner was asked
                return row
            after = states.reported(
                row,
                outcome,
                now,
                reason=reason,
                digest=form.digest,
                timings_s=form.timings_s,
                images=form.images,
            )
            return states.kept(after, self._limits.max_keep_s)

        return _verdict(self._ledger.change(lease_id, change), about.attempt)

    def _errors(self, lease: Lease) -> tuple[str, ...]:
        evidence = self._evidence.read(lease.runner)
        return evidence.errors if evidence else ()

    def end(self, lease_id: str, outcome: Outcome, reason: str) -> None:
        """End the lease, unless it has ended; a runner that is kept goes in any case."""
        now = self._clock()

        def change(row: Lease) -> Lease:
            return states.ended(states.let_go(row), outcome, reason, now)

        self._ledger.change(lease_id, change)

    async def authorize(self, lease_id: str, public_key: str, who: Principal) -> LeaseJson:
        """Let one more key into the lease's runner, which is ready or kept; the answer has a token
        for the way there, and for nothing else.

        Raises `Conflict` when there is no runner now, `InfrastructureError` when it takes no key.
        """
        lease = self._ledger.get(lease_id)
        until = lease.kept_until if states.is_kept(lease) else lease.deadline
        if until is None or not (states.is_ready(lease) or states.is_kept(lease)):
            raise Conflict(
                f"build {lease_id} has no runner now: it is {states.word(lease)}",
                hint="a failed build's is kept where it was begun with --mayfly-keep-on-failure",
            )
        await self._reconciler.authorize(lease, public_key, who.name)
        token = self._signer.runner_token(
            lease.id, lease.attempt, (), deadline=until, now=self._clock()
        )
        return views.lease(lease, self._config, runner_token=token)

    def builds(self, who: Principal) -> list[BuildJson]:
        """The last builds that the caller may see, youngest first."""
        rows = self._ledger.recent(BUILDS_SHOWN if who.admin else BUILDS_SEARCHED)
        seen = [row for row in rows if _sees(who, row)][:BUILDS_SHOWN]
        return [views.build(row, self._config) for row in seen]

    def build(self, build_id: str) -> BuildJson:
        """One build, however old."""
        return views.build(self._ledger.get(build_id), self._config)

    async def why(self, build_id: str) -> WhyJson:
        """Why the build had its size, and what its attempts took."""
        return await self._records.why(self._ledger.get(build_id))

    async def size(self, asked_for: LeaseRequest, who: Principal) -> SizingJson:
        """What such a request would get now, and why. Raises as `ask` does."""
        terms = self._terms(asked_for, who)
        return explain.as_json(await self._sized(terms.request, terms.terms.largest))

    def usage(self, build_id: str) -> UsageJson:
        """What a build has used, as its runner's side saw it, as far as that is known now."""
        lease = self._ledger.get(build_id)
        return views.usage(lease, self._evidence.read(lease.runner))

    def log(self, build_id: str, offset: int) -> Iterator[bytes]:
        """The build's log from `offset` on, as far as it goes now."""
        self._ledger.get(build_id)
        return self._logs.read(build_id, offset)

    async def follow(self, build_id: str, offset: int) -> AsyncIterator[bytes]:
        """The build's log from `offset` on, while it grows, until the build has ended.

        A client may add its last lines just after that, so the end is looked at twice.
        """
        ended = 0
        while ended < 2:
            ended += states.word(self._ledger.get(build_id)) in (states.ENDED, states.KEPT)
            for piece in self._logs.read(build_id, offset):
                offset += len(piece)
                yield piece
            await asyncio.sleep(FOLLOW_S)

    async def status(self) -> StatusJson:
        """All of it, for `mayfly status --json`; without the machine's side when that is silent."""
        try:
            async with asyncio.timeout(ABOUT_S):
                about = await self._about()
        except (InfrastructureError, TimeoutError):
            about = About(accelerator="unknown", golden=None)
        return views.status(
            self._config,
            self._limits,
            self._ledger.open(),
            self._ledger.recent(BUILDS_SHOWN),
            self._reconciler.facts(),
            accelerator=about["accelerator"],
            golden=about["golden"],
        )

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return self._metrics.render(self._ledger.open())

    async def registry_token(self, asked: docker.Asked) -> TokenJson:
        """A token for as much of what was asked as the credential allows (`registry_tokens.py`).

        Raises `Unauthenticated` for a wrong credential, and for a lease that has no runner now.
        """
        now = self._clock()
        who = await self.trust.verify(asked.credential, now)
        return registry_tokens.answer(
            asked, who, self._ledger.get, self._signer, self._config.trust, now
        )

    def _view(self, lease: Lease, who: Principal) -> LeaseJson:
        position, token = None, ""
        if states.is_queued(lease):
            position = plan.queue(self._ledger.open()).get(lease.id)
        if who.lease == lease.id and states.is_ready(lease) and lease.deadline:
            token = self._signer.runner_token(
                lease.id,
                lease.attempt,
                registry_tokens.granted(lease),
                deadline=lease.deadline,
                now=self._clock(),
            )
        return views.lease(lease, self._config, position=position, runner_token=token)


def budget_s(spec: BuildSpec | None, options: LeaseOptions, most_min: float = 0) -> float:
    """Seconds that a build may take: what its spec asks for, as far as that is allowed.

    `most_min` is its terms' limit in minutes; 0: none.
    """
    asked = options.budget_min
    if spec is not None and spec.time_budget_min is not None:
        asked = min(spec.time_budget_min, max(options.max_budget_min, options.budget_min))
    return 60 * (min(asked, most_min) if most_min else asked)


def apart(lease: Lease) -> Iterable[str]:
    """What to tell whose build is not trusted."""
    if not lease.trusted:
        images = " or ".join(grants.image_names(lease.request.repo, lease.terms.slot))
        yield (
            f"this build is not trusted: {lease.terms.why}. It pushes to {images} only, writes a "
            f"cache of its own, and has {lease.budget_s / 60:g} min"
        )


def _sees(who: Principal, lease: Lease) -> bool:
    mine = who.made(lease.terms.principal, lease.created_at)
    return who.admin or (who.origin is not None and mine)


def shortened(lease: Lease) -> Iterable[str]:
    """What to tell whose build spec asks for more time than builds have here."""
    wanted = lease.request.spec.time_budget_min if lease.request.spec else None
    if wanted is not None and lease.budget_s < wanted * 60:
        yield (
            f"the time budget is {lease.budget_s / 60:g} min, the longest that it may have: the "
            f"build spec asks for {wanted:g}"
        )


def _verdict(lease: Lease, attempt: int) -> VerdictJson:
    """The answer to a report about an attempt of the lease."""
    if states.is_running(lease) and lease.attempt > attempt:
        over = lease.earlier[attempt - 1]
        return {
            "verdict": "retry",
            "attempt": lease.attempt,
            "outcome": over.outcome,
            "reason": over.reason,
            "kept_until": None,
        }
    return {
        "verdict": "done",
        "attempt": lease.attempt,
        "outcome": str(lease.outcome),
        "reason": lease.reason,
        "kept_until": views.time(lease.kept_until) if lease.kept_until else None,
    }


def _where(evidence: Evidence | None) -> str:
    """In which step memory ran out, as far as BuildKit's record tells: the last that failed."""
    failed = [need for need in needs(evidence) if need.step.failed] if evidence else []
    if not failed:
        return ""
    peak = failed[-1].memory_bytes / GIB
    return f", in step {failed[-1].step.name!r}, which was seen to need {peak:.1f} GiB"


def token_end(lease: Lease, limits: Limits) -> datetime:
    """When the lease's token ends: as late as the lease itself can, and the grace."""
    life = limits.queue_timeout_s + limits.create_timeout_s + lease.budget_s + limits.grace_s
    return lease.created_at + timedelta(seconds=life)
