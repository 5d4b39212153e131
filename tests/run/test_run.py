"""`mayfly run`, with a scripted farm, a real SSH server and a buildx that runs what it is given."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import textwrap
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mayfly import flow
from mayfly.build import pair, result, ssh
from mayfly.config import Config
from mayfly.errors import Cancelled, InfrastructureError, UsageError
from mayfly.model import Outcome
from mayfly.run import image, inside, request, story
from mayfly.run.request import Options, Run
from tests.build.fake_runner import FakeRunner, fake_runner, pair_of
from tests.build.test_ssh import echo
from tests.flow.fake_farm import FakeFarm

HOST = "registry.mayfly.internal:5000"
CONFIG = Config.model_validate({"lease": {"heartbeat_s": 0.5}})
# What BuildKit does with our Dockerfile, in a folder instead of a root: COPY, RUN, COPY, a tar.
BUILDX = """
    #!/usr/bin/env python3
    import base64, json, os, re, shutil, subprocess, sys, tarfile
    words = sys.argv[1:]
    with open(os.environ["NOTES"], "a") as notes:
        print(json.dumps(words), file=notes)
    if words[0] != "build":
        sys.exit(0)
    def say(**what):
        print(json.dumps(what), file=sys.stderr, flush=True)
    text = open(words[words.index("--file") + 1]).read()
    say(vertexes=[{"digest": "sha256:1", "name": "[run 1/4] FROM base"}])
    if os.environ.get("BEHAVE") == "unread":
        name = "[internal] load metadata for registry.mayfly.internal:5000/images/base/rust:latest"
        for _ in range(2):
            say(vertexes=[{"digest": "sha256:2", "name": name, "error": "not found"}])
        print("ERROR: failed to build", file=sys.stderr)
        sys.exit(1)
    if os.environ.get("BEHAVE") == "killed":
        say(vertexes=[{"digest": "sha256:2", "name": "[run 4/4] RUN x", "error": "exit code: 137"}])
        sys.exit(1)
    root = os.environ["ROOT"]
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(words[-1], root + "/src")
    mounts, step = re.search(r"^RUN ((?:--mount=\\S+ )*)(.*)$", text, re.M).groups()
    say(vertexes=[{"digest": "sha256:3", "name": "[run 4/4] RUN " + mounts + step}])
    with open(os.environ["NOTES"], "a") as notes:
        print(json.dumps(["RUN", step]), file=notes)
    secrets = [w.partition("env=")[2] for w in words if w.startswith("id=")]
    given = {name: os.environ.pop(name) for name in secrets}
    wanted = re.findall(r"--mount=type=secret,id=(\\w+),env=(\\w+),required ", mounts)
    os.environ |= {name: given[id] for id, name in wanted}
    step = json.loads(step)
    for place in ("/.mayfly", "/src"):
        step[2] = step[2].replace(place, root + place)
    ran = subprocess.run(step, cwd=root + "/src", capture_output=True)
    for stream, data in ((1, ran.stdout), (2, ran.stderr)):
        text = base64.b64encode(data).decode()
        say(logs=[{"vertex": "sha256:3", "stream": stream, "data": text}])
    assert ran.returncode == 0, ran
    with tarfile.open(words[words.index("--output") + 1].rpartition("=")[2], "w") as tar:
        tar.add(root + "/.mayfly", ".mayfly")
"""


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test ends without a temporary directory of a run."""
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    yield
    assert list(scratch.iterdir()) == []


