"""The program as Woodpecker starts it, against a real edge, orchestrator and fake provider."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from mayfly.client import tls_context
from mayfly.launcher import main
from mayfly.wire import BuildJson
from tests.serving import Serving

pytestmark = pytest.mark.services

PROGRAM = Path(sys.executable).with_name("buildkit-launcher")
# What `woodpecker-cli exec` gives a step, as far as we read it.
CI = {
    "CI": "woodpecker",
    "CI_REPO": "team/app",
    "CI_REPO_DEFAULT_BRANCH": "main",
    "CI_COMMIT_REF": "refs/heads/main",
    "CI_COMMIT_SHA": "c0ffee",
    "CI_PIPELINE_EVENT": "push",
    "CI_PIPELINE_NUMBER": "7",
}


@dataclass
class Step:
    """A step in a directory of its own."""

    folder: Path
    serving: Serving
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def environ(self, settings: Mapping[str, str], ci: Mapping[str, str]) -> dict[str, str]:
        given = {"url": self.serving.url, "token": self.serving.token, "ca": str(self.serving.ca)}
        settings = {**given, **settings}
        plugin = {f"PLUGIN_{name.upper()}": text for name, text in settings.items() if text}
        home = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        if cache := os.environ.get("MAYFLY_CACHE"):
            home["MAYFLY_CACHE"] = cache
        return {**home, **CI, **ci, **plugin}

    def start(self, ci: Mapping[str, str] | None = None, **settings: str) -> subprocess.Popen[str]:
        self.started.append(
            subprocess.Popen(
                [PROGRAM],
                cwd=self.folder,
                env=self.environ(settings, ci or {}),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                process_group=0,
            )
        )
        return self.started[-1]

    def run(self, ci: Mapping[str, str] | None = None, **settings: str) -> tuple[int, str]:
        """Exit status, and all that the step's log has."""
        process = self.start(ci, **settings)
        said, _ = process.communicate(timeout=60)
        return process.returncode, said

    def builds(self) -> list[BuildJson]:
        async def ask() -> list[BuildJson]:
            async with self.serving.client() as api:
                return await api.builds()

        return asyncio.run(ask())

    def until(self, holds: Callable[[], Any], timeout_s: float = 30) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := holds()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s"
            time.sleep(0.05)
        return found

    def asked(self, before: int) -> BuildJson:
        """The build that was asked for since there were `before`."""
        self.until(lambda: len(self.builds()) > before)
        return self.builds()[0]


@pytest.fixture
def step(tmp_path: Path, serving: Serving) -> Iterator[Step]:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    found = Step(tmp_path, serving)
    yield found
    for process in found.started:
        process.kill()
        process.communicate()


def test_every_fault_of_every_kind_at_once_and_no_lease(step: Step) -> None:
    (step.folder / "Dockerfile").unlink()
    (step.folder / ".build-spec.ncl").write_text("{ cpu = 0 }")
    before = len(step.builds())
    status, said = step.run(
        repo="images/other/app", memory_gb="lots", dry_run="perhaps", xyzzy="1", logins="me:hush"
    )
    assert status == 2
    lines = said.splitlines()
    assert all(line.startswith("buildkit-launcher: ") for line in lines[:6])
    for part in (
        "memory_gb: 'lots' is no number",
        "dry_run: 'perhaps' is neither true nor false",
        "xyzzy: there is no such setting",
        "logins: is no list of maps",
        "there is no Dockerfile in .",
        ".build-spec.ncl:",
        "may not push to images/other/app",
    ):
        assert any(part in line for line in lines), (part, said)
    assert "Traceback" not in said and "hush" not in said
    assert len(step.builds()) == before


def test_the_exit_code_is_that_of_the_gravest_kind(step: Step) -> None:
    (step.folder / ".build-spec.ncl").write_text("{ cpu = 0 }")
    assert step.run(repo="images/other/app")[0] == 3
    (step.folder / ".build-spec.ncl").unlink()
    assert step.run(repo="images/other/app")[0] == 10
    assert step.run(repo="images/team/app", dockerfile="Absent")[0] == 2


