"""Every command teaches; every mistake is one line with what to do, and the documented status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer.main

from mayfly import __version__
from mayfly.build.result import Attempt, Result
from mayfly.cli import main
from mayfly.cli.app import app
from mayfly.cli.reference import reference
from mayfly.model import Outcome

ROOT = Path(__file__).resolve().parents[2]
NOBODY = "https://127.0.0.1:1"


def _commands() -> Iterator[tuple[str, ...]]:
    group: Any = typer.main.get_command(app)
    for name, command in group.commands.items():
        children = getattr(command, "commands", None)
        yield from ((name, child) for child in children) if children else ((name,),)


COMMANDS = sorted(_commands())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a Dockerfile in it, and no farm on this machine."""
    monkeypatch.chdir(tmp_path)
    for name in ("CI_REPO", "MAYFLY_CONFIG", "MAYFLY_URL", "MAYFLY_TOKEN", "DOCKER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-docker.sock")
    monkeypatch.setenv("MAYFLY_STATE", str(tmp_path / "state"))
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_the_commands_of_this_version_are_there() -> None:
    words = {" ".join(command) for command in COMMANDS}
    assert words >= {
        *("up", "down", "status", "doctor", "build", "bake", "logs", "base push", "why", "size"),
        *("lease ls", "lease show", "lease rm", "golden build", "golden ls"),
        *("token create", "token ls", "token revoke"),
        *("spec check", "spec init", "spec schema"),
        *("run", "shell", "cache ls", "cache reset"),
    }


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_teaches_with_an_example(
    command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run([*command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "Example" in text
    assert f"mayfly {' '.join(command)}" in text.partition("Example")[2]


def test_the_reference_is_what_the_commands_say() -> None:
    written = (ROOT / "docs" / "reference.md").read_text()
    assert written == reference(), "run: python -m mayfly.cli.reference > docs/reference.md"
    for command in COMMANDS:
        assert f"### `mayfly {' '.join(command)}`" in written


@pytest.mark.parametrize(
    "command",
    [
        *(("lease", "ls"), ("golden", "ls"), ("status",), ("doctor",), ("why",), ("size",)),
        *(("cache", "ls"), ("cache", "reset")),
    ],
    ids=" ".join,
)
def test_what_lists_has_json(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    main.run([*command, "--help"])
    assert "--json" in capsys.readouterr().out


def test_a_typo_in_a_spec_is_one_error_with_a_caret(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "web" / ".build-spec.ncl").write_text("{\n  cpu = 4,\n  memroy_gb = 8,\n}\n")
    (here / "docker-bake.hcl").write_text('target "default" { context = "web" }\n')
    expected = [
        "mayfly: web/.build-spec.ncl:3:3: there is no field memroy_gb, expected one of "
        "schema_version, cpu, memory_gb, disk_gb, time_budget_min, cache_keys, oom_retry "
        "- did you mean memory_gb?",
        "mayfly:     3 |   memroy_gb = 8,",
        "mayfly:       |   ^^^^^^^^^",
    ]
    for words in (
        ["build", "web"],
        ["bake", "--mayfly-spec", "web/.build-spec.ncl"],
        ["spec", "check", "web"],
    ):
        assert main.run(words) == 3
        assert capsys.readouterr().err.splitlines() == expected


def test_a_spec_is_written_once_and_checked(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "Cargo.toml").touch()
    assert main.run(["spec", "init"]) == 0
    text = (here / ".build-spec.ncl").read_text()
    assert "Found here: rust;" in text
    assert main.run(["spec", "init"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main.run(["spec", "init", "--stdout"]) == 0
    assert capsys.readouterr().out == text
    (here / ".build-spec.ncl").write_text('{ cpu = 4, memory_gb = 1.5, cache_keys = ["a", "b"] }')
    assert main.run(["spec", "check"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        ".build-spec.ncl",
        "schema_version   1",
        "cpu              4",
        "memory_gb        1.5",
        "cache_keys       a, b",
        "oom_retry        true",
    ]
    assert main.run(["spec", "check", "--json", ".build-spec.ncl"]) == 0
    assert json.loads(capsys.readouterr().out)["spec"]["cache_keys"] == ["a", "b"]
    assert main.run(["spec", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == ".build-spec.ncl"


@pytest.mark.parametrize("words", [["build", "-t", "x", "-h"], ["bake", "--print", "--help"]])
def test_build_help_names_our_flags_and_where_the_others_are(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(words) == 0
    text = capsys.readouterr().out
    for flag in ("--mayfly-size", "--mayfly-repo", "--mayfly-spec", "--mayfly-cache-key"):
        assert flag in text
    assert f"docker buildx {words[0]} --help" in text


def test_a_definition_is_looked_at_without_a_farm(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "docker-bake.hcl").write_text('target "web" { tags = ["images/o/r"] }\n')
    assert main.run(["bake", "--print", "web"]) == 0
    tags = json.loads(capsys.readouterr().out)["target"]["web"]["tags"]
    assert tags == ["registry.mayfly.internal:5000/images/o/r"]
    assert main.run(["bake", "--list", "targets"]) == 0
    assert "web" in capsys.readouterr().out


def test_a_definition_that_keeps_nothing_warns_in_one_line(
    here: Path, farm: dict[str, tuple[int, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "docker-bake.hcl").write_text('target "default" { context = "web" }\n')
    farm["/v1/leases"] = (403, _error("denied", "no", ""))
    assert main.run(["bake"]) == 10
    warning, refusal = capsys.readouterr().err.splitlines()
    assert "default: stays in the build cache - add --push" in warning
    assert refusal == "mayfly: no"


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err + captured.out
    (line,) = captured.err.splitlines()
    assert line.startswith("mayfly: ")
    return line


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (["build"], 2, "build context is missing - "),
        (["build", "nowhere"], 2, "context nowhere is not there - "),
        (["build", "web/Dockerfile"], 2, "is not a directory - "),
        (["build", "empty"], 2, "no Dockerfile in empty - "),
        (["build", "-f", "Nope", "web"], 2, "Dockerfile Nope is not there - "),
        (["build", "--no-such-flag", "web"], 2, "unknown flag --no-such-flag - "),
        (["build", "--tag"], 2, "--tag needs a value - "),
        (["build", "--builder", "x", "web"], 2, "--builder cannot be chosen"),
        (["build", "--allow", "network.host", "web"], 2, "network.host is refused"),
        (["build", "--load", "web"], 2, "-o type=oci,dest="),
        (["build", "--push", "web"], 2, "needs a name for the image - "),
        (["build", "-t", "A B", "web"], 2, "no image name - "),
        (["build", "--mayfly-repo", "…", "web"], 2, "no repo name can be made"),
        (["build", "--mayfly-repo", "base/x", "web"], 2, "'base/x'"),
        (["build", "--mayfly-repo", "o/r", "-t", "images/a/b", "--push", "web"], 10, "o/r may not"),
        (["build", "--mayfly-repo", "o", "-t", "images/o/r", "--push", "web"], 10, "images/o, or"),
        (["build", "-o", "out", "web"], 10, "no token: "),
        (["status"], 10, "no token: "),
        (["frobnicate"], 2, "No such command 'frobnicate' - "),
        (["status", "--colour"], 2, "No such option: --colour - "),
        (["lease"], 2, "Missing command - "),
        (["run"], 2, "Missing argument 'COMMAND…' - "),
        (["run", "--frobnicate", "--", "true"], 2, "No such option: --frobnicate - "),
        (["run", "--artifact", "/etc", "--", "true"], 2, "is no path below this directory"),
        (["run", "--repo", "base/x", "--", "true"], 2, "'base/x'"),
        (["run", "--", "true"], 10, "no token: "),
        (["run", "--repo", "o/r", "cargo", "--version"], 10, "no token: "),
        (["shell"], 2, "Missing argument 'BUILD' - "),
        (["shell", "x", "--", "ls"], 10, "no token: "),
        (["cache", "reset"], 2, "either --repo OWNER/NAME or --all"),
        (["cache", "reset", "--all", "--repo", "o/r"], 2, "either --repo OWNER/NAME or --all"),
        (["build", "--mayfly-keep-on-failure=x", "web"], 2, "write it as --mayfly-keep-on-failur"),
        (["lease", "show"], 2, "Missing argument 'LEASE' - "),
        (["logs"], 2, "Missing argument 'BUILD' - "),
        (["base", "push"], 2, "Missing argument"),
        (["base", "push", "debian", "perl"], 2, "no base image is called 'perl' - use debian, "),
        (
            ["base", "push", "go", "--platform", "linux/mips"],
            2,
            "platform 'linux/mips' - use linux",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line_with_what_to_do(
    words: list[str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(words) == status
    line = _said(capsys)
    assert says in line
    assert " - " in line, "it says what to do"


@pytest.mark.parametrize(
    "words",
    [
        ["build", "-o", "out", "web"],
        ["status"],
        ["lease", "ls"],
        ["lease", "show", "x"],
        ["lease", "rm", "x"],
        ["logs", "x"],
        ["run", "--", "true"],
        ["shell", "x", "--", "ls"],
    ],
    ids=" ".join,
)
def test_an_orchestrator_that_does_not_answer(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAYFLY_URL", NOBODY)
    monkeypatch.setenv("MAYFLY_TOKEN", "t")
    assert main.run(words) == 20
    assert f"does not answer at {NOBODY}" in _said(capsys)


@pytest.fixture
def farm(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, Any]]]:
    """Answers by path, as the orchestrator would give them."""
    answers: dict[str, tuple[int, Any]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers[self.path.partition("?")[0]]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            asked = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            answers[f"asked {self.path}"] = (0, asked)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MAYFLY_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("MAYFLY_TOKEN", "t")
    yield answers
    server.shutdown()
    server.server_close()


def _error(code: str, message: str, hint: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "hint": hint}}


@pytest.mark.parametrize(
    ("http", "code", "status"),
    [
        (400, "usage", 2),
        (422, "too_big", 4),
        (403, "denied", 10),
        (503, "machine_unfit", 21),
        (503, "infrastructure", 20),
    ],
)
def test_a_refused_build_ends_with_the_code_of_the_refusal(
    http: int,
    code: str,
    status: int,
    farm: dict[str, tuple[int, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    farm["/v1/leases"] = (http, _error(code, "unknown size 'huge'", "choose one of t1, t2"))
    assert main.run(["build", "--mayfly-size", "huge", "-o", "out", "web"]) == status
    assert _said(capsys) == "mayfly: unknown size 'huge' - choose one of t1, t2"


def test_a_build_that_keeps_nothing_warns_in_one_line(
    farm: dict[str, tuple[int, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    farm["/v1/leases"] = (403, _error("denied", "no", ""))
    main.run(["build", "web"])
    warning, refusal = capsys.readouterr().err.splitlines()
    assert "stays in the build cache - add --push or -o" in warning
    assert refusal == "mayfly: no"


@pytest.mark.parametrize(
    ("counts", "status", "says"),
    [
        ("budget_exceeded", 7, "ended as budget_exceeded"),
        ("cancelled", 130, "ended as cancelled"),
        ("client_lost", 20, "ended as client_lost"),
        ("runner_lost", 20, "ended as runner_lost"),
    ],
)
@pytest.mark.parametrize("own", [Outcome.FAILED, Outcome.SUCCEEDED])
def test_a_build_that_had_ended_meanwhile_says_how(
    own: Outcome,
    counts: str,
    status: int,
    says: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def build(*_: object) -> Result:
        return Result("aaaa", Outcome(counts), (Attempt("t1", own),))

    monkeypatch.setenv("MAYFLY_TOKEN", "t")
    monkeypatch.setattr("mayfly.flow.build", build)
    assert main.run(["build", "-o", "out", "web"]) == status
    assert says in _said(capsys)


def test_a_log_is_printed_whole(
    farm: dict[str, tuple[int, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    farm["/v1/builds/x"] = (200, {"ended_at": "2026-01-01T00:00:00Z"})
    farm["/v1/builds/x/log"] = (200, "#1 ä\n#1 DONE\n".encode())
    assert main.run(["logs", "--follow", "x"]) == 0
    assert capfd.readouterr().out == "#1 ä\n#1 DONE\n"


def test_leases_are_listed(
    farm: dict[str, tuple[int, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    farm["/v1/leases"] = (200, [])
    assert main.run(["lease", "ls"]) == 0
    assert capsys.readouterr().out == "no leases\n"
    assert main.run(["lease", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


SIZING: dict[str, Any] = {
    "size": {"name": "medium", "cpus": 4, "memory_bytes": 8 << 30, "disk_bytes": 40 << 30},
    "lines": ["size medium: memory 8 GiB, what is usual for the language", "declared: nothing"],
}


def test_the_size_of_the_next_build_is_asked_for_with_what_is_here(
    here: Path, farm: dict[str, tuple[int, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    farm["/v1/size"] = (200, SIZING)
    (here / "Cargo.toml").touch()
    assert main.run(["size", "--repo", "Team/App"]) == 0
    assert capsys.readouterr().out.splitlines() == SIZING["lines"]
    assert main.run(["size", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == SIZING
    asked = json.loads(farm["asked /v1/size"][1])
    assert (asked["repo"], asked["languages"]) == (here.name, ["rust"])
    farm["/v1/size"] = (422, _error("too_big", "no size holds it", "declare less"))
    assert main.run(["size"]) == 4


def test_why_a_build_had_its_size_is_told_with_its_attempts(
    farm: dict[str, tuple[int, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    attempt = {
        "attempt": 1, "size": "medium", "memory_limit_bytes": 8 << 30, "outcome": "failed",
        "memory_bytes": 3 << 29, "cpu": 1.5, "oom_kills": 0, "counts": True, "vm_s": 65.0,
        "cost": None,
    }  # fmt: skip
    told = {
        "build": "x", "repo": "team/app", "target": "", "sizing": SIZING, "attempts": [attempt],
        "trouble": "",
    }  # fmt: skip
    farm["/v1/builds/x/why"] = (200, told)
    assert main.run(["why", "x"]) == 0
    out = capsys.readouterr().out
    assert SIZING["lines"][0] in out
    assert "1.50 GiB" in out and "1 min 5 s" in out
    assert main.run(["why", "x", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == told
    farm["/v1/builds/x/why"] = (200, {**told, "sizing": None, "attempts": [], "trouble": "away"})
    assert main.run(["why", "x"]) == 0
    captured = capsys.readouterr()
    assert "not known any more" in captured.out and "away" in captured.err


def test_every_fault_of_a_configuration_is_said_at_once(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = here / "mayfly.toml"
    file.write_text('[pool]\ncpu_overcommit = 99\n[vm]\nprovider = "magic"\ncolour = 1\n')
    monkeypatch.setenv("MAYFLY_CONFIG", str(file))
    for words in (["status"], ["build", "web"], ["up"], ["doctor"]):
        assert main.run(words) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        assert all(line.startswith(f"mayfly: {file}: ") for line in lines)


@pytest.mark.parametrize("qemu", ["missing", "old"])
def test_doctor_says_what_is_missing_and_how_to_mend_it(
    qemu: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = here / "qemu"
    if qemu == "old":
        program.write_text("#!/bin/sh\necho QEMU emulator version 7.2.1\n")
        program.chmod(0o755)
    monkeypatch.setenv("MAYFLY_VM__QEMU", str(program))
    assert main.run(["doctor"]) == 21
    text = capsys.readouterr().out
    assert "fail  QEMU: " in text
    assert "install qemu-system-x86 8.2 or newer" in text
    assert main.run(["doctor", "--json"]) == 21
    found = {check["name"]: check for check in json.loads(capsys.readouterr().out)}
    assert found["QEMU"]["state"] == "fail"
    assert found["QEMU"]["mend"]


def test_doctor_leaves_nothing_behind(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAYFLY_VM__ACCELERATOR", "tcg")
    before = sorted(here.rglob("*"))
    main.run(["doctor"])
    assert sorted(here.rglob("*")) == before


def test_an_unexpected_fault_is_one_line_and_a_file(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(here))

    def broken(*_: object) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr("mayfly.cli.build.run", broken)
    assert main.run(["build", "web"]) == 70
    assert "internal error (RuntimeError) - report it with " in _said(capsys)
    (file,) = here.glob("mayfly-error-*.log")
    assert "a bug" in file.read_text()
    assert main.run(["--debug", "build", "web"]) == 70
    assert "RuntimeError: a bug" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "unwanted", "said"),
    [
        (["--version"], {"typer", "pydantic", "asyncio", "httpx"}, f"mayfly {__version__}\n"),
        (["build", "-o", "x", "."], {"typer", "fastapi", "boto3"}, ""),
    ],
)
def test_what_must_be_quick_loads_nothing_that_it_does_not_need(
    words: list[str], unwanted: set[str], said: str
) -> None:
    code = (
        f"import sys; from mayfly.cli import main; main.run({words});"
        f"print('loaded', *sorted(m for m in sys.modules if m in {sorted(unwanted)}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"{said}loaded\n"


def test_a_first_spec_declares_what_the_farm_knows(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "go.mod").touch()
    needs = [
        {"dimension": "cpu", "history": 1.2},
        {"dimension": "memory", "history": 3 * 2.0**30},
    ]
    answer = {"history": {"builds": 7}, "needs": needs}
    monkeypatch.setattr("mayfly.cli.farm.ask", lambda question: answer)
    assert main.run(["spec", "init", "--stdout"]) == 0
    said = capsys.readouterr().out
    assert "  cpu = 2,  #" in said and "  memory_gb = 3,  #" in said
    assert "by the last 7 attempts" in said


@pytest.mark.parametrize(
    ("words", "status"), [(("build", "nowhere"), 2), (("spec", "schema"), 0), (("--help",), 0)]
)
def test_a_reader_that_has_gone_changes_no_exit_status(
    here: Path, words: tuple[str, ...], status: int
) -> None:
    """As with `mayfly build … 2>&1 | head`: what failed has failed, and nothing else has."""
    reading, writing = os.pipe()
    os.close(reading)
    program = Path(sys.executable).with_name("mayfly")
    done = subprocess.run(
        [program, *words], stdout=writing, stderr=writing, check=False, timeout=60
    )
    os.close(writing)
    assert done.returncode == status
