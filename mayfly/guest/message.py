"""What stands in a request, checked: nothing is done before all of it is.

For a clone, plain string methods are cheaper than regular expressions that nobody has compiled yet.
"""

from __future__ import annotations

import base64
import socket
from collections.abc import Callable
from typing import Any

Message = dict[str, Any]


class Refused(Exception):
    """The request cannot be carried out; the text goes to the host."""


def is_pem(value: str) -> bool:
    lines = value.rstrip("\n").split("\n")
    return lines[0].startswith("-----BEGIN ") and lines[-1].startswith("-----END ")


def is_entropy(value: str) -> bool:
    return len(base64.b64decode(value, validate=True)) >= 32


def is_hex(value: str) -> bool:
    return len(value) == 32 and value.isalnum() and value == value.lower() and int(value, 16) >= 0


def is_hostname(value: str) -> bool:
    plain = value.replace("-", "")
    return len(value) < 64 and plain.isalnum() and plain.isascii() and value[0] != "-" != value[-1]


def is_line(value: str) -> bool:
    return value.isascii() and value.isprintable() and value != ""


def text(message: Message, key: str, good: Callable[[str], bool], limit: int = 16384) -> str:
    """A text for which `good` holds. Raises `Refused`, naming the field."""
    value = message.get(key)
    try:
        if isinstance(value, str) and len(value) <= limit and good(value):
            return value
    except ValueError:
        pass
    raise Refused(f"{key} is missing or malformed")


def number(message: Message, key: str, low: float, high: float) -> float:
    """A number between the two. Raises `Refused`, naming the field."""
    value = message.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise Refused(f"{key} is missing or not between {low} and {high}")
    return value


def addresses(message: Message, key: str) -> tuple[str, ...]:
    """One to eight IPv4 addresses. Raises `Refused`, naming the field."""
    value = message.get(key)
    if not isinstance(value, list) or not 1 <= len(value) <= 8:
        raise Refused(f"{key} is not a short list")
    try:
        for item in value:
            socket.inet_pton(socket.AF_INET, item)
    except (OSError, TypeError, ValueError):
        raise Refused(f"{key} has something that is no IPv4 address") from None
    return tuple(value)
