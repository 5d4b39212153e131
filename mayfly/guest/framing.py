"""Lines over virtio-serial: one answer to each, whatever comes and whoever leaves."""

from __future__ import annotations

import errno
import json
import os
import select
import time
from collections.abc import Iterator
from typing import Protocol

from mayfly.guest.message import Message

MAX_LINE_BYTES = 64 * 1024


class Answers(Protocol):
    """Who is asked. `after_reply` does what was put off until the answer was out."""

    def handle(self, line: bytes | None) -> Message | None: ...

    def after_reply(self) -> None: ...


class Lines:
    """Bytes in, complete lines out. A line longer than the limit comes out once, as None."""

    def __init__(self, limit: int = MAX_LINE_BYTES) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            if self._skipping:
                self._skipping = False
            elif len(line) > self._limit:
                yield None
            else:
                yield line
        if len(self._buffer) > self._limit:
            self._buffer.clear()
            if not self._skipping:
                self._skipping = True
                yield None

    def reset(self) -> None:
        """Forget a partial line: its host has gone."""
        self._buffer.clear()
        self._skipping = False


def serve(agent: Answers, fd: int) -> None:
    """Answer lines from `fd` until it is closed for good (OSError but for a host that left).

    A virtio port whose host has gone reads as end of file and polls as hung up without end;
    edge-triggered epoll tells when a host comes, without waking up in between.
    """
    os.set_blocking(fd, False)
    lines = Lines()
    with select.epoll() as poll:
        poll.register(fd, select.EPOLLIN | select.EPOLLET)
        while True:
            try:
                data = os.read(fd, 65536)
            except BlockingIOError:
                poll.poll()
                continue
            if not data:
                lines.reset()
                poll.poll()
                continue
            for line in lines.feed(data):
                answer = agent.handle(line)
                if answer is not None:
                    send(fd, json.dumps(answer).encode() + b"\n")
                agent.after_reply()


def send(fd: int, data: bytes, timeout_s: float = 5.0) -> bool:
    """Write all of `data`; False when the host has gone or does not read for `timeout_s`."""
    view = memoryview(data)
    end = time.monotonic() + timeout_s
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            left = end - time.monotonic()
            if left <= 0:
                return False
            select.select([], [fd], [], min(left, 0.05))
        except OSError as fault:
            if fault.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENODEV):
                return False
            raise
    return True
