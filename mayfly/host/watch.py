"""What a runner uses, sampled for as long as it lives.

The guest may be anybody's: what it tells is bounded (`parse_sample`, `parse_steps`), folded into
something of bounded size (`mayfly.usage`), and can at most make its own build look larger.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import structlog

from mayfly.errors import InfrastructureError, MayflyError
from mayfly.host.agent import Channel
from mayfly.model import Load
from mayfly.usage import (
    MAX_ERROR,
    MAX_ERRORS,
    MAX_NAME,
    MAX_STEPS,
    Evidence,
    Fold,
    Sample,
    Step,
)

log = structlog.get_logger("host")

FIRST_S = 2.0
"""Until then a client logs in, which under emulation is quicker without us."""

EVERY_S = 1.0
HURRY_S = 0.25
"""While memory or disk last for less than `SOON_S` at the present speed."""

SOON_S = 10.0

SAVE_S = 10.0
"""How much of a peak a host program that is killed may lose: what was sampled since it last
saved. Kills, CPU time and the kernel's own peak are counted in the guest, and so are not lost."""

SAMPLE_TIMEOUT_S = 5.0
STEPS_TIMEOUT_S = 20.0
BACKOFF_S = 15.0

FILE = "usage.json"
_MOST = 2**60


class Watch:
    """One runner's sampler. `age_s` tells for how many seconds the runner has been ready."""

    def __init__(
        self,
        runner: str,
        channel: Channel,
        directory: Path,
        *,
        cpus: int,
        memory_limit_bytes: int,
        age_s: Callable[[], float],
    ) -> None:
        """Goes on from what an earlier host program saved in `directory`."""
        self.channel = channel
        self._runner = runner
        self._file = directory / FILE
        self._limit_bytes = memory_limit_bytes
        self._age_s = age_s
        self._fold = read_fold(self._file) or Fold(cpus)
        self._steps: tuple[Step, ...] = ()
        self._errors: tuple[str, ...] = ()
        self._saved_at_s = age_s()

    @property
    def load(self) -> Load | None:
        """How the runner was when it was last looked at; None before."""
        return self._fold.load

    @property
    def evidence(self) -> Evidence:
        """What is known of the runner's use so far."""
        return replace(self._fold.evidence, steps=self._steps, errors=self._errors)

    async def run(self) -> None:
        """Take samples until cancelled. A guest that does not answer is asked less and less."""
        await asyncio.sleep(FIRST_S - EVERY_S)
        pause_s = EVERY_S
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.look()
            except MayflyError as error:
                pause_s = min(pause_s * 2, BACKOFF_S)
                log.debug("no sample", runner=self._runner, error=str(error))
                continue
            load = self.load
            calm = load is None or (load.memory_lasts(SOON_S) and load.disk_lasts(SOON_S))
            pause_s = EVERY_S if calm else HURRY_S

    async def look(self) -> None:
        """Take one sample now. Raises `InfrastructureError` when the guest gives none."""
        answer = await self.channel.call("sample", timeout_s=SAMPLE_TIMEOUT_S)
        self._fold.add(parse_sample(answer, self._age_s(), self._limit_bytes))
        if self._age_s() - self._saved_at_s >= SAVE_S:
            self._save()

    async def finish(self) -> None:
        """Take the last sample, and BuildKit's own record of the steps; what fails is left out."""
        with suppress(MayflyError):
            await self.look()
        with suppress(MayflyError):
            answer = await self.channel.call(
                "steps", {"timeout_s": STEPS_TIMEOUT_S}, timeout_s=STEPS_TIMEOUT_S + 2
            )
            self._steps = parse_steps(answer, self._age_s())
            self._errors = parse_errors(answer)

    def _save(self) -> None:
        self._saved_at_s = self._age_s()
        partial = self._file.with_name(f".{FILE}")
        with suppress(OSError):
            partial.write_text(json.dumps(self._fold.to_json()))
            partial.rename(self._file)


def read_fold(file: Path) -> Fold | None:
    """The fold that was saved there; None when there is none that can be read."""
    try:
        return Fold.from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def parse_sample(answer: dict[str, Any], at_s: float, memory_limit_bytes: int) -> Sample:
    """The sample in a guest's answer, as taken `at_s`.

    Raises `InfrastructureError` for one that no guest with that much memory can have.
    """
    told = answer.get("sample")
    if not isinstance(told, dict):
        raise InfrastructureError("the guest's agent told no sample")

    def number(name: str, limit: int = _MOST) -> int:
        value = told.get(name)
        if type(value) is not int or not 0 <= value <= limit:
            raise InfrastructureError(f"the guest's agent told no possible {name}")
        return value

    disk_total = number("disk_total_bytes")
    return Sample(
        at_s=at_s,
        memory_bytes=number("memory_bytes", memory_limit_bytes),
        cache_bytes=number("cache_bytes", memory_limit_bytes),
        peak_bytes=number("memory_peak_bytes", memory_limit_bytes),
        total_bytes=number("memory_total_bytes", memory_limit_bytes),
        available_bytes=number("memory_available_bytes", memory_limit_bytes),
        cpu_us=number("cpu_us"),
        user_us=number("user_us"),
        stalled_us=number("memory_full_us"),
        read_bytes=number("read_bytes"),
        written_bytes=number("written_bytes"),
        disk_total_bytes=disk_total,
        disk_free_bytes=number("disk_free_bytes", disk_total),
        oom_kills=number("oom_kill", 10**6),
    )


def parse_steps(answer: dict[str, Any], at_s: float) -> tuple[Step, ...]:
    """The steps in a guest's answer, their times turned into seconds since the runner was ready.

    What is no step, or lies outside the runner's life, is left out. Raises `InfrastructureError`
    when there is no list.
    """
    told, clock_s = answer.get("steps"), answer.get("unix_time_s")
    if not isinstance(told, list) or not _is_time(clock_s):
        raise InfrastructureError("the guest's agent told no steps")
    found = []
    for item in told[:MAX_STEPS]:
        if not isinstance(item, dict) or not _is_time(item.get("start_s")):
            continue
        start_s, end_s = at_s - (clock_s - item["start_s"]), None
        if item.get("end_s") is not None:
            if not _is_time(item["end_s"]) or item["end_s"] < item["start_s"]:
                continue
            end_s = round(min(at_s, at_s - (clock_s - item["end_s"])), 3)
        if start_s <= at_s and (end_s is None or end_s >= 0):
            name = ascii(str(item.get("name")))[1:-1][:MAX_NAME]
            cached, failed = item.get("cached") is True, item.get("failed") is True
            found.append(Step(name, round(max(0.0, start_s), 3), end_s, cached, failed))
    return tuple(found)


def parse_errors(answer: dict[str, Any]) -> tuple[str, ...]:
    """How steps failed, as a guest tells it: a few lines of plain characters; none where it is
    something else."""
    told = answer.get("errors")
    lines = told[-MAX_ERRORS:] if isinstance(told, list) else ()
    return tuple(ascii(line)[1:-1][-MAX_ERROR:] for line in lines if isinstance(line, str))


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**40
