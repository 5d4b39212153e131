"""Commands in real runners, shells into them, and runners that stay."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]

Context = Callable[[str], Path]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """The directory that a person is in."""
    folder = tmp_path / "here"
    (folder / "src").mkdir(parents=True)
    (folder / "src/data.txt").write_text("data\n")
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("password")
    return folder


def run(farm: Farm, here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`mayfly run WORDS` in that directory."""
    return subprocess.run(
        farm.command("run", "--repo", "team/run", "--size", "t2", *words),
        cwd=here,
        env=farm.env,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


SCRIPT = """\
cat src/data.txt; ls -a; id -u; echo oops >&2
mkdir out; echo $A > out/made; ln -f out/made out/same
exit 37
"""


def test_a_command_on_the_runners_own_system(farm: Farm, here: Path) -> None:
    words = ("--image", "none", "--artifact", "out", "--result", "r.json", "--env", "A=b c")
    done = run(farm, here, *words, "--", "sh", "-c", SCRIPT)
    assert done.returncode == 37, done.stderr
    assert done.stdout == "data\n.\n..\nsrc\n1000\n"
    assert done.stderr.endswith("oops\n")
    assert (here / "out/made").read_text() == (here / "out/same").read_text() == "b c\n"
    told = json.loads((here / "r.json").read_text())
    assert (told["outcome"], told["exit_status"], told["command_status"]) == ("failed", 37, 37)
    build = farm.json("status")["builds"][0]
    assert (build["id"], build["outcome"], build["exit_code"]) == (told["build"], "failed", 1)
    log = farm.mayfly("logs", told["build"]).stdout
    assert "data\n" in log and "oops\n" in log
    farm.until(lambda: farm.vms() == [])


def test_a_command_in_an_image_whose_output_is_long(
    farm: Farm, here: Path, busybox: Path, tmp_path: Path
) -> None:
    box = tmp_path / "box"
    box.mkdir()
    (box / "busybox").write_bytes(busybox.read_bytes())
    (box / "busybox").chmod(0o755)
    links = (
        "for name in cat head id ls mkdir sh yes; do /bin/busybox ln -s busybox /bin/$name; done"
    )
    step = json.dumps(["/bin/busybox", "sh", "-c", f"{links}; /bin/busybox ln -s busybox /bin/cp"])
    more = json.dumps(["/bin/sh", "-c", "/bin/busybox ln -s busybox /bin/dirname"])
    (box / "Dockerfile").write_text(
        f"FROM scratch\nCOPY busybox /bin/busybox\nRUN {step}\nRUN {more}\n"
        'RUN ["/bin/sh", "-c", "/bin/busybox ln -s ../bin/busybox /bin/env"]\n'
    )
    farm.mayfly(*farm.build("team/run", "-t", "images/team/run:box", "--push", str(box)))
    image = ("--image", "images/team/run:box", "--artifact", "out")
    long = "yes 0123456789abcdef0123456789abcdef | head -c 3000000; "
    done = run(farm, here, *image, "--env", "A=b c", "--", "sh", "-c", long + SCRIPT)
    assert done.returncode == 37, done.stderr
    assert len(done.stdout) > 3_000_000 and "clipped" not in done.stdout + done.stderr
    assert done.stdout.endswith("data\n.\n..\nsrc\n0\n")
    assert done.stderr.endswith("oops\n")
    assert (here / "out/made").read_text() == "b c\n"


def test_a_shell_in_a_running_build_and_in_its_runner_when_it_has_failed(
    farm: Farm, context: Context
) -> None:
    folder = context("echo hello > /made; echo it begins; until test -e /go; do :; done; exit 3")
    words = farm.build("team/shell", "--mayfly-keep-on-failure=5", folder)
    build = farm.start(*words)
    try:
        farm.until(lambda: farm.leases("ready"), 120)
        lease = farm.leases("ready")[0]["id"]
        begins = re.compile(r"^#\d+ \d+\.\d+ it begins$", re.MULTILINE)
        farm.until(lambda: begins.search(farm.mayfly("logs", lease).stdout), 120)

        def shell(*words: str) -> subprocess.CompletedProcess[str]:
            return farm.mayfly("shell", lease, "--", *words, check=False, timeout_s=120)

        inside = shell("step", "/bin/sh", "-c", "echo *; exit 6")
        assert inside.returncode == 6
        assert "made" in inside.stdout.split() and "bin" in inside.stdout.split()
        shell("step", "/bin/sh", "-c", "echo > /go")  # the step may end before what ends it
        assert build.wait(60) == 1
        assert f"mayfly shell {lease}" in (build.stderr.read() if build.stderr else "")

        (kept,) = farm.json("lease", "ls")
        assert (kept["state"], kept["outcome"]) == ("kept", "failed")
        assert "kept until" in farm.mayfly("status").stdout
        beside = shell("sh", "-c", "id -un; exit 9")
        assert (beside.stdout, beside.returncode) == ("build\n", 9)
        assert len(shell("step", "ls", ".").stdout.split()) >= 1, "what finished steps have left"
        assert on_a_terminal(farm, lease) == ["50 140", "/dev/pts/0"]
        farm.mayfly("lease", "rm", lease)
        farm.until(lambda: farm.vms() == [])
        assert shell("true").returncode == 2
    finally:
        build.kill()
        build.communicate()


def on_a_terminal(farm: Farm, lease: str) -> list[str]:
    """What a shell says to a person whose terminal has 140 columns and 50 rows."""
    pid, terminal = pty.fork()
    if pid == 0:
        words = farm.command("shell", "-t", lease, "--", "sh", "-c", "stty size; tty")
        os.system("stty cols 140 rows 50")  # noqa: S605
        os.execve(words[0], words, farm.env)  # noqa: S606
    said, until = b"", time.monotonic() + 60
    while time.monotonic() < until:
        try:
            said += os.read(terminal, 4096)
        except OSError:  # the child has gone
            break
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, said
    return said.decode().split("\r\n")[:2]
