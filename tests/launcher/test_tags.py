"""The cases of the docker-buildx plugin's own test (`plugin/tags_test.go`), and ours beside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.launcher import tags

CASES = [
    ("refs/heads/master", "latest", "", ("latest",)),
    ("refs/heads/master", "next", "", ("next",)),
    ("refs/heads/master", "latest", "linux-amd64", ("linux-amd64",)),
    ("refs/heads/develop", "latest", "", ()),
    ("refs/pull/7/head", "latest", "", ()),
    ("refs/tags/0.9.0", "latest", "", ("0.9", "0.9.0")),
    ("refs/tags/1.0.0", "latest", "", ("1", "1.0", "1.0.0")),
    ("refs/tags/v1.0.0", "latest", "", ("1", "1.0", "1.0.0")),
    ("refs/tags/v1.2.3-rc1", "latest", "", ("1.2.3-rc1",)),
    ("refs/tags/v1.0.0-alpha.1", "latest", "", ("1.0.0-alpha.1",)),
    ("refs/tags/v20221221", "latest", "", ("20221221", "20221221.0", "20221221.0.0")),
    ("refs/tags/v2022-12-21", "latest", "", ("2022.0.0-12-21",)),
    ("refs/tags/v2022", "latest", "", ("2022",)),
    ("refs/tags/20221221", "latest", "", ("20221221",)),
    ("refs/tags/2022-12-21", "latest", "", ("2022-12-21",)),
    ("refs/tags/v1.0.0", "next", "nanoserver", ("1-nanoserver", "1.0-nanoserver",
                                                "1.0.0-nanoserver")),
    ("refs/tags/v18.06.0", "latest", "nanoserver", ("18-nanoserver", "18.6-nanoserver",
                                                    "18.6.0-nanoserver")),
    ("refs/tags/v1.2.3+build.5", "latest", "", ("1.2.3-build.5",)),
    ("refs/tags/x1.0.0", "latest", "", None),
    ("refs/tags/2a", "latest", "", None),
]  # fmt: skip


@pytest.mark.parametrize(("ref", "default", "suffix", "wanted"), CASES)
def test_automatic_tags(
    ref: str, default: str, suffix: str, wanted: tuple[str, ...] | None
) -> None:
    assert tags.automatic(ref, "master", default, suffix) == wanted


def test_without_a_default_branch_nothing_is_the_default_branch() -> None:
    assert tags.automatic("", "", "latest", "") == ()


@given(st.from_regex(tags._VERSION, fullmatch=True) | st.text(max_size=20))
def test_whatever_comes_of_a_version_is_a_tag(text: str) -> None:
    found = tags.of_version(text)
    if found is not None and all(len(tag) < 100 for tag in found):
        assert not tags.wrong(found)


def test_a_file_of_tags() -> None:
    assert tags.in_file("1.2, latest\n\nnext\n") == ("1.2", "latest", "next")
    assert tags.wrong(["ok", "not ok", "", "-x", "a" * 129]) == ("not ok", "", "-x", "a" * 129)
