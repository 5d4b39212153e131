"""What a build used, and why it ended, as its VM saw it: never by its exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.model import GIB, MIB
from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]

Context = Callable[[str], Path]

EATER = "dd if=/dev/zero of=/dev/null bs=1500M count=1"
"""More than a t1 has, in one buffer."""


def build(farm: Farm, name: str, folder: Path) -> tuple[int, dict[str, Any], str]:
    """A build in size t1 that is given no more: exit status, entry in the status, stderr."""
    done = farm.mayfly(
        *("build", "--mayfly-repo", f"team/{name}", "--mayfly-size", "t1", "--mayfly-no-grow"),
        folder,
        check=False,
    )
    return done.returncode, farm.json("status")["builds"][0], done.stderr


def test_137_by_hand_is_no_oom(farm: Farm, context: Context) -> None:
    status, row, _ = build(farm, "by-hand", context("exit 137"))
    assert (status, row["outcome"]) == (1, "failed")
    assert row["attempts"][0]["oom_kills"] == 0


@pytest.mark.parametrize(
    "code", [pytest.param(0, marks=pytest.mark.long), pytest.param(1, marks=pytest.mark.long), 101]
)
def test_a_child_that_was_killed_is_seen_whatever_the_step_says(
    farm: Farm, context: Context, code: int
) -> None:
    status, row, said = build(farm, f"killed-{code}", context(f"({EATER} & wait); exit {code}"))
    assert row["attempts"][0]["oom_kills"] >= 1, said
    if code:  # the next size has what it needs, and there it fails by itself
        assert [attempt["outcome"] for attempt in row["attempts"]] == ["oom", "failed"], said
        assert (status, row["outcome"]) == (1, "failed"), said
    else:
        assert (status, row["outcome"]) == (0, "succeeded"), said
        assert "want of memory" in row["reason"]
    assert row["attempts"][0]["peak_memory_bytes"] > 400 * MIB


def test_three_times_its_memory_in_files_is_no_need_of_memory(
    farm: Farm, context: Context, tmp_path: Path
) -> None:
    """Holes of a sparse file take page cache as well."""
    holes = "dd if=/dev/zero of=/big bs=1M seek=3072 count=0"
    folder = context(f"{holes} && cat /big >/dev/null; rm /big")
    status, row, said = build(farm, "reads", folder)
    assert (status, row["outcome"]) == (0, "succeeded"), said
    attempt = row["attempts"][0]
    assert attempt["oom_kills"] == 0
    assert attempt["peak_memory_bytes"] < 300 * MIB
    farm.until(lambda: farm.json("usage", row["id"])["steps"])  # asked for after the end
    used = farm.json("usage", row["id"])
    assert used["memory_peak_bytes"] > 500 * MIB, "the page cache was there"
    assert used["samples"] >= len(used["points"]) > 2
    assert all(point["total_bytes"] <= GIB for point in used["points"])

    step = next(step for step in used["steps"] if "cat /big" in step["name"])
    assert 0 <= step["start_s"] < step["end_s"] and not step["failed"]
    assert step["cpu"] > 0.2 and step["cache_bytes"] > 300 * MIB

    drawn = farm.mayfly("usage", row["id"], "--svg", tmp_path / "usage.svg").stdout
    assert "RUN dd if=/dev/zero of=/big" in drawn and "█" in drawn
    assert (tmp_path / "usage.svg").read_text().count("<polygon") == 4


def test_a_build_that_outgrows_its_size_is_given_more(farm: Farm, context: Context) -> None:
    """100 MiB each half second, in a file system in memory, to more than a t1 has."""
    step = "dd if=/dev/zero of=/t/$i bs=100M count=1 && sleep 0.5"
    folder = context(
        "--mount=type=tmpfs,target=/t,size=3g "
        f"for i in 1 2 3 4 5 6 7 8 9 10 11 12 13; do {step} || exit 1; done"
    )
    words = ("build", "--mayfly-repo", "team/grows", "--mayfly-size", "t1", folder)
    done = farm.mayfly(*words, check=False)
    row = farm.json("status")["builds"][0]
    assert (done.returncode, row["outcome"]) == (0, "succeeded"), done.stderr
    attempt = row["attempts"][0]
    assert (attempt["size"], attempt["oom_kills"]) == ("t1", 0)
    assert GIB < attempt["granted_memory_bytes"] <= 2 * GIB
    assert attempt["peak_memory_bytes"] > GIB