@pytest.fixture
async def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeRunner]:
    made, buildkit = ssh.new_key(), tmp_path / "buildkitd.sock"
    monkeypatch.setattr(pair, "new", lambda: pair_of(made))
    there = tmp_path / "there"
    enter = f"mkdir -p {there} && cd {there} && export HOME={there} && "
    monkeypatch.setattr(inside, "ENTER", enter)
    async with echo(buildkit), fake_runner(ssh.public_line(made), buildkit) as runner:
        yield runner


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The directory that a person is in."""
    made = tmp_path / "here"
    made.mkdir()
    (made / "data.txt").write_text("data\n")
    return made


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    program = tmp_path / "buildx"
    program.write_text(textwrap.dedent(BUILDX).lstrip())
    program.chmod(0o755)
    monkeypatch.setattr(flow, "buildx_of", lambda _: program)
    here = {"NOTES": tmp_path / "notes", "ROOT": tmp_path / "root"}
    return {"PATH": os.environ["PATH"], **{name: str(path) for name, path in here.items()}}


WHERE = pytest.mark.parametrize("where", ["none", "images/base/rust"])


def asked(folder: Path, *command: str, **options: Any) -> Run:
    given = Options(repo="o/r", **options)
    return request.prepare(command, given, CONFIG, {"FROM_HERE": "yes"}, folder)


async def run(
    wanted: Run, farm: FakeFarm, environ: dict[str, str], lines: list[str] | None = None
) -> story.Ended:
    shown: list[str] = [] if lines is None else lines
    async with asyncio.timeout(30):
        return await story.run(wanted, farm, CONFIG, environ, shown.append)


@WHERE
async def test_a_command_has_the_directory_its_streams_apart_and_its_own_status(
    folder: Path,
    runner: FakeRunner,
    environ: dict[str, str],
    where: str,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    farm = FakeFarm(runner)
    script = "cat data.txt; echo $GIVEN $FROM_HERE; echo oops >&2; exit 37"
    wanted = asked(
        folder, "sh", "-c", script, image=where, env=["GIVEN=a b", "FROM_HERE", "UNSET"], size="t2"
    )
    ended = await run(wanted, farm, environ)
    said = capfdbinary.readouterr()
    assert said.out == b"data\na b yes\n"
    assert said.err.endswith(b"oops\n")
    assert (ended.exit_status, ended.status, ended.result.outcome) == (37, 37, Outcome.FAILED)
    assert farm.request is not None
    assert (farm.request.repo, farm.request.size, farm.request.target) == ("o/r", "t2", "run")
    assert [report["outcome"] for report in farm.reports] == [Outcome.FAILED]
    for line in (b"data\n", b"a b yes\n", b"oops\n"):
        assert line in farm.log
    assert farm.deleted == []


async def test_a_command_that_fails_after_a_while_is_run_once(
    folder: Path, runner: FakeRunner, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for a build that BuildKit never began, which is made again."""
    monkeypatch.setattr(result, "BEGIN_S", 0.0)
    farm = FakeFarm(runner)
    ended = await run(asked(folder, "false", image="images/base/rust"), farm, environ)
    assert (ended.exit_status, ended.status) == (1, 1)
    assert [report["outcome"] for report in farm.reports] == [Outcome.FAILED]
    assert ended.result.last.reconnects == 0


