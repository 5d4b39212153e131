"""What an image is: its content, its artifact, and one digest over both. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

Manifest = dict[str, Any]


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8. Raises ValueError for NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest(content: Mapping[str, Any], artifact: Mapping[str, Any]) -> str:
    """`sha256:…` over content and artifact, whatever the order of their keys."""
    text = canonical({"content": content, "artifact": artifact})
    return "sha256:" + hashlib.sha256(text).hexdigest()


def inputs(content: Mapping[str, Any]) -> bytes:
    """What a build was asked to put in, without what the mirror had that day.

    Two contents with equal inputs are the same request: building again on the same day gives
    nothing new.
    """
    return canonical(
        {key: content.get(key) for key in ("recipe_sha256", "site_certificates", "tools")}
    )
