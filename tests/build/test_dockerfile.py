"""Which images a Dockerfile names: what a build may need a login for."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.build.args import Target
from mayfly.build.dockerfile import images, named


def test_every_place_where_an_image_can_be_named() -> None:
    text = """\
# syntax=docker/dockerfile:1.7
# a comment that ends the directives
# escape=`
ARG REGISTRY=ghcr.io/team
ARG TAG
FROM --platform=$BUILDPLATFORM ${REGISTRY}/tools:${TAG:-1} AS Tools
RUN --mount=type=bind,from=quay.io/a/b,target=/b --mount=type=cache,target=/c \\
    # in the middle of it
    make
FROM scratch
COPY --from=tools /x /x
COPY --from=0 /y /y
COPY --chown=1:1 --from=reg.example:5000/c@sha256:00 /z /z
from Tools as last
FROM python
"""
    assert images(text, {}) == (
        "docker/dockerfile:1.7",
        "ghcr.io/team/tools:1",
        "quay.io/a/b",
        "reg.example:5000/c@sha256:00",
        "python",
    )
    assert "own.example/tools:2" in images(text, {"REGISTRY": "own.example", "TAG": "2"})


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("FROM ${A}/x", "a.example/x"),
        ("FROM $A/x", "a.example/x"),
        ("FROM ${EMPTY:-b.example}/x", "b.example/x"),
        ("FROM ${EMPTY-b.example}x", "x"),
        ("FROM ${A:+c.example}/x", "c.example/x"),
        ('FROM "d.example/x"', "d.example/x"),
    ],
)
def test_variables_are_put_in(line: str, name: str) -> None:
    assert images(f'ARG A="a.example" EMPTY=\n{line}\n', {}) == (name,)


@pytest.mark.parametrize("image", ["$TARGETARCH/x", "${A#x}/y", "${A:-${B}}/y", "$", "${"])
def test_what_only_a_build_knows_is_left_out(image: str) -> None:
    assert images(f"FROM {image}\n", {}) == ()


def test_arguments_of_a_stage_say_nothing_about_from() -> None:
    assert images("FROM a\nARG B=b.example/x\nFROM $B\n", {}) == ("a",)


def test_a_here_document_is_not_read_as_instructions() -> None:
    text = "FROM a\nRUN <<EOF cat <<-'TWO'\nFROM b\nEOF\n\tFROM c\n\tTWO\nCOPY --from=d / /\n"
    assert images(text, {}) == ("a", "d")


def test_the_escape_character_is_the_files() -> None:
    assert images("# escape=`\nFROM `\n a\nRUN x \\\nFROM b\n", {}) == ("a", "b")
    assert images("FROM \\\n a", {}) == ("a",)
    assert images("FROM a \\", {}) == ("a",)


@given(st.text(st.sampled_from("FROM COPYRUN-=from$:{}<EO#\\\n\t \"'ab/,"), max_size=80))
def test_no_text_is_too_strange(text: str) -> None:
    for name in images(text, {"a": "b"}):
        assert name
        assert not set(name) & set("$ \n\"'")


def test_the_dockerfiles_of_all_targets_are_read_where_they_are_here(tmp_path: Path) -> None:
    (tmp_path / "web").mkdir()
    (tmp_path / "web/Dockerfile").write_text("ARG A=a\nFROM $A\n")
    (tmp_path / "other").write_text("FROM b\nCOPY --from=c / /\n")
    targets = (
        Target(context="web"),
        Target(context="web", build_args={"A": "z.example/a"}),
        Target(context=".", dockerfile="other"),
        Target(context="-", dockerfile="other"),
        Target(dockerfile=None, inline="FROM inline.example/x\nCOPY --from=c / /\n"),
        Target(context="https://git.example/r.git", dockerfile="other"),
        Target(context="nowhere"),
        Target(context="web", dockerfile="-"),
    )
    found = named(targets, tmp_path)
    assert found == ("a", "z.example/a", "b", "c", "inline.example/x")
