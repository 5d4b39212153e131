"""The hosts file gets one line, loses one line, and is otherwise as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.config import Config
from mayfly.errors import InfrastructureError
from mayfly.stack import hosts

STATE = Path("/var/lib/mayfly")
line = st.sampled_from(
    [
        "127.0.0.1 localhost",
        "# a comment",
        "",
        "10.0.0.1 registry.mayfly.internal",
        "127.0.0.1 registry.mayfly.internal # mayfly /var/lib/mayfly-other",
        "\t::1  x # mayfly",
    ]
)
text = st.lists(line).map(lambda lines: "".join(f"{each}\n" for each in lines))


@given(text)
def test_what_is_added_is_removed_without_a_trace(before: str) -> None:
    after = hosts.added(before, "127.0.0.1", "r", STATE)
    assert after.startswith(before)
    assert after.removeprefix(before) == "127.0.0.1 r # mayfly /var/lib/mayfly\n"
    assert hosts.removed(after, STATE) == before
    assert hosts.removed(before, STATE) == before


@given(text, text)
def test_adding_again_changes_only_that_line(before: str, after: str) -> None:
    first = hosts.added(before, "127.0.0.1", "r", STATE) + after
    second = hosts.added(first, "10.0.0.9", "q", STATE)
    assert second == f"{before}10.0.0.9 q # mayfly {STATE}\n{after}"
    assert hosts.added(second, "10.0.0.9", "q", STATE) == second


def test_a_last_line_without_an_end_stays_a_line() -> None:
    assert hosts.added("a b", "1.1.1.1", "r", STATE).startswith("a b\n1.1.1.1 r ")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "hosts"
    file.write_bytes(b"127.0.0.1 localhost\n# \xff not utf-8\n")
    file.chmod(0o640)
    os.chown(file, 1, 2)
    return file


CONFIG = Config.model_validate({"state": STATE, "server": {"listen": "0.0.0.0:5000"}})


def test_owner_mode_and_bytes_stay(file: Path) -> None:
    before = file.read_bytes()
    hosts.add(CONFIG, file)
    status = file.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (1, 2, 0o640)
    assert file.read_bytes() == (
        before + b"127.0.0.1 registry.mayfly.internal # mayfly /var/lib/mayfly\n"
    )
    inode = file.stat().st_ino
    hosts.add(CONFIG, file)
    assert file.stat().st_ino == inode, "written although nothing changed"
    hosts.remove(CONFIG, file)
    assert file.read_bytes() == before
    assert [each.name for each in file.parent.iterdir()] == ["hosts"]


def test_a_link_stays_a_link(file: Path) -> None:
    link = file.with_name("link")
    link.symlink_to(file)
    hosts.add(CONFIG, link)
    assert link.is_symlink()
    assert b"mayfly" in file.read_bytes()


def test_a_bind_mount_is_written_in_place(file: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from mayfly.stack import hosts\n"
        "from tests.stack.test_hosts import CONFIG; hosts.add(CONFIG, Path(sys.argv[1]))"
    )
    target = file.with_name("mounted")
    target.touch()
    subprocess.run(
        ["unshare", "-m", "sh", "-ec",
         f"mount --bind {file} {target}; {sys.executable} -c '{program}' {target}"],
        check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert file.read_bytes().endswith(b"# mayfly /var/lib/mayfly\n")
    assert target.read_bytes() == b""


def test_a_full_disk_does_not_empty_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InfrastructureError, match="No space left"):
        hosts.add(CONFIG, file)
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(InfrastructureError, match="cannot be changed"):
        hosts.add(CONFIG, tmp_path / "none" / "hosts")
