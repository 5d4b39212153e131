"""The replay of sizes: the same every time, fair to all, and within what must be reached."""

from __future__ import annotations

import random

import pytest

from bench import quality
from bench.quality import LADDER, Build, Repo, Seen
from mayfly.model import GIB

SMALL, MEDIUM, LARGE, XLARGE = LADDER


def farm(seed: int = quality.SEED) -> list[Repo]:
    return list(quality.repos(random.Random(seed)))  # noqa: S311


async def test_the_policy_reaches_what_it_must() -> None:
    found = await quality.quality(None)  # type: ignore[arg-type]
    assert found.holds
    assert [line.holds for line in found.lines] == [True, None, None, True, None, None]


def test_the_same_seed_is_the_same_farm_of_a_thousand_builds() -> None:
    assert farm() == farm() != farm(1)
    assert [len(repo.builds) for repo in farm()] == [50] * 20


@pytest.mark.parametrize("grows", [False, True])
def test_who_knows_the_future_has_no_kills_and_nobody_safe_takes_less(grows: bool) -> None:
    oracle = quality.score(farm(), quality.foretold, grows=grows)
    assert oracle.kills == 0
    always_largest = quality.score(farm(), lambda *_: XLARGE, grows=grows)
    assert always_largest.kills == 0
    assert oracle.granted < always_largest.granted


def test_an_attempt_costs_what_it_had_while_it_had_it() -> None:
    build = Build(need=6 * GIB, seconds=100, reached=0.5)
    assert quality.attempt(MEDIUM, build, grows=False) == (800 * GIB, Seen(6 * GIB, 0))
    assert quality.attempt(SMALL, build, grows=False) == (200 * GIB, Seen(4 * GIB, 4 * GIB))
    assert quality.attempt(SMALL, build, grows=True) == (200 * GIB + 400 * GIB, Seen(6 * GIB, 0))
    far = Build(need=20 * GIB, seconds=100, reached=0.5)
    assert quality.attempt(MEDIUM, far, grows=True) == (400 * GIB, Seen(16 * GIB, 16 * GIB))


def test_after_a_kill_the_next_build_is_a_rung_up() -> None:
    repo = Repo("javascript", ())
    assert quality.ours(repo, [], Build(1, 1, 1)) == SMALL
    assert quality.ours(repo, [Seen(4 * GIB, 4 * GIB)], Build(1, 1, 1)) == MEDIUM
