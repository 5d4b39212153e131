"""Samples become a build's use: nothing is lost that counts, and nothing grows without end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.model import GIB, MIB, Usage
from mayfly.usage import (
    MAX_NAME,
    MAX_POINTS,
    MAX_STEPS,
    SOONEST_S,
    Evidence,
    Fold,
    Point,
    Sample,
    Step,
    evidence_from_json,
    evidence_to_json,
    needs,
)

CPUS = 4


def sample(at_s: float, **more: int) -> Sample:
    fields: dict[str, Any] = {
        "memory_bytes": 0,
        "cache_bytes": 0,
        "peak_bytes": 0,
        "total_bytes": 2 * GIB,
        "available_bytes": GIB,
        "cpu_us": 0,
        "user_us": 0,
        "stalled_us": 0,
        "read_bytes": 0,
        "written_bytes": 0,
        "disk_total_bytes": 8 * GIB,
        "disk_free_bytes": 7 * GIB,
        "oom_kills": 0,
    }
    return Sample(at_s=at_s, **{**fields, **more})


def fold(*samples: Sample, cpus: int = CPUS) -> Fold:
    made = Fold(cpus)
    for each in samples:
        made.add(each)
    return made


numbers = st.integers(0, 2**40)
samples = st.lists(
    st.builds(
        sample,
        st.floats(0, 10_000),
        memory_bytes=numbers,
        peak_bytes=numbers,
        cpu_us=numbers,
        stalled_us=numbers,
        user_us=numbers,
        available_bytes=numbers,
        oom_kills=st.integers(0, 5),
    ),
    max_size=60,
)


@given(samples)
def test_whatever_a_guest_tells_the_need_is_the_highest_and_cpu_is_what_there_is(
    told: list[Sample],
) -> None:
    made, taken, last = Fold(CPUS), [], -1.0
    for each in told:
        made.add(each)
        if each.at_s - last >= SOONEST_S:
            taken.append(each)
            last = each.at_s
    usage = made.evidence.usage
    assert usage.samples == len(taken)
    assert usage.memory_bytes == max((s.memory_bytes for s in taken), default=0)
    assert usage.memory_peak_bytes == max((s.peak_bytes for s in taken), default=0)
    assert usage.oom_kills == max((s.oom_kills for s in taken), default=0)
    assert 0 <= usage.cpu <= CPUS
    assert len(made.evidence.points) <= MAX_POINTS


@given(samples, st.integers(0, 60))
def test_a_fold_that_was_saved_goes_on_as_if_nothing_had_been(told: list[Sample], cut: int) -> None:
    saved = fold(*told[:cut])
    other = Fold.from_json(json.loads(json.dumps(saved.to_json())))
    for each in told[cut:]:
        saved.add(each)
        other.add(each)
    assert other.evidence == saved.evidence


def test_cpu_is_the_95th_percentile_of_ten_second_means() -> None:
    """One busy window of twenty is an outlier, two are a need."""
    for busy, cpu in ((1, 1.0), (2, 3.0)):
        used, made = 0, Fold(CPUS)
        for second in range(201):
            made.add(sample(float(second), cpu_us=used))
            window = second // 10
            used += 3_000_000 if window < busy else 1_000_000
        assert made.evidence.usage.cpu == cpu


def test_what_the_template_used_before_is_nobodys() -> None:
    made = fold(sample(1, cpu_us=10**9), sample(11, cpu_us=10**9 + 5_000_000))
    assert made.evidence.usage.cpu == 0.5


def test_a_counter_that_went_back_has_begun_anew() -> None:
    made = fold(sample(0, read_bytes=100), sample(1, read_bytes=150), sample(2, read_bytes=30))
    assert made.evidence.points[-1].read_bytes == 80


def test_page_cache_is_no_need() -> None:
    made = fold(sample(1, memory_bytes=43 * MIB, cache_bytes=GIB, peak_bytes=GIB + 50 * MIB))
    assert made.evidence.usage.memory_bytes == 43 * MIB


def test_the_series_keeps_peaks_when_it_is_thinned_out() -> None:
    made = Fold(CPUS)
    for second in range(5000):
        made.add(sample(float(second), memory_bytes=GIB if second == 2500 else MIB))
    points = made.evidence.points
    assert MAX_POINTS / 3 < len(points) <= MAX_POINTS
    assert max(point.memory_bytes for point in points) == GIB
    assert [p.at_s for p in points] == sorted(p.at_s for p in points)


def test_a_guest_that_only_waits_for_memory_stalls_and_one_that_computes_does_not() -> None:
    second = 1_000_000
    stalls = [sample(float(n), stalled_us=n * second * 8 // 10) for n in range(6)]
    load = fold(*stalls).load
    assert load is not None and load.stalled_s == 5
    computes = [
        sample(float(n), stalled_us=n * second * 8 // 10, user_us=n * second) for n in range(6)
    ]
    load = fold(*computes).load
    assert load is not None and load.stalled_s == 0
    load = fold(*stalls, sample(6, stalled_us=4 * second)).load
    assert load is not None and load.stalled_s == 0, "one second of progress begins it anew"


def test_memory_that_falls_is_known_for_how_long_it_lasts() -> None:
    load = fold(sample(0, available_bytes=GIB), sample(2, available_bytes=GIB - 400 * MIB)).load
    assert load is not None and load.falling_bytes_s == 200 * MIB
    assert load.memory_lasts(3) and not load.memory_lasts(4)


def test_the_largest_evidence_fits_into_a_message() -> None:
    from mayfly.vm.protocol import MAX_LINE, encode

    big = 10**12 - 1
    point = Point(99999.99, big, big, big, big, 99999.99, big, big, 10**6)
    step = Step("x" * MAX_NAME, 99999.999, 99999.999, False, True)
    usage = Usage(big, big, 256.0, big, 10**6, 10**6, big)
    evidence = Evidence(usage, (point,) * MAX_POINTS, (step,) * MAX_STEPS)
    line = encode({"ok": True, "evidence": evidence_to_json(evidence)})
    assert len(line) < MAX_LINE
    assert evidence_from_json(json.loads(line)["evidence"]) == evidence


# --- steps -----------------------------------------------------------------------------------


def test_a_step_has_what_was_used_while_it_ran() -> None:
    points = tuple(
        Point(float(n), (GIB if 10 < n <= 20 else MIB), 0, 2 * GIB, 0, n * 2.0, n * 10, 0, n // 15)
        for n in range(31)
    )
    steps = (
        Step("one", 0.5, 10.0),
        Step("two", 10.2, 19.8),
        Step("quick", 25.1, 25.2),
        Step("runs", 20.5, None),
    )
    one, two, quick, runs = needs(Evidence(Usage(0, 0, 0, 0, 0, 0), points, steps))
    assert (one.memory_bytes, two.memory_bytes) == (MIB, GIB)
    assert two.cpu == pytest.approx(2.0)
    assert (one.oom_kills, two.oom_kills) == (0, 1)
    assert two.read_bytes == 100
    assert quick.memory_bytes == MIB
    assert runs.seconds == 9.5


@given(
    st.lists(st.floats(0, 100), max_size=20),
    st.lists(st.tuples(st.floats(0, 120), st.none() | st.floats(0, 120)), max_size=10),
)
def test_any_steps_can_be_laid_over_any_points(
    times: list[float], spans: list[tuple[float, float | None]]
) -> None:
    points = tuple(Point(at, 1, 1, 1, 1, at, 1, 1, 0) for at in sorted(times))
    steps = tuple(Step("s", start, end) for start, end in spans)
    found = needs(Evidence(Usage(0, 0, 0, 0, 0, 0), points, steps))
    assert len(found) == len(steps)
    assert all(need.seconds >= 0 and need.cpu >= 0 for need in found)
