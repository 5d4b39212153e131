"""The real woodpecker-cli, for what needs no VM: exit codes, and a cancelled pipeline's lease."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from mayfly.client import tls_context
from tests.launcher.test_main import CI, PROGRAM, Step, ended, step
from tests.orchestrator.leases import KEY
from tests.serving import running

__all__ = ["step"]

pytestmark = [pytest.mark.services, pytest.mark.real]


def start(step: Step, number: int = 7, **settings: Any) -> subprocess.Popen[str]:
    """A pipeline of that number with one step of ours, run by the local backend."""
    program = shutil.which("woodpecker-cli")
    if program is None:
        pytest.fail("woodpecker-cli is not on PATH")
    given = {
        "url": step.serving.url,
        "token": {"from_secret": "mayfly_token"},
        "ca": step.serving.ca.read_text(),
        "repo": ["images/team/app"],
    }
    one = {"name": "image", "image": PROGRAM.name, "settings": {**given, **settings}}
    pipeline = {"skip_clone": True, "when": [{"event": "push"}], "steps": [one]}
    file = step.folder / "pipeline.yaml"
    file.write_text(json.dumps(pipeline))
    words = ["--disable-update-check", "exec", "--backend-engine", "local"]
    words += ["--repo-path", str(step.folder), "--pipeline-event", "push"]
    words += ["--pipeline-number", str(number)]
    words += ["--secrets", f"mayfly_token={step.serving.token}", str(file)]
    env = {"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}", "HOME": str(step.folder), **CI}
    if cache := os.environ.get("MAYFLY_CACHE"):
        env["MAYFLY_CACHE"] = cache
    step.started.append(
        subprocess.Popen(
            [program, *words],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    return step.started[-1]


@pytest.mark.parametrize(
    ("settings", "status", "line"),
    [
        ({"build_args": {"A": [1]}, "cpu": "x"}, 2, "build_args: is nested more deeply"),
        ({"spec": "wrong.ncl"}, 3, "wrong.ncl:1:"),
        ({"memory_gb": 4000}, 4, "no size holds what the build spec declares"),
        ({"repo": ["images/other/app"]}, 10, "may not push to images/other/app"),
        ({"token": "mayfly_admin_wrong"}, 10, "the admin token is not this farm's"),
        ({"url": "http://127.0.0.1:9", "ca": ""}, 20, "trying once more"),
    ],
    ids=["usage", "spec_invalid", "too_big", "denied", "token", "infrastructure"],
)
def test_woodpecker_sees_the_exit_code(
    step: Step, settings: dict[str, Any], status: int, line: str
) -> None:
    (step.folder / "wrong.ncl").write_text("{ cpu = 'many }")
    expect(step, start(step, **settings), status, line)


def expect(step: Step, process: subprocess.Popen[str], status: int, line: str) -> None:
    """That the step ends with that exit code, as Woodpecker saw it, and says that line."""
    said, _ = process.communicate(timeout=60)
    found = re.search(r"exit code (\d+)", said)
    assert found and int(found[1]) == status, said
    assert re.search(rf"^\[image:L\d+:\d+s\] buildkit-launcher: .*{re.escape(line)}", said, re.M), (
        said
    )
    assert step.serving.token not in said and "Traceback" not in said


def test_woodpecker_sees_that_the_farm_was_full_for_too_long(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    with running(POOL__MEMORY_GB="4", POOL__QUEUE_TIMEOUT_S="2") as serving:
        step = Step(tmp_path, serving)
        bearer = {"Authorization": f"Bearer {serving.token}"}
        other = {"repo": "team/other", "ssh_public_key": KEY}
        trusted = tls_context(serving.ca)
        held = httpx.post(f"{serving.url}/v1/leases", json=other, headers=bearer, verify=trusted)
        assert held.status_code == 201
        expect(step, start(step), 8, "no room in the pool for 2 s")


def test_woodpecker_sees_that_the_machine_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    with running(POOL__MEMORY_GB="1") as serving:
        step = Step(tmp_path, serving)
        expect(step, start(step), 21, "no size")


def test_woodpecker_sees_that_a_younger_pipeline_came(step: Step) -> None:
    before = len(step.builds())
    older = start(step, 7)
    first = step.asked(before)["id"]
    younger = start(step, 8, supersede=True)
    step.asked(before + 1)
    expect(step, older, 130, "superseded by build")
    assert ended(step, first) == "cancelled"
    younger.kill()


def test_a_cancelled_pipeline_has_no_lease_ten_seconds_later(step: Step) -> None:
    before = len(step.builds())
    process = start(step)
    build = step.asked(before)["id"]
    output = process.stdout
    assert output is not None
    step.until(lambda: f"build {build}" in output.readline())
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    step.until(lambda: ended(step, build) == "terminated", 10)
    print(f"ended after {time.monotonic() - began:.1f} s")
    process.communicate(timeout=20)
