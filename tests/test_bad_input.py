"""What a person gets wrong: the documented exit status, one line that helps, nothing left behind.

Each in a folder of its own. What is about farms, machines and processes is a real process, as
somebody at a terminal has it, and so are some of those that are about words only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from mayfly.cli import main
from mayfly.pid import ProcessId
from tests.serving import Serving

ROOT = Path(__file__).parents[1]
NOBODY = "https://127.0.0.1:1"
BUILD = ("build", "-o", "out")
UP = ("up", "--detach")


@dataclass(frozen=True)
class Case:
    """What is typed (`argv`) and where; the exit status; and words of each line of error.

    In `env`, `files` and `argv` `{here}` is the folder, `{port}` a port that this test listens at.
    `files` are made before; a name that ends with a slash is a folder.
    """

    argv: tuple[str, ...]
    status: int
    says: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    root: bool = True

    @property
    def id(self) -> str:
        words = f"{' '.join(self.argv)[:60]} {self.says[0][:40]}"
        return re.sub(r"[^\w./:=-]+", " ", words).strip()


def case(
    *argv: str,
    status: int = 2,
    says: str | tuple[str, ...],
    env: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    root: bool = True,
) -> Case:
    lines = (says,) if isinstance(says, str) else says
    return Case(argv, status, lines, env or {}, files or {}, root)


def bake(text: str, *argv: str, status: int = 2, says: str) -> Case:
    return case("bake", *argv, status=status, says=says, files={"docker-bake.hcl": text})


WEB = 'target "web" { context = "web" }\n'
OTHER_VERSION = {"state/version": "99\n"}
REMOTE = {"MAYFLY_URL": NOBODY, "MAYFLY_TOKEN": "t"}

WORDS = [
    # A build's own.
    case("build", says="build context is missing"),
    case("build", "nowhere", says="context nowhere is not there"),
    case("build", "x" * 300, says="File name too long"),
    case("build", "web/Dockerfile", says="is not a directory"),
    case("build", "empty", says="no Dockerfile in empty"),
    case("build", "-f", "Nope", "web", says="Dockerfile Nope is not there"),
    case("build", "-f", "Dockerfile", "web", says="use -f web/Dockerfile"),
    case("build", "-f", "empty", "web", says="Dockerfile empty is not there"),
    case("build", "web", "empty", says="one build context is wanted"),
    case("build", "-f", "-", "-", says="cannot both be read from standard input"),
    case(
        *("build", "--push", "--mayfly-repo", "o/r", "web"),
        *(word for n in range(65) for word in ("-t", f"images/o/r:{n}")),
        says="65 names of images are to be pushed, and a build may have 64",
    ),
    case("build", "-o", "type=tar\ndest=x", "web", says="is no list of key=value"),
    case("build", "--build-context", "lib=nowhere", "web", says="named context nowhere"),
    case("build", "--no-such-flag", "web", says="unknown flag --no-such-flag"),
    case("build", "-Z", "web", says="unknown flag -Z"),
    case("build", "web", "--tag", says="--tag needs a value"),
    case("build", "--mayfly-colour", "red", "web", says="--mayfly-colour is no option"),
    case("build", "--mayfly-repo", "…", "web", says="no repo name can be made"),
    case("build", "--mayfly-repo", "base/x", "web", says="'base/x'"),
    case("build", "--mayfly-repo", "a" * 300, "web", says="300 characters, 200 are allowed"),
    case("build", "web", env={"CI_REPO": "//"}, says="no repo name can be made from '//'"),
    case("build", "--mayfly-cache-key", "A/B", "web", says="cannot be part of an image's name"),
    case("build", "--builder", "x", "web", says="--builder cannot be chosen"),
    case("build", "--allow", "security.insecure", "web", says="security.insecure is refused"),
    case("build", "--network=host", "web", says="--network host is refused"),
    case("build", "--load", "web", says="-o type=oci,dest="),
    case("build", "--push", "web", says="needs a name for the image"),
    case("build", "-t", "Images/A:b", "web", says="is no image name"),
    case("build", "--progress", "loud", "web", says="--progress 'loud' is unknown"),
    case("build", "--metadata-file", "nowhere/m.json", "web", says="nowhere is not a folder"),
    case("build", "--metadata-file", "empty", "web", says="empty is a folder"),
    case("build", "--iidfile", "nowhere/id", "web", says="--iidfile nowhere/id"),
    case(
        *("build", "--mayfly-repo", "o/r", "-t", "images/a/b", "--push", "web"),
        status=10,
        says="repo o/r may not push to images/a/b",
    ),
    # A build spec.
    case(
        *("build", "web"),
        status=3,
        says=("web/.build-spec.ncl:2:1: there is no field cpuu, expected", "2 | cpuu", "| ^^^^"),
        files={"web/.build-spec.ncl": "{\ncpuu = 4 }"},
    ),
    case("build", "--mayfly-spec", "no", "web", status=3, says="no: cannot be read: No such"),
    case("build", "--mayfly-spec", "empty", "web", status=3, says="empty: cannot be read: Is"),
    case("spec", "check", "nowhere", status=3, says="nowhere: cannot be read: No such file"),
    case("spec", "check", "empty", says="there is no .build-spec.ncl from empty up to"),
    case("spec", "init", "web/Dockerfile", says="no spec was written: web/Dockerfile/.build"),
    # A definition.
    case("bake", says="couldn't find a bake definition"),
    bake("target {", says="docker-bake.hcl:1"),
    bake(WEB, "nope", says="failed to find target nope"),
    bake(WEB, "--set", "web", "web", says="invalid override"),
    bake(WEB, "--tag", "x", says="unknown flag --tag"),
    bake(WEB, "--push", "web", says="target web: --push needs a name"),
    bake(WEB, "--set", "web.context=no", "web", says="target web: the build context no is not"),
    bake(WEB, "--set", "web.network=host", "web", says="target web asks for network.host"),
    bake(WEB, "--metadata-file", "nowhere/m", "web", says="nowhere is not a folder"),
    bake(WEB, "https://example.org/x.git", says="would have to be fetched first"),
    bake(
        'target "web" {\n  context = "web"\n  output = ["type=local,dest=/outside"]\n}\n',
        "web",
        says="/outside, which is outside this directory",
    ),
    bake(
        'target "web" {\n  context = "web"\n  tags = ["images/a/b"]\n}\n',
        *("--push", "--mayfly-repo", "o/r", "web"),
        status=10,
        says="repo o/r may not push to images/a/b",
    ),
    # Words that are no command's.
    case("frobnicate", says="No such command 'frobnicate'"),
    case("status", "--colour", says="No such option: --colour"),
    case("lease", says="Missing command"),
    case("lease", "show", says="Missing argument 'LEASE'"),
    case("logs", says="Missing argument 'BUILD'"),
    case("doctor", "now", says="unexpected extra argument"),
    case("golden", "build", "x", says="unexpected extra argument"),
    case("base", "push", says="Missing argument"),
    case("base", "push", "windows", says="windows"),
    case("base", "push", "debian", "--platform", "vax", says="vax"),
    # The configuration.
    case("status", env={"MAYFLY_CONFIG": "/nowhere.toml"}, says="no such file"),
    case("status", env={"MAYFLY_CONFIG": "{here}"}, says="cannot be read"),
    case(
        *("status",),
        env={"MAYFLY_CONFIG": "{here}/m.toml"},
        files={"m.toml": "[pool\n"},
        says="not TOML",
    ),
    case(
        *("doctor",),
        env={"MAYFLY_CONFIG": "{here}/m.toml"},
        files={"m.toml": '[pool]\ncpu_overcommit = 99\n[vm]\ncolour = 1\nprovider = "magic"\n'},
        says=("pool.cpu_overcommit = 99", "vm.provider = 'magic'", "vm.colour: unknown option"),
    ),
    case(*UP, env={"MAYFLY_POOL__RESERVE_GB": "lots"}, says="MAYFLY_POOL__RESERVE_GB"),
    case(*UP, env={"MAYFLY_SERVER__LISTEN": "localhost"}, says="write it as ADDRESS:PORT"),
    case("down", env={"MAYFLY_LEASE__GRACE_S": "1"}, says="lease.grace_s"),
]

PLACES = [
    # Which farm, and who asks.
    case(*BUILD, "web", status=10, says="no token: MAYFLY_TOKEN is not set"),
    case("status", status=10, env={"MAYFLY_URL": NOBODY}, says="no token for MAYFLY_URL"),
    case("status", env={"MAYFLY_URL": "farm"}, says="MAYFLY_URL='farm' is not a URL"),
    case("status", env={"MAYFLY_URL": "https://x:99999"}, says="is not a URL"),
    case("status", env={"MAYFLY_URL": "http://farm.example"}, says="send the token unencrypted"),
    case("status", env={**REMOTE, "MAYFLY_TOKEN": "a\nb"}, says="MAYFLY_TOKEN is not a token"),
    case("status", env={**REMOTE, "MAYFLY_CA": "/nowhere"}, says="MAYFLY_CA=/nowhere"),
    case(
        *("status",),
        env={**REMOTE, "MAYFLY_CA": "{here}/web/Dockerfile"},
        says="not a PEM certificate",
    ),
    case("status", status=20, env=REMOTE, says=f"does not answer at {NOBODY}"),
    case(*BUILD, "web", status=20, env=REMOTE, says=f"does not answer at {NOBODY}"),
    case("lease", "ls", status=20, env=REMOTE, says=f"does not answer at {NOBODY}"),
    case(
        *("status",),
        status=20,
        env={"MAYFLY_URL": "http://127.0.0.1:{port}", "MAYFLY_TOKEN": "t"},
        says="does not answer at http://127.0.0.1:",
    ),
    # The machine's farm.
    case(*UP, status=21, root=False, says="VMs and their networks need root"),
    case("golden", "build", status=21, root=False, says="root"),
    case(
        *UP,
        status=21,
        env={"MAYFLY_SERVER__LISTEN": "127.0.0.1:{port}"},
        says="127.0.0.1:{port}",
    ),
    case(*UP, status=21, env={"MAYFLY_STATE": "{here}/" + "s" * 90}, says="path is longer than"),
    case(*UP, status=2, env={"MAYFLY_STATE": "{here}/web/Dockerfile"}, says="cannot be read"),
    case(*UP, status=21, env={"MAYFLY_CACHE": "{here}/empty"}, says="tools"),
    case(*UP, files=OTHER_VERSION, says="the state of another version of Mayfly (99"),
    case("down", files=OTHER_VERSION, says="the state of another version of Mayfly (99"),
    case("down", "--purge", files=OTHER_VERSION, says="the state of another version"),
    case(*UP, files={"state/version": "\x00\x01\x02"}, says="the state of another version"),
    case(*UP, files={"state/version/": ""}, says="cannot be read"),
    case(*UP, files={"state/mail/inbox": "dear"}, says="holds something else (mail)"),
    case("down", "--purge", files={"state/mail/inbox": "dear"}, says="holds something else (mail)"),
    case(*UP, files={"state/run/supervisor.json": "{record}"}, says="already running here"),
]


@pytest.fixture
def here() -> Iterator[Path]:
    """A folder with a context in it; its path is short, since sockets' paths must be."""
    with tempfile.TemporaryDirectory(prefix="mfb-") as name:
        folder = Path(name)
        (folder / "web").mkdir()
        (folder / "web" / "Dockerfile").write_text("FROM scratch\n")
        (folder / "empty").mkdir()
        (folder / "tmp").mkdir()
        yield folder


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port of a program that ends every connection at once."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()

        def end() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        threading.Thread(target=end, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def record() -> str:
    """What a supervisor that runs has written down; this process plays it."""
    me = asdict(ProcessId.of(os.getpid()))
    return json.dumps(
        {"supervisor": me, "since": "2026-01-01T00:00:00Z", "ready": True, "services": {}}
    )


def surroundings(here: Path) -> dict[str, str]:
    """The whole environment: no farm, no Docker, and all that is written is written in `here`."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(here),
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(here / "tmp"),
        "MAYFLY_STATE": str(here / "state"),
        "MAYFLY_CONFIG": "",
        "DOCKER_HOST": f"unix://{here}/no-docker.sock",
    }


def run(
    argv: tuple[str, ...], here: Path, env: Mapping[str, str], *, root: bool = True
) -> subprocess.CompletedProcess[str]:
    """`mayfly ARGV` in `here`, with hardly any environment, in a session of its own."""
    # In a user namespace without a mapping nobody is root, and files may be read all the same.
    front = () if root else ("unshare", "--user", "--")
    process = subprocess.Popen(
        [*front, sys.executable, "-m", "mayfly.cli.main", *argv],
        cwd=here,
        env={**surroundings(here), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    left = [pid for pid in _pids() if _session(pid) == process.pid]
    assert left == [], "a process was left behind"
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def _session(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder, and what is in it."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def check(done: subprocess.CompletedProcess[str], status: int, says: tuple[str, ...]) -> None:
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if not line.startswith("mayfly: warning: ")]
    assert done.returncode == status, done.stderr
    assert len(errors) == len(says), done.stderr
    assert done.stdout == ""
    for line, words in zip(errors, says, strict=True):
        assert line.startswith("mayfly: ")
        assert words in line
        excerpt = re.match(r"mayfly: {4,}\d* \| ", line)
        assert excerpt or re.search(r" - \S|: .*: ", line), "it says what to do, or where it is"


@pytest.mark.parametrize("each", WORDS, ids=lambda each: each.id)
def test_a_mistake_in_words(
    each: Case, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith(("MAYFLY_", "CI_", "BUILDX_"))]:
        monkeypatch.delenv(name)
    for name, value in {**surroundings(here), **each.env}.items():
        monkeypatch.setenv(name, value.replace("{here}", str(here)))
    monkeypatch.setattr("tempfile.tempdir", str(here / "tmp"))
    monkeypatch.chdir(here)
    for name, text in each.files.items():
        (here / name).write_text(text)
    before = tree(here)
    status = main.run(each.argv)
    said = capsys.readouterr()
    done = subprocess.CompletedProcess(each.argv, status, said.out, said.err)
    check(done, each.status, each.says)
    assert tree(here) == before, "nothing is left behind"


@pytest.mark.parametrize("each", [*WORDS[::8], *PLACES], ids=lambda each: each.id)
def test_a_mistake(each: Case, here: Path, deaf: int) -> None:
    def filled(text: str) -> str:
        text = text.replace("{here}", str(here)).replace("{port}", str(deaf))
        return text.replace("{record}", record())

    for name, text in each.files.items():
        path = here / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text(filled(text))
    before = tree(here)
    env = {name: filled(value) for name, value in each.env.items()}
    done = run(each.argv, here, env, root=each.root)
    check(done, each.status, tuple(map(filled, each.says)))
    assert tree(here) == before, "nothing is left behind"


# What only a farm can know: a real edge and a real orchestrator, without runners.

FARM = [
    case(*BUILD, "--mayfly-size", "huge", "web", says="unknown size 'huge'"),
    case(*BUILD, "--mayfly-size", "xlarge", "web", status=4, says="more than this machine holds"),
    case("lease", "show", "nosuch", says="nosuch"),
    case("lease", "rm", "../../x", says="../../x"),
    case("logs", "nosuch", says="nosuch"),
    case("logs", "--follow", "nosuch", says="nosuch"),
    case("status", status=10, env={"MAYFLY_TOKEN": "mayfly_admin_wrong"}, says="not this farm's"),
    case("status", status=10, env={"MAYFLY_TOKEN": "a.b.c"}, says="the token is not valid here"),
    case("status", status=10, env={"MAYFLY_TOKEN": "anything"}, says="unknown kind of token"),
    case("status", status=20, env={"MAYFLY_CA": ""}, says="set MAYFLY_CA"),
]


@pytest.mark.services
@pytest.mark.parametrize("each", FARM, ids=lambda each: each.id)
def test_a_mistake_that_a_farm_finds(each: Case, here: Path, serving: Serving) -> None:
    env = {"MAYFLY_URL": serving.url, "MAYFLY_TOKEN": serving.token, "MAYFLY_CA": str(serving.ca)}
    before = tree(here)
    check(run(each.argv, here, {**env, **each.env}), each.status, each.says)
    assert tree(here) == before


def test_a_folder_that_is_gone_and_a_reader_that_has_seen_enough(here: Path) -> None:
    gone = ["sh", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "sh"]
    mayfly = [sys.executable, "-m", "mayfly.cli.main"]
    for words in (["build", "."], ["bake"], ["spec", "check"], ["spec", "init"]):
        done = subprocess.run(
            [*gone, *mayfly, *words],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert "the current directory is gone - " in line
    closed = subprocess.run(
        ["sh", "-c", '"$@" build --help | true', "sh", *mayfly],
        cwd=here, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert closed.stderr == ""
