"""Another attempt for a build that ran out of memory: who gets one, and what becomes of it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.ladder import share
from mayfly.model import GIB, BuildSpec, Desired, Lease, Observed, Operation, Outcome, Terms, Usage
from mayfly.orchestrator import retry, states
from mayfly.orchestrator.forms import ReportForm
from mayfly.orchestrator.limits import Limits
from mayfly.orchestrator.plan import Admit, Destroy, End, Facts, OutOfMemory, plan, used
from mayfly.usage import Evidence, Point, Step
from mayfly.vm.fake import Fake
from tests.orchestrator.leases import KEY, NOW, T1, T2, T3, Farm, configuration, farm, seen
from tests.orchestrator.leases import lease as any_lease
from tests.orchestrator.test_watch import load

LIMITS = Limits(4 * GIB, 8, 64 * GIB, (T1, T2, T3), queue_timeout_s=900, grace_s=30)
WAITING = (Desired.RUNNING, Observed.ABSENT, Operation.NONE)
READY = (Desired.RUNNING, Observed.READY, Operation.NONE)
OFF = BuildSpec(oom_retry=False)
KILLED = Evidence(
    Usage(GIB, GIB, 1.0, GIB, oom_kills=1, samples=1),
    (Point(1.0, GIB, 0, GIB, 0, 0.5, 0, 0, 1),),
    (Step("[2/2] RUN x", 0.5, 0.9, failed=True),),
)


def ready(name: str = "aaaa", **more: Any) -> Lease:
    fields = {"ready_at": NOW, "deadline": NOW + timedelta(hours=1)}
    return any_lease(name, READY, **{**fields, **more})


def killed(row: Lease, limits: Limits = LIMITS, after_s: float = 20) -> Lease:
    return retry.out_of_memory(row, "killed", limits, NOW + timedelta(seconds=after_s))


def with_spec(row: Lease, spec: BuildSpec) -> Lease:
    return replace(row, request=replace(row.request, spec=spec))


def at(seconds: float = 20, **more: Any) -> Facts:
    return Facts(NOW + timedelta(seconds=seconds), NOW - timedelta(days=1), **more)


# The decision.


@pytest.mark.parametrize(("largest", "again"), [("t2", False), ("t3", True), ("", True)])
def test_no_attempt_is_larger_than_the_terms_allow(largest: str, again: bool) -> None:
    row = killed(ready(size=T2, trusted=not largest, terms=Terms(slot="7", largest=largest)))
    assert states.is_queued(row) is again
    if not again:
        assert row.outcome is Outcome.OOM
        assert "builds that are not trusted get t2 at most" in row.reason


def test_the_next_attempt_is_one_size_up_and_waits_for_room() -> None:
    row = killed(ready(usage=KILLED.usage, timings_s={"ready": 1.0}))
    assert states.is_queued(row)
    assert (row.attempt, row.runner, row.earlier_runner) == (2, "aaaa-2", "aaaa-1")
    assert (row.size, row.deadline, row.usage, row.timings_s) == (T2, ready().deadline, None, {})
    (first,) = row.earlier
    assert (first.size, first.outcome, first.usage) == (T1, Outcome.OOM, KILLED.usage)
    assert first.timings_s == {"ready": 1.0}


@pytest.mark.parametrize(
    ("row", "limits", "says"),
    [
        (with_spec(ready(), OFF), LIMITS, "oom_retry is false: write memory_gb = 2 "),
        (ready(), replace(LIMITS, max_oom_retries=0), "1 attempt: write memory_gb = 2 "),
        (ready(size=T3), LIMITS, "holds no larger size: build it on a larger machine"),
        (ready(), replace(LIMITS, memory_bytes=GIB), "holds no larger size"),
        (ready(size=T2, grown_bytes=2 * GIB), LIMITS, "holds no larger size"),
        (ready(deadline=NOW + timedelta(seconds=30)), LIMITS, "time budget is used up"),
    ],
)  # fmt: skip
def test_who_gets_none_is_told_why_and_what_to_write(row: Lease, limits: Limits, says: str) -> None:
    over = killed(row, limits)
    assert (over.outcome, over.attempt) == (Outcome.OOM, 1)
    assert over.reason.startswith("killed; ") and says in over.reason


def test_a_second_kill_is_the_end() -> None:
    again = states.retried(ready(), Outcome.OOM, "", T2, NOW)
    over = killed(replace(again, observed=Observed.READY, ready_at=NOW))
    assert (over.outcome, over.attempt) == (Outcome.OOM, 2)
    assert "it has had 2 attempts: write memory_gb = 4 into .build-spec.ncl" in over.reason


def test_memory_that_it_grew_to_is_not_the_next_size() -> None:
    assert killed(ready(grown_bytes=GIB)).size == T3


@given(
    st.sampled_from([T1, T2, T3]),
    st.integers(0, 4 * GIB),
    st.integers(1, 8).map(lambda n: n * GIB),
    st.integers(0, 3),
    st.integers(0, 4),
    st.booleans(),
    st.integers(0, 3700),
)
def test_another_attempt_is_larger_fits_and_comes_in_time(
    size: Any, grown: int, memory: int, retries: int, had: int, wanted: bool, after_s: int
) -> None:
    limits = replace(LIMITS, memory_bytes=memory, max_oom_retries=retries)
    row = with_spec(ready(size=size, grown_bytes=grown), BuildSpec(oom_retry=wanted))
    earlier = killed(ready()).earlier * had
    row = replace(row, attempt=had + 1, earlier=earlier)
    now = NOW + timedelta(seconds=after_s)
    after = retry.out_of_memory(row, "killed", limits, now)
    if states.is_running(after):
        assert wanted and had < retries and row.deadline and now < row.deadline
        assert limits.fits(after.size) and after.size.memory_bytes > size.memory_bytes + grown
        assert after.attempt == had + 2 and len(after.earlier) == had + 1
    else:
        assert after.outcome is Outcome.OOM and after.attempt == had + 1


@pytest.mark.parametrize("triple", [WAITING, (Desired.ENDED, Observed.READY, Operation.NONE)])
def test_late_news_change_nothing(triple: Any) -> None:
    row = any_lease(triple=triple)
    assert killed(row) is row


# The plan.


def test_the_earlier_runner_stays_until_the_next_one_is_there() -> None:
    waiting = killed(ready())
    both = at(seen=seen("aaaa-1", "aaaa-2"))
    assert plan([waiting], at(seen=seen("aaaa-1")), LIMITS) == (Admit(waiting),)
    making = states.admitted(waiting, both.now)
    assert not [a for a in plan([making], both, LIMITS) if isinstance(a, Destroy)]
    there = replace(making, observed=Observed.READY, operation=Operation.NONE, ready_at=both.now)
    (action,) = plan([there], both, LIMITS)
    assert isinstance(action, Destroy) and action.runner == "aaaa-1"
    (action,) = plan([states.ended(waiting, Outcome.CANCELLED, "", NOW)], both, LIMITS)[:1]
    assert isinstance(action, Destroy) and action.runner == "aaaa-1"


def test_the_next_attempt_takes_over_the_room_of_the_one_before() -> None:
    waiting = killed(ready(size=T2))
    assert used([waiting], at(seen=seen("aaaa-1", size="t2")), LIMITS) == share(T2)
    assert plan([waiting], at(seen=seen("aaaa-1")), LIMITS) == (Admit(waiting),)
    making = states.admitted(waiting, NOW)
    assert used([making], at(seen=seen("aaaa-1")), LIMITS) == share(T3)


def test_it_goes_before_those_who_hold_nothing() -> None:
    waiting = killed(ready("bbbb"))
    older = any_lease("aaaa", size=T3)
    assert plan([older, waiting], at(seen=seen("bbbb-1")), LIMITS) == (Admit(waiting),)


def test_without_room_soon_it_is_out_of_memory() -> None:
    waiting, other = killed(ready()), ready("bbbb", size=T3, expires_at=NOW + timedelta(hours=1))
    waiting = replace(waiting, expires_at=other.expires_at)
    runners = seen("aaaa-1", "bbbb-1")
    soon = 20 + retry.PATIENCE_S
    assert plan([waiting, other], at(soon - 1, seen=runners), LIMITS) == ()
    (end,) = plan([waiting, other], at(soon, seen=runners), LIMITS)
    assert isinstance(end, End) and end.outcome is Outcome.OOM
    assert "no room in the pool for size t2 for 2 min: write memory_gb = 2 " in end.reason


def test_the_budget_counts_over_all_attempts() -> None:
    row = killed(ready(expires_at=NOW + timedelta(days=1)))
    (end,) = plan([row], at(3600, seen=seen("aaaa-1")), LIMITS)
    assert isinstance(end, End) and end.outcome is Outcome.BUDGET_EXCEEDED


def test_a_runner_that_thrashes_is_out_of_memory() -> None:
    runner = replace(seen("aaaa-1")["aaaa-1"], load=load(stalled_s=30.0, total_bytes=GIB))
    full = replace(LIMITS, memory_bytes=GIB, grow=False)
    (action,) = plan(
        [ready(expires_at=NOW + timedelta(hours=1))], at(seen={"aaaa-1": runner}), full
    )
    assert isinstance(action, OutOfMemory)


# The orchestrator, over a provider without machines.


async def asked(f: Farm, size: str = "t1") -> Lease:
    request = replace(any_lease().request, size=size, ssh_public_key=KEY)
    return await f.until((await f.api.ask(request, ""))["id"], "ready")


async def test_a_build_that_is_killed_goes_on_in_the_next_size(tmp_path: Path) -> None:
    provider = Fake()
    async with farm(configuration(tmp_path), provider) as f:
        row = await asked(f)
        provider.show(row.runner, evidence=KILLED)
        deadline = row.deadline
        f.clock.forward(20)
        told = ReportForm(outcome=Outcome.FAILED, attempt=1)
        verdict = await f.service.report(row.id, told)
        assert (verdict["verdict"], verdict["attempt"], verdict["outcome"]) == ("retry", 2, "oom")
        again = await f.service.report(row.id, told)
        assert again == verdict
        row = await f.until(row.id, "ready")
        spec = provider.specs[row.runner]
        assert (row.runner, spec.scratch_of) == (f"{row.id}-2", f"{row.id}-1")
        assert (spec.budget_s, row.deadline) == (row.budget_s - 20, deadline)
        await f.settled(lambda: ("destroy", f"{row.id}-1") in provider.calls)
        assert await f.service.report(row.id, told) == verdict
        done = await f.service.report(row.id, ReportForm(outcome=Outcome.SUCCEEDED, attempt=2))
        assert (done["verdict"], done["outcome"]) == ("done", "succeeded")
        first, second = (await f.api.build(row.id))["attempts"]
        assert (first["size"], first["outcome"], first["oom_kills"]) == ("t1", "oom", 1)
        assert (second["size"], second["outcome"], second["oom_kills"]) == ("t2", "succeeded", None)


async def test_a_report_that_comes_again_meanwhile_gets_the_same_answer(tmp_path: Path) -> None:
    """Its connection broke while the orchestrator asked the runner what it had used."""
    provider = Fake()
    async with farm(configuration(tmp_path), provider) as f:
        row = await asked(f)
        provider.show(row.runner, evidence=KILLED)
        answer = provider.hold("usage")
        told = ReportForm(outcome=Outcome.FAILED, attempt=1)
        reports = [asyncio.create_task(f.service.report(row.id, told)) for _ in range(2)]
        await asyncio.sleep(0.05)
        answer()
        one, two = await asyncio.gather(*reports)
        assert one == two
        assert (one["verdict"], one["outcome"]) == ("retry", "oom")
        assert f.ledger.get(row.id).outcome is None


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.INFRASTRUCTURE])
async def test_a_report_does_not_end_what_went_on_meanwhile(
    tmp_path: Path, outcome: Outcome
) -> None:
    """It thrashed, and was given another runner while the report waited for its numbers."""
    provider = Fake()
    async with farm(configuration(tmp_path), provider) as f:
        row = await asked(f)
        answer = provider.hold("usage")
        report = asyncio.create_task(
            f.service.report(row.id, ReportForm(outcome=outcome, attempt=1))
        )
        await asyncio.sleep(0.05)
        f.reconciler.out_of_memory(f.ledger.get(row.id), "it made no progress")
        answer()
        assert (await report)["verdict"] == "retry"
        row = await f.until(row.id, "ready")
        assert (row.attempt, row.outcome) == (2, None)


async def test_a_second_kill_names_the_step_and_what_to_write(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        row = await asked(f)
        for attempt in (1, 2):
            f.provider.show(f"{row.id}-{attempt}", evidence=KILLED)
            verdict = await f.service.report(row.id, ReportForm(outcome=Outcome.FAILED))
            if attempt == 1:
                await f.until(row.id, "ready")
        assert (verdict["verdict"], verdict["outcome"]) == ("done", "oom")
        for word in ("[2/2] RUN x", "1.0 GiB", "2 attempts", "memory_gb = 4"):
            assert word in verdict["reason"]
        created = [runner for operation, runner in f.provider.calls if operation == "create"]
        assert created == [f"{row.id}-1", f"{row.id}-2"]


async def test_a_restart_goes_on_with_the_second_attempt(tmp_path: Path) -> None:
    provider = Fake()
    async with farm(configuration(tmp_path), provider) as f:
        row = await asked(f)
        provider.show(row.runner, evidence=KILLED)
        release = provider.hold("create")
        await f.service.report(row.id, ReportForm(outcome=Outcome.FAILED))
        await f.until(row.id, "creating")
    release()
    async with farm(configuration(tmp_path), provider) as f:
        row = await f.until(row.id, "ready")
        assert (row.attempt, row.size) == (2, T2)
        assert provider.specs[row.runner].scratch_of == f"{row.id}-1"


async def test_a_scratch_disk_that_could_not_be_kept_is_told(tmp_path: Path) -> None:
    class Cold(Fake):
        async def create(self, spec: Any) -> Any:
            made = await super().create(spec)
            return replace(made, cold="it died") if spec.scratch_of else made

    async with farm(configuration(tmp_path), Cold()) as f:
        row = await asked(f)
        f.provider.show(row.runner, evidence=KILLED)
        await f.service.report(row.id, ReportForm(outcome=Outcome.FAILED))
        await f.until(row.id, "ready")
        first, cold = f.ledger.hub.lines(row.id)
        assert first == "ran out of memory in t1; going on in t2"
        assert cold == "finished steps are lost: it died"


# A kept disk that turns out to be damaged.

MISSING = "failed to prepare x as y: snapshot abc does not exist: not found"


@pytest.mark.parametrize(
    ("error", "sign"),
    [
        (MISSING, "snapshot abc does not exist: not found"),
        ("parent snapshot does not exist: not found", "snapshot does not exist: not found"),
        ("failed to mount: structure needs cleaning", "structure needs cleaning"),
        ('process "cat x" did not complete successfully: exit code: 1', ""),
        (
            'process "echo snapshot a does not exist: not found" did not complete successfully: '
            "exit code: 1",
            "",
        ),
        ('failed to calculate checksum: "/snapshot a does not exist": not found', ""),
        ("", ""),
    ],
)
def test_a_damaged_disk_is_told_by_how_a_step_failed(error: str, sign: str) -> None:
    assert retry.damage(["exit code: 1", error]) == sign


@given(st.lists(st.text(), max_size=4))
def test_no_error_is_too_odd_to_look_at(errors: list[str]) -> None:
    assert all(sign in error for error in errors if (sign := retry.damage([error])))


def test_a_damaged_disk_is_none_of_the_oom_retries() -> None:
    second = replace(killed(ready()), observed=Observed.READY, ready_at=NOW)
    third = retry.damaged(second, "holes", NOW)
    assert (third.attempt, third.size, third.earlier[-1].outcome) == (3, T2, Outcome.INFRASTRUCTURE)
    assert retry.spoiled(third) == "the scratch disk that it went on with is damaged: holes"
    assert not retry.goes_on(third) and retry.goes_on(second) and not retry.spoiled(second)
    over = killed(replace(third, observed=Observed.READY, ready_at=NOW))
    assert over.outcome is Outcome.OOM and "3 attempts" in over.reason


@pytest.mark.parametrize(
    "row",
    [
        ready(),
        killed(ready()),
        replace(killed(ready()), observed=Observed.READY, deadline=NOW + timedelta(seconds=5)),
    ],
    ids=["the first", "no runner", "no time"],
)
def test_what_has_no_kept_disk_or_no_time_is_not_begun_anew(row: Lease) -> None:
    assert retry.damaged(row, "holes", NOW) is row


async def warm(f: Farm, errors: tuple[str, ...]) -> Lease:
    """A build whose second attempt goes on with the first's disk, where steps fail like that."""
    row = await asked(f)
    f.provider.show(row.runner, evidence=KILLED)
    await f.service.report(row.id, ReportForm(outcome=Outcome.FAILED, attempt=1))
    row = await f.until(row.id, "ready")
    f.provider.show(row.runner, evidence=replace(KILLED, usage=CALM, errors=errors))
    return row


