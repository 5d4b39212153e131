"""The page of figures keeps what was not measured again, and nothing of another machine."""

from __future__ import annotations

import re
from pathlib import Path

from bench.page import Found, Line, page
from bench.rows import ROWS

MACHINE = "2 cores (some CPU), 24 GiB, Linux 6.18; QEMU 10.0.2, TCG; Python 3.11.2."
ORDER = ("lease", "sizes", "memory")


def found(figure: str, *, holds: bool | None = True) -> Found:
    return Found((Line(f"what | {figure}", "<= 1 s", figure, holds),), (f"note {figure}",))


def test_rows_are_in_the_tables_order_each_beside_its_command() -> None:
    text = page("", MACHINE, {"sizes": found("2"), "lease": found("1")}, ORDER, "2026-11-24")
    rows = re.findall(r"^\| `python -m bench (\w+)` \|", text, re.M)
    assert rows == ["lease", "sizes"]
    assert re.findall(r"^- `(\w+)`, 2026-11-24: note (\d)$", text, re.M) == [
        ("lease", "1"),
        ("sizes", "2"),
    ]


def test_a_row_that_was_not_measured_again_stays_and_a_measured_one_is_replaced() -> None:
    before = page(
        "", MACHINE, {"lease": found("stale"), "memory": found("kept")}, ORDER, "2026-11-23"
    )
    text = page(before, MACHINE, {"lease": found("new")}, ORDER, "2026-11-24")
    assert "stale" not in text
    assert text.count("kept") == before.count("kept")
    assert "- `memory`, 2026-11-23: note kept" in text
    assert "- `lease`, 2026-11-24: note new" in text


def test_the_same_figures_again_give_the_same_page() -> None:
    rows = {name: found(name) for name in ORDER}
    before = page("", MACHINE, rows, ORDER, "2026-11-24")
    assert page(before, MACHINE, rows, ORDER, "2026-11-24") == before
    assert page(before, MACHINE, {}, ORDER, "2026-11-25") == before


def test_figures_of_another_machine_go() -> None:
    before = page("", "another machine.", {"lease": found("stale")}, ORDER, "2026-11-23")
    text = page(before, MACHINE, {"sizes": found("new")}, ORDER, "2026-11-24")
    assert "stale" not in text and "another machine" not in text


def test_a_row_that_is_no_more_goes() -> None:
    before = page("", MACHINE, {"lease": found("stale")}, ORDER, "2026-11-23")
    assert "stale" not in page(before, MACHINE, {}, ("sizes",), "2026-11-24")


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    text = page("", MACHINE, {"lease": found("tar | ssh")}, ORDER, "2026-11-24")
    (row,) = [line for line in text.splitlines() if line.startswith("| `python -m bench lease`")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 6


def test_only_a_missed_requirement_does_not_hold() -> None:
    assert found("1").holds and found("1", holds=None).holds
    assert not found("1", holds=False).holds
    lines = page(
        "", MACHINE, {"lease": found("1", holds=False), "sizes": found("2", holds=None)}, ORDER, "x"
    )
    assert "| **does not hold** |" in lines and "| - |" in lines


def test_every_row_can_be_read_back() -> None:
    before = page("", MACHINE, {name: found(name) for name in ROWS}, list(ROWS), "2026-11-24")
    assert page(before, MACHINE, {}, list(ROWS), "2026-11-25") == before


def test_the_projects_page_names_only_rows_that_there_are() -> None:
    text = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    assert set(re.findall(r"python -m bench ([a-z-]+)", text)) <= set(ROWS)
