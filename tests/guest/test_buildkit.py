"""A build's steps out of what BuildKit keeps of it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.guest import buildkit


def vertex(digest: str, **more: Any) -> dict[str, Any]:
    return {
        "digest": digest,
        "name": f"[{digest}] RUN",
        "started": "2026-11-24T18:00:01.123456789Z",
        **more,
    }


def log(*statuses: object) -> bytes:
    return b"\n".join(json.dumps(status).encode() for status in statuses)


def test_a_step_is_as_it_was_told_last() -> None:
    told = log(
        {"vertexes": [vertex("a"), {"digest": "b", "name": "waits"}]},
        {"logs": [{"data": "x"}]},
        {"vertexes": [vertex("a", completed="2026-11-24T18:00:03.5Z", error="exit code: 1")]},
        {"vertexes": [vertex("c", cached=True, completed="2026-11-24T18:00:01.2Z")]},
    )
    found = buildkit.of_log(told)
    assert list(found) == ["a", "c"], "what has not begun is no step yet"
    assert found["a"]["end_s"] - found["a"]["start_s"] == pytest.approx(2.377)
    assert found["a"]["failed"] and not found["a"]["cached"]
    assert found["c"]["cached"] and not found["c"]["failed"]


def test_the_steps_of_all_builds_come_in_order_and_are_not_too_many() -> None:
    asked: list[list[str]] = []

    def ask(words: Iterable[str], timeout_s: float) -> bytes:
        asked.append(list(words))
        if "histories" in asked[-1]:
            return b"one\ntwo\n"
        build = asked[-1][-1]
        second = 1 if build == "two" else 2
        started = f"2026-11-24T18:00:0{second}Z"
        return log({"vertexes": [vertex(f"{build}{n}", started=started) for n in range(150)]})

    found, errors = buildkit.steps(5, ask)
    assert errors == []
    assert len(found) == buildkit.MAX_STEPS
    assert [step["start_s"] for step in found] == sorted(step["start_s"] for step in found)
    assert len(json.dumps(found)) < 64 * 1024


def test_a_step_that_a_second_build_found_cached_is_told_as_it_ran() -> None:
    def ask(words: Iterable[str], timeout_s: float) -> bytes:
        first = log({"vertexes": [vertex("a", completed="2026-11-24T18:00:09Z")]})
        later = "2026-11-24T18:01:00Z"
        again = vertex("a", started=later, completed=later, cached=True)
        only = vertex("b", started=later, completed=later, cached=True)
        told = {"histories": b"two\none\n", "one": first}
        *_, last = words
        return told.get("histories" if "histories" in words else last) or log(
            {"vertexes": [again, only]}
        )

    (a, b), _ = buildkit.steps(5, ask)
    assert (a["cached"], b["cached"]) == (False, True)


def test_how_steps_failed_is_told_with_the_end_of_it() -> None:
    ends = "2026-11-24T18:00:09Z"
    failed = [vertex(f"{n}", completed=ends, error="x" * 2**17 + f"\n{n}") for n in range(9)]

    def ask(words: Iterable[str], timeout_s: float) -> bytes:
        return b"one\n" if "histories" in words else log({"vertexes": failed})

    found, errors = buildkit.steps(5, ask)
    assert len(found) == 9 and "error" not in found[0]
    assert len(errors) == buildkit.MAX_ERRORS and errors[-1].endswith("x\\n8")
    assert all(len(error) == buildkit.MAX_ERROR for error in errors)


def test_a_build_that_buildkit_does_not_tell_of_has_no_steps() -> None:
    assert buildkit.steps(5, lambda words, timeout_s: b"") == ([], [])


@given(st.binary(max_size=300))
def test_no_log_makes_it_fail(text: bytes) -> None:
    buildkit.of_log(b'{"vertexes": [{"started": "' + text + b'"}]}\n' + text)


@pytest.mark.parametrize(
    ("says", "serves"),
    [
        (bytes((0, 0, 6, 4, 0, 0, 0, 0, 0)) + bytes(6), True),
        (b"HTTP/1.1 ", False),
        (bytes((0, 0, 6, 4)), False),
        (b"", False),
        (None, False),
    ],
    ids=["settings", "another frame", "half a frame", "it ended", "it only listens"],
)
def test_it_serves_when_it_begins_as_a_server_does(
    tmp_path: Path, says: bytes | None, serves: bool
) -> None:
    """A real one is asked in tests/flow/test_elsewhere.py."""
    path, heard = str(tmp_path / "sock"), list[bytes]()
    assert not buildkit.serves(path), "nobody listens"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            there, _ = listener.accept()
            with there:
                heard.append(there.recv(100))
                there.sendall(says or b"")

        answering = Thread(target=answer) if says is not None else None
        if answering:
            answering.start()
        assert buildkit.serves(path, 5 if answering else 0.1) is serves
        if answering:
            answering.join()
            assert heard[0].startswith(b"PRI * HTTP/2.0")
