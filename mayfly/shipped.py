"""Files that Mayfly ships beside its code: in a checkout at its root, in a wheel in the package."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def shipped(name: str) -> Path:
    """The file of that path from the checkout's root; the one in the package when it has it."""
    inside = _PACKAGE / "data" / name
    return inside if inside.exists() else _PACKAGE.parent / name
