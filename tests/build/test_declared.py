"""Which spec counts for a build, and what its sources say they are written in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from mayfly.build import args, bake, remote
from mayfly.build.declared import declared
from mayfly.errors import SchemaError, UsageError
from mayfly.languages import known
from mayfly.model import BuildSpec
from mayfly.spec import NAME

HOST = "h:1"
Found = tuple[BuildSpec | None, tuple[str, ...]]


def git(folder: Path, *words: str) -> str:
    settings = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", "-C", folder, *settings, *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A work tree with a service in it, in a folder that is none."""
    there = tmp_path / "repo"
    (there / "web").mkdir(parents=True)
    git(there, "init", "--quiet")
    (there / NAME).write_text('(import "base.ncl") & { disk_gb = 30 }')
    (there / "base.ncl").write_text("{ cpu = 3 }")
    (there / "go.mod").touch()
    (there / "web" / "package.json").touch()
    (there / "web" / "requirements.txt").touch()
    return there


def found(cwd: Path, *words: str) -> Found:
    return declared(args.parse(words, HOST), os.environ, cwd)


def test_the_nearest_spec_from_the_context_up(repo: Path) -> None:
    whole = BuildSpec(cpu=3, disk_gb=30)
    assert found(repo, ".") == (whole, ("go",))
    assert found(repo, "web") == (whole, ("javascript", "python"))
    (repo / "web" / NAME).write_text("{ cpu = 1 }")
    assert found(repo, "web")[0] == BuildSpec(cpu=1)
    assert found(repo / "web", "..")[0] == whole
    (repo / NAME).unlink()
    assert found(repo, ".")[0] is None


def test_a_named_spec_or_none(repo: Path) -> None:
    (repo / "ci").mkdir()
    (repo / "ci" / "big.ncl").write_text('(import "../base.ncl") & { memory_gb = 64 }')
    named = found(repo, "--mayfly-spec", "ci/big.ncl", "web")
    assert named == (BuildSpec(cpu=3, memory_gb=64), ("javascript", "python"))
    assert found(repo, "--mayfly-spec=ci/big.ncl", "-")[0] == named[0]
    (repo / NAME).write_text("no spec")
    assert found(repo, "--mayfly-spec", "none", ".") == (None, ("go",))
    with pytest.raises(SchemaError, match=r"^there\.ncl: cannot be read: No such file"):
        found(repo, "--mayfly-spec", "there.ncl", ".")


def test_a_wrong_spec_is_named_as_the_user_sees_it(repo: Path) -> None:
    (repo / NAME).write_text("{ cpu = 0 }")
    with pytest.raises(SchemaError, match=r"^\.\./\.build-spec\.ncl:1:9: cpu: found 0"):
        found(repo / "web", ".")


def test_what_has_no_work_tree_declares_nothing(repo: Path) -> None:
    (repo / NAME).write_text("no spec")
    assert found(repo, "-") == (None, ())
    assert found(repo, "https://host/archive.tar.gz") == (None, ())
    outside = repo.parent / "plain"
    outside.mkdir()
    (repo.parent / NAME).write_text("no spec")
    assert found(outside, ".") == (None, ())


def test_a_definition_is_about_the_working_directory_and_all_its_contexts(repo: Path) -> None:
    plan = {"target": {"a": {"context": "web"}, "b": {"context": "."}}}
    parsed = bake.parse(["--mayfly-spec", NAME], HOST, lambda _: plan)
    assert declared(parsed, {}, repo) == (
        BuildSpec(cpu=3, disk_gb=30),
        ("go", "javascript", "python"),
    )


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Cargo.toml", "Cargo.lock"], ("rust",)),
        (["build.gradle.kts"], ("java",)),
        (["app.csproj", "pyproject.toml", "setup.py"], ("dotnet", "python")),
        (["cargo.toml", "README.md"], ()),
    ],
)
def test_languages_by_their_files(names: Sequence[str], expected: tuple[str, ...]) -> None:
    assert known(names) == expected


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ("https://h/o/r.git", remote.Git("https://h/o/r.git", "", "")),
        ("https://h/o/r.git#main:a/b/", remote.Git("https://h/o/r.git", "main", "a/b")),
        ("https://h/o/r.git#:a", remote.Git("https://h/o/r.git", "", "a")),
        ("https://h/r.git?tag=v1&subdir=a", remote.Git("https://h/r.git", "v1", "a")),
        ("git@h:o/r.git#v1", remote.Git("git@h:o/r.git", "v1", "")),
        ("ssh://git@h/o/r#v1", remote.Git("ssh://git@h/o/r", "v1", "")),
        ("github.com/o/r#v1", remote.Git("https://github.com/o/r", "v1", "")),
        ("https://h/a.tar.gz", None),
        ("https://h/a.tar.gz?x=.git", None),
        (".", None),
        ("-", None),
    ],
)
def test_what_a_git_context_says(context: str, expected: remote.Git | None) -> None:
    assert remote.git(context) == expected


@pytest.fixture
def served(repo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repo with two commits on main, of which the first is tagged; git contexts lead to it."""
    git(repo, "add", "-A")
    git(repo, "commit", "--quiet", "-m", "first")
    git(repo, "tag", "first")
    (repo / "base.ncl").write_text("{ cpu = 5 }")
    git(repo, "commit", "--quiet", "-am", "second")
    git(repo, "config", "uploadpack.allowFilter", "true")
    parsed = remote.git

    def local(context: str) -> remote.Git | None:
        there = parsed(context)
        return there and remote.Git(repo.as_uri(), there.ref, there.subdir)

    monkeypatch.setattr(remote, "git", local)
    return repo


@pytest.mark.parametrize(
    ("fragment", "cpu", "written"),
    [
        ("", 5, ("go",)),
        ("#main", 5, ("go",)),
        ("#first", 3, ("go",)),
        ("#first:web", 3, ("javascript", "python")),
    ],
)
def test_a_git_context_declares_what_its_commit_says(
    served: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fragment: str,
    cpu: int,
    written: tuple[str, ...],
) -> None:
    (served / NAME).write_text("what is in the work tree does not count")
    (tmp_path / "t").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "t"))
    context = f"https://host/o/r.git{fragment}"
    assert found(tmp_path, context) == (BuildSpec(cpu=cpu, disk_gb=30), written)
    assert not list((tmp_path / "t").glob("mayfly-*")), "nothing is left"


def test_a_wrong_or_missing_spec_of_a_git_context(served: Path, tmp_path: Path) -> None:
    (served / "web" / NAME).symlink_to("/etc/passwd")
    git(served, "add", "-A")
    git(served, "commit", "--quiet", "-m", "third")
    with pytest.raises(SchemaError, match=r"^web/\.build-spec\.ncl: is a link that leads out"):
        found(tmp_path, "https://host/o/r.git#:web")
    git(served, "rm", "--quiet", "-r", NAME, f"web/{NAME}")
    git(served, "commit", "--quiet", "-m", "fourth")
    assert found(tmp_path, "https://host/o/r.git") == (None, ("go",))


def test_a_git_context_that_cannot_be_read_is_never_passed_over(
    served: Path, tmp_path: Path
) -> None:
    for context in ("https://host/o/r.git#nothing", "https://host/o/r.git#--upload-pack=/bin/true"):
        with pytest.raises(UsageError, match="the git context cannot be read here") as caught:
            found(tmp_path, context)
        assert "--mayfly-spec" in caught.value.hint
    assert found(tmp_path, "--mayfly-spec", "none", "https://host/o/r.git#nothing") == (None, ())
