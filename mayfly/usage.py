"""What a runner uses, from single samples to what is kept of a build. Pure, and bounded in size.

Points in time are seconds since the runner was ready; counters run since its machine started.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

from mayfly.model import Load, Usage

WINDOW_S = 10.0
"""What CPU need is averaged over: a build's need is the 95th percentile of such means."""

PARTIAL_WINDOW_S = 5.0
"""From how long on a build's last, shorter window counts as one."""

CPU_GRAIN = 0.02
"""vCPUs that means are rounded to, so that those of a day are a few hundred counts."""

MAX_POINTS = 180
MAX_STEPS = 100
MAX_NAME = 120
MAX_ERRORS = 4
MAX_ERROR = 300

STALLED_SHARE = 0.5
"""Of the time: a guest in which everything waits for memory for so long, and which computes
(`BUSY_CPUS`) as good as nothing in the rest, makes no progress."""

BUSY_CPUS = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a runner. `memory_bytes` is anon + shmem + slab_unreclaimable.

    `total_bytes` and `available_bytes` are the whole guest's. `stalled_us` is for how long
    everything has waited for memory (PSI's full), `user_us` what of `cpu_us` was not the kernel's.
    """

    at_s: float
    memory_bytes: int
    cache_bytes: int
    peak_bytes: int
    total_bytes: int
    available_bytes: int
    cpu_us: int
    user_us: int
    stalled_us: int
    read_bytes: int
    written_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    oom_kills: int


class Point(NamedTuple):
    """A stretch of a build: the most of each that was seen in it; from `cpu_s` on, counters."""

    at_s: float
    memory_bytes: int
    cache_bytes: int
    total_bytes: int
    disk_bytes: int
    cpu_s: float
    read_bytes: int
    written_bytes: int
    oom_kills: int


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a build as BuildKit records it; `end_s` is None for one that was still running."""

    name: str
    start_s: float
    end_s: float | None
    cached: bool = False
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is kept of what one runner used.

    `errors` are the ends of what its BuildKit said of the last steps that failed.
    """

    usage: Usage
    points: tuple[Point, ...] = ()
    steps: tuple[Step, ...] = ()
    errors: tuple[str, ...] = ()


class Series:
    """Points at equal distances, 180 at most: when there are more, two become one."""

    def __init__(self, step_s: float = 1.0, points: Iterable[Point] = ()) -> None:
        self.step_s = step_s
        self.points = list(points)

    def add(self, point: Point) -> None:
        if self.points and self._place(self.points[-1]) == self._place(point):
            self.points[-1] = _most(self.points[-1], point)
            return
        self.points.append(point)
        if len(self.points) > MAX_POINTS:
            self.step_s *= 2
            points, self.points = self.points, []
            for each in points:
                self.add(each)

    def _place(self, point: Point) -> int:
        return int(point.at_s // self.step_s)


def _most(one: Point, other: Point) -> Point:
    return Point._make(max(pair) for pair in zip(one, other, strict=True))


SOONEST_S = 0.001
"""Samples that are closer together say nothing about speed."""


class Fold:
    """Samples in, `usage`, `points` and `load` out; holds no more however many samples come.

    `cpus` bounds what a runner can have used in any time.
    """

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._usage = Usage(0, 0, 0.0, 0, 0, 0)
        self._series = Series()
        self._means: Counter[int] = Counter()
        self._window_s = 0.0
        self._window_cpu_s = 0.0
        self._cpu_s = 0.0
        self._read = 0
        self._written = 0
        self._last: Sample | None = None
        self.load: Load | None = None

    def add(self, sample: Sample) -> None:
        """The next sample; one that is not later than the last by `SOONEST_S` is left out."""
        last = self._last or sample  # what the template has used is nobody's
        passed_s = sample.at_s - last.at_s
        if self._last and passed_s < SOONEST_S:
            return
        cpu_s = _grown(last.cpu_us, sample.cpu_us) / 1e6
        self._count_cpu(passed_s, min(cpu_s, passed_s * self._cpus))
        self._read += _grown(last.read_bytes, sample.read_bytes)
        self._written += _grown(last.written_bytes, sample.written_bytes)
        self.load = _load(last, sample, passed_s, self.load)
        used, free = sample.disk_total_bytes - sample.disk_free_bytes, sample.disk_free_bytes
        before = self._usage
        self._usage = Usage(
            memory_bytes=max(before.memory_bytes, sample.memory_bytes),
            memory_peak_bytes=max(before.memory_peak_bytes, sample.peak_bytes),
            cpu=self._cpu(),
            disk_bytes=max(before.disk_bytes, used),
            oom_kills=max(before.oom_kills, sample.oom_kills),
            samples=before.samples + 1,
            disk_free_bytes=min(free, free if (least := before.disk_free_bytes) is None else least),
        )
        self._series.add(
            Point(
                round(sample.at_s, 2),
                sample.memory_bytes,
                sample.cache_bytes,
                sample.total_bytes,
                used,
                round(self._cpu_s, 2),
                self._read,
                self._written,
                self._usage.oom_kills,
            )
        )
        self._last = sample

    @property
    def evidence(self) -> Evidence:
        """All of it so far."""
        return Evidence(self._usage, tuple(self._series.points))

    def _count_cpu(self, passed_s: float, cpu_s: float) -> None:
        self._cpu_s += cpu_s
        self._window_s += passed_s
        self._window_cpu_s += cpu_s
        if self._window_s >= WINDOW_S:
            self._means[_grains(self._window_cpu_s, self._window_s)] += 1
            self._window_s = self._window_cpu_s = 0.0

    def _cpu(self) -> float:
        """The 95th percentile (nearest rank) of the windows' means, in vCPUs."""
        means = self._means
        if self._window_s >= PARTIAL_WINDOW_S or not means:
            means = means + Counter([_grains(self._window_cpu_s, self._window_s)])
        rank = math.ceil(0.95 * means.total())
        for mean in sorted(means):
            rank -= means[mean]
            if rank <= 0:
                return round(mean * CPU_GRAIN, 2)
        return 0.0

    def to_json(self) -> dict[str, Any]:
        """What `from_json` makes the same fold of."""
        return {
            "cpus": self._cpus,
            "usage": astuple(self._usage),
            "step_s": self._series.step_s,
            "points": self._series.points,
            "means": sorted(self._means.items()),
            "window": [self._window_s, self._window_cpu_s],
            "totals": [self._cpu_s, self._read, self._written],
            "last": astuple(self._last) if self._last else None,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Fold:
        """A fold that goes on where another stopped.

        Raises KeyError, TypeError or ValueError for what is no fold.
        """
        fold = cls(int(data["cpus"]))
        fold._usage = Usage(*data["usage"])
        fold._series = Series(float(data["step_s"]), (Point(*row) for row in data["points"]))
        fold._means = Counter({int(mean): int(count) for mean, count in data["means"]})
        fold._window_s, fold._window_cpu_s = map(float, data["window"])
        fold._cpu_s, fold._read, fold._written = data["totals"]
        fold._last = Sample(*data["last"]) if data["last"] else None
        return fold


def _grains(cpu_s: float, seconds: float) -> int:
    return round(cpu_s / seconds / CPU_GRAIN) if seconds else 0


def _grown(before: int, now: int) -> int:
    """What a counter has counted since; one that went back has begun anew."""
    return now - before if now >= before else now


def _load(last: Sample, sample: Sample, passed_s: float, before: Load | None) -> Load:
    stalled_s = _grown(last.stalled_us, sample.stalled_us) / 1e6
    busy_s = _grown(last.user_us, sample.user_us) / 1e6
    stands = stalled_s >= STALLED_SHARE * passed_s > 0 and busy_s <= BUSY_CPUS * passed_s
    speed = 1 / passed_s if passed_s else 0.0
    falling = last.available_bytes - sample.available_bytes
    filling = last.disk_free_bytes - sample.disk_free_bytes
    return Load(
        at_s=round(sample.at_s, 3),
        memory_bytes=sample.memory_bytes,
        total_bytes=sample.total_bytes,
        available_bytes=sample.available_bytes,
        falling_bytes_s=max(0, round(falling * speed)),
        stalled_s=round((before.stalled_s if before else 0.0) + passed_s, 3) if stands else 0.0,
        disk_total_bytes=sample.disk_total_bytes,
        disk_free_bytes=sample.disk_free_bytes,
        filling_bytes_s=max(0, round(filling * speed)),
        oom_kills=sample.oom_kills,
    )


def evidence_to_json(evidence: Evidence) -> dict[str, Any]:
    """Rows without names: 180 points are to fit into a message of 64 KiB."""
    return {
        "usage": asdict(evidence.usage),
        "points": evidence.points,
        "steps": [astuple(step) for step in evidence.steps],
        "errors": evidence.errors,
    }


def evidence_from_json(data: Mapping[str, Any]) -> Evidence:
    """Raises KeyError or TypeError for what is none."""
    return Evidence(
        usage=Usage(**data["usage"]),
        points=tuple(Point(*row) for row in data["points"]),
        steps=tuple(Step(*row) for row in data["steps"]),
        errors=tuple(map(str, data.get("errors", ()))),
    )


@dataclass(frozen=True, slots=True)
class Need:
    """What a runner used while one of its steps ran; steps that run together share it.

    `cpu` is in vCPUs on average.
    """

    step: Step
    seconds: float
    memory_bytes: int
    cache_bytes: int
    cpu: float
    read_bytes: int
    written_bytes: int
    oom_kills: int


def needs(evidence: Evidence) -> tuple[Need, ...]:
    """The samples laid over BuildKit's steps, in their order.

    A step that is shorter than the distance of two points is given the point after it.
    """
    points = evidence.points
    last_s = points[-1].at_s if points else 0.0
    found = []
    for step in evidence.steps:
        end_s = last_s if step.end_s is None else step.end_s
        within = _within(points, step.start_s, end_s)
        first, final = (within[0], within[-1]) if within else (None, None)
        passed_s = final.at_s - first.at_s if first and final else 0.0
        found.append(
            Need(
                step,
                seconds=round(max(0.0, end_s - step.start_s), 3),
                memory_bytes=max((p.memory_bytes for p in within[1:]), default=0),
                cache_bytes=max((p.cache_bytes for p in within[1:]), default=0),
                cpu=(final.cpu_s - first.cpu_s) / passed_s if first and final and passed_s else 0.0,
                read_bytes=final.read_bytes - first.read_bytes if first and final else 0,
                written_bytes=final.written_bytes - first.written_bytes if first and final else 0,
                oom_kills=final.oom_kills - first.oom_kills if first and final else 0,
            )
        )
    return tuple(found)


def _within(points: Sequence[Point], start_s: float, end_s: float) -> Sequence[Point]:
    """The last point at or before the start, and all that follow up to the first after the end."""
    begin = max((n for n, p in enumerate(points) if p.at_s <= start_s), default=0)
    end = next((n for n, p in enumerate(points) if p.at_s >= end_s), len(points) - 1)
    return points[begin : max(end, begin) + 1]
