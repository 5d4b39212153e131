"""What a later connection or attempt asks buildx for, where the user wants no cache used."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mayfly.build import args
from mayfly.build.again import again
from mayfly.build.cache import Cache

HOST = "h:1"
CACHES = {"": Cache("own", warm=True, beside=("theirs",))}
COLD = {"": Cache("own", warm=False)}


@pytest.mark.parametrize("words", [("-t", "x", "."), ("--no-cache=false", "."), ("--", ".")])
def test_without_the_flag_nothing_changes(words: tuple[str, ...]) -> None:
    parsed = args.parse(words, HOST)
    assert again(parsed, CACHES) == (parsed, CACHES)


def test_the_flag_goes_and_so_does_whatever_was_there_before_the_build() -> None:
    words = ["--no-cache", "--cache-from", "quay.io/a/b", "--pull", "--cache-to=c", "-t", "x", "."]
    later, caches = again(args.parse(words, HOST), CACHES)
    assert later.buildx == ("--pull", "--cache-to=c", "-t", "x", ".")
    assert caches == COLD
    assert again(later, caches) == (later, caches)


def test_in_a_definition_it_goes_where_it_is() -> None:
    own = {"no-cache": True, "cache-from": [{"type": "registry", "ref": "r"}], "tags": ["t"]}
    other = {"cache-from": [{"type": "registry", "ref": "r"}]}
    parsed = args.parse(["."], HOST)
    baked = replace(parsed, verb="bake", buildx=(), plan={"target": {"a": own, "b": other}})
    later, _ = again(baked, {})
    assert later.plan == {"target": {"a": {"tags": ["t"]}, "b": other}}
