"""When a lost connection is opened again, and when not any more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.build.reconnect import LOSSES, PATIENCE_S, Way

BREAKS = st.lists(st.tuples(st.booleans(), st.floats(0, 2 * PATIENCE_S)), max_size=40)


def test_a_build_may_lose_so_many_connections() -> None:
    way = Way(0)
    for _ in range(LOSSES):
        way = way.broken(1, opened=True)
        assert not way.given_up(1)
    assert way.broken(1, opened=True).given_up(1)


@pytest.mark.parametrize(("without_s", "over"), [(PATIENCE_S, False), (PATIENCE_S + 0.1, True)])
def test_patience_counts_from_when_there_last_was_a_connection(
    without_s: float, over: bool
) -> None:
    way = Way(0).broken(1000, opened=True).broken(1001, opened=False)
    assert way.given_up(1000 + without_s) is over
    assert Way(0).broken(10, opened=False).given_up(without_s) is over


@given(BREAKS)
def test_there_is_one_line_for_each_loss_and_one_for_never_getting_in(
    breaks: list[tuple[bool, float]],
) -> None:
    way, now_s, lines = Way(0), 0.0, 0
    for opened, seconds in breaks:
        now_s += seconds
        way = way.broken(now_s, opened=opened)
        lines += way.news
    losses = sum(opened for opened, _ in breaks)
    assert way.losses == losses
    assert lines == losses + (bool(breaks) and not breaks[0][0])
