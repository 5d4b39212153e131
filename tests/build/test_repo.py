"""A repo's name always fits the registry's grammar, or it is a usage error that says how."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.build import args, repo
from mayfly.errors import UsageError
from mayfly.registry import grants

HOST = "h:1"


@given(st.text(max_size=300))
def test_a_name_fits_the_grammar_or_is_a_clear_error(text: str) -> None:
    try:
        name = repo.normalise(text)
    except UsageError as error:
        assert "--mayfly-repo" in error.hint
        return
    assert grants.REPOSITORY.fullmatch(name)
    assert len(name) <= 200


@given(st.from_regex(grants.REPOSITORY, fullmatch=True, alphabet="ab09._-/"))
def test_a_good_name_is_kept(text: str) -> None:
    """As the forge has it, whose tickets are for that name: my--app is not my-app."""
    if len(text) <= 200 and not text.endswith(".git"):
        assert repo.normalise(text) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Team/App", "team/app"),
        ("/srv//app.git/", "srv/app"),
        ("my app!", "my-app"),
        ("..a__b--c..", "a_b-c"),
        ("ÄÖ/x", "x"),
    ],
)
def test_names_become_usable(text: str, name: str) -> None:
    assert repo.normalise(text) == name


@pytest.mark.parametrize("text", ["", "///", "…", "a" * 201])
def test_what_no_name_can_be_made_from(text: str) -> None:
    with pytest.raises(UsageError):
        repo.normalise(text)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("git@github.com:o/r.git", "o/r.git"),
        ("https://host:8443/group/sub/r", "group/sub/r"),
        ("ssh://git@host:22/o/r.git", "o/r.git"),
        ("/srv/git/o/r.git", "o/r.git"),
        ("github.com/o/r", "o/r"),
    ],
)
def test_the_path_of_an_origin(url: str, path: str) -> None:
    assert repo.origin_path(url) == path


def test_the_order_in_which_names_are_looked_for(tmp_path: Path) -> None:
    here = tmp_path / "Some Dir"
    here.mkdir()

    def found(*words: str, **environ: str) -> str:
        return repo.name(args.parse([*words], HOST), environ, here)

    assert found(".") == "some-dir"
    assert found("-") == "some-dir"
    subprocess.run(["git", "init", "--quiet", str(here)], check=True)
    origin = "git@forge.example:Team/App.git"
    subprocess.run(["git", "-C", str(here), "remote", "add", "origin", origin], check=True)
    assert found(".") == "team/app"
    assert found(".", CI_REPO="ci/repo") == "ci/repo"
    assert found("--mayfly-repo", "own/name", ".", CI_REPO="ci/repo") == "own/name"
    assert found("https://host/o/r.git#main") == "o/r"
