"""Which builds a younger one ends, and what they are told."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mayfly.model import Desired, LeaseRequest, Outcome, Terms
from mayfly.orchestrator import states
from mayfly.orchestrator.plan import superseded
from tests.orchestrator.leases import KEY, NOW, configuration, farm, lease

BASE = LeaseRequest(
    repo="team/app",
    ssh_public_key=KEY,
    ref="refs/heads/main",
    event="push",
    target="web",
    pipeline="7",
)
YOUNGER = lease(
    "bbbb",
    request=replace(BASE, pipeline="8", supersede=True),
    created_at=NOW + timedelta(seconds=5),
)


def older(**request: Any) -> Any:
    return lease("aaaa", request=replace(BASE, **request))


def test_the_same_of_an_older_pipeline_is_superseded() -> None:
    assert superseded([older(), YOUNGER], YOUNGER) == (older(),)


def test_the_lower_number_is_older_however_late_it_asks() -> None:
    late = replace(YOUNGER, request=replace(YOUNGER.request, pipeline="9"))
    assert superseded([older(pipeline="41"), late], late) == ()
    assert superseded([older(pipeline="8"), late], late) == (older(pipeline="8"),)
    assert superseded([older(pipeline="run-41"), late], late) == (older(pipeline="run-41"),)


@pytest.mark.parametrize(
    "request_",
    [
        {"repo": "team/other"},
        {"ref": "refs/heads/x"},
        {"event": "cron"},
        {"target": "tool"},
        {"pipeline": "8"},
    ],
    ids=lambda request_: next(iter(request_)),
)
def test_anything_else_goes_on(request_: dict[str, Any]) -> None:
    assert superseded([older(**request_), YOUNGER], YOUNGER) == ()


def test_trust_is_not_mixed() -> None:
    assert superseded([replace(older(), trusted=False)], YOUNGER) == ()


def test_whoever_is_not_trusted_ends_nobody_elses_builds_by_claiming_their_ref() -> None:
    mine, theirs = Terms(slot="token-ci"), Terms(slot="12")
    by = replace(YOUNGER, trusted=False, terms=mine)
    others = replace(older(), trusted=False, terms=theirs)
    own = replace(older(), trusted=False, terms=mine)
    assert superseded([others, own, by], by) == (own,)


def test_one_that_has_ended_or_is_younger_stays_as_it_is() -> None:
    over = replace(older(), desired=Desired.ENDED, outcome=Outcome.SUCCEEDED)
    later = replace(older(), created_at=NOW + timedelta(seconds=9))
    assert superseded([over, later], YOUNGER) == ()


def test_nothing_happens_unless_it_is_asked_for_and_the_ref_is_known() -> None:
    mild = replace(YOUNGER, request=replace(YOUNGER.request, supersede=False))
    assert superseded([older()], mild) == ()
    lost = replace(YOUNGER, request=replace(YOUNGER.request, ref=""))
    assert superseded([older(ref="")], lost) == ()


def test_without_pipelines_each_build_is_its_own() -> None:
    alone = replace(YOUNGER, request=replace(YOUNGER.request, pipeline=""))
    assert superseded([older(pipeline="")], alone) == (older(pipeline=""),)


async def test_the_older_one_is_cancelled_and_told_by_which(tmp_path: Path) -> None:
    async with farm(configuration(tmp_path)) as f:
        first = await f.api.ask(BASE, "1")
        f.clock.forward(1)
        await f.until(first["id"], states.READY)
        wanted = replace(BASE, pipeline="8", supersede=True)
        second = await f.api.ask(wanted, "2")
        over = await f.until(first["id"], states.ENDED)
        assert over.outcome is Outcome.CANCELLED
        assert over.reason == f"superseded by build {second['id']}"
        assert (await f.api.ask(wanted, "2"))["id"] == second["id"], "asked again it is the same"
        assert states.is_running(f.ledger.get(second["id"]))
        assert f.ledger.get(second["id"]).request.supersede
