"""A first `.build-spec.ncl` for a repo that has none. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mayfly.languages import LANGUAGES
from mayfly.model import GIB, BuildSpec
from mayfly.wire import SizingJson

_WORDS = {
    "cpu": "vCPUs, a whole number",
    "memory_gb": "GiB of memory",
    "disk_gb": "GiB of scratch disk",
    "time_budget_min": "minutes once the runner is ready; then the build is ended",
    "cache_keys": "other words, another layer cache",
    "oom_retry": "once more, one size up, after running out of memory",
}
USUAL = BuildSpec(cpu=2, memory_gb=4, disk_gb=20, time_budget_min=60, cache_keys=("v1",))
"""What a field may look like, of which nothing is known."""


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a repo's needs: the fields that are set, and in words where from."""

    spec: BuildSpec
    source: str


def usual(languages: Sequence[str]) -> BuildSpec:
    """What is usual for builds of all these languages together; `USUAL` where there is none."""
    found = [LANGUAGES[name] for name in languages]
    return replace(
        USUAL,
        cpu=max((language.cpu for language in found), default=USUAL.cpu),
        memory_gb=max((language.memory_gb for language in found), default=USUAL.memory_gb),
    )


def taken(sizing: SizingJson) -> Known | None:
    """What a farm's answer on a size says of the repo's past builds; None where it knows none.

    vCPUs are rounded up to whole ones, memory to quarters of a GiB.
    """
    past = sizing["history"]
    wants = {need["dimension"]: need["history"] for need in sizing["needs"]}
    cpu, memory_bytes = wants.get("cpu"), wants.get("memory")
    if past is None or not cpu or not memory_bytes:
        return None
    builds = "the last attempt" if past["builds"] == 1 else f"the last {past['builds']} attempts"
    spec = BuildSpec(cpu=math.ceil(cpu), memory_gb=math.ceil(memory_bytes / GIB * 4) / 4)
    return Known(spec, f"by {builds}: 1.2 x p95 of what they took")


def propose(languages: Sequence[str], known: Known | None = None, usual: BuildSpec = USUAL) -> str:
    """The text of a spec. What is `known` of the repo's past builds is declared; every other
    field stands there as a comment with its `usual` value: the farm decides better than a guess.
    """
    written = " and ".join(languages) or "no language that Mayfly knows"
    source = known.source if known else "no past builds: the farm sizes by language, then by them"
    lines = [
        "# What builds of this repo need. Any field may be left out: see `mayfly spec check`.",
        f"# Found here: {written}; {source}.",
        "{",
        "  schema_version = 1,",
    ]
    for name, words in _WORDS.items():
        value = getattr(known.spec, name) if known else None
        declared = value not in (None, (), True)
        text = _nickel(value if declared else getattr(usual, name))
        lines.append(f"  {'' if declared else '# '}{name} = {text},  # {words}")
    return "\n".join([*lines, "}", ""])


def _nickel(value: object) -> str:
    """The value as Nickel writes it."""
    if isinstance(value, tuple):
        return "[" + ", ".join(f'"{word}"' for word in value) + "]"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"
