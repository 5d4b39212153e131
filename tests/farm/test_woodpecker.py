"""Builds through the plugin: started as Woodpecker starts it, and by the real woodpecker-cli."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services]

PROGRAM = Path(sys.executable).with_name("buildkit-launcher")
SECRET = "hush-Pa55-word"
# Says the secret whole, in two pieces, and as a part of other words.
SAY = (
    "--mount=type=secret,id=word read -r w < /run/secrets/word; echo said $w.; "
    "printf '%s' ${w%word}; printf '%s\\n' word; echo x${w}y$w; echo by $http_proxy $HTTP_PROXY."
)
CI = {
    "CI_REPO": "team/plugin",
    "CI_REPO_URL": "https://forge.example/team/plugin",
    "CI_REPO_DEFAULT_BRANCH": "main",
    "CI_COMMIT_REF": "refs/heads/main",
    "CI_COMMIT_SHA": "c0ffee",
    "CI_PIPELINE_EVENT": "push",
    "CI_PIPELINE_NUMBER": "7",
}
Context = Callable[[str], Path]


def token(farm: Farm) -> str:
    return (farm.config.state / "admin.token").read_text().strip()


def environ(farm: Farm) -> dict[str, str]:
    """Of an agent: nothing of the farm's own configuration."""
    names = ("PATH", "HOME", "MAYFLY_CACHE", "LANG")
    return {name: os.environ[name] for name in names if name in os.environ} | CI


