"""A build that runs out of memory: another VM, one size up, with the scratch disk of the first."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from mayfly.model import GIB
from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]

DOCKERFILE = """\
FROM scratch
COPY sh /bin/sh
RUN dd if=/dev/urandom of=/one bs=64k count=64
RUN --mount=type=cache,target=/kept cp /one /kept/one
RUN --mount=type=cache,target=/kept cmp /one /kept/one && \\
    dd if=/dev/zero of=/dev/null bs={}M count=1
"""


@pytest.fixture
def folder(busybox: Path, tmp_path: Path) -> Path:
    shutil.copy(busybox, tmp_path / "sh")
    return tmp_path


def build(farm: Farm, name: str, folder: Path, needs_mb: int) -> tuple[int, dict[str, Any], str]:
    """A build in size t1, not grown, whose last step needs so much: exit status, its entry in the
    status, stderr."""
    (folder / "Dockerfile").write_text(DOCKERFILE.format(needs_mb))
    words = ("--mayfly-repo", f"team/{name}", "--mayfly-size", "t1", "--mayfly-no-grow")
    tag = ("-t", f"images/team/{name}:1", "--push", "--progress", "plain")
    done = farm.mayfly("build", *words, *tag, folder, check=False)
    return done.returncode, farm.json("status")["builds"][0], done.stderr


def test_it_goes_on_one_size_up_with_finished_steps_done(farm: Farm, folder: Path) -> None:
    status, row, said = build(farm, "retry", folder, 1400)
    print(said)
    assert (status, row["outcome"]) == (0, "succeeded"), said
    before, found, after = said.partition("ran out of memory in t1; going on in t2")
    assert found and "finished steps are kept" in after, said
    assert "finished steps are lost" not in said
    assert before.count("CACHED") == 0 and after.count("CACHED") == 3, said
    first, second = row["attempts"]
    assert (first["size"], first["outcome"]) == ("t1", "oom") and first["oom_kills"] >= 1
    assert (second["size"], second["outcome"]) == ("t2", "succeeded")
    assert second["oom_kills"] == 0 and second["peak_memory_bytes"] > GIB
    assert row["digest"] and row["images"]
    print(row["timings_s"])
    farm.until(lambda: not farm.vms())


def test_more_than_the_next_size_has_is_the_end_after_two(farm: Farm, folder: Path) -> None:
    status, row, said = build(farm, "retry-twice", folder, 3000)
    assert (status, row["outcome"]) == (5, "oom"), said
    assert [(a["size"], a["outcome"]) for a in row["attempts"]] == [("t1", "oom"), ("t2", "oom")]
    assert "going on in t2" in said and "finished steps are lost" not in said
    last = said.splitlines()[-1]
    for words in ("want of memory", "dd if=/dev/zero", "2 attempts", "memory_gb = 4"):
        assert words in row["reason"] and words in last, said
