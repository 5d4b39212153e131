"""Context and Dockerfile are looked for before any VM is asked for."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mayfly.build import args, check
from mayfly.errors import UsageError


@pytest.fixture
def here(tmp_path: Path) -> Path:
    for name in ("app", "lower", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "app" / "Dockerfile").touch()
    (tmp_path / "app" / "other.Dockerfile").touch()
    (tmp_path / "lower" / "dockerfile").touch()
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ["app"],
        ["lower"],
        ["-"],
        ["-f", "-", "app"],
        ["-f", "app/Dockerfile", "empty"],
        ["-f", "https://host/Dockerfile", "empty"],
        ["https://host/o/r.git"],
    ],
)
def test_what_is_there_or_is_not_ours_to_find(here: Path, words: list[str]) -> None:
    check.files(args.parse(words, "h"), here)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere"], "context nowhere is not there"),
        (["app/Dockerfile"], "is not a directory"),
        (["empty"], "no Dockerfile in empty"),
        (["-f", "nope", "app"], "Dockerfile nope is not there - name it"),
        (["-f", "other.Dockerfile", "app"], "use -f app/other.Dockerfile"),
        (["-f", "-", "-"], "cannot both be read"),
    ],
)
def test_what_is_missing_is_named(here: Path, words: list[str], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        check.files(args.parse(words, "h"), here)
    assert says in str(caught.value)


@pytest.fixture
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory open to everybody, seen by a user for whom modes count."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    user = os.geteuid()
    (folder / "app").mkdir()
    (folder / "app" / "Dockerfile").touch()
    try:
        yield folder
    finally:
        os.seteuid(user)
        (folder / "app").chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("locked", "mode", "words"),
    [
        ("app", 0o000, ["app"]),
        ("app", 0o711, ["app"]),
        ("app", 0o744, ["app"]),
        ("app", 0o744, ["app/inner"]),
        ("app/Dockerfile", 0o000, ["app"]),
        ("app/Dockerfile", 0o000, ["-f", "app/Dockerfile", "."]),
    ],
)
def test_what_may_not_be_read_is_said_in_one_line(
    nobody: Path, locked: str, mode: int, words: list[str]
) -> None:
    (nobody / locked).chmod(mode)
    if os.geteuid() == 0:
        os.seteuid(65534)
    else:
        (nobody / locked).chmod(mode & 0o700 & (mode << 6))  # what others may, for ourselves
    with pytest.raises(UsageError, match=r"^\S+ cannot be read: Permission denied - "):
        check.files(args.parse(words, "h"), nobody)


def test_a_name_that_is_too_long_is_no_crash(here: Path) -> None:
    with pytest.raises(UsageError, match="File name too long"):
        check.files(args.parse(["x" * 300], "h"), here)


def test_docker_is_there_when_something_listens(tmp_path: Path) -> None:
    path = tmp_path / "docker.sock"
    environ = {"DOCKER_HOST": f"unix://{path}"}
    assert not check.docker_answers(environ)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert check.docker_answers(environ)
    assert check.docker_answers({"DOCKER_HOST": "tcp://far:2375"})
