"""The log is kept whole; what it says is read by structure."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.build import progress
from mayfly.build.result import BEGIN_S, digest_in, judge
from mayfly.errors import Unreachable
from mayfly.model import Outcome

PUSH_OK = b"""#0 building with "mayfly" instance using remote driver

#5 [1/2] COPY f /f
#5 CACHED

#6 [2/2] RUN x
#6 0.113 #7 exporting to image
#6 0.113 CACHED
#6 DONE 1.2s

#7 exporting to image
#7 exporting layers 1.0s done
#7 pushing layers
#7 pushing layers 2.5s done
#7 pushing manifest for h:5000/images/o/r:1@sha256:ab 0.3s done
#7 DONE 3.9s

#8 exporting cache to registry
#8 DONE 1.5s
"""
PUSH_FAILED = b"""#8 exporting to image
#8 exporting layers done
#8 pushing layers done
#8 ERROR: failed to push h:5000/images/x/y: denied
"""
RUN_FAILED = b"""#5 [2/2] RUN make
#5 0.1 pushing layers
#5 0.1 ERROR: failed to push
#5 ERROR: process "/bin/sh -c make" did not complete successfully: exit code: 2
"""
CACHE_FAILED = b"""#3 importing cache manifest from h:5000/cache/trusted/o/r/default
#3 ERROR: not found
#7 exporting cache to registry
#7 ERROR: error writing layer blob
"""
UNREAD = b"""#2 [internal] load metadata for registry.mayfly.internal:5000/images/base/python:latest
#2 ERROR: failed to authorize: 503

#3 [stage-1 1/4] FROM registry.mayfly.internal:5000/images/base/x@sha256:ab
#3 resolve registry.mayfly.internal:5000/images/base/x@sha256:ab 0.1s done
#3 ERROR: 503

#4 [2/2] RUN x
#4 0.1 #5 [1/2] FROM h/not-said-by-buildkit
#4 0.1 #5 ERROR: no
#4 DONE 0.2s

#6 [3/3] COPY --from=x FROM to
#6 ERROR: no
"""
FILE_FAILED = b"""#8 exporting to image
#8 exporting layers
#8 ERROR: no space left on device
"""


def _timeline(text: bytes) -> progress.Timeline:
    timeline = progress.Timeline()
    timeline.feed(text)
    return timeline


def test_the_push_and_the_cached_steps_are_read_off_the_log() -> None:
    timeline = _timeline(PUSH_OK)
    assert timeline.push_s == pytest.approx(2.8)
    assert timeline.cache_s == pytest.approx(1.5)
    assert timeline.cached == 1, "what a RUN prints is not the log's own word"
    assert not timeline.push_failed


def test_the_images_that_could_not_be_read_are_read_off_the_log() -> None:
    host = "registry.mayfly.internal:5000"
    assert _timeline(UNREAD).unread == [
        f"{host}/images/base/python:latest",
        f"{host}/images/base/x@sha256:ab",
    ]
    assert _timeline(PUSH_OK + RUN_FAILED).unread == []


@given(st.lists(st.integers(1, 40), min_size=1))
def test_it_does_not_matter_how_the_log_is_cut_into_pieces(cuts: list[int]) -> None:
    whole, pieces, rest = _timeline(PUSH_OK), progress.Timeline(), PUSH_OK
    while rest:
        for cut in cuts:
            pieces.feed(rest[:cut])
            rest = rest[cut:]
    assert (pieces.push_s, pieces.cached) == (whole.push_s, whole.cached)


@pytest.mark.parametrize(
    ("status", "text", "alive", "outcome"),
    [
        (0, PUSH_OK, True, Outcome.SUCCEEDED),
        (0, CACHE_FAILED, True, Outcome.SUCCEEDED),
        (1, RUN_FAILED, True, Outcome.FAILED),
        (1, b"", True, Outcome.FAILED),
        (1, FILE_FAILED, True, Outcome.FAILED),
        (1, PUSH_FAILED, True, Outcome.NOT_PUBLISHED),
        (1, PUSH_FAILED, False, Outcome.INFRASTRUCTURE),
        (1, RUN_FAILED, False, Outcome.INFRASTRUCTURE),
        (-9, b"", True, Outcome.INFRASTRUCTURE),
        (
            1,
            PUSH_FAILED.replace(b"exporting to", b"[web] exporting to"),
            True,
            Outcome.NOT_PUBLISHED,
        ),
        (1, PUSH_FAILED.replace(b"exporting to", b"[web 1/2] exporting to"), True, Outcome.FAILED),
    ],
)
def test_an_outcome_is_judged_by_structure(
    status: int, text: bytes, alive: bool, outcome: Outcome
) -> None:
    found, error = judge(progress.Ran(status, 1.0, _timeline(text)), alive=alive)
    assert found is outcome
    said_by_buildkit = outcome in {Outcome.SUCCEEDED, Outcome.FAILED}
    assert (error is None) is said_by_buildkit, "BuildKit's own message stays the last"


ONLY_BUILDX = b"""#0 building with "mayfly" instance using remote driver