CALM = replace(KILLED.usage, oom_kills=0)


async def test_a_build_whose_kept_disk_is_damaged_begins_anew(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        row = await warm(f, (MISSING,))
        assert f.ledger.hub.lines(row.id)[-1] == "finished steps are kept"
        told = ReportForm(outcome=Outcome.FAILED, attempt=2)
        verdict = await f.service.report(row.id, told)
        assert (verdict["verdict"], verdict["outcome"]) == ("retry", "infrastructure")
        assert "snapshot abc does not exist" in verdict["reason"]
        assert await f.service.report(row.id, told) == verdict
        row = await f.until(row.id, "ready")
        spec = f.provider.specs[row.runner]
        assert (row.attempt, row.size, spec.scratch_of) == (3, T2, f"{row.id}-2")
        assert "is damaged: snapshot abc" in spec.spoiled
        assert "beginning anew" in f.ledger.hub.lines(row.id)[0]
        # There it says so again, and that is the end.
        f.provider.show(row.runner, evidence=replace(KILLED, usage=CALM, errors=(MISSING,)))
        done = await f.service.report(row.id, ReportForm(outcome=Outcome.FAILED, attempt=3))
        assert (done["verdict"], done["outcome"]) == ("done", "failed")
        attempts = (await f.api.build(row.id))["attempts"]
        assert [a["outcome"] for a in attempts] == ["oom", "infrastructure", "failed"]


async def test_a_step_that_fails_by_itself_on_a_kept_disk_is_a_failure(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        row = await warm(f, ('process "x" did not complete successfully: exit code: 1',))
        done = await f.service.report(row.id, ReportForm(outcome=Outcome.FAILED, attempt=2))
        assert (done["verdict"], done["outcome"]) == ("done", "failed")


async def test_what_a_client_says_is_no_sign_of_damage(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        row = await warm(f, ())
        told = ReportForm(outcome=Outcome.INFRASTRUCTURE, attempt=2, reason=MISSING)
        done = await f.service.report(row.id, told)
        assert (done["verdict"], done["outcome"]) == ("done", "infrastructure")
