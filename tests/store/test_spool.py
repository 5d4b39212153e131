"""What waits for the store of metrics is kept, and kept only as long as it must."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.errors import InfrastructureError
from mayfly.store import spool as spooling
from mayfly.store.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "spool")
    yield spool
    spool.close()


def test_records_wait_in_their_order_until_they_are_written(spool: Spool) -> None:
    spool.put("b-1", {"x": 1})
    spool.put("a-1", {"x": 2})
    waiting = spool.waiting(10)
    assert waiting == (("b-1", {"x": 1}), ("a-1", {"x": 2}))
    assert spool.waiting(1) == waiting[:1]
    spool.written(waiting[:1])
    assert spool.waiting(10) == waiting[1:]
    assert spool.count() == 1


def test_one_that_changes_while_it_is_written_goes_on_waiting(spool: Spool) -> None:
    spool.put("a-1", {"x": 1, "y": 1})
    waiting = spool.waiting(10)
    spool.put("a-1", {"y": 2})
    spool.written(waiting)
    assert spool.waiting(10) == (("a-1", {"x": 1, "y": 2}),)


def test_they_outlive_the_process(tmp_path: Path) -> None:
    first = Spool(tmp_path / "spool")
    first.put("a-1", {"x": 1})
    first.decide("a", {"size": "s"})
    first.close()
    second = Spool(tmp_path / "spool")
    assert second.count() == 1
    assert second.decision("a") == {"size": "s"}
    second.forget("a")
    assert second.decision("a") is None
    second.close()


def test_the_attempts_of_a_build_are_its_own(spool: Spool) -> None:
    for runner in ("ab-2", "ab-1", "abc-1", "b-1"):
        spool.put(runner, {})
    assert [runner for runner, _ in spool.of_build("ab")] == ["ab-1", "ab-2"]


def test_there_is_an_end_to_what_waits(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "MOST", 3)
    for n in range(5):
        spool.put(f"b{n}-1", {})
    assert [runner for runner, _ in spool.waiting(9)] == ["b2-1", "b3-1", "b4-1"]


def test_a_damaged_file_is_put_aside_and_one_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "spool").write_bytes(b"not a database" * 100)
    spool = Spool(tmp_path / "spool")
    assert spool.count() == 0
    spool.close()
    assert (tmp_path / "spool.damaged").exists()
    with pytest.raises(InfrastructureError, match="unable to open"):
        Spool(tmp_path / "nowhere" / "spool")
