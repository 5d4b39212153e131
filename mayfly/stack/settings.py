"""The configuration as it is in effect, written for the programs: one file, no secret in it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mayfly.config import Config
from mayfly.stack.files import PUBLIC, place

SECRETS = {
    "s3": {"access_key", "secret_key"},
    "metrics": {"password"},
    "woodpecker": {"token"},
}
"""Options by section; the programs that need them get them in their environment."""


def file(config: Config) -> Path:
    """Where it is."""
    return config.run / "mayfly.toml"


def write(config: Config) -> Path:
    """Write the file; `MAYFLY_CONFIG` names it to every program. Raises `OSError`."""
    data = config.model_dump(mode="json", exclude=SECRETS)
    place(file(config), "\n".join(_lines(data)).encode() + b"\n", mode=PUBLIC)
    return file(config)


def _lines(table: Mapping[str, Any], name: str = "") -> Iterator[str]:
    inner = {key: value for key, value in table.items() if isinstance(value, Mapping)}
    for key, value in table.items():
        if key not in inner:
            # JSON's strings, numbers, booleans and lists are TOML's.
            yield f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}"
    for key, value in inner.items():
        path = f"{name}.{json.dumps(key)}" if name else json.dumps(key)
        yield f"\n[{path}]"
        yield from _lines(value, path)
