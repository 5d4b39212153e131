"""The size of a build: a pure function of what is declared, what was measured, and what is usual.

For each of memory, vCPUs and disk the largest of what is declared and what history asks for (1.2
times the 95th percentile of past needs) counts; what is usual for the language counts where neither
says anything, and beside a history too short to go by alone. The size is the smallest rung that
holds all three (the decision record's three tiers).

What is declared or was measured must fit, else there is no build; the margin above what was
measured, and a guess, only should.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from mayfly.errors import TooBig
from mayfly.ladder import Room, choose, rungs, words
from mayfly.languages import LANGUAGES, known
from mayfly.model import GIB, MARGIN, BuildSpec, History, Size

ENOUGH = 3
"""Builds from which on a history speaks alone. The first ones may have been small by chance (all of
it cached, or failed at once), so until then the language's default counts beside it."""

_ROUNDING = 1e-6
"""Of the whole; what arithmetic on percentiles may be off by without being more."""


class Tier(StrEnum):
    """Where a figure comes from, strongest first."""

    ASKED = "asked"
    DECLARED = "declared"
    HISTORY = "history"
    DEFAULT = "default"
    SMALLEST = "smallest"


class Dimension(StrEnum):
    """What a size has so much of. Memory and disk are bytes."""

    MEMORY = "memory"
    CPU = "cpu"
    DISK = "disk"


@dataclass(frozen=True, slots=True)
class Need:
    """How much of one dimension each tier asks for; None where it says nothing.

    `measured` is what was seen to be needed, without the margin that `history` has. `default` is
    None where it does not count.
    """

    dimension: Dimension
    declared: float | None = None
    measured: float | None = None
    history: float | None = None
    default: float | None = None

    @property
    def must(self) -> float:
        """What a rung below does not do for."""
        return max(self.declared or 0, self.measured or 0)

    @property
    def wanted(self) -> float:
        """What there should be: the largest of all tiers; 0 when none says anything."""
        return max(self.declared or 0, self.history or 0, self.default or 0)

    @property
    def tier(self) -> Tier:
        """The strongest tier that asks for as much as is wanted."""
        for tier, asks in (
            (Tier.DECLARED, self.declared),
            (Tier.HISTORY, self.history),
            (Tier.DEFAULT, self.default),
        ):
            if asks and asks == self.wanted:
                return tier
        return Tier.SMALLEST

    def held(self, size: Size) -> bool:
        """Whether the size has as much as is wanted."""
        return _enough(having(size, self.dimension), self.wanted)


@dataclass(frozen=True, slots=True)
class Decision:
    """The size that a build gets, with what it was made of.

    `deciding` are the dimensions for which the next smaller rung will not do, and `tier` is the
    tier that asked for the first of them; without any, whoever says something about the build.
    `computed` is what sizing alone would have given: another than `size` only where a rung was
    asked for by name; None when no rung does. `history` is None where there is none; `trouble`
    then says why, if the past could not be asked.
    """

    size: Size
    tier: Tier
    needs: tuple[Need, ...]
    deciding: tuple[Dimension, ...]
    computed: Size | None
    languages: tuple[str, ...]
    history: History | None
    trouble: str
    smaller: Size | None
    larger: Size | None

    @property
    def short(self) -> tuple[Dimension, ...]:
        """What the size has less of than is wanted: a guess or a margin above the largest rung."""
        return tuple(need.dimension for need in self.needs if not need.held(self.size))


def decide(
    spec: BuildSpec | None,
    history: History | None,
    languages: Sequence[str],
    asked: str,
    room: Room,
    trouble: str = "",
) -> Decision:
    """The size for a build.

    `asked` is a rung's name, which wins over everything, or empty. `trouble` says why there is no
    history although there may be a past. Raises `TooBig` when no rung of this machine holds what is
    declared or was measured, or the one that is asked for; `UsageError` for a name that is no
    rung's; `MachineUnfit` when the machine holds no rung.
    """
    fitting = rungs(room)
    names = known(languages)
    needs = _needs(spec, history, names)
    computed = _smallest(needs, fitting)
    if not asked and computed is None:
        raise _too_big(needs, room)
    size = choose(asked, room) if asked or computed is None else computed
    deciding = () if asked else _deciding(needs, size, fitting)
    at = fitting.index(size)
    return Decision(
        size=size,
        tier=Tier.ASKED if asked else _tier(needs, deciding),
        needs=needs,
        deciding=deciding,
        computed=computed,
        languages=names,
        history=history,
        trouble=trouble,
        smaller=fitting[at - 1] if at else None,
        larger=fitting[at + 1] if at + 1 < len(fitting) else None,
    )


