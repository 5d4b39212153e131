"""The real woodpecker-cli, for what needs no VM: exit codes, and a cancelled pipeline's lease."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from typing import Any

import pytest

from tests.launcher.test_main import CI, PROGRAM, Step, ended, step

__all__ = ["step"]

pytestmark = [pytest.mark.services, pytest.mark.real]


def start(step: Step, **settings: Any) -> subprocess.Popen[str]:
    """A pipeline with one step of ours, run by the local backend."""
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
    said, _ = start(step, **settings).communicate(timeout=60)
    found = re.search(r"exit code (\d+)", said)
    assert found and int(found[1]) == status, said
    assert re.search(rf"^\[image:L\d+:\d+s\] buildkit-launcher: .*{re.escape(line)}", said, re.M), (
        said
    )
    assert step.serving.token not in said and "Traceback" not in said


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