def test_what_the_farm_says_no_to(step: Step) -> None:
    status, said = step.run(repo="images/team/app", memory_gb="4000")
    assert (status, "no size holds what the build spec declares" in said) == (4, True), said
    status, said = step.run(repo="images/team/app", token="mayfly_admin_hush-hush")
    assert (status, "hush" in said) == (10, False), said
    status, said = step.run(repo="images/team/app", size="huge")
    assert status == 2, said


def test_a_farm_that_does_not_answer_is_tried_twice(step: Step) -> None:
    status, said = step.run(repo="images/team/app", url="http://127.0.0.1:9", ca="")
    assert status == 20
    assert said.count("Mayfly does not answer at http://127.0.0.1:9") == 2
    assert "trying once more" in said


def test_the_lease_is_what_settings_and_ci_say(step: Step) -> None:
    (step.folder / ".build-spec.ncl").write_text("{ cpu = 1, memory_gb = 1 }")
    before = len(step.builds())
    step.start(repo="images/team/app", target="web", cpu="2", supersede="true")
    build = step.asked(before)
    assert (build["repo"], build["ref"], build["event"], build["target"]) == (
        "team/app",
        "refs/heads/main",
        "push",
        "web",
    )
    why = httpx.get(
        f"{step.serving.url}/v1/builds/{build['id']}/why",
        headers={"Authorization": f"Bearer {step.serving.token}"},
        verify=tls_context(step.serving.ca),
    ).json()
    declared = {need["dimension"]: need["declared"] for need in why["sizing"]["needs"]}
    assert declared == {"memory": 1024**3, "cpu": 2, "disk": None}, "settings go before the file"


def ended(step: Step, build: str) -> str:
    found = next(each for each in step.builds() if each["id"] == build)
    return found["outcome"] or ""


def test_a_cancelled_step_ends_its_lease_and_says_how(step: Step) -> None:
    before = len(step.builds())
    process = step.start(repo="images/team/app")
    build = step.asked(before)["id"]
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert ended(step, build) == "terminated"


def test_a_killed_step_ends_its_lease_as_well(step: Step) -> None:
    """As Woodpecker's local backend does it: SIGKILL to the whole process group."""
    before = len(step.builds())
    process = step.start(repo="images/team/app")
    build = step.asked(before)["id"]
    output = process.stdout
    assert output is not None
    step.until(lambda: f"build {build}" in output.readline())
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # nobody of ours holds the step's output open
    step.until(lambda: ended(step, build) == "terminated", 60)


def test_a_younger_pipeline_ends_the_older_ones_build(step: Step) -> None:
    before = len(step.builds())
    older = step.start(repo="images/team/app", target="x")
    first = step.asked(before)["id"]
    beside = step.start(repo="images/team/app", target="x", supersede="true")
    second = step.asked(before + 1)["id"]
    younger = step.start({"CI_PIPELINE_NUMBER": "8"}, repo="images/team/app", target="x",
                         supersede="true")  # fmt: skip
    third = step.asked(before + 2)["id"]
    for process in (older, beside):
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert f"superseded by build {third}" in said
    assert (ended(step, first), ended(step, second)) == ("cancelled", "cancelled")
    assert ended(step, third) == ""
    younger.kill()


def test_ca_as_text_and_settings_out_of_a_file(step: Step) -> None:
    (step.folder / "more.env").write_text("PLUGIN_REPO=images/other/app\n")
    status, said = step.run(ca=step.serving.ca.read_text(), env_file="more.env")
    assert (status, "may not push to images/other/app" in said) == (10, True), said
    assert not list(Path("/tmp").glob("mayfly-ca-*"))


def test_a_fault_of_ours_is_one_line_that_shows_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("hush")

    monkeypatch.setattr(main, "_prepared", fails)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main.run({"PLUGIN_REPO": "images/team/app", "PLUGIN_TOKEN": "hush"}) == 70
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"buildkit-launcher: internal error \(RuntimeError at .*\) - report.*", line
    )
    assert "hush" not in line
