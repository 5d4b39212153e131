"""Ports on loopback for embedded services: chosen once for a state, then kept."""

from __future__ import annotations

import json
import random
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from mayfly.errors import InfrastructureError
from mayfly.stack.files import place, read


def ports(file: Path, names: Sequence[str], *, owner: int = 0) -> Mapping[str, int]:
    """A port for each of `names`, those in `file` if it is there, which belongs to `owner`.

    Raises `OSError`, and `InfrastructureError` when no ports are free.
    """
    text = read(file, owner)
    if text:
        kept: dict[str, int] = json.loads(text)
        if set(kept) == set(names):
            return kept
    chosen = dict(zip(names, free(len(names)), strict=True))
    place(file, json.dumps(chosen, indent=2).encode() + b"\n", owner=owner)
    return chosen


def taken(numbers: Iterable[int]) -> tuple[int, ...]:
    """Those of the loopback ports that something listens at."""
    return tuple(number for number in numbers if not _bindable(number))


def free(count: int) -> Iterator[int]:
    """Free loopback ports below the range from which outgoing connections take theirs."""
    candidates = random.SystemRandom().sample(range(20_000, 32_000), 1000)
    with ExitStack() as held:
        for number in candidates:
            if count and _bindable(number, held):
                count -= 1
                yield number
    if count:
        raise InfrastructureError("no free ports on 127.0.0.1", hint="end what listens there")


def _bindable(number: int, held: ExitStack | None = None) -> bool:
    probe = socket.socket()
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", number))
    except OSError:
        probe.close()
        return False
    if held is None:
        probe.close()
    else:
        held.enter_context(probe)
    return True
