"""Farms whose registry is somebody else's, or zot: built there, and back from its cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mayfly.stack import running
from tests.farm.conftest import Farm, cached, running_farm
from tests.farm.elsewhere import ADDRESS, USER, elsewhere

Context = Callable[[str], Path]


def build_twice(farm: Farm, folder: Path) -> str:
    """Build `images/team/app:1` of a context in two VMs; the second takes RUN from the cache.

    The image's digest.
    """
    words = farm.build("team/app", "-t", "images/team/app:1", "--push", "--progress=plain")
    told = folder.with_name("told.json")
    cold = farm.mayfly(*words, "--metadata-file", told, folder)
    assert not cached(cold.stderr)
    warm = farm.mayfly(*words, folder)
    assert len(cached(warm.stderr)) == 2, warm.stderr  # COPY and RUN
    farm.until(lambda: farm.vms() == [])  # gone a moment after the report
    return str(json.loads(told.read_text())["containerimage.digest"])


def on(image: str, folder: Path) -> Path:
    """A context that starts from `image`."""
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {image}\nRUN test -s /made\n")
    return folder


@pytest.mark.vm
@pytest.mark.services
@pytest.mark.long
def test_image_cache_and_base_are_in_somebody_elses_registry_and_the_runner_has_no_password(
    tmp_path: Path, context: Context
) -> None:
    (tmp_path / "there").mkdir()
    with elsewhere(tmp_path / "there") as there:
        settings = {
            "MAYFLY_REGISTRY__KIND": "external",
            "MAYFLY_REGISTRY__IMAGES": f"{there.host}/acme",
            "MAYFLY_REGISTRY__CA": str(there.folder / "ca.crt"),
            "MAYFLY_REGISTRY__USERNAME": USER,
            "MAYFLY_REGISTRY__PASSWORD_FILE": str(there.folder / "password"),
            "MAYFLY_NETWORK__ALLOW": f'["{ADDRESS}/32"]',
        }
        with running_farm(settings) as farm:
            status = running(farm.config)
            assert status is not None
            assert [s.name for s in status.services] == ["host", "edge", "orchestrator", "builders"]
            assert farm.json("status")["registry"] == f"{there.host}/acme"

            folder = context("echo made > /made")
            digest = build_twice(farm, shutil.copytree(folder, tmp_path / "one"))
            image = f"{there.host}/acme/team/app"
            assert there.skopeo("inspect", "--raw", f"docker://{image}@{digest}")
            tags = json.loads(there.skopeo("list-tags", f"docker://{there.host}/acme/mayfly-cache"))
            (cache,) = tags["Tags"]
            assert cache.startswith("trusted-team-app-default-")

            farm.mayfly(*farm.build("team/next", on(f"{image}:1", tmp_path / "two")))

        asked = [each for each in there.asked if not each["agent"].startswith("skopeo")]
        agents = {each["agent"].partition("/")[0] for each in asked}
        assert agents == {"python-httpx"}, "neither buildx nor a runner has ever been there"
        assert all(each["known"] for each in asked)
        # Before each build, one token for all that it needs; while it runs, for what is asked.
        both = "repository:acme/mayfly-cache:pull,push"
        image, read = "repository:acme/team/app:pull,push", "repository:acme/team/app:pull"
        assert [both, image] in [each["scopes"] for each in asked]
        assert [both, read] in [each["scopes"] for each in asked]
        parts = {part for each in asked for part in each["scopes"]}
        assert parts <= {both, image, read, "repository:acme/mayfly-cache:pull"}


@pytest.mark.vm
@pytest.mark.services
@pytest.mark.real
def test_a_farm_with_zot_builds_and_takes_from_the_cache(tmp_path: Path, context: Context) -> None:
    with running_farm({"MAYFLY_REGISTRY__KIND": "zot"}) as farm:
        folder = context("echo made > /made")
        build_twice(farm, shutil.copytree(folder, tmp_path / "one"))
        image = f"{farm.config.registry_host}/images/team/app:1"
        # A repo reads its own images.
        farm.mayfly(*farm.build("team/app", on(image, tmp_path / "two")))
