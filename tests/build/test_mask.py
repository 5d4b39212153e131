"""No value gets through, however the bytes are cut."""

from __future__ import annotations

import base64
import time

from hypothesis import given
from hypothesis import strategies as st

from mayfly.build.mask import INSTEAD, Mask, Stream

VALUES = st.lists(st.text("abc\n ", min_size=0, max_size=9), max_size=4)
WHOLE = st.text("abc\n #", max_size=60)


@given(VALUES, WHOLE, st.lists(st.integers(1, 7), max_size=60))
def test_pieces_are_masked_as_the_whole_is(values: list[str], text: str, cuts: list[int]) -> None:
    mask = Mask(values)
    stream, rest, shown = Stream(mask), text.encode(), b""
    for cut in cuts:
        shown += stream.feed(rest[:cut])
        rest = rest[cut:]
    shown += stream.feed(rest) + stream.end()
    assert shown.decode() == mask.text(text)


@given(st.text("ab", min_size=17, max_size=24), st.lists(st.integers(1, 24), max_size=6))
def test_a_long_value_that_begins_again_and_again_is_masked(value: str, ends: list[int]) -> None:
    mask = Mask([value])
    stream, pieces = Stream(mask), [value[:end].encode() for end in ends]
    shown = b"".join([*map(stream.feed, pieces), stream.end()])
    assert shown.decode() == mask.text(b"".join(pieces).decode())


@given(VALUES, WHOLE)
def test_no_line_of_a_value_is_left(values: list[str], text: str) -> None:
    shown = Mask(values).text(text)
    lines = [line.strip() for value in values for line in value.splitlines()]
    assert not [line for line in lines if len(line) >= 3 and line in shown]


@given(WHOLE)
def test_without_values_nothing_changes(text: str) -> None:
    assert Mask().text(text) == text
    assert Mask(["", "a", " b \n"]).text(text) == text


def test_of_two_values_that_begin_alike_the_longer_goes_whole() -> None:
    stream = Stream(Mask(["hush", "hush-hush"]))
    assert stream.feed(b"x hush") == b"x "
    assert stream.feed(b"-hush!") + stream.end() == f"{INSTEAD}!".encode()


def test_what_cannot_become_a_value_does_not_wait() -> None:
    stream = Stream(Mask(["secret"]))
    assert stream.feed(b"#5 0.1 sec") == b"#5 0.1 "
    assert stream.feed(b"ond\n") == b"second\n"


def test_the_form_of_docker_configuration_is_known_too() -> None:
    pair = "me:hush hush"
    coded = base64.b64encode(pair.encode()).decode()
    assert Mask([pair]).text(f"auth={coded}.") == f"auth={INSTEAD}."


def test_bytes_that_are_no_text_pass() -> None:
    stream = Stream(Mask(["secret"]))
    assert stream.feed(b"\xff\xfe secret\n") + stream.end() == b"\xff\xfe ********\n"


def test_a_value_of_many_lines_holds_up_nothing() -> None:
    """Each line is a value; a log is looked through as it comes, beside the heartbeats."""
    secret = "\n".join(f"{n * 2654435761 % 2**64:016x}" * 3 for n in range(5000))
    stream, line = Stream(Mask([secret])), b"#12 34.5 compiling one thing and another, at length\n"
    began_s = time.process_time()
    assert stream.feed(line * 4000) == line * 4000
    assert stream.feed(secret.encode()[:100]).startswith(INSTEAD.encode())
    assert time.process_time() - began_s < 2


@given(st.lists(st.text("ab", min_size=3, max_size=40), min_size=1, max_size=40))
def test_lines_that_begin_alike_go_whole(values: list[str]) -> None:
    mask = Mask(values)
    for value in values:
        assert mask.text(f"-{value}-") == f"-{INSTEAD}-"


def test_a_value_may_be_a_large_file() -> None:
    """Its beginnings, written down, would not fit into any memory."""
    line = bytes(range(256)).hex() * 200
    secret = "\n".join([line, *(f"{n:08}" * 8 for n in range(200))])
    stream = Stream(Mask([secret]))
    said = f"a {line} b {base64.b64encode(secret.encode()).decode()} c".encode()
    shown = b"".join(stream.feed(said[at : at + 9973]) for at in range(0, len(said), 9973))
    assert shown + stream.end() == f"a {INSTEAD} b {INSTEAD} c".encode()
