"""A program without privileges sees what it needs, and its user can do no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.stack import launch as module
from mayfly.stack.launch import TEMPORARY, covers

MODULE = module.__file__
UID = 60999


def closed(*folders: str) -> dict[Path, tuple[Path, ...]]:
    needed = [Path("/root/app/.venv"), Path("/root/app/mayfly"), Path("/var/lib/mayfly")]
    return dict(covers(needed, lambda folder: str(folder) not in folders))


def test_only_tmp_is_covered_where_everything_can_be_entered() -> None:
    assert closed() == {TEMPORARY: ()}


def test_a_closed_folder_is_covered_and_shows_what_is_needed() -> None:
    shown = (Path("/root/app/.venv"), Path("/root/app/mayfly"))
    assert closed("/root", "/root/app") == {TEMPORARY: (), Path("/root"): shown}


def test_the_needed_path_itself_need_not_be_open() -> None:
    assert closed("/var/lib/mayfly") == {TEMPORARY: ()}


def test_what_is_needed_below_tmp_stays_and_inner_paths_are_not_shown_twice() -> None:
    needed = [Path("/tmp/s/run"), Path("/tmp/s"), Path("/tmp/t")]
    assert covers(needed, lambda _: True) == {TEMPORARY: (Path("/tmp/s"), Path("/tmp/t"))}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """As in root's home: a closed folder with something needed and something private in it."""
    tmp_path.chmod(0o700)
    for name in ("needed", "private"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path


def launch(tree: Path, script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-I", MODULE, "--uid", str(UID),
         "--need", str(tree / "needed"), "--", "/bin/sh", "-c", script],
        capture_output=True, text=True, check=False, cwd="/", extra_groups=[4, 27],
    )  # fmt: skip
    return (done.stdout + done.stderr).strip()


def test_the_needed_folder_can_be_read_and_nothing_beside_it(tree: Path) -> None:
    assert launch(tree, f"cat {tree}/needed/file") == "needed"
    assert "No such file" in launch(tree, f"cat {tree}/private/file")


def test_it_has_its_user_no_groups_and_no_way_back(tree: Path) -> None:
    said = launch(tree, "id -u; id -g; id -G; grep -E 'NoNewPrivs|CapEff' /proc/self/status; umask")
    assert said.split() == [
        *([str(UID)] * 3), "CapEff:", "0" * 16, "NoNewPrivs:", "1", "0007",
    ]  # fmt: skip


def test_tmp_is_its_own_and_goes_with_it(tree: Path) -> None:
    assert launch(tree, "touch /tmp/mayfly-launch-test && ls /tmp | grep launch-test")
    assert not Path("/tmp/mayfly-launch-test").exists()


def test_no_mount_shows_outside(tree: Path) -> None:
    assert "mayfly /tmp tmpfs" in launch(tree, "cat /proc/self/mounts")
    # Where mounts are shared, as under systemd, ours would be everybody's.
    command = f"{sys.executable} -I {MODULE} --uid {UID} -- /bin/true"
    outside = subprocess.check_output(
        ["unshare", "-m", "--propagation", "shared", "sh", "-ec",
         f"{command}; cat /proc/self/mounts"], text=True,
    )  # fmt: skip
    assert outside
    assert not [line for line in outside.splitlines() if line.startswith("mayfly ")]


def test_a_program_that_is_not_there_is_one_line(tree: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", MODULE, "--uid", "60999", "--", "/no/such"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 70
    assert done.stderr.strip() == "/no/such cannot be started: [Errno 2] No such file or directory"
