"""What the evaluating process can do, tried from inside it: a module in Nickel's place tries."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from mayfly import spec
from mayfly.errors import MachineUnfit, SchemaError
from mayfly.spec import confine, evaluator
from mayfly.spec.source import Source

NOBODY = 65534
PROBE = """
    import ctypes, errno, json, os, resource, socket
    libc = ctypes.CDLL(None, use_errno=True)
    PARENT = os.getppid()

    def reads(path):
        with open(path, "rb") as opened:
            return opened.read(4) and None

    def system_call(number, *words):
        if libc.syscall(number, *words) < 0:
            raise OSError(ctypes.get_errno(), "")

    def tried(what):
        try:
            what()
        except OSError as error:
            return errno.errorcode[error.errno]
        return "done"

    def open_descriptors():
        return [n for n in range(64) if tried(lambda: os.fstat(n)) == "done"]

    def run(text, imports):
        (repo,) = imports
        writing = os.O_WRONLY | os.O_CREAT
        return json.dumps({
            "environment": dict(os.environ),
            "descriptors": open_descriptors(),
            "good": {
                "a file of the repo": tried(lambda: reads(repo + "/inside")),
                "in a folder of it": tried(lambda: reads(repo + "/sub/inside")),
            },
            "bad": {
                "the accounts": tried(lambda: reads("/etc/passwd")),
                "beside the repo": tried(lambda: reads(repo + "/../outside")),
                "by a link": tried(lambda: reads(repo + "/link")),
                "by a linked folder": tried(lambda: reads(repo + "/folder/outside")),
                "its environment": tried(lambda: reads("/proc/self/environ")),
                "its parent's": tried(lambda: reads(f"/proc/{PARENT}/environ")),
                "its question": tried(lambda: reads("/dev/stdin")),
                "a device": tried(lambda: reads("/dev/zero")),
                "a list of the repo": tried(lambda: os.listdir(repo)),
                "a list of /": tried(lambda: os.listdir("/")),
                "write a file": tried(lambda: os.open(repo + "/inside", os.O_RDWR)),
                "make a file": tried(lambda: os.open(repo + "/new", writing)),
                "empty a file": tried(lambda: os.open(repo + "/inside", os.O_TRUNC)),
                "a file in /tmp": tried(lambda: os.open("/tmp/mayfly-probe", writing)),
                "make a folder": tried(lambda: os.mkdir(repo + "/new")),
                "remove a file": tried(lambda: os.unlink(repo + "/inside")),
                "rename a file": tried(lambda: os.rename(repo + "/inside", repo + "/new")),
                "link a file": tried(lambda: os.link(repo + "/inside", repo + "/new")),
                "chmod": tried(lambda: os.chmod(repo + "/inside", 0o777)),
                "IPv4": tried(lambda: socket.socket(socket.AF_INET)),
                "UDP": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
                "IPv6": tried(lambda: socket.socket(socket.AF_INET6)),
                "unix": tried(lambda: socket.socket(socket.AF_UNIX)),
                "netlink": tried(lambda: socket.socket(socket.AF_NETLINK)),
                "a pair of sockets": tried(socket.socketpair),
                "fork": tried(os.fork),
                "exec": tried(lambda: os.execv("/bin/true", ["true"])),
                "kill its parent": tried(lambda: os.kill(PARENT, 0)),
                "memory without a file": tried(lambda: os.memfd_create("x")),
                "a pipe": tried(os.pipe),
                "chroot": tried(lambda: os.chroot(repo)),
                "another user": tried(lambda: os.setuid(0)),
                "ptrace": tried(lambda: system_call(101, 16, PARENT, 0, 0)),
                "unshare": tried(lambda: system_call(272, 0x10000000)),
                "io_uring": tried(lambda: system_call(425, 1, 0)),
                "another filter": tried(lambda: libc.prctl(22, 2, 0) and system_call(317, 0)),
            },
        })
"""


@pytest.fixture
def there() -> Iterator[Path]:
    """A folder that every user can enter, with a repo in it and a file beside the repo."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        (folder / "repo" / "sub").mkdir(parents=True)
        for file in ("outside", "repo/inside", "repo/sub/inside"):
            (folder / file).write_text("text")
            (folder / file).chmod(0o666)
        (folder / "repo" / "link").symlink_to(folder / "outside")
        (folder / "repo" / "folder").symlink_to(folder)
        (folder / "repo").chmod(0o777)
        (folder / "probe").mkdir()
        (folder / "probe" / "nickel.py").write_text(textwrap.dedent(PROBE))
        shutil.copy(confine.__file__, folder / "confine.py")
        yield folder


def question(folder: Path) -> dict[str, str]:
    repo = str(folder / "repo")
    nickel = str(folder / "probe")
    return {"nickel": nickel, "spec": "", "contract": "", "root": repo, "folder": repo}


