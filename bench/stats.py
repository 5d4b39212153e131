"""The arithmetic of a benchmark: percentiles, ratios, and how they are written. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed: one of them.

    Nearest rank, so nothing is interpolated. Raises `ValueError` without values.
    """
    if not values or not 0 <= share <= 1:
        raise ValueError(f"no percentile {share} of {len(values)} values")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def median(values: Sequence[float]) -> float:
    """The middle value, or the mean of the two in the middle. Raises `ValueError` without any."""
    if not values:
        raise ValueError("no median of no values")
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """How many times the second's median the first's is."""
    return median(first) / median(second)


def spread(values: Sequence[float]) -> float:
    """The largest value by the smallest: 1 when all are equal."""
    return max(values) / min(values)


def duration(seconds: float) -> str:
    """`0.42 s`, `7.3 s`, `83 s`; below 20 ms in milliseconds."""
    if seconds < 0.02:
        return f"{seconds * 1000:.2f} ms"
    if seconds < 2:
        return f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds:.0f} s"


def of(values: Sequence[float], *, p95: bool = True) -> str:
    """`p50 0.42 s, p95 0.51 s (n=30)`; of fewer than 10 values the largest instead of p95."""
    words = f"p50 {duration(median(values))}"
    if p95 and len(values) >= 10:
        words += f", p95 {duration(percentile(values, 0.95))}"
    elif p95 and len(values) > 1:
        words += f", at most {duration(max(values))}"
    return f"{words} (n={len(values)})"


def phases(found: Sequence[dict[str, float]]) -> str:
    """Medians of named times, largest first; a phase that some lack counts as 0 in those."""
    names = {name for each in found for name in each}
    middle = {name: median([each.get(name, 0.0) for each in found]) for name in names}
    ordered = sorted(middle, key=lambda name: (-middle[name], name))
    return ", ".join(f"{name} {_brief(middle[name])}" for name in ordered)


def _brief(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