async def test_no_name_of_a_step_has_a_value_in_it_and_the_command_has_just_what_it_was_given(
    folder: Path,
    runner: FakeRunner,
    environ: dict[str, str],
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    """A step's name is kept with the build's usage, and said when the step fails."""
    given = {"TOKEN": 'hush\'$x "hush"', "EMPTY": "", "PATH": f"/nowhere:{os.environ['PATH']}"}
    words = [f"{name}={value}" for name, value in given.items()]
    script = 'echo "$TOKEN|$EMPTY|$PATH"; env | grep -c MAYFLY_VALUE_'
    wanted = asked(folder, "sh", "-c", script, image="images/base/rust", env=words)
    ended = await run(wanted, FakeFarm(runner), environ)
    said = "|".join(given.values())
    assert capfdbinary.readouterr().out.decode() == f"{said}\n0\n"
    assert ended.status == 1, "grep's: none is left"
    told = (tmp_path / "notes").read_text()
    assert "RUN" in told
    assert "hush" not in told


@WHERE
@pytest.mark.parametrize("status", [0, 3])
async def test_artifacts_come_back_however_it_ends_and_nothing_else_does(
    folder: Path, runner: FakeRunner, environ: dict[str, str], where: str, status: int
) -> None:
    (folder / "out").mkdir()
    (folder / "out/old").write_text("old")
    script = "mkdir -p out/deep; echo 1 > out/deep/a.xml; echo 2 > b.log; echo 3 > c; rm data.txt"
    script += f"; exit {status}"
    wanted = asked(folder, "sh", "-c", script, image=where, artifacts=["out", "*.log", "no such"])
    lines: list[str] = []
    ended = await run(wanted, FakeFarm(runner), environ, lines)
    assert ended.exit_status == status
    found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert found == ["b.log", "data.txt", "out/deep/a.xml", "out/old"]
    assert (folder / "b.log").read_text() == "2\n"
    assert [line for line in lines if "warning" in line] == [
        "warning: there is no no such to bring back"
    ]


@WHERE
async def test_what_is_ignored_stays_here(
    folder: Path, runner: FakeRunner, environ: dict[str, str], where: str, tmp_path: Path
) -> None:
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("secret")
    wanted = asked(folder, "true", image=where)
    ended = await run(wanted, FakeFarm(runner), environ)
    assert ended.exit_status == 0
    if where == "none":
        assert sorted(p.name for p in (tmp_path / "there").iterdir()) == ["data.txt"]
    else:
        calls = [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]
        (words,) = (call for call in calls if call[0] == "build")
        assert words[words.index("--no-cache-filter") + 1] == "run"
        assert not any("cache-to" in word or "cache-from" in word for word in words)


def test_buildkit_is_told_what_stays_here_unless_there_is_a_dockerignore(
    folder: Path, environ: dict[str, str]
) -> None:
    wanted = asked(folder, "true", image="images/base/rust")
    with image.prepared(wanted, CONFIG, environ) as (made, _):
        file = Path(made.args.buildx[made.args.buildx.index("--file") + 1])
        assert (file.parent / "Dockerfile.dockerignore").read_text() == ".git\n"
    (folder / ".dockerignore").write_text("x")
    with image.prepared(wanted, CONFIG, environ) as (made, _):
        file = Path(made.args.buildx[made.args.buildx.index("--file") + 1])
        assert [path.name for path in file.parent.iterdir()] == ["Dockerfile"]
        assert made.bases == (f"{HOST}/images/base/rust",)


async def test_an_image_that_is_not_there_is_no_status_of_the_commands(
    folder: Path,
    runner: FakeRunner,
    environ: dict[str, str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    environ["BEHAVE"] = "unread"
    runner.registry = 404
    ended = await run(asked(folder, "true", image="images/base/rust"), FakeFarm(runner), environ)
    assert (ended.status, ended.exit_status) == (None, 1)
    assert ended.unread == (f"{HOST}/images/base/rust:latest",)
    assert capfd.readouterr().err.count("not found") == 1, "each error is said once"


async def test_out_of_memory_is_mayflys_word_and_the_next_attempt_begins_anew(
    folder: Path, runner: FakeRunner, environ: dict[str, str]
) -> None:
    farm = FakeFarm(runner, verdicts=["retry", "done"])
    ended = await run(
        asked(folder, "sh", "-c", "exit 137", image="images/base/rust"), farm, environ
    )
    assert [report["attempt"] for report in farm.reports] == [1, 2]
    assert ended.exit_status == 137
    farm = FakeFarm(runner, overruled="oom")
    ended = await run(
        asked(folder, "sh", "-c", "exit 137", image="images/base/rust"), farm, environ
    )
    assert (ended.exit_status, ended.status) == (5, 137)


async def test_a_lost_connection_is_infrastructure_and_not_the_commands_status(
    folder: Path, runner: FakeRunner, environ: dict[str, str]
) -> None:
    farm = FakeFarm(runner)
    running = asyncio.create_task(run(asked(folder, "sleep", "60", image="none"), farm, environ))
    async with asyncio.timeout(20):
        while not any("sleep 60" in command for command in runner.commands):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await runner.cut()
    ended = await running
    assert (ended.exit_status, ended.status) == (20, None)
    assert isinstance(ended.result.error, InfrastructureError)
    assert farm.reports[0]["outcome"] is Outcome.INFRASTRUCTURE


async def test_ctrl_c_ends_the_lease(
    folder: Path, runner: FakeRunner, environ: dict[str, str], tmp_path: Path
) -> None:
    farm = FakeFarm(runner)
    wanted = asked(folder, "sh", "-c", "echo $$ > pid; exec sleep 60", image="none")
    running = asyncio.create_task(run(wanted, farm, environ))
    pid = tmp_path / "there/pid"
    async with asyncio.timeout(20):
        while not (pid.exists() and pid.read_text().strip()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Cancelled):
            await running
    assert farm.deleted == [Outcome.CANCELLED]


def test_the_image_is_the_languages_unless_somebody_says(folder: Path) -> None:
    assert asked(folder, "true").image == ""
    (folder / "Cargo.toml").touch()
    assert asked(folder, "true").image == f"{HOST}/images/base/rust"
    assert asked(folder, "true", image="none").image == ""
    assert asked(folder, "true", image="docker.io/rust:1").image == "docker.io/rust:1"
    assert asked(folder, "true").languages == ("rust",)


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ((), {}, "there is no command - write it behind --"),
        (("",), {}, "there is no command"),
        (("a\0b",), {}, "NUL"),
        (("true",), {"image": "No Image"}, "is no image name"),
        (("true",), {"artifacts": ["../x"]}, "is no path below this directory"),
        (("true",), {"env": ["1=2"]}, "is no variable's name"),
        (("true",), {"result": "no/such/file"}, "its folder is not there"),
        (("true",), {"spec": "none.ncl"}, "none.ncl"),
    ],
)
def test_what_is_wrong_is_said_before_any_vm(
    folder: Path, command: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message.replace("(", r"\(")) as error:
        asked(folder, *command, **options)
    assert isinstance(error.value, UsageError) or error.value.exit_status == 3  # type: ignore[attr-defined]


def test_the_result_is_written_with_both_statuses(folder: Path, tmp_path: Path) -> None:
    from mayfly.build.result import Attempt, Result

    result = Result("b1", Outcome.OOM, (Attempt("t1", Outcome.FAILED),))
    story.write_result(tmp_path / "r.json", story.Ended(result, 137))
    assert json.loads((tmp_path / "r.json").read_text()) == {
        "build": "b1",
        "outcome": "oom",
        "exit_status": 5,
        "command_status": 137,
        "size": "t1",
    }
    ok = replace(result, outcome=Outcome.SUCCEEDED)
    assert story.Ended(ok, 0).exit_status == 0
    with pytest.raises(UsageError, match="cannot be written"):
        story.write_result(tmp_path, story.Ended(result, 1))
    story.forget_result(tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
    (tmp_path / "stdout").symlink_to("/dev/null")
    for other in ("r.json", "stdout", "."):
        story.forget_result(tmp_path / other)
    assert (tmp_path / "stdout").is_symlink()
