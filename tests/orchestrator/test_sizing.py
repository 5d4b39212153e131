"""The size of a build: tables of cases, and properties that hold whatever is put in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import MachineUnfit, TooBig, UsageError
from mayfly.ladder import Room
from mayfly.model import GIB, MARGIN, BuildSpec, History, Size
from mayfly.orchestrator.sizing import Decision, decide, explain
from mayfly.orchestrator.sizing.decide import ENOUGH, Dimension, Tier, having

SMALL, MEDIUM, LARGE = (
    Size("small", 2, 4 * GIB, 20 * GIB),
    Size("medium", 4, 8 * GIB, 40 * GIB),
    Size("large", 8, 16 * GIB, 80 * GIB),
)
XLARGE = Size("xlarge", 16, 32 * GIB, 160 * GIB)
ROOM = Room(20 * GIB, 10, 200 * GIB, (SMALL, MEDIUM, LARGE, XLARGE))
"""A machine that holds all but the largest."""


def history(memory_gib: float, cpu: float = 1.0, builds: int = 10, **more: Any) -> History:
    return History(builds, memory_gib * GIB, cpu, target="", **more)


def sized(
    spec: BuildSpec | None = None,
    past: History | None = None,
    *languages: str,
    asked: str = "",
    room: Room = ROOM,
    trouble: str = "",
) -> Decision:
    return decide(spec, past, languages, asked, room, trouble)


@pytest.mark.parametrize(
    ("decision", "name", "tier"),
    [
        (sized(), "small", Tier.SMALLEST),
        # Languages: the record's, by file or by name; of several the largest.
        (sized(None, None, "Cargo.toml"), "medium", Tier.DEFAULT),
        (sized(None, None, "rust"), "medium", Tier.DEFAULT),
        (sized(None, None, "package.json"), "small", Tier.DEFAULT),
        (sized(None, None, "package.json", "Cargo.toml", "go.mod"), "medium", Tier.DEFAULT),
        (sized(None, None, "cobol"), "small", Tier.SMALLEST),
        # Declared wins over the default, and for each dimension by itself.
        (sized(BuildSpec(cpu=1, memory_gb=1), None, "rust"), "small", Tier.DECLARED),
        (sized(BuildSpec(memory_gb=9), None, "rust"), "large", Tier.DECLARED),
        (sized(BuildSpec(memory_gb=1), None, "rust"), "medium", Tier.DEFAULT),  # its vCPUs
        (sized(BuildSpec(disk_gb=41)), "large", Tier.DECLARED),
        (sized(BuildSpec(cpu=5)), "large", Tier.DECLARED),
        # History, with the margin.
        (sized(None, history(3.3)), "small", Tier.HISTORY),
        (sized(None, history(3.4)), "medium", Tier.HISTORY),
        (sized(None, history(0.5, 1.7)), "medium", Tier.HISTORY),
        (sized(None, history(0.5), "rust"), "small", Tier.HISTORY),
        # The larger of declared and history.
        (sized(BuildSpec(memory_gb=2), history(7)), "large", Tier.HISTORY),
        (sized(BuildSpec(memory_gb=12), history(7)), "large", Tier.DECLARED),
        (sized(BuildSpec(memory_gb=12), history(5)), "large", Tier.DECLARED),
        # Asked for by name.
        (sized(BuildSpec(memory_gb=12), history(7), asked="small"), "small", Tier.ASKED),
    ],
)
def test_cases(decision: Decision, name: str, tier: Tier) -> None:
    assert (decision.size.name, decision.tier) == (name, tier)


@pytest.mark.parametrize(("builds", "name"), [(1, "medium"), (ENOUGH - 1, "medium"), (3, "small")])
def test_a_history_of_few_builds_does_not_undercut_the_default(builds: int, name: str) -> None:
    assert sized(None, history(0.2, builds=builds), "rust").size.name == name
    assert sized(None, history(7, builds=builds), "rust").size.name == "large"


def test_a_killed_build_asks_for_more_than_it_had_at_once() -> None:
    for had, wanted in ((SMALL, MEDIUM), (MEDIUM, LARGE)):
        past = history(had.memory_bytes / GIB, builds=1, killed_bytes=had.memory_bytes)
        assert sized(None, past, "package.json").size == wanted
    among_many = history(0.5, builds=30, killed_bytes=SMALL.memory_bytes)
    assert sized(None, among_many).size == MEDIUM


def test_what_fits_at_most_as_a_guess_or_with_its_margin_is_cut_and_said() -> None:
    tiny = replace(ROOM, memory_bytes=4 * GIB)
    guess = sized(None, None, "rust", room=tiny)
    assert (guess.size, guess.short) == (SMALL, (Dimension.MEMORY, Dimension.CPU))
    assert "less than wanted: memory 4 GiB of 8 GiB, what is usual for the language" in (
        explain.lines(guess)
    )
    margin = sized(None, history(15))
    assert (margin.size, margin.short) == (LARGE, (Dimension.MEMORY,))
    killed = sized(None, history(16, builds=1, killed_bytes=16 * GIB))
    assert killed.size == LARGE, "a repo that was killed on the largest rung can build again"
    assert sized(None, history(1, 16)).size == LARGE, "fewer vCPUs are slower, and no failure"


@pytest.mark.parametrize(
    ("spec", "past", "message"),
    [
        (BuildSpec(memory_gb=17), None, "what the build spec declares (memory 17 GiB)"),
        (BuildSpec(cpu=9, disk_gb=500), None, "what the build spec declares (cpu 9 vCPU, disk 500"),
        (BuildSpec(memory_gb=1), history(17), "what past builds of this repo needed (memory 17 G"),
    ],
)
def test_what_no_rung_holds_is_refused_with_a_way_out(
    spec: BuildSpec, past: History | None, message: str
) -> None:
    with pytest.raises(TooBig) as caught:
        sized(spec, past)
    assert message in str(caught.value)
    assert "the largest that fits this machine is large" in str(caught.value)
    assert caught.value.exit_status == 4
    assert sized(spec, past, asked="large").size == LARGE
    assert sized(spec, past, asked="large").computed is None


def test_names_and_machines_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="unknown size 'huge'"):
        sized(asked="huge")
    with pytest.raises(TooBig, match="xlarge"):
        sized(asked="xlarge")
    with pytest.raises(MachineUnfit):
        sized(room=replace(ROOM, memory_bytes=GIB))


def test_a_ladder_whose_rungs_trade_one_thing_for_another() -> None:
    wide, deep = Size("wide", 8, 4 * GIB, GIB), Size("deep", 2, 16 * GIB, GIB)
    room = Room(64 * GIB, 16, 99 * GIB, (wide, deep))
    assert sized(BuildSpec(cpu=4), history(1), room=room).size == wide
    assert sized(None, history(6, 4), room=room).size == deep
    with pytest.raises(TooBig, match=r"memory 6 GiB, cpu 4 vCPU"):
        sized(BuildSpec(cpu=4, memory_gb=6), room=room)


# Words.


@pytest.mark.parametrize(
    ("decision", "parts"),
    [
        (
            sized(BuildSpec(memory_gb=6), history(2), "rust"),
            [
                "size medium: memory 6 GiB, declared in .build-spec.ncl",
                "declared: memory 6 GiB",
                "history: 10 attempts: memory 1.2 x p95 2 GiB; cpu 1.2 x p95 1 vCPU: "
                "memory 2.4 GiB, cpu 1.2 vCPU",
                "default: rust 4 vCPU and 8 GiB: does not count",
                "smaller (small): less memory: it has memory 4 GiB",
            ],
        ),
        (
            sized(None, history(8, builds=1, killed_bytes=8 * GIB, saturated=1)),
            [
                "size large: memory 9.6 GiB, what past builds of this repo took",
                "and more than the 8 GiB with which one was killed",
                "(1 filled what they had, which counts as it is)",
                "declared: nothing",
            ],
        ),
        (
            sized(None, None, "go.mod", "pom.xml"),
            [
                "size medium: memory 8 GiB, what is usual for the language, cpu 4 vCPU",
                "history: no builds that count yet",
                "default: java 4 vCPU and 8 GiB, go 2 vCPU and 4 GiB: memory 8 GiB, cpu 4 vCPU",
                "the default counts until 3 attempts are known; there are 0",
            ],
        ),
        (
            sized(None, None, asked="large"),
            ["size large: asked for by name", "without the name it would be: small"],
        ),
        (sized(trouble="the store is away"), ["size small: nothing is known", "; the store is"]),
    ],
)
def test_the_explanation_tells_every_tier(decision: Decision, parts: list[str]) -> None:
    text = "\n".join(explain.lines(decision))
    for part in parts:
        assert part in text


def test_whoever_waits_is_told_of_what_is_not_as_it_should_be_and_of_nothing_else() -> None:
    assert explain.remarks(sized(None, history(3))) == []
    assert "the store is away" in explain.remarks(sized(trouble="the store is away"))[0]
    assert "less than wanted" in explain.remarks(sized(None, history(15)))[1]


# Properties.

_GIBS = st.floats(0.01, 40)
SPECS = st.none() | st.builds(
    BuildSpec,
    cpu=st.none() | st.integers(1, 20),
    memory_gb=st.none() | _GIBS,
    disk_gb=st.none() | st.floats(1, 200),
)
PASTS = st.none() | st.builds(
    History,
    builds=st.integers(1, 30),
    memory_bytes=_GIBS.map(lambda gib: gib * GIB),
    cpu=st.floats(0, 20),
    killed_bytes=st.sampled_from([0, 0, 4 * GIB, 8 * GIB, 16 * GIB]),
)
LANGUAGES = st.lists(st.sampled_from(["Cargo.toml", "package.json", "go.mod", "x"]), max_size=3)
LADDERS = st.lists(
    st.tuples(st.integers(1, 16), st.integers(1, 32), st.integers(4, 160)), min_size=1, max_size=5
).map(
    lambda rungs: tuple(
        sorted(
            (Size(f"s{n}", c, m * GIB, d * GIB) for n, (c, m, d) in enumerate(rungs)),
            key=lambda s: (s.memory_bytes, s.cpus, s.disk_bytes),
        )
    )
)
ROOMS = LADDERS.map(lambda sizes: Room(64 * GIB, 64, 999 * GIB, sizes)) | st.just(ROOM)
STRAIGHT = st.lists(st.integers(1, 6), min_size=1, max_size=5, unique=True).map(
    lambda steps: Room(
        9999 * GIB,
        999,
        9999 * GIB,
        tuple(Size(f"s{n}", n, 2**n * GIB, 5 * 2**n * GIB) for n in sorted(steps)),
    )
)
"""Ladders on which a larger rung has no less of anything, as all sensible ones are."""


def answer(
    spec: BuildSpec | None, past: History | None, languages: list[str], room: Room
) -> Decision | None:
    try:
        return decide(spec, past, languages, "", room)
    except TooBig:
        return None


@given(SPECS, PASTS, LANGUAGES, ROOMS)
def test_never_under_what_is_declared_nor_under_1_2_times_p95(
    spec: BuildSpec | None, past: History | None, languages: list[str], room: Room
) -> None:
    decision = answer(spec, past, languages, room)
    if decision is None:
        return
    size, declared = decision.size, spec or BuildSpec()
    assert size.cpus >= (declared.cpu or 0)
    assert size.memory_bytes >= (declared.memory_gb or 0) * GIB * (1 - 1e-6)
    assert size.disk_bytes >= (declared.disk_gb or 0) * GIB * (1 - 1e-6)
    if past is None:
        return
    asks = max(past.memory_bytes, past.killed_bytes) * MARGIN
    if size.memory_bytes < asks * (1 - 1e-6):
        assert Dimension.MEMORY in decision.short
        assert size.memory_bytes >= asks / MARGIN * (1 - 1e-6), "only the margin is ever cut"
        able = [
            rung
            for rung in room.fitting
            if rung.cpus >= (declared.cpu or 0) and rung.disk_bytes >= (declared.disk_gb or 0) * GIB
        ]
        assert size.memory_bytes == max(rung.memory_bytes for rung in able)


@given(SPECS, PASTS, LANGUAGES, STRAIGHT, st.floats(1, 4), st.sampled_from(["spec", "past"]))
def test_more_of_anything_never_makes_it_smaller(
    spec: BuildSpec | None,
    past: History | None,
    languages: list[str],
    room: Room,
    factor: float,
    which: str,
) -> None:
    before = answer(spec, past, languages, room)
    if which == "spec" and spec is not None:
        spec = replace(
            spec,
            cpu=spec.cpu and int(spec.cpu * factor),
            memory_gb=spec.memory_gb and spec.memory_gb * factor,
            disk_gb=spec.disk_gb and spec.disk_gb * factor,
        )
    elif past is not None:
        past = replace(
            past,
            memory_bytes=past.memory_bytes * factor,
            cpu=past.cpu * factor,
            killed_bytes=int(past.killed_bytes * factor),
        )
    after = answer(spec, past, languages, room)
    if after is not None:
        assert before is not None, "what was too big cannot fit when there is more of it"
        for dimension in Dimension:
            assert having(after.size, dimension) >= having(before.size, dimension)


@given(SPECS, PASTS, LANGUAGES, ROOMS)
def test_the_explanation_is_the_decision(
    spec: BuildSpec | None, past: History | None, languages: list[str], room: Room
) -> None:
    decision = answer(spec, past, languages, room)
    if decision is None:
        return
    told = explain.as_json(decision)
    assert told["size"] == explain.size_json(decision.size)
    assert told["lines"][0].startswith(f"size {decision.size.name}: ")
    for need in told["needs"]:
        tiers = [need["declared"], need["history"], need["default"]]
        assert need["wanted"] == max((value for value in tiers if value), default=0)
        if need["wanted"]:
            assert need[need["tier"]] == need["wanted"]  # type: ignore[literal-required]
        short = having(decision.size, Dimension(need["dimension"])) < need["wanted"] * (1 - 1e-6)
        assert short == (need["dimension"] in told["short"])
    if told["short"]:
        return
    smaller = room.fitting[: room.fitting.index(decision.size)]
    wanted = {need["dimension"]: need["wanted"] for need in told["needs"]}
    for rung in smaller:
        assert any(
            having(rung, Dimension(name)) < value * (1 - 1e-6) for name, value in wanted.items()
        ), "no smaller rung would do"
    for dimension in decision.deciding:
        assert having(smaller[-1], dimension) < wanted[dimension]