ERROR: failed to build: NotFound: forwarding Ping: no such job x
"""


@pytest.mark.parametrize(
    ("text", "seconds", "outcome"),
    [
        (ONLY_BUILDX, BEGIN_S, Outcome.INFRASTRUCTURE),
        (b"", BEGIN_S, Outcome.INFRASTRUCTURE),
        (ONLY_BUILDX, BEGIN_S - 0.1, Outcome.FAILED),
        (ONLY_BUILDX + b"#1 [internal] load build definition\n", 60.0, Outcome.FAILED),
    ],
)
def test_a_build_that_buildkit_never_began_is_not_the_users_fault(
    text: bytes, seconds: float, outcome: Outcome
) -> None:
    """Bad words of the caller end buildx at once; BuildKit gives up on what does not begin."""
    ran = progress.Ran(1, seconds, _timeline(text))
    assert judge(ran, alive=True)[0] is outcome


def test_a_registry_that_does_not_answer_is_not_the_users_fault() -> None:
    ran = progress.Ran(1, 1.0, _timeline(UNREAD))
    assert judge(ran, alive=True)[0] is Outcome.FAILED
    outcome, error = judge(ran, alive=True, unreadable="h/images/x")
    assert outcome is Outcome.INFRASTRUCTURE
    assert "h/images/x cannot be read" in str(error)


@pytest.mark.parametrize(
    ("metadata", "digest"),
    [
        ({"containerimage.digest": "sha256:a", "buildx.build.ref": "x"}, "sha256:a"),
        ({"web": {"containerimage.digest": "sha256:a"}, "lib": {}}, "sha256:a"),
        ({"a": {"containerimage.digest": "1"}, "b": {"containerimage.digest": "2"}}, ""),
        ({}, ""),
    ],
)
def test_a_digest_is_told_when_there_is_one_image(metadata: dict[str, object], digest: str) -> None:
    assert digest_in(metadata) == digest


@pytest.mark.parametrize(
    ("asked", "environ", "terminal", "shown"),
    [
        ("", {}, False, "plain"),
        ("", {}, True, "drawn"),
        ("tty", {}, True, "drawn"),
        ("tty", {}, False, "other"),
        ("plain", {}, True, "plain"),
        ("quiet", {}, False, "other"),
        ("rawjson", {}, True, "other"),
        ("auto", {"BUILDKIT_PROGRESS": "plain"}, True, "plain"),
        ("", {"BUILDKIT_PROGRESS": "quiet"}, False, "other"),
    ],
)
def test_how_buildx_shows_progress(
    asked: str, environ: dict[str, str], terminal: bool, shown: str
) -> None:
    assert progress.display(asked, environ, terminal=terminal) == shown


async def test_the_log_arrives_whole_although_uploads_fail() -> None:
    stored, calls = bytearray(), 0

    async def append(offset: int, data: bytes) -> int:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise Unreachable("away")
        stored[offset:] = data
        return len(stored)

    text = b"0123456789" * 60_000
    log = progress.Log(append)
    for start in range(0, len(text), 50_000):
        log.write(text[start : start + 50_000])
        try:
            await log.flush()
        except Unreachable:
            continue
    while True:
        try:
            await log.flush()
            break
        except Unreachable:
            continue
    assert stored == text


async def test_two_uploads_at_once_neither_lose_nor_double() -> None:
    stored = bytearray()

    async def append(offset: int, data: bytes) -> int:
        await asyncio.sleep(0.01)
        assert offset <= len(stored)
        stored[offset:] = data
        return len(stored)

    log = progress.Log(append)
    for _ in range(5):
        log.write(b"abc")
        await asyncio.gather(log.flush(), log.flush())
    assert stored == b"abc" * 5


async def test_both_ways_keep_the_plain_log(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    build = [sys.executable, "-c", "import sys; sys.stderr.write('seen'); sys.exit(3)"]
    history = [sys.executable, "-c", "import sys; sys.stderr.write('#1 x\\n#1 CACHED\\n')"]
    for asked, kept, cached in (("plain", b"seen", 0), ("quiet", b"#1 x\n#1 CACHED\n", 1)):
        stored = bytearray()

        async def append(offset: int, data: bytes, stored: bytearray = stored) -> int:
            stored[offset:] = data
            return len(stored)

        async with progress.uploading(append) as log:
            ran = await progress.run(build, history, {}, log, asked=asked)
        assert ran.status == 3
        assert stored == kept
        assert ran.timeline.cached == cached
        assert capfdbinary.readouterr().err == b"seen"


@pytest.mark.parametrize(
    ("history", "recorded", "began"),
    [
        ("pass", True, False),
        ("pass", False, True),
        ("import sys; sys.stderr.write('#1 x\\n')", True, True),
        ("import time; time.sleep(60)", True, True),
    ],
    ids=["no record", "none is kept", "a record", "no answer"],
)
async def test_where_no_record_tells_a_build_counts_as_one_that_began(
    history: str, recorded: bool, began: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--check` is nothing that BuildKit keeps a record of; what it found is no fault of ours."""
    monkeypatch.setattr(progress, "HISTORY_S", 2 if "sleep" in history else 60)
    build, then = ([sys.executable, "-c", code] for code in ("import sys; sys.exit(1)", history))
    log = progress.Log(lambda offset, data: asyncio.sleep(0, offset))
    ran = await progress.run(build, then, {}, log, asked="quiet", recorded=recorded)
    assert ran.timeline.began is began


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_cancelled_program_is_ended(
    stubborn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "STOP_S", 0.5)
    code = "import os, signal, sys, time\n"
    code += "signal.signal(signal.SIGINT, signal.SIG_IGN)\n" if stubborn else ""
    code += "open(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)"
    log = progress.Log(lambda offset, data: asyncio.sleep(0, offset))
    argv = [sys.executable, "-c", code, str(tmp_path / "pid")]
    task = asyncio.create_task(progress.run(argv, [], {}, log, asked="plain"))
    async with asyncio.timeout(10):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_line_without_an_end_is_not_kept() -> None:
    timeline = progress.Timeline()
    for piece in (b"#7 [2/2] RUN yes", b"#7 0.1 ", *[b"y" * 65536] * 100, b"\n#7 CACHED\n"):
        timeline.feed(piece)
    assert len(timeline._rest) == 0
    assert timeline.cached == 1 and timeline.began
    timeline.feed(b"#8 " + b"y" * 10**6)
    assert len(timeline._rest) <= progress.LONGEST_LINE
