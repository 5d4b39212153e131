"""What the rows work out without a farm."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import builds, context, farm, memory, service
from mayfly import ladder
from mayfly.config import Config
from mayfly.model import GIB

ROOT = Path(__file__).parents[2]

SMAPS = """\
55d0c8a00000-55d0c8c00000 r-xp 00000000 fe:00 123                        /usr/bin/qemu-system-x86_64
Size:               2048 kB
Rss:                2048 kB
Pss:                1024 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me
7f0000000000-7f0040000000 rw-p 00000000 fe:00 456                        /s/templates/0a1b/ram
Size:            1048576 kB
Rss:              200000 kB
Pss:              110000 kB
Anonymous:         20000 kB
VmFlags: rd wr mr mw me
7f0050000000-7f0060000000 rw-p 00000000 00:00 0 
Size:             262144 kB
Rss:               50000 kB
Pss:               50000 kB
Anonymous:         50000 kB
7f0070000000-7f0078000000 rwxp 00000000 00:00 0 
Size:             131072 kB
Rss:                4000 kB
Pss:                4000 kB
Anonymous:          4000 kB
7f0100000000-7f01c0000000 rw-p 00000000 00:00 0 
Size:            3145728 kB
Rss:               60000 kB
Pss:               60000 kB
Anonymous:         60000 kB
"""  # noqa: W291 - as the kernel writes it


def test_a_clone_owns_what_it_has_written_and_all_that_is_not_the_templates() -> None:
    found = memory.own(SMAPS)
    assert found == memory.Own(
        written=20000 * 1024,
        plugged=60000 * 1024,
        code=4000 * 1024,
        rest=(1024 + 50000) * 1024,
        shared=(200000 - 20000) * 1024,
    )
    assert found.own == (20000 + 60000 + 4000 + 1024 + 50000) * 1024


def test_the_farm_holds_eight_of_the_smallest_and_the_ladders_sizes_that_fit(
    tmp_path: Path,
) -> None:
    text = farm.toml(tmp_path, 5001, 24 * GIB, 2, 1024 * GIB)
    config = Config.model_validate(tomllib.loads(text))
    room = ladder.room(config, 24 * GIB, 2, 1024 * GIB)
    assert [size.name for size in room.fitting] == ["tiny", "small", "medium"]
    smallest = room.fitting[0]
    assert farm.AT_ONCE * smallest.cpus <= room.cpus
    assert farm.AT_ONCE * smallest.memory_bytes <= room.memory_bytes


@pytest.mark.parametrize(("cores", "vcpus"), [(1, 8), (2, 4), (4, 2), (32, 2)])
def test_overcommit_is_as_high_as_eight_need_and_not_lower_than_usual(
    cores: int, vcpus: float
) -> None:
    assert farm.overcommit(cores, 2.0) == vcpus


def test_each_change_of_a_source_file_is_another(tmp_path: Path) -> None:
    file = tmp_path / "hello.py"
    file.write_text("x = 1\n")
    seen = {file.read_text()}
    for how in ("a", "a", "b"):
        builds.change(tmp_path, how)
        seen.add(file.read_text())
    assert len(seen) == 4
    assert all(text.startswith("x = 1\n") and text.count("# changed") <= 1 for text in seen)


def test_the_two_contexts_are_as_large_as_they_say(tmp_path: Path) -> None:
    context.many_files(tmp_path)
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert len(sizes) == context.FILES
    assert sum(sizes) == context.FILE_BYTES


def test_the_service_answers_as_often_as_it_is_asked() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "bench.service", "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdin and process.stdout
        taken = service.ask(int(process.stdout.readline()), 20, 1000)
        process.stdin.close()
    assert len(taken) == 20 and min(taken) > 0


def test_an_unknown_row_is_a_usage_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench", "leases"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("mayfly: there is no row leases")
    assert "Traceback" not in done.stderr
