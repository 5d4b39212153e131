"""The arithmetic of the benchmarks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import stats

VALUES = st.lists(st.floats(0.001, 1000), min_size=1, max_size=60)


@pytest.mark.parametrize(
    ("share", "value"), [(0, 1), (0.05, 1), (0.5, 10), (0.95, 19), (0.96, 20), (1, 20)]
)
def test_a_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert stats.percentile([float(n) for n in range(20, 0, -1)], share) == value


@given(VALUES, st.floats(0, 1))
def test_at_least_the_share_is_not_above_its_percentile(values: list[float], share: float) -> None:
    found = stats.percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9
    assert sum(value < found for value in values) <= share * len(values) + 1e-9


def test_the_median_is_in_the_middle() -> None:
    assert stats.median([3, 1, 2]) == 2
    assert stats.median([4, 1, 2, 3]) == 2.5


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="no percentile"):
        stats.percentile([1], share)


def test_nothing_has_no_percentile_and_no_median() -> None:
    with pytest.raises(ValueError, match="of 0 values"):
        stats.percentile([], 0.5)
    with pytest.raises(ValueError, match="no values"):
        stats.median([])


def test_a_ratio_is_that_of_the_medians() -> None:
    assert stats.ratio([1, 9, 3], [2, 1, 100]) == 1.5


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.30 ms"), (0.42, "0.42 s"), (7.31, "7.3 s"), (83.4, "83 s")],
)
def test_durations_have_as_many_digits_as_mean_something(seconds: float, text: str) -> None:
    assert stats.duration(seconds) == text


def test_values_are_told_with_their_number() -> None:
    many = [n / 100 for n in range(1, 21)]
    assert stats.of(many) == "p50 0.11 s, p95 0.19 s (n=20)"
    assert stats.of([1.0, 1.5, 1.2]) == "p50 1.20 s, at most 1.50 s (n=3)"
    assert stats.of([1.0]) == "p50 1.00 s (n=1)"


def test_phases_are_medians_largest_first_and_a_missing_one_is_nothing() -> None:
    found = [{"queue": 0.002, "ready": 0.5}, {"ready": 0.7}, {"ready": 0.6, "queue": 0.004}]
    assert stats.phases(found) == "ready 600 ms, queue 2 ms"
    assert stats.phases([{"build": 45.54}]) == "build 45.5 s"
