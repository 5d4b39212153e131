"""What is to happen when this process is killed: its lease ends at once, and with it the runner.

Woodpecker's local backend cancels a step by SIGKILL to its process group
(`pipeline/backend/local/cmd_unix.go`), which leaves no time to say so. A child of our own, in
another group, waits for the end of a pipe that only we hold; when that comes without a word before
it, the child ends the lease in our place. Where the child is killed as well (a container that goes
as a whole) the orchestrator notices that heartbeats stay away, after `lease.grace_s`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

TRIES = 5
PAUSE_S = 1.0
TIMEOUT_S = 5.0
_VOID = b"void\n"


class Will:
    """The pipe's one end."""

    def __init__(self, end: int) -> None:
        self._end = end

    def name(self, lease: str, token: str) -> None:
        """From now on this lease is to end if we are killed; an earlier one is left alone."""
        with contextlib.suppress(OSError):
            os.write(self._end, json.dumps([lease, token]).encode() + b"\n")

    def void(self) -> None:
        """Whatever is to be done has been done: nothing is to happen."""
        with contextlib.suppress(OSError):
            os.write(self._end, _VOID)


@contextmanager
def standing_by(url: str, tls: ssl.SSLContext | None) -> Iterator[Will]:
    """A `Will` for leases at the API `url`, void once the block is left, however that is.

    To be entered before there are threads, for it forks.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            _wait(reading, url, tls)
        finally:
            os._exit(0)
    os.close(reading)
    will = Will(writing)
    try:
        yield will
    finally:
        will.void()
        os.close(writing)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)


def _wait(reading: int, url: str, tls: ssl.SSLContext | None) -> None:
    """The child: nobody's terminal, group and descriptors but the pipe's end."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    os.closerange(3, reading)
    os.closerange(reading + 1, os.sysconf("SC_OPEN_MAX"))
    said = b""
    while data := os.read(reading, 65536):
        said += data
    lines = said.splitlines(keepends=True)
    if lines and lines[-1] != _VOID:
        lease, token = json.loads(lines[-1])
        end(url, tls, lease, token)


def end(url: str, tls: ssl.SSLContext | None, lease: str, token: str) -> bool:
    """End a lease as terminated; whether the orchestrator has said so. Nothing of ours is needed
    for it but the standard library.
    """
    where = urlsplit(url)
    for number in range(TRIES):
        if number:
            time.sleep(PAUSE_S)
        link = (
            http.client.HTTPSConnection(where.netloc, timeout=TIMEOUT_S, context=tls)
            if where.scheme == "https"
            else http.client.HTTPConnection(where.netloc, timeout=TIMEOUT_S)
        )
        try:
            link.request(
                "DELETE",
                f"/v1/leases/{quote(lease, safe='')}?outcome=terminated",
                headers={"Authorization": f"Bearer {token}"},
            )
            if link.getresponse().status < 500:
                return True
        except (OSError, http.client.HTTPException):
            continue
        finally:
            link.close()
    return False
