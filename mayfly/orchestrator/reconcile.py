"""The loop that makes the plan true.

Three small loops, each woken by what concerns it and by a tick: `_look` asks the provider what
exists, `_act` carries out the plan, `_mend_edge` keeps the edge serving the right runners.
Provider calls are tasks of their own, at most one of a kind for each runner; what they bring is
written to the lease's row, and the next plan goes on from there. Nothing here is needed to
survive a restart: the rows are.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TypeVar

import structlog

from mayfly.errors import InfrastructureError, MayflyError, Unreachable
from mayfly.model import GIB, Lease, Operation, Outcome, Runner, RunnerSpec
from mayfly.orchestrator import plan, retry, states, watch
from mayfly.orchestrator.edge import Edge
from mayfly.orchestrator.evidence import EvidenceFiles
from mayfly.orchestrator.ledger import Ledger
from mayfly.orchestrator.limits import Limits
from mayfly.orchestrator.metrics import Metrics
from mayfly.vm.provider import Provider

TICK_S = 1.0
EDGE_TICK_S = 2.0
STOOD_STILL_S = 5.0
"""Between two rounds of the plan: as long as this program, or the whole machine, stood still nobody
could be heard."""
LIST_TIMEOUT_S = 10.0
DESTROY_TIMEOUT_S = 60.0
CANCEL_TIMEOUT_S = 10.0
USAGE_TIMEOUT_S = 3.0
FINAL_USAGE_TIMEOUT_S = 30.0
GROW_TIMEOUT_S = 10.0
AUTHORIZE_TIMEOUT_S = 10.0
STEPS_ARE_SEEN = frozenset(
    {Outcome.SUCCEEDED, Outcome.FAILED, Outcome.NOT_PUBLISHED, Outcome.OOM, Outcome.DISK_FULL}
)
"""After these a runner is asked for its steps; after others it may be busy, and is to go soon."""

HURRY_S = 0.2
"""How often to look while a runner's memory does not last for `watch.RUSH_S`."""
CREATE_ATTEMPTS = 3
"""How often a runner is begun before its build ends: a VM that dies while it is made costs nothing
but a second, for no step of the build has run."""
BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

log = structlog.get_logger("orchestrator")

_T = TypeVar("_T")


