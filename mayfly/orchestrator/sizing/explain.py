"""A decision in words, and as JSON: every tier, what it came from, what decided, what would change
it. Pure; nothing is decided here.
"""

from __future__ import annotations

from mayfly.languages import LANGUAGES
from mayfly.model import MARGIN, Size
from mayfly.orchestrator.sizing.decide import (
    ENOUGH,
    Decision,
    Dimension,
    Need,
    Tier,
    amount,
    having,
)
from mayfly.wire import HistoryJson, NeedJson, SizeJson, SizingJson

_BECAUSE = {
    Tier.DECLARED: "declared in .build-spec.ncl",
    Tier.HISTORY: "what past builds of this repo took",
    Tier.DEFAULT: "what is usual for the language",
    Tier.SMALLEST: "nothing is known of the build: the smallest size",
}


def headline(decision: Decision) -> str:
    """Size and reason in one line."""
    size = decision.size.name
    if decision.tier is Tier.ASKED:
        return f"size {size}: asked for by name"
    if decision.tier is Tier.SMALLEST:
        line = f"size {size}: {_BECAUSE[decision.tier]}"
    elif not decision.deciding:
        line = f"size {size}: {_BECAUSE[decision.tier]} asks for no larger one"
    else:
        asks = [_asks(need) for need in decision.needs if need.dimension in decision.deciding]
        line = f"size {size}: {', '.join(asks)}"
    return f"{line}; {decision.trouble}" if decision.trouble else line


def remarks(decision: Decision) -> list[str]:
    """What somebody who waits for a runner should know: that it is not as it should be, and why."""
    short = [_short(need, decision.size) for need in _short_of(decision)]
    return [headline(decision), *short] if decision.trouble or short else []


def lines(decision: Decision) -> list[str]:
    """The whole explanation, a line for each thing."""
    said = [headline(decision)]
    said += [_declared(decision), _history(decision), _default(decision)]
    said += [_short(need, decision.size) for need in _short_of(decision)]
    return [*said, *_changes(decision)]


def as_json(decision: Decision) -> SizingJson:
    """For `why` and `size`, and for the attempt's record."""
    return {
        "size": size_json(decision.size),
        "tier": decision.tier,
        "deciding": [str(dimension) for dimension in decision.deciding],
        "short": [str(dimension) for dimension in decision.short],
        "computed": decision.computed.name if decision.computed else None,
        "languages": list(decision.languages),
        "history": _history_json(decision),
        "trouble": decision.trouble,
        "needs": [_need_json(need) for need in decision.needs],
        "lines": lines(decision),
    }


def size_json(size: Size) -> SizeJson:
    return {
        "name": size.name,
        "cpus": size.cpus,
        "memory_bytes": size.memory_bytes,
        "disk_bytes": size.disk_bytes,
    }


def _asks(need: Need) -> str:
    return f"{need.dimension} {amount(need.dimension, need.wanted)}, {_BECAUSE[need.tier]}"


def _declared(decision: Decision) -> str:
    said = [
        f"{need.dimension} {amount(need.dimension, need.declared)}"
        for need in decision.needs
        if need.declared is not None
    ]
    return f"declared: {', '.join(said) or 'nothing'}"


def _history(decision: Decision) -> str:
    past = decision.history
    if past is None:
        return f"history: {decision.trouble or 'no builds that count yet'}"
    builds = f"{past.builds} attempt{'s' if past.builds > 1 else ''}"
    of = "of all targets" if past.target is None else f"of target {past.target!r}"
    of = "" if past.target == "" else f" {of}"
    memory = f"memory {MARGIN} x p95 {amount(Dimension.MEMORY, past.memory_bytes)}"
    if past.killed_bytes:
        had = amount(Dimension.MEMORY, past.killed_bytes)
        memory += f", and more than the {had} with which one was killed"
    cpu = f"cpu {MARGIN} x p95 {amount(Dimension.CPU, past.cpu)}"
    if past.saturated:
        cpu += f" ({past.saturated} filled what they had, which counts as it is)"
    wants = ", ".join(
        f"{need.dimension} {amount(need.dimension, need.history)}"
        for need in decision.needs
        if need.history is not None
    )
    return f"history: {builds}{of}: {memory}; {cpu}: {wants}"


def _default(decision: Decision) -> str:
    if not decision.languages:
        return "default: no language known, which is the smallest size"
    usual = ", ".join(
        f"{name} {LANGUAGES[name].cpu} vCPU and {LANGUAGES[name].memory_gb} GiB"
        for name in decision.languages
    )
    counts = [need for need in decision.needs if need.default is not None]
    if not counts:
        return f"default: {usual}: does not count"
    largest = ", ".join(f"{n.dimension} {amount(n.dimension, n.default or 0)}" for n in counts)
    return f"default: {usual}: {largest}"


def _short_of(decision: Decision) -> list[Need]:
    return [need for need in decision.needs if not need.held(decision.size)]


def _short(need: Need, size: Size) -> str:
    has = having(size, need.dimension)
    word = "wanted" if need.must <= has else "needed"
    return (
        f"less than {word}: {need.dimension} {amount(need.dimension, has)} of "
        f"{amount(need.dimension, need.wanted)}, {_BECAUSE[need.tier]}"
    )


def _changes(decision: Decision) -> list[str]:
    """What would make it another size."""
    if decision.tier is Tier.ASKED:
        other = decision.computed.name if decision.computed else "no size: none is large enough"
        return [f"without the name it would be: {other}"]
    said = []
    memory = next(need for need in decision.needs if need.dimension is Dimension.MEMORY)
    if decision.larger:
        peak = amount(Dimension.MEMORY, decision.size.memory_bytes / MARGIN)
        more = f"a p95 above {peak}" if decision.history else f"a build above {peak}"
        said.append(f"larger ({decision.larger.name}): {more}, or declare more")
    if decision.smaller and decision.deciding:
        who = ", ".join(str(dimension) for dimension in decision.deciding)
        size = decision.smaller
        holds = ", ".join(
            f"{n.dimension} {amount(n.dimension, having(size, n.dimension))}"
            for n in decision.needs
            if n.dimension in decision.deciding
        )
        said.append(f"smaller ({size.name}): less {who}: it has {holds}")
    if memory.default is not None:
        have = decision.history.builds if decision.history else 0
        said.append(f"the default counts until {ENOUGH} attempts are known; there are {have}")
    return said


def _history_json(decision: Decision) -> HistoryJson | None:
    past = decision.history
    if past is None:
        return None
    return {
        "builds": past.builds,
        "target": past.target,
        "memory_p95_bytes": past.memory_bytes,
        "cpu_p95": past.cpu,
        "killed_bytes": past.killed_bytes,
        "saturated": past.saturated,
    }


def _need_json(need: Need) -> NeedJson:
    unit = "vcpu" if need.dimension is Dimension.CPU else "bytes"
    return {
        "dimension": need.dimension,
        "unit": unit,
        "declared": need.declared,
        "history": need.history,
        "default": need.default,
        "wanted": need.wanted,
        "tier": need.tier,
    }
