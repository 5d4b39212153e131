"""Real builds in real VMs, as a person runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

from mayfly.stack import seaweed
from tests.farm.conftest import Farm, cached, interrupt

pytestmark = [pytest.mark.vm, pytest.mark.services]

EXAMPLE = Path(__file__).parents[2] / "examples/python-web"
Context = Callable[[str], Path]


@pytest.fixture
def example(farm: Farm, python_base: str, tmp_path: Path) -> Path:
    """The example, saying FROM this farm's registry, whose port is not the usual one."""
    copy = tmp_path / "example"
    shutil.copytree(EXAMPLE, copy)
    text = (copy / "Dockerfile").read_text()
    usual = "registry.mayfly.internal:5000/images/base/python"
    assert usual in text
    (copy / "Dockerfile").write_text(text.replace(usual, python_base))
    return copy


def test_the_example_from_nothing_to_an_image_that_anyone_can_pull_and_back_from_cache(
    farm: Farm, example: Path, tmp_path: Path
) -> None:
    words = farm.build("team/web", "-t", "images/team/web:1", "--push")
    cold = farm.mayfly(*words, "--metadata-file", tmp_path / "cold.json", example)
    told = json.loads((tmp_path / "cold.json").read_text())
    digest = told["containerimage.digest"]
    assert set(told["mayfly"]["timings_s"]) >= {"queue", "ready", "build", "push"}
    assert told["mayfly"]["attempts"][0]["size"] == "t2"

    # The VM goes once it has told what its steps took; its outcome, exit code and log stay.
    farm.until(lambda: farm.vms() == [])
    build = farm.json("status")["builds"][0]
    assert (build["id"], build["outcome"], build["exit_code"]) == (
        told["mayfly"]["build"],
        "succeeded",
        0,
    )
    assert build["digest"] == digest
    log = farm.mayfly("logs", build["id"]).stdout
    assert "pip install" in log
    assert log.strip() in cold.stderr.replace("\r", "").replace("mayfly: ", "")

    # An independent client pulls it, and its bytes are in the bucket.
    state, host = farm.config.state, farm.config.registry_host
    token = (state / "admin.token").read_text().strip()
    reference = f"docker://{host}/images/team/web@{digest}"
    trusting = ["--cert-dir", str(state / "trust"), "--creds", f"someone:{token}"]
    raw = subprocess.run(
        ["skopeo", "inspect", "--raw", *trusting, reference],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert json.loads(raw)["schemaVersion"] == 2
    assert any(digest.removeprefix("sha256:") in key for key in bucket_keys(farm))

    # The same again, in another VM, takes every step from the cache.
    warm = farm.mayfly(*words, "--metadata-file", tmp_path / "warm.json", example)
    steps = [line for line in warm.stderr.splitlines() if "] " in line and line.startswith("#")]
    assert any("RUN" in line for line in steps)
    assert len(cached(warm.stderr)) == 5  # every step of the Dockerfile but its FROM
    again = json.loads((tmp_path / "warm.json").read_text())
    assert again["mayfly"]["build"] != told["mayfly"]["build"]


def bucket_keys(farm: Farm) -> list[str]:
    """The keys of everything in the farm's bucket."""
    from datetime import UTC, datetime

    s3 = seaweed.prepare(farm.config, datetime.now(UTC))
    found = boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name=s3.region,
        aws_access_key_id=s3.access_key,
        aws_secret_access_key=s3.secret_key,
    )
    pages = found.get_paginator("list_objects_v2").paginate(Bucket=s3.bucket)
    return [item["Key"] for page in pages for item in page.get("Contents", [])]


def test_two_builds_at_once_have_a_vm_each(farm: Farm, context: Context) -> None:
    folder = context("echo begins; sleep 15")
    builds = [farm.start(*farm.build(f"team/at-once-{n}", folder)) for n in (1, 2)]
    try:
        farm.until(lambda: len(farm.leases("ready")) == 2, 120)
        assert len(farm.vms()) == 2
        for build in builds:
            assert build.wait(240) == 0
    finally:
        for build in builds:
            build.kill()
            build.communicate()


def test_a_failing_dockerfile_ends_with_1_and_buildkits_own_words_last(
    farm: Farm, context: Context
) -> None:
    folder = context("echo this goes wrong; exit 42")
    done = farm.mayfly(*farm.build("team/fails", folder), check=False)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ERROR: failed to build")
    assert "exit code: 42" in done.stderr
    build = farm.json("status")["builds"][0]
    assert (build["outcome"], build["exit_code"]) == ("failed", 1)
    assert "this goes wrong" in farm.mayfly("logs", build["id"]).stdout


def test_ctrl_c_destroys_the_runner(farm: Farm, context: Context) -> None:
    folder = context("sleep 600")
    build = farm.start(*farm.build("team/cancelled", folder))
    try:
        farm.until(lambda: farm.leases("ready"), 120)
        time.sleep(5)
        interrupt(build)
        farm.until(lambda: not farm.vms())
        assert build.wait(60) == 130
    finally:
        build.kill()
        build.communicate()
    assert farm.json("status")["builds"][0]["outcome"] == "cancelled"


def test_an_image_of_another_platform_can_be_built(farm: Farm, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    out = tmp_path / "image.tar"
    farm.mayfly(
        *farm.build("team/arm", "--platform", "linux/arm64", "-o", f"type=oci,dest={out}", tmp_path)
    )
    shown = subprocess.run(
        ["skopeo", "inspect", "--config", "--override-arch", "arm64", f"oci-archive:{out}"],
        check=True,
        capture_output=True,
        text=True,
    )
    assert json.loads(shown.stdout)["architecture"] == "arm64"