def having(size: Size, dimension: Dimension) -> float:
    """How much of a dimension a size has: bytes, or vCPUs."""
    match dimension:
        case Dimension.MEMORY:
            return size.memory_bytes
        case Dimension.CPU:
            return size.cpus
        case Dimension.DISK:
            return size.disk_bytes


def _needs(
    spec: BuildSpec | None, history: History | None, names: Iterable[str]
) -> tuple[Need, ...]:
    usual = [LANGUAGES[name] for name in names]
    alone = history is not None and history.builds >= ENOUGH
    declared = spec or BuildSpec()

    def need(
        dimension: Dimension, says: float | None, past: tuple[float, float] | None, guess: float
    ) -> Need:
        counts = says is None and not alone and guess > 0
        measured, with_margin = past or (None, None)
        return Need(dimension, says, measured, with_margin, guess if counts else None)

    memory = cpu = None
    if history is not None:
        seen = max(history.memory_bytes, history.killed_bytes)
        memory = seen, seen * MARGIN
        cpu = 0.0, history.cpu * MARGIN  # with fewer vCPUs it takes longer, and does not fail
    guess_gb = max((language.memory_gb for language in usual), default=0)
    return (
        need(Dimension.MEMORY, _bytes(declared.memory_gb), memory, guess_gb * GIB),
        need(Dimension.CPU, declared.cpu, cpu, max((one.cpu for one in usual), default=0)),
        Need(Dimension.DISK, _bytes(declared.disk_gb)),
    )


def _smallest(needs: Sequence[Need], fitting: Sequence[Size]) -> Size | None:
    """The smallest rung that holds what is wanted; where none does, the one that comes nearest,
    memory first, of those that hold what must be. None without such a one.
    """
    able = [
        size
        for size in fitting
        if all(_enough(having(size, need.dimension), need.must) for need in needs)
    ]

    def reaches(size: Size) -> tuple[float, ...]:
        return tuple(
            need.wanted if need.held(size) else having(size, need.dimension) for need in needs
        )

    return max(able, key=reaches, default=None)  # the first of equals: the smallest


def _deciding(needs: Sequence[Need], size: Size, fitting: Sequence[Size]) -> tuple[Dimension, ...]:
    at = fitting.index(size)
    if at == 0:
        return ()
    below = fitting[at - 1]
    return tuple(need.dimension for need in needs if not need.held(below))


def _tier(needs: Sequence[Need], deciding: Sequence[Dimension]) -> Tier:
    """Who decides: of several dimensions, the strongest tier."""
    tiers = [need.tier for need in needs if not deciding or need.dimension in deciding]
    return next(tier for tier in Tier if tier in tiers)


def _too_big(needs: Sequence[Need], room: Room) -> TooBig:
    declared = [need.declared is not None and need.declared == need.must for need in needs]
    over = [
        need
        for need in needs
        if not any(_enough(having(size, need.dimension), need.must) for size in room.fitting)
    ] or [need for need in needs if need.must]
    largest = room.fitting[-1]
    asks = ", ".join(f"{need.dimension} {amount(need.dimension, need.must)}" for need in over)
    if any(by_spec for need, by_spec in zip(needs, declared, strict=True) if need in over):
        return TooBig(
            f"no size holds what the build spec declares ({asks}): the largest that fits this "
            f"machine is {largest} ({words(room)} for runners)",
            hint="declare less in .build-spec.ncl, or raise [ladder] and [pool]",
        )
    return TooBig(
        f"no size holds what past builds of this repo needed ({asks}): the largest that fits this "
        f"machine is {largest} ({words(room)} for runners)",
        hint=f"try it all the same with --mayfly-size {largest.name}, or raise [ladder] and [pool]",
    )


def amount(dimension: Dimension, value: float) -> str:
    """So much of a dimension, for people."""
    if dimension is Dimension.CPU:
        return f"{value:.2f}".rstrip("0").rstrip(".") + " vCPU"
    return f"{value / GIB:.2f}".rstrip("0").rstrip(".") + " GiB"


def _bytes(gib: float | None) -> float | None:
    return None if gib is None else gib * GIB


def _enough(has: float, asks: float) -> bool:
    return has >= asks * (1 - _ROUNDING)
