"""The host's hand inside a runner: identity, evidence, deadline.

Standard library only, because this folder is copied into the golden image as it is. It runs as
root and speaks over virtio-serial: one JSON object a line, at most 64 KiB a line.

    host   {"id": 1, "op": "identity", …}
    guest  {"id": 1, "ok": true, …}  or  {"id": 1, "ok": false, "error": "one line"}

A host may come and go, also in the middle of a line. It sends an empty line first when it connects,
which ends whatever its predecessor left, and ignores answers whose id it did not send.

    freeze, identity, authorize      how it becomes somebody       identity.py, pair.py
    sample, steps                    what its build uses           sample.py, buildkit.py
    quiesce, take_scratch            a disk that changes hands     scratch.py
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from mayfly.guest import buildkit, pair, scratch
from mayfly.guest.framing import serve
from mayfly.guest.identity import Life, prepare
from mayfly.guest.kernel import Kernel, real_kernel
from mayfly.guest.machine import CPUS, set_cpus
from mayfly.guest.message import Message, Refused, number
from mayfly.guest.sample import Sampler

VERSION = 1
PORT = "/dev/virtio-ports/mayfly.agent"


class Agent:
    """Answers one request at a time. `root` is / but in tests."""

    def __init__(self, kernel: Kernel, root: Path = Path("/")) -> None:
        self._kernel = kernel
        self._root = root
        self._sampler = Sampler(str(pair.group(pair.current(root), root)))
        self._life = Life(kernel, root, self._sampler)
        self._afterwards: Callable[[], None] | None = None
        self._operations: dict[str, Callable[[Message], Message]] = {
            "hello": self._hello,
            "wait_buildkit": self._wait_buildkit,
            "freeze": self._life.freeze,
            "identity": self._identity,
            "authorize": self._life.authorize,
            "sample": lambda _: {"sample": self._sampler.read()},
            "steps": self._steps,
            "quiesce": self._quiesce,
            "take_scratch": self._take_scratch,
            "poweroff": self._poweroff,
        }

    def handle(self, line: bytes | None) -> Message | None:
        """The answer to one line; None to an empty one. Never raises; errors are one line."""
        if line is None:
            return {"id": None, "ok": False, "error": "line too long"}
        if not line.strip():
            return None
        id_: object = None
        try:
            message = json.loads(line)
            if not isinstance(message, dict):
                raise Refused("not an object")
            if isinstance(message.get("id"), int):
                id_ = message["id"]
            operation = self._operations.get(str(message.get("op")))
            if operation is None:
                raise Refused("unknown op")
            return {"id": id_, "ok": True, **operation(message)}
        except (RecursionError, ValueError):
            return {"id": id_, "ok": False, "error": "not JSON"}
        except Refused as refusal:
            return {"id": id_, "ok": False, "error": str(refusal)}
        except Exception as fault:
            text = f"{type(fault).__name__}: {fault}".splitlines()[0][:500]
            return {"id": id_, "ok": False, "error": text}

    def after_reply(self) -> None:
        """Do what was put off until the answer was out."""
        work, self._afterwards = self._afterwards, None
        if work is not None:
            work()

    def _hello(self, _: Message) -> Message:
        return {
            "version": VERSION,
            "buildkit": buildkit.listens(),
            "identified": self._life.identified,
        }

    def _wait_buildkit(self, message: Message) -> Message:
        start = time.monotonic()
        end = start + number(message, "timeout_s", 0, 3600)
        while (left := end - time.monotonic()) > 0:
            if buildkit.listens() and buildkit.answers(left):
                return {"seconds": round(time.monotonic() - start, 3)}
            time.sleep(0.1)
        raise Refused("buildkitd did not answer in time")

    def _identity(self, message: Message) -> Message:
        answer, self._afterwards = self._life.identity(message)
        return answer

    def _steps(self, message: Message) -> Message:
        """Together with what this machine's clock says, for it is the clock of their times."""
        found, errors = buildkit.steps(number(message, "timeout_s", 0, 60))
        return {"steps": found, "errors": errors, "unix_time_s": time.time()}

    def _quiesce(self, message: Message) -> Message:
        """Put the scratch disk down, for another runner to take it up; this one is of no more use.

        The answer says so once more: it is not to be taken for another's.
        """
        scratch.put_down(self._kernel, number(message, "timeout_s", 1, 60), self._root)
        return {"quiesced": True}

    def _take_scratch(self, message: Message) -> Message:
        """With all vCPUs of its size, have BuildKit go on with the disk that the host has plugged
        in. Like the first one, it is grown to this runner's size after the first login
        (identity.py)."""
        timeout_s = number(message, "timeout_s", 1, 60)
        cpus = int(number(message, "cpus", 1, 1024))
        if not self._life.identified:
            raise Refused("take_scratch: this guest has no identity")
        set_cpus(cpus, self._root / CPUS)
        timings = scratch.take_up(self._kernel, buildkit.serves, timeout_s, self._root)
        self._sampler.follow(str(pair.group(pair.current(self._root), self._root)))
        self._sampler.rebase()
        return {"taken": True, "timings_s": timings}

    def _poweroff(self, _: Message) -> Message:
        self._afterwards = self._kernel.power_off
        return {}


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    kernel = real_kernel()
    kernel.stay_in_memory()
    prepare(Path("/"), kernel)
    while True:
        try:
            fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            break
        except OSError:
            time.sleep(0.1)
    serve(Agent(kernel), fd)