class Reconciler:
    """Runs until cancelled; then leases and runners stay as they are."""

    def __init__(
        self,
        ledger: Ledger,
        provider: Provider,
        edge: Edge,
        limits: Limits,
        metrics: Metrics,
        clock: Callable[[], datetime],
        evidence: EvidenceFiles,
        disk_free: Callable[[], int] | None = None,
    ) -> None:
        """`disk_free` tells the bytes that are left where runners' disks are, if they are here."""
        self._ledger = ledger
        self._provider = provider
        self._edge = edge
        self._limits = limits
        self._metrics = metrics
        self._clock = clock
        self._evidence = evidence
        self._disk_free = disk_free
        self._heard_since: datetime | None = clock()  # None: the edge is away
        self._acted_at_s = _uptime_s()
        self._look_now = asyncio.Event()
        self._mend_now = asyncio.Event()
        self._seen: dict[str, Runner] | None = None
        self._seen_at = 0
        self._touches = 0
        self._touched: dict[str, int] = {}
        self._creating: dict[str, asyncio.Task[None]] = {}
        self._destroying: dict[str, asyncio.Task[None]] = {}
        self._destroyed: set[str] = set()
        # Runners whose want of memory is being seen to: by growing, or by an end.
        self._growing: dict[str, asyncio.Task[None]] = {}
        self._not_growing: set[str] = set()
        self._told: dict[str, set[str]] = {}
        self._preparing: asyncio.Task[None] | None = None
        self._last_line = ""
        self._places: dict[str, int] = {}
        self._troubles: set[str] = set()

    async def run(self) -> None:
        """Reconcile for ever. A step that fails is logged and comes round again."""
        try:
            async with asyncio.TaskGroup() as loops:
                loops.create_task(_forever(self._look, self._look_now, TICK_S))
                loops.create_task(_forever(self._act, self._ledger.changed, TICK_S))
                loops.create_task(_forever(self._mend_edge, self._mend_now, EDGE_TICK_S))
        finally:
            calls = [*self._creating.values(), *self._destroying.values()]
            calls += self._growing.values()
            calls += [self._preparing] if self._preparing else []
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def warm(self) -> None:
        """Have the provider make now what the first runner would wait for; failure is logged."""
        try:
            await self._prepare()
        except MayflyError as error:
            log.warning("provider is not prepared", error=str(error))
        except Exception:
            log.exception("provider is not prepared")

    def facts(self) -> plan.Facts:
        """What the next plan goes by."""
        touched = {name for name, at in self._touched.items() if at > self._seen_at}
        now = self._clock()
        return plan.Facts(
            now=now,
            heard_since=self._heard_since or now,
            seen=self._seen,
            stale=frozenset(touched | self._creating.keys() | self._destroying.keys()),
            growing=frozenset(self._growing.keys() | self._not_growing),
            creating=frozenset(self._creating),
            destroying=frozenset(self._destroying),
            destroyed=frozenset(self._destroyed),
            disk_free_bytes=self._disk_free() if self._disk_free else None,
        )

    async def _look(self) -> None:
        asked_at = self._touches
        async with asyncio.timeout(LIST_TIMEOUT_S):
            runners = await self._provider.list()
        self._seen, self._seen_at = {runner.name: runner for runner in runners}, asked_at
        self._touched = {n: at for n, at in self._touched.items() if at > asked_at}
        self._ledger.changed.set()
        loads = [runner.load for runner in runners if runner.load]
        if not all(load.memory_lasts(watch.RUSH_S) for load in loads):
            asyncio.get_running_loop().call_later(HURRY_S, self._look_now.set)

    async def _act(self) -> None:
        now_s = _uptime_s()
        late_s, self._acted_at_s = now_s - self._acted_at_s, now_s
        if late_s > STOOD_STILL_S and self._heard_since is not None:
            self._heard_since = self._clock()
            log.warning("stood still", seconds=round(late_s, 1))
        leases = self._ledger.open()
        runners = {lease.runner for lease in leases}
        self._destroyed &= runners
        self._not_growing &= runners
        self._told = {name: told for name, told in self._told.items() if name in runners}
        troubles = set()
        for action in plan.plan(leases, self.facts(), self._limits):
            try:
                self._apply(action)
            except Exception as error:  # the others' turn; this one comes again with the next plan
                kind = type(action).__name__
                trouble = f"{kind} {action.lease.id if action.lease else ''}: {error!r}"
                troubles.add(trouble)
                if trouble not in self._troubles:
                    bug = not isinstance(error, MayflyError)
                    log.warning("action failed", action=kind, error=str(error), exc_info=bug)
        self._troubles = troubles
        self._tell_queue()

    def _tell_queue(self) -> None:
        """Tell those who wait for room which place they have, when it has changed."""
        places = plan.queue(self._ledger.open())
        for lease_id, place in places.items():
            if self._places.get(lease_id) != place:
                self._ledger.tell(lease_id, f"waiting for room in the pool, place {place}")
        self._places = places

    def _apply(self, action: plan.Action) -> None:
        now, change = self._clock(), self._ledger.change
        match action:
            case plan.Admit(lease):
                self._start_create(change(lease.id, lambda row: states.admitted(row, now)))
            case plan.Create(lease):
                self._start_create(lease)
            case plan.Lose(lease):
                log.warning("runner lost", runner=lease.runner)
                change(lease.id, states.lost)
            case plan.End(lease, outcome, reason):
                self._end(lease.id, outcome, reason)
            case plan.OutOfMemory(lease, reason):
                self._start(self._growing, lease.runner, self._thrashed(lease, reason))
            case plan.Destroy(runner, reason, owner):
                log.info("destroying", runner=runner, reason=reason)
                try:
                    if owner:
                        change(owner.id, states.destroying)
                finally:  # a full disk must not keep VMs alive; the row's end says enough
                    self._start(self._destroying, runner, self._destroy(runner, owner))
            case plan.Grow(lease, more_bytes):
                grown = change(lease.id, lambda row: states.growing(row, more_bytes))
                if grown.grown_bytes > lease.grown_bytes:
                    self._start(self._growing, lease.runner, self._grow(grown, more_bytes))
            case plan.Tell(lease, line):
                told = self._told.setdefault(lease.runner, set())
                if (kind := line.partition(":")[0]) not in told:
                    told.add(kind)
                    log.info("told", runner=lease.runner, line=line)
                    self._ledger.tell(lease.id, line)
            case plan.Close(lease):
                change(lease.id, states.closed)
                log.info("closed", lease=lease.id, outcome=lease.outcome)

    def _start_create(self, lease: Lease) -> None:
        if lease.operation is not Operation.CREATING or not states.is_running(lease):
            return
        self._start(self._creating, lease.runner, self._create(lease))

    def _start(
        self,
        calls: dict[str, asyncio.Task[None]],
        runner: str,
        call: Coroutine[None, None, None],
    ) -> None:
        """Run `call` as the runner's task in `calls`; the plan is made anew when it is over.

        After one that raised (its row cannot be written) the next tick is soon enough.
        """

        def over(task: asyncio.Task[None]) -> None:
            del calls[runner]
            self._touches += 1
            self._touched[runner] = self._touches
            if not task.cancelled() and (error := task.exception()):
                log.warning("call failed", runner=runner, error=str(error) or repr(error))
                return
            self._look_now.set()
            self._ledger.changed.set()

        calls[runner] = asyncio.create_task(call, name=runner)
        calls[runner].add_done_callback(over)

    async def _create(self, lease: Lease) -> None:
        left_s = (lease.deadline - self._clock()).total_seconds() if lease.deadline else None
        spec = RunnerSpec(
            lease.runner,
            lease.size,
            lease.request.ssh_public_key,
            budget_s=lease.budget_s if left_s is None else max(1.0, left_s),
            scratch_of=lease.earlier_runner,
            spoiled=retry.spoiled(lease),
        )
        until = self._clock() + timedelta(seconds=self._limits.create_timeout_s)

        async def make() -> Runner:
            for attempt in range(1, CREATE_ATTEMPTS + 1):
                await self._prepare(lease.id)
                try:
                    return await self._provider.create(spec)
                except Unreachable:
                    raise
                except InfrastructureError as error:
                    if attempt == CREATE_ATTEMPTS or self._clock() >= until:
                        raise
                    self._metrics.called("create", error.code)
                    log.warning("begun anew", runner=lease.runner, error=str(error))
                    self._ledger.tell(lease.id, f"{error}; beginning anew")
            raise AssertionError("the last attempt returns or raises")

        async def attach() -> None:
            await self._edge.attach(lease.runner)

        try:
            runner = await self._patiently(lease, make, "waiting for the host", until)
            made_at = self._clock()
            await self._patiently(lease, attach, "waiting for the edge", until)
        except MayflyError as error:
            self._metrics.called("create", error.code)
            self._end(lease.id, Outcome(error.code), str(error))
        except Exception as error:
            log.exception("create failed", runner=lease.runner)
            self._metrics.called("create", "internal")
            self._end(lease.id, Outcome.INTERNAL, f"making the runner failed: {error!r}")
        else:
            self._metrics.called("create", "ok")
            ready_at = made_at - timedelta(seconds=runner.age_s)
            now = self._clock()
            if spec.scratch_of:
                kept = f"lost: {runner.cold}" if runner.cold else "kept"
                self._ledger.tell(lease.id, f"finished steps are {kept}")
            self._ledger.change(lease.id, lambda row: states.ready(row, runner, ready_at, now))

    async def _prepare(self, lease_id: str = "") -> None:
        """Wait for the provider's preparation, one for all who wait for it."""
        if self._preparing is None or self._preparing.done():
            self._last_line = ""
            self._preparing = asyncio.create_task(self._provider.prepare(self._progress))
            self._preparing.add_done_callback(lambda task: task.cancelled() or task.exception())
        elif lease_id and self._last_line:
            self._ledger.tell(lease_id, self._last_line)
        await asyncio.shield(self._preparing)

    def _progress(self, line: str) -> None:
        self._last_line = line
        log.info("preparing", line=line)
        for lease in self._ledger.open():
            if lease.runner in self._creating:
                self._ledger.tell(lease.id, line)

    async def _patiently(
        self, lease: Lease, call: Callable[[], Awaitable[_T]], waiting: str, until: datetime
    ) -> _T:
        """What `call` returns, again and again while the program it asks is away (restarting).

        Whoever waits is told `waiting` once. Raises `Unreachable` when `until` is past, and
        whatever else `call` raises. To be used with what is harmless when done twice.
        """
        for number, delay in enumerate(_backoff()):
            try:
                return await call()
            except Unreachable as error:
                if self._clock() >= until:
                    raise
                log.warning(waiting, runner=lease.runner, error=str(error))
                if number == 0:
                    self._ledger.tell(lease.id, waiting)
                await asyncio.sleep(delay)
        raise AssertionError("backing off never ends")

    async def _thrashed(self, lease: Lease, reason: str) -> None:
        """It is out of memory: what it has used until now is all that later builds learn of it."""
        await self.measure(lease)
        self.out_of_memory(lease, reason)

    async def _grow(self, lease: Lease, more_bytes: int) -> None:
        """Give a runner the memory that its row says; one that cannot have it is not asked again.

        After a restart of ours, or where no answer comes, the row may say more than the runner has:
        the pool holds it all the same, and the next growth asks for the whole.
        """
        runner, memory_bytes = lease.runner, lease.size.memory_bytes + lease.grown_bytes
        try:
            async with asyncio.timeout(GROW_TIMEOUT_S):
                await self._provider.grow(runner, memory_bytes)
        except (Unreachable, TimeoutError) as error:
            self._metrics.called("grow", "timeout")
            log.warning("perhaps grown", runner=runner, error=str(error) or repr(error))
        except MayflyError as error:
            self._metrics.called("grow", error.code)
            log.warning("not grown", runner=runner, error=str(error))
            self._not_growing.add(runner)
            self._ledger.change(lease.id, lambda row: states.not_grown(row, runner, more_bytes))
        else:
            self._metrics.called("grow", "ok")
            log.info("grown", runner=runner, memory_bytes=memory_bytes)
            self._ledger.tell(lease.id, f"the runner has {memory_bytes / GIB:g} GiB now")

    def out_of_memory(
        self, lease: Lease, reason: str, timings_s: Mapping[str, float] | None = None
    ) -> Lease:
        """Write that `lease`'s runner ran out of memory, by policy as another attempt or as the
        build's end; returns the lease then. Nothing changes when its attempt is over already.

        `timings_s` is what the client told of the attempt.
        """
        now = self._clock()
        return self._another(
            lease,
            lambda row: retry.out_of_memory(row, reason, self._limits, now),
            lambda row: f"ran out of memory in {lease.size.name}; going on in {row.size.name}",
            timings_s,
        )

    def damaged(self, lease: Lease, sign: str, timings_s: Mapping[str, float]) -> Lease:
        """Write that the scratch disk with which `lease`'s runner went on has shown `sign`: another
        attempt without it is to come, where there can be one; returns the lease then."""
        now = self._clock()
        return self._another(
            lease,
            lambda row: retry.damaged(row, sign, now),
            lambda row: f"{row.earlier[-1].reason}; beginning anew",
            timings_s,
        )

    def _another(
        self,
        lease: Lease,
        decide: Callable[[Lease], Lease],
        words: Callable[[Lease], str],
        timings_s: Mapping[str, float] | None,
    ) -> Lease:
        """Write what `decide` makes of `lease`, unless its attempt is over already; where another
        attempt comes of it the client is told `words`. Returns the lease then."""

        def change(row: Lease) -> Lease:
            if row.attempt != lease.attempt:
                return row
            return states.kept(decide(states.timed(row, timings_s or {})), self._limits.max_keep_s)

        after = self._ledger.change(lease.id, change)
        if after.attempt > lease.attempt:
            reason = after.earlier[-1].reason
            log.info("going on", lease=lease.id, size=after.size.name, reason=reason)
            self._ledger.hub.forget(lease.id)
            self._ledger.tell(lease.id, words(after))
        return after

    async def measure(self, lease: Lease, *, final: bool = False) -> Lease:
        """Write what the lease's runner has used, this moment included; returns the lease then.

        `final`: with the steps that ran on it, for which it may take some seconds. A provider that
        does not tell in time leaves it at what was known.
        """
        runner, limit_s = lease.runner, FINAL_USAGE_TIMEOUT_S if final else USAGE_TIMEOUT_S
        try:
            async with asyncio.timeout(limit_s):
                told = await self._provider.usage(runner, final=final)
            if told is None:
                return self._ledger.get(lease.id)
            row = self._ledger.change(
                lease.id, lambda row: states.measured(row, runner, told.usage)
            )
            self._evidence.keep(runner, told)  # on a disk that may be full
            return row
        except (MayflyError, OSError) as error:  # TimeoutError is an OSError
            log.warning("usage unknown", runner=runner, error=str(error) or repr(error))
            return self._ledger.get(lease.id)

    async def authorize(self, lease: Lease, public_key: str, who: str) -> None:
        """Let one more key into the lease's runner, and tell so those who watch the build.

        Raises `InfrastructureError`.
        """
        try:
            async with asyncio.timeout(AUTHORIZE_TIMEOUT_S):
                await self._provider.authorize(lease.runner, public_key)
        except TimeoutError:
            raise InfrastructureError(
                f"runner {lease.runner} takes no key", hint="try again"
            ) from None
        log.info("key authorized", runner=lease.runner, who=who, key=public_key)
        self._ledger.tell(lease.id, f"{who} has opened a way into the runner")

    async def _destroy(self, runner: str, owner: Lease | None = None) -> None:
        """Unmake the runner, however often it takes; the edge stops serving it first.

        What the runner of a lease has used is asked for before it goes.
        """
        if creating := self._creating.get(runner):
            creating.cancel()
            await asyncio.wait({creating}, timeout=CANCEL_TIMEOUT_S)
        for number, delay in enumerate(_backoff()):
            with suppress(MayflyError):
                await self._edge.revoke(runner)
            if number == 0 and owner and owner.ready_at and not states.was_kept(owner):
                await self.measure(owner, final=owner.outcome in STEPS_ARE_SEEN)
            try:
                async with asyncio.timeout(DESTROY_TIMEOUT_S):
                    await self._provider.destroy(runner)
            except Exception as error:
                code = error.code if isinstance(error, MayflyError) else "internal"
                self._metrics.called("destroy", code)
                log.warning("destroy failed", runner=runner, error=str(error) or repr(error))
                await asyncio.sleep(delay)
            else:
                break
        self._metrics.called("destroy", "ok")
        self._destroyed.add(runner)

    async def _mend_edge(self) -> None:
        try:
            attached = await self._edge.attached()
        except MayflyError:
            self._heard_since = None
            raise
        if self._heard_since is None:
            self._heard_since = self._clock()
            log.info("the edge is back")
        attach, revoke = plan.edge_changes(self._ledger.open(), attached)
        for verb, runners in ((self._edge.attach, attach), (self._edge.revoke, revoke)):
            for runner in runners:
                log.info("mending the edge", call=verb.__name__, runner=runner)
                with suppress(InfrastructureError):
                    await verb(runner)

    def _end(self, lease_id: str, outcome: Outcome, reason: str) -> None:
        now = self._clock()
        lease = self._ledger.change(lease_id, lambda row: states.ended(row, outcome, reason, now))
        if lease.ended_at == now:
            log.info("ended", lease=lease_id, outcome=lease.outcome, reason=lease.reason)


def _uptime_s() -> float:
    """The machine's uptime, with the time that it was suspended (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


async def _forever(
    step: Callable[[], Awaitable[None]], wake: asyncio.Event, every_s: float
) -> None:
    """Do `step` now, then whenever `wake` is set or `every_s` seconds have passed."""
    trouble = ""
    while True:
        wake.clear()
        try:
            await step()
            trouble = ""
        except (MayflyError, TimeoutError) as error:
            if repr(error) != trouble:
                trouble = repr(error)
                log.warning("step failed", step=step.__name__, error=str(error) or trouble)
            await asyncio.sleep(every_s)
        except Exception:
            log.exception("step failed", step=step.__name__)
            await asyncio.sleep(every_s)
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await wake.wait()


def _backoff() -> Iterator[float]:
    yield from BACKOFF_S
    while True:
        yield BACKOFF_S[-1]
