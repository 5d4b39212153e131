"""BuildKit inside a runner: whether it answers, and what it remembers of the builds it has done.

`buildctl` is a large program: under emulation it takes a second or more, so nothing here is for
while a build runs.
"""

from __future__ import annotations

import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

SOCKET = "/run/buildkit/buildkitd.sock"
UID = 1000
"""The user whose BuildKit it is."""

MAX_BUILDS = 4
MAX_STEPS = 100
MAX_NAME = 120
MAX_ERRORS = 4
MAX_ERROR = 300
MAX_OUTPUT_BYTES = 8 * 1024 * 1024


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""How a client of HTTP/2, and so of gRPC, begins: with settings, none here (RFC 9113, 3.4)."""

SETTINGS = 4
"""The kind of frame with which the server begins."""


def listens() -> bool:
    """Whether somebody could connect; buildkitd listens before it can do anything."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(SOCKET) == 0


def serves(path: str = SOCKET, timeout_s: float = 1.0) -> bool:
    """Whether buildkitd answers within so many seconds: only when it has opened what it keeps on
    its disk (its cmd/buildkitd/main.go: first the listeners, then the controller, then it serves).
    """
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(timeout_s)
            probe.connect(path)
            probe.sendall(PREFACE)
            head = probe.recv(9, socket.MSG_WAITALL)
            return len(head) == 9 and head[3] == SETTINGS
    except OSError:
        return False


def answers(timeout_s: float) -> bool:
    """Ask buildkitd for its workers."""
    return len(buildctl(("workers",), timeout_s).splitlines()) >= 2


def buildctl(words: Iterable[str], timeout_s: float) -> bytes:
    """What `buildctl debug WORDS` prints, 8 MiB at most; empty when it fails or is not in time."""
    argv = ["/usr/bin/buildctl", "--addr", f"unix://{SOCKET}", "debug", *words]
    try:
        with subprocess.Popen(
            argv,
            user=UID,
            group=UID,
            extra_groups=[],
            env={"PATH": "/usr/bin:/bin", "HOME": "/"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            limit = threading.Timer(timeout_s, process.kill)
            limit.start()
            said = process.stdout.read(MAX_OUTPUT_BYTES) if process.stdout else b""
            if len(said) == MAX_OUTPUT_BYTES:
                process.kill()
            failed = process.wait() != 0
            limit.cancel()
    except OSError:
        return b""
    return b"" if failed else said


def steps(
    timeout_s: float, ask: Callable[[Iterable[str], float], bytes] = buildctl
) -> tuple[list[dict[str, Any]], list[str]]:
    """The steps of this runner's last builds, in order of start, the last 100 of them; and how its
    last steps that failed did in BuildKit's words, of which the end is kept.

    A step that one build ran and another (after a lost connection) found CACHED is told once.
    `start_s` and `end_s` are Unix times by this machine's clock; a step that still runs has no end.
    """
    until = time.monotonic() + timeout_s
    builds = ask(("histories", "--format", "{{.Record.Ref}}"), timeout_s).decode(errors="replace")
    found: list[tuple[str, dict[str, Any]]] = []
    for build in builds.split()[-MAX_BUILDS:]:
        left = until - time.monotonic()
        if left > 0:
            found += of_log(ask(("logs", "--progress", "rawjson", build), left)).items()
    ran = {digest for digest, step in found if not step["cached"]}
    told = [step for digest, step in found if not step["cached"] or digest not in ran]
    told.sort(key=lambda step: float(step["start_s"]))
    errors = [error for step in told if (error := step.pop("error"))]
    return told[-MAX_STEPS:], errors[-MAX_ERRORS:]


def of_log(log: bytes) -> dict[str, dict[str, Any]]:
    """The steps, by digest, in what BuildKit kept of a build: one SolveStatus a line. Each has its
    `error` as well, empty where it did not fail."""
    found: dict[str, dict[str, Any]] = {}
    for line in log.splitlines():
        if b'"vertexes"' not in line:
            continue
        try:
            vertexes = json.loads(line)["vertexes"]
            for vertex in vertexes:
                if vertex.get("started"):
                    found[str(vertex["digest"])] = {
                        "name": ascii(vertex.get("name", ""))[1:-1][:MAX_NAME],
                        "start_s": _unix_s(vertex["started"]),
                        "end_s": _unix_s(vertex["completed"]) if vertex.get("completed") else None,
                        "cached": vertex.get("cached") is True,
                        "failed": bool(vertex.get("error")),
                        "error": ascii(vertex.get("error") or "")[1:-1][-MAX_ERROR:],
                    }
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return found


def _unix_s(text: str) -> float:
    """A time as Go prints it: RFC 3339, up to nanoseconds."""
    return round(datetime.fromisoformat(text).timestamp(), 3)
