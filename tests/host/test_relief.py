"""Who goes when the disk is full."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mayfly.host.relief import FULL_BYTES, Relief, relief

WAITING = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.integers(0, 9), max_size=5)


@given(WAITING, st.integers(0, 2 * FULL_BYTES))
def test_everyone_who_waits_goes_or_goes_on_and_one_goes_at_most(
    waiting: dict[str, int], free: int
) -> None:
    todo = relief(waiting, free)
    gone = {todo.end} if todo.end else set()
    assert gone | set(todo.resume) == set(waiting)
    assert not gone & set(todo.resume)
    assert bool(gone) == (bool(waiting) and free < FULL_BYTES)
    assert all(waiting[name] >= max(waiting.values()) for name in gone)


def test_the_largest_goes() -> None:
    assert relief({"a-1": 3, "b-1": 5, "c-1": 4}, 0) == Relief("b-1", ("a-1", "c-1"))
