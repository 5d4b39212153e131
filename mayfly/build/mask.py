"""Secrets' values taken out of what is printed and of what is sent to a build's log. Pure.

A value is looked for as it is, line by line where it has several, and in the form in which HTTP's
Basic scheme and Docker's configuration carry it (base64). Shorter than `SHORTEST` characters it is
left alone, as Woodpecker does too: hiding each `1` would hide everything else. What a build step
has changed (turned round, encoded in another way) is not recognised; no log filter can.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from itertools import groupby, takewhile

SHORTEST = 3
INSTEAD = "********"
_DEEPEST = 20
_ANCHOR = 16
"""Bytes by which the beginning of a long value is looked for."""


class Mask:
    """The values to hide. `secrets` may hold anything, the same twice and empty ones included."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(secret)}
        self._forms = sorted(forms)
        self._pattern = re.compile(_any_of(self._forms) if forms else rb"(?!)")

    def text(self, text: str) -> str:
        """`text` without the values."""
        clean, _ = self.split(text.encode(errors="surrogateescape"), last=True)
        return clean.decode(errors="surrogateescape")

    def split(self, data: bytes, *, last: bool = False) -> tuple[bytes, bytes]:
        """What of `data` can be shown, masked, and what is to wait for the bytes that follow:
        the end of it that may be the beginning of a value. Nothing waits when these are the `last`.
        """
        safe = len(data) - (0 if last else self._held(data))
        shown, at = [], 0
        for match in self._pattern.finditer(data):
            if match.start() >= safe:
                break
            shown += [data[at : match.start()], INSTEAD.encode()]
            at = match.end()
        end = max(at, safe)
        return b"".join([*shown, data[at:end]]), data[end:]

    def _held(self, data: bytes) -> int:
        """The length of the longest end of `data` that a value begins with; no value has lines."""
        line = data.rpartition(b"\n")[2]
        return max((_begun(form, line) for form in self._forms), default=0) if line else 0


class Stream:
    """A mask over bytes that come in pieces; a value is found wherever they are cut."""

    def __init__(self, mask: Mask) -> None:
        self._mask = mask
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """The next bytes, masked, as far as they are known to be clean."""
        shown, self._rest = self._mask.split(self._rest + data)
        return shown

    def end(self) -> bytes:
        """What was still held back."""
        shown, self._rest = self._mask.split(self._rest, last=True)
        return shown


def _any_of(forms: Sequence[bytes], depth: int = 0) -> bytes:
    """A pattern of any of the forms, which are sorted: of two that begin alike the longer one is to
    go, and not its beginning. Those that begin alike are told apart byte by byte: to try thousands
    of lines one after the other at each place takes a thousand times as long.
    """
    if len(forms) == 1 or depth == _DEEPEST:
        return b"|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    alike = (a == b for a, b in zip(forms[0], forms[-1], strict=False))  # and all between them
    start = forms[0][: sum(takewhile(bool, alike))]
    ends = [form[len(start) :] for form in forms]
    groups = (list(group) for _, group in groupby(filter(None, ends), lambda end: end[0]))
    ways = [_any_of(group, depth + 1) for group in groups]
    if b"" in ends:
        ways.append(b"")
    return re.escape(start) + b"(?:" + b"|".join(ways) + b")"


def _begun(form: bytes, data: bytes) -> int:
    """The length of the longest end of `data` that is the beginning of `form`, and not all of it.

    A value may be a whole file, so its beginnings are not written down: they would be as many as it
    has bytes.
    """
    end, anchor = data[-(len(form) - 1) :], form[:_ANCHOR]
    at = end.find(anchor)
    while at >= 0:
        if form.startswith(end[at:]):
            return len(end) - at
        at = end.find(anchor, at + 1)
    shorter = range(min(len(anchor) - 1, len(end)), 0, -1)
    return next((n for n in shorter if end.endswith(form[:n])), 0)


def _forms(secret: str) -> Iterable[bytes]:
    """A value as it may turn up."""
    whole = secret.strip()
    if len(whole) >= SHORTEST:
        yield base64.b64encode(whole.encode(errors="surrogateescape"))
    for line in whole.splitlines():
        if len(text := line.strip()) >= SHORTEST:
            yield text.encode(errors="surrogateescape")
