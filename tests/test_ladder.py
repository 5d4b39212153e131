"""Which rungs a machine holds, and which one a request gets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mayfly.config import Config
from mayfly.errors import MachineUnfit, MayflyError, TooBig, UsageError
from mayfly.ladder import Room, choose, free_disk_bytes, physical, room, up_to
from mayfly.model import GIB
from tests.orchestrator.leases import T1, T2, T3


def on(memory_gib: int, cores: int, disk_gib: int = 1024, **pool: Any) -> Room:
    return room(Config.model_validate({"pool": pool}), memory_gib * GIB, cores, disk_gib * GIB)


def test_no_larger_than_a_named_rung_means_of_nothing_more() -> None:
    odd = replace(T2, name="odd", cpus=64)
    sizes = (T1, T2, odd, T3)
    assert up_to(sizes, "t2") == (T1, T2)
    assert up_to(sizes, "") == up_to(sizes, "gone") == sizes


def test_the_pool_is_the_machine_less_the_reserve() -> None:
    room = on(24, 2)
    assert (room.memory_bytes, room.cpus) == (22 * GIB, 4)
    assert [size.name for size in room.fitting] == ["small", "medium"]
    assert on(24, 2, memory_gb=6).memory_bytes == 6 * GIB
    assert on(1, 2).memory_bytes == 0


@pytest.mark.parametrize(
    ("room", "name", "expected"),
    [
        (on(24, 2), "", "small"),
        (on(24, 2), "medium", "medium"),
        (on(24, 2), "large", TooBig),  # 8 vCPU on 2 cores
        (on(24, 8), "large", "large"),
        (on(8, 64), "medium", TooBig),  # 8 GiB of 6
        (on(24, 2), "nope", UsageError),
        (on(24, 8, 90), "large", TooBig),  # 80 GiB and root's own disk of 80
        (on(24, 8, 91, disk_reserve_gb=5), "large", "large"),
        (on(24, 8, 40, disk_gb=81), "large", "large"),
        (on(24, 8, 20), "", MachineUnfit),
        (on(4, 2), "", MachineUnfit),
        (on(4, 2), "small", MachineUnfit),
        (on(4, 2), "nope", UsageError),
    ],
)
def test_sizes(room: Room, name: str, expected: str | type[MayflyError]) -> None:
    if isinstance(expected, str):
        assert choose(name, room).name == expected
    else:
        with pytest.raises(expected) as caught:
            choose(name, room)
        assert type(caught.value) is expected


def test_the_messages_say_what_there_is() -> None:
    with pytest.raises(UsageError, match="choose one of small, medium, large, xlarge"):
        choose("nope", on(24, 2))
    with pytest.raises(TooBig, match=r"22\.0 GiB memory, 4 vCPU and 1014 GiB disk.*is medium"):
        choose("xlarge", on(24, 2))


def test_this_machine_has_memory_cores_and_a_disk(tmp_path: Path) -> None:
    memory, cores, disk = physical(tmp_path / "not" / "yet")
    assert disk >= free_disk_bytes(tmp_path / "not") > 0
    said = Path("/proc/meminfo").read_text().split()[1]
    assert memory == int(said) * 1024
    assert cores >= 1
