"""A disk that is full, on a file system of a few MiB: no new leases, and every end is written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from mayfly.errors import InfrastructureError
from mayfly.model import Desired, Outcome
from mayfly.store.ballast import BYTES, Ballast
from mayfly.store.leases import LeaseStore
from tests.orchestrator.leases import NOW, lease


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    if os.geteuid() != 0:
        pytest.fail("mounting needs root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place: Path) -> Path:
    """Leave not a byte."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def test_leases_are_ended_though_the_disk_is_full_and_none_is_added(small: Path) -> None:
    with closing(LeaseStore(small / "leases.sqlite")) as store:
        names = [f"lease{n}" for n in range(50)]
        for name in names:
            store.add(lease(name))
        filler = fill(small)
        for name in names:
            _, after = store.change(
                name,
                lambda row: replace(
                    row,
                    desired=Desired.ENDED,
                    outcome=Outcome.DISK_FULL,
                    ended_at=NOW,
                    reason="r" * 4000,
                ),
            )
            assert after.outcome is Outcome.DISK_FULL
        fill(small)
        with pytest.raises(InfrastructureError, match="disk is full"):
            store.add(lease("another"))
        filler.unlink()
        store.add(lease("another"))
    with closing(LeaseStore(small / "leases.sqlite")) as store:
        assert {store.get(name).outcome for name in names} == {Outcome.DISK_FULL}
        assert store.get("another").outcome is None


def test_ballast_takes_its_room_or_leaves_nothing(small: Path) -> None:
    ballast = Ballast(small / "ballast")
    assert ballast.hold() and ballast.hold()
    assert (small / "ballast").stat().st_blocks * 512 == BYTES
    fill(small)
    assert ballast.release()
    assert not ballast.release()
    fill(small).rename(small / "more")
    assert not ballast.hold()
    assert [path.name for path in small.iterdir()] == ["more"]
