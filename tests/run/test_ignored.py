"""Which files travel: `.dockerignore` as moby reads it, git's word, and neither."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import UsageError
from mayfly.run import ignored


def made(folder: Path, *paths: str) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(path)
    return folder


def travel(folder: Path) -> list[str]:
    """The files that travel, without the folders."""
    found = ignored.files(folder, ignored.patterns(folder))
    return sorted(path for path in found if not (folder / path).is_dir())


# From the tests of moby/patternmatcher v0.6 (patternmatcher_test.go): pattern, path, excluded.
MOBY = [
    ("**", "file", True),
    ("**", "dir/file", True),
    ("**/", "file", True),
    ("**/**", "dir/file", True),
    ("dir/**", "dir/file", True),
    ("dir/**", "dir/dir2/file", True),
    ("**/dir", "dir", True),
    ("**/dir", "dir/file", True),
    ("**/dir2/*", "dir/dir2/file", True),
    ("**/dir2/*", "dir/dir2/dir2/file", True),
    ("**/file", "dir/dir/file", True),
    ("**file", "file", True),
    ("**file", "dir/file", True),
    ("**/file*", "dir/dir/file.txt", True),
    ("**/file*txt", "dir/dir/file.txt", True),
    ("**/**/*.txt", "dir/dir/file.txt", True),
    ("**/**/*.txt2", "dir/dir/file.txt", False),
    ("a**/*.txt", "a/file.txt", True),
    ("a**/*.txt", "a/dir/file.txt", True),
    ("a/*.txt", "a/dir/file.txt", False),
    ("a/*.txt", "a/file.txt", True),
    ("a[b-d]e", "ae", False),
    ("a[b-d]e", "ace", True),
    ("a[^b-d]e", "aze", True),
    ("abc.def", "abcXdef", False),
    ("abc?def", "abcZdef", True),
    ("a\\*", "a*", True),
    ("a\\*", "ab", False),
    ("**/foo/bar", "foo/bar", True),
    ("**/foo/bar", "dir/foo/bar", True),
    ("abc/**", "abc", False),
    (".*", ".foo", True),
    (".*", "foo", False),
    ("*", "dir/file", True),
    ("docs", "docs/README.md", True),
    ("docs/", "docs/README.md", True),
    ("/docs", "docs/README.md", True),
    ("./docs/../util", "util/x", True),
]


@pytest.mark.parametrize(("pattern", "path", "out"), MOBY)
def test_a_pattern_means_what_it_means_to_buildkit(pattern: str, path: str, out: bool) -> None:
    assert ignored.excluded(path, tuple(ignored.parsed([pattern]))) is out


def test_the_last_pattern_counts_and_takes_files_back_in(tmp_path: Path) -> None:
    made(tmp_path, "keep.txt", "a.log", "logs/b.log", "logs/keep.log", "node_modules/x/y.js")
    (tmp_path / ".dockerignore").write_text(
        "# comment\n\n*.log\nlogs\n!logs/keep.log\nnode_modules\n"
    )
    assert travel(tmp_path) == [".dockerignore", "keep.txt", "logs/keep.log"]


def test_without_dockerignore_git_says_what_stays(tmp_path: Path) -> None:
    made(tmp_path, "src/main.rs", "target/debug/app", "[odd] *.txt", "new.txt", ".env", "a/.env")
    (tmp_path / ".gitignore").write_text("/target\n.env\n*.txt\n!new.txt\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert travel(tmp_path) == [".gitignore", "new.txt", "src/main.rs"]
    lines = ignored.lines(tmp_path)
    assert lines is not None and set(lines) >= {".git", "target", ".env", "a/.env"}
    (tmp_path / ".dockerignore").write_text("new.txt")
    assert ignored.lines(tmp_path) is None, "who writes one means it"
    assert "target/debug/app" in travel(tmp_path) and "new.txt" not in travel(tmp_path)


def test_a_work_tree_that_git_will_not_read_does_not_travel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of another user, to root: what it ignores would be sent."""
    made(tmp_path, "x", ".env")
    (tmp_path / ".gitignore").write_text(".env\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    with pytest.raises(UsageError, match="what it ignores: detected dubious ownership") as refused:
        travel(tmp_path)
    assert refused.value.hint == "write a .dockerignore"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="No such file"):
        travel(tmp_path)
    (tmp_path / ".dockerignore").write_text(".env")
    assert "x" in travel(tmp_path)


def test_without_either_all_but_git_travels(tmp_path: Path) -> None:
    made(tmp_path, "x", "d/y")
    (tmp_path / ".git").mkdir()
    made(tmp_path, ".git/config")
    assert travel(tmp_path) == ["d/y", "x"]


@given(st.text(st.characters(exclude_characters="\0/", exclude_categories=["Cs"]), min_size=1))
def test_a_literal_matches_itself_only(name: str) -> None:
    if name.strip() != name or os.path.normpath(name) in (".", "..") or "\n" in name:
        return
    given = tuple(ignored.parsed([ignored.literal(name)]))
    assert ignored.excluded(name, given)
    assert not ignored.excluded(name + "x", given)


@given(st.lists(st.text(max_size=20), max_size=5), st.text(max_size=20))
def test_no_pattern_is_a_traceback(lines: list[str], path: str) -> None:
    try:
        given = tuple(ignored.parsed(lines))
    except UsageError as error:
        assert ".dockerignore" in error.message
    else:
        ignored.excluded(path, given)


def test_a_tar_has_modes_and_links_and_no_sockets(tmp_path: Path) -> None:
    made(tmp_path, "run.sh", "d/f")
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("d/f")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        buffer = io.BytesIO()
        ignored.packed(tmp_path, (), buffer)
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        entries = {entry.name: entry for entry in tar}
    assert sorted(entries) == ["d", "d/f", "empty", "link", "run.sh"]
    assert entries["run.sh"].mode & 0o100 and entries["link"].linkname == "d/f"
