"""Platforms: the names that buildx uses, and no others."""

from __future__ import annotations

import pytest

from mayfly.base import PLATFORMS, platforms
from mayfly.base.platform import OWN, name_of
from mayfly.errors import UsageError


def test_no_platform_is_this_machines() -> None:
    assert platforms([]) == (OWN,)


def test_lists_and_repeated_options_are_one_and_each_platform_counts_once() -> None:
    found = platforms(["linux/arm64,linux/amd64", "linux/arm/v7, linux/arm64"])
    assert [p.name for p in found] == ["linux/arm64", "linux/amd64", "linux/arm/v7"]


@pytest.mark.parametrize("text", ["arm64", "linux/arm", "windows/amd64", "linux/arm64;x", "linux/"])
def test_what_no_base_image_is_made_for_is_refused_with_what_is(text: str) -> None:
    with pytest.raises(UsageError, match="use linux/amd64, linux/arm64") as refused:
        platforms([text])
    assert repr(text) in refused.value.message


def test_a_name_survives_the_oci() -> None:
    for name, platform in PLATFORMS.items():
        assert name_of(platform.oci) == name
    assert name_of({"os": "linux", "architecture": "arm64", "variant": "v8"}) == "linux/arm64"