def test_a_build_through_the_plugin_is_in_the_registry_and_shows_no_secret(
    farm: Farm, context: Context
) -> None:
    folder = context(SAY)
    settings = {
        "url": farm.config.url,
        "token": token(farm),
        "ca": (farm.config.state / "ca" / "ca.crt").read_text(),
        "repo": "images/team/plugin",
        "auto_tag": "true",
        "tags": "one,two",
        "size": "t2",
        "secrets": json.dumps({"word": SECRET}),
        "http_proxy": "http://me:hush-proxy@proxy.invalid:3128",
    }
    plugin = {f"PLUGIN_{name.upper()}": value for name, value in settings.items()}
    done = subprocess.run(
        [PROGRAM],
        cwd=folder,
        env=environ(farm) | plugin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    build = farm.json("status")["builds"][0]
    log = farm.mayfly("logs", build["id"]).stdout
    for text in (done.stdout, log):
        assert "hush" not in text and "said ********." in text
        assert re.search(r"^#\d+ \[[^\]]*2/2\] RUN ", text, re.M), "steps have their names"
        assert "by" + " http://********@proxy.invalid:3128" * 2 + "." in text
    names = {
        f"{farm.config.registry_host}/images/team/plugin:{t}" for t in ("latest", "one", "two")
    }
    assert set(build["images"]) == names
    assert all(f"pushed {name}@{build['digest']}" in done.stdout for name in names)
    shown = inspect(farm, "images/team/plugin:one")
    assert shown["Labels"]["org.opencontainers.image.revision"] == "c0ffee"
    assert shown["Digest"] == build["digest"]
    assert "proxy.invalid" not in json.dumps(shown)


def kept(farm: Farm) -> bytes:
    """All that the farm's programs and its builds have written down."""
    folders = (farm.config.state / "log", farm.config.state / "orchestrator")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return b"".join(path.read_bytes() for path in files)


def inspect(farm: Farm, name: str) -> Any:
    """What skopeo, which knows nothing of us, finds in the registry."""
    trusting = ["--cert-dir", str(farm.config.state / "trust"), "--creds", f"x:{token(farm)}"]
    reference = f"docker://{farm.config.registry_host}/{name}"
    found = subprocess.run(
        ["skopeo", "inspect", *trusting, reference], check=True, capture_output=True, text=True
    )
    return json.loads(found.stdout)


class Woodpecker:
    """The real woodpecker-cli with its local backend, which finds the plugin on PATH."""

    def __init__(self, farm: Farm, folder: Path) -> None:
        self.farm, self.folder = farm, folder
        self.program = shutil.which("woodpecker-cli")
        if self.program is None:
            pytest.fail("woodpecker-cli is not on PATH")

    def start(self, **settings: Any) -> subprocess.Popen[str]:
        """A pipeline with one step of ours; settings may be anything that JSON, so YAML, has."""
        given = {
            "url": self.farm.config.url,
            "token": {"from_secret": "mayfly_token"},
            "ca": (self.farm.config.state / "ca" / "ca.crt").read_text(),
            "repo": "images/team/plugin",
            "size": "t2",
        }
        step = {"name": "image", "image": PROGRAM.name, "settings": {**given, **settings}}
        pipeline = {"skip_clone": True, "steps": [step], "when": [{"event": "push"}]}
        file = self.folder / "pipeline.yaml"
        file.write_text(json.dumps(pipeline))
        assert self.program is not None
        flags = ["--backend-engine", "local", "--repo-path", str(self.folder)]
        flags += ["--commit-ref", "refs/heads/main", "--pipeline-event", "push"]
        flags += ["--secrets", f"mayfly_token={token(self.farm)}", "--secrets", f"word={SECRET}"]
        env = environ(self.farm)
        return subprocess.Popen(
            [self.program, "--disable-update-check", "exec", *flags, str(file)],
            env=env | {"PATH": f"{PROGRAM.parent}:{env['PATH']}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, **settings: Any) -> tuple[int, str]:
        """The step's exit code, as Woodpecker saw it, and the log."""
        process = self.start(**settings)
        said, _ = process.communicate(timeout=300)
        if process.returncode == 0:
            return 0, said
        found = re.search(r"exit code (\d+)", said)
        assert found, said
        return int(found[1]), said


@pytest.mark.real
def test_woodpecker_builds_and_its_logs_are_in_order_and_without_secrets(
    farm: Farm, context: Context
) -> None:
    folder = context(SAY + "; i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; done")
    cli = Woodpecker(farm, folder)
    secrets = {"word": {"from_secret": "word"}}
    status, said = cli.run(tags=["one", 2.5], secrets=secrets, build_args={"A": True, "B": 1})
    assert status == 0, said
    build = farm.json("status")["builds"][0]
    log = farm.mayfly("logs", build["id"]).stdout
    for text in (said, log):
        assert "hush" not in text and "said ********." in text
        lines = [
            int(n) for n in re.findall(r"^(?:\[image:.*?\] )?#\d+ [\d.]+ line (\d+)$", text, re.M)
        ]
        assert lines == list(range(1, 301))
    assert inspect(farm, "images/team/plugin:2.5")["Digest"] == build["digest"]
    assert token(farm) not in said
    for secret in (b"hush", token(farm).encode()):
        assert secret not in kept(farm)


@pytest.mark.real
@pytest.mark.parametrize(
    ("command", "settings", "status"),
    [
        ("exit 42", {}, 1),
        ("true", {"dockerfile": "Absent"}, 2),
        ("true", {"cpu": 4000, "tags": {"a": 1}}, 2),
        ("true", {"spec": "wrong.ncl"}, 3),
        ("true", {"size": "", "memory_gb": 2000}, 4),
        ("dd if=/dev/zero of=/dev/null bs=3000M count=1", {"size": "t1", "grow": False}, 5),
        ("dd if=/dev/zero of=/big bs=1M", {"size": "t1"}, 6),
        ("sleep 90", {"time_budget_min": 1}, 7),
        ("true", {"repo": "127.0.0.1:9/team/plugin"}, 9),
        ("true", {"repo": "images/other/plugin"}, 10),
        ("true", {"url": "http://127.0.0.1:9", "farm_registry": ""}, 20),
    ],
    ids=["failed", "dockerfile", "settings", "spec", "too_big", "oom", "disk_full", "budget",
         "not_published", "denied", "infrastructure"],
)  # fmt: skip
def test_each_class_of_failure_has_its_exit_code(
    farm: Farm, context: Context, command: str, settings: dict[str, Any], status: int
) -> None:
    folder = context(command)
    (folder / "wrong.ncl").write_text("{ cpu = 'many }")
    found, said = Woodpecker(farm, folder).run(**settings)
    assert found == status, said
    assert "Traceback" not in said and token(farm) not in said


@pytest.mark.real
def test_a_cancelled_pipeline_has_no_runner_ten_seconds_later(farm: Farm, context: Context) -> None:
    process = Woodpecker(farm, context("sleep 600")).start()
    try:
        farm.until(lambda: farm.leases("ready"), 120)
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        farm.until(lambda: not farm.vms(), 10)
        print(f"gone after {time.monotonic() - began:.1f} s")
        process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert farm.json("status")["builds"][0]["outcome"] == "terminated"