def found(answer: Mapping[str, Any]) -> Any:
    assert "value" in answer["held"], answer["held"]
    return json.loads(answer["held"]["value"])


def refused(bad: Mapping[str, str]) -> dict[str, str]:
    """What was not refused, among what should have been."""
    return {what: how for what, how in bad.items() if how not in ("EPERM", "EACCES")}


@pytest.mark.parametrize("user", [None, NOBODY])
def test_no_user_can_do_more_than_read_the_repo(there: Path, user: int | None) -> None:
    if user is not None and os.geteuid():
        pytest.skip("only root can become somebody else")
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-I", "-S", str(there / "confine.py")],
        input=json.dumps(question(there)),
        capture_output=True,
        text=True,
        check=True,
        user=user,
        group=user,
        env={},
    )
    answer = json.loads(done.stdout)
    if not answer["reads"]:
        pytest.skip("this kernel has no Landlock")
    assert set(found(answer)["good"].values()) == {"done"}
    assert refused(found(answer)["bad"]) == {}
    assert sorted(path.name for path in (there / "repo").iterdir()) == [
        *("folder", "inside", "link", "sub"),
    ]


def test_it_has_no_environment_and_three_descriptors(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    with (there / "outside").open("rb") as opened:
        os.set_inheritable(opened.fileno(), True)
        source = Source("", there / "repo", there / "repo", "x")
        seen = found(evaluator._answer(question(there), source))
    assert set(seen["environment"]) <= {"LC_CTYPE"}  # Python's own
    assert seen["descriptors"] == [0, 1, 2]


def changed(there: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str) -> None:
    """Let the evaluator be one with `new` in place of `old`."""
    text = (there / "confine.py").read_text()
    assert text.count(old) == 1
    (there / "confine.py").write_text(text.replace(old, new))
    monkeypatch.setattr(confine, "__file__", str(there / "confine.py"))


def test_without_landlock_nothing_can_be_opened_and_only_imports_are_lost(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(there, monkeypatch, "_LANDLOCK_RESTRICT = 444,", "_LANDLOCK_RESTRICT = 4444,")
    repo = there / "repo"
    answer = evaluator._answer(question(there), Source("", repo, repo, "x"))
    assert answer["reads"] is False
    assert set(found(answer)["good"].values()) == {"EPERM"}
    assert refused(found(answer)["bad"]) == {}
    (repo / "a.ncl").write_text("{ cpu = 4 }")
    (repo / spec.NAME).write_text("{ cpu = 4 }")
    assert spec.load(repo / spec.NAME, repo).cpu == 4
    (repo / spec.NAME).write_text('import "a.ncl"')
    with pytest.raises(SchemaError, match=r"import of a\.ncl.*no Landlock"):
        spec.load(repo / spec.NAME, repo)


def test_computing_and_waiting_have_ends_of_their_own(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = there / "repo"
    changed(there, monkeypatch, "KILLED_CPU_S = 2", "KILLED_CPU_S = 60")
    changed(there, monkeypatch, "WALL_S = 6.0", "WALL_S = 3.0")
    monkeypatch.setattr(evaluator, "LONGEST_S", 60)
    os.mkfifo(repo / "pipe.ncl")
    (repo / spec.NAME).write_text('import "pipe.ncl"')
    with pytest.raises(SchemaError, match="is not evaluated after 6 s"):
        spec.load(repo / spec.NAME, repo)
    changed(there, monkeypatch, "WALL_S = 3.0", "WALL_S = 60.0")
    (repo / spec.NAME).write_text(
        "let rec f = fun n => if n < 2 then n else f (n - 1) + f (n - 2) in { cpu = f 60 }"
    )
    with pytest.raises(SchemaError, match=r"takes more than 1\.6 s to evaluate"):
        spec.load(repo / spec.NAME, repo)


def test_without_seccomp_nothing_is_evaluated(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(
        there, monkeypatch, "_SECCOMP_MODE_FILTER = 38, 22, 2", "_SECCOMP_MODE_FILTER = 38, 22, 9"
    )
    (there / "repo" / spec.NAME).write_text("{ cpu = 4 }")
    with pytest.raises(MachineUnfit, match="cannot be evaluated safely here: Invalid argument"):
        spec.load(there / "repo" / spec.NAME, there / "repo")


def test_another_machine_is_not_guessed_at(there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(there, monkeypatch, "os.uname().machine", '"riscv64"')
    (there / "repo" / spec.NAME).write_text("{ cpu = 4 }")
    with pytest.raises(MachineUnfit, match="no list of system calls for riscv64"):
        spec.load(there / "repo" / spec.NAME, there / "repo")
