"""What is not trusted, on a real runner: it reads the trusted cache, and writes only its own."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.farm.conftest import Farm, cached

pytestmark = [pytest.mark.vm, pytest.mark.services]

REPO = "team/proven"


def holding(farm: Farm, name: str, *more: str) -> Farm:
    """The farm as somebody has it who was given a token for the repo."""
    made = farm.mayfly("token", "create", name, "--repo", REPO, "--json", *more)
    return replace(farm, env={**farm.env, "MAYFLY_TOKEN": json.loads(made.stdout)["token"]})


def manifest(farm: Farm, image: str) -> str:
    """What a name in the farm's registry stands for; empty when there is nothing."""
    done = subprocess.run(
        ["skopeo", "inspect", "--raw",
         "--authfile", str(farm.config.state / "admin.auth.json"),
         "--cert-dir", str(farm.config.state / "trust"),
         f"docker://{farm.config.registry_host}/{image}"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return done.stdout


def test_what_is_not_trusted_reads_the_trusted_cache_and_writes_its_own(
    farm: Farm, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    (tmp_path / "data").write_text("x")
    trusted, apart = holding(farm, "trusted", "--trusted"), holding(farm, "apart")
    words = farm.build(REPO, "--progress=plain", "--push", "-t")

    first = trusted.mayfly(*words, f"images/{REPO}:1", tmp_path)
    assert not cached(first.stderr)
    cache = f"cache/trusted/{REPO}/default"
    before = manifest(farm, f"{cache}:latest")
    assert before

    denied = apart.mayfly(*words, f"images/{REPO}:1", tmp_path, check=False)
    assert denied.returncode == 10
    assert "that is not trusted (its token was not made trusted) may not push" in denied.stderr
    assert f"use -t images/pr/{REPO}/token-apart" in denied.stderr
    assert not [lease for lease in farm.json("lease", "ls") if lease["terms"]["slot"]]

    (tmp_path / "more").write_text("y")
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY data /data\nCOPY more /more\n")
    image = f"images/pr/{REPO}/token-apart:1"
    second = apart.mayfly(*words, image, tmp_path)
    assert "this build is not trusted" in second.stderr
    (step,) = set(re.findall(r"^#(\d+) \[1/2\] COPY data /data$", second.stderr, re.MULTILINE))
    assert f"importing cache manifest from {farm.config.registry_host}/{cache}" in second.stderr
    read = re.search(rf"^#{step} extracting sha256:", second.stderr, re.MULTILINE)
    assert read, "what a trusted build left is read"
    assert manifest(farm, f"images/pr/{REPO}/token-apart:1")
    assert manifest(farm, f"cache/untrusted/{REPO}/token-apart__default:latest")
    assert manifest(farm, f"{cache}:latest") == before, "and is not written"
    assert farm.json("status")["builds"][0]["outcome"] == "succeeded"
