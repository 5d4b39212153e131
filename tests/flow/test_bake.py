"""A definition built by the whole client, with a real BuildKit, buildx and registry; no VM."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from mayfly import flow
from mayfly.build import pair, ssh
from mayfly.config import Config
from mayfly.model import Outcome
from tests.build.fake_runner import fake_runner, pair_of
from tests.farm.conftest import cached
from tests.farm.elsewhere import USER, Elsewhere, elsewhere
from tests.flow.fake_farm import FakeFarm
from tests.flow.test_elsewhere import buildkit

pytestmark = pytest.mark.services

DEFINITION = """
group "default" { targets = ["web", "tool"] }
target "web" {
  context = "context"
  contexts = { lib = "target:lib" }
  tags = ["images/team/app/web:1"]
}
target "tool" {
  context = "context"
  target = "tool"
  tags = ["images/team/app/tool:1"]
}
target "lib" {
  context = "context"
  dockerfile-inline = "FROM scratch\\nCOPY Dockerfile /lib\\n"
}
"""
DOCKERFILE = """\
FROM scratch AS tool
COPY Dockerfile /tool
FROM scratch
COPY --from=lib /lib /web
"""


async def bake(there: Elsewhere, folder: Path) -> tuple[str, FakeFarm, dict[str, Any]]:
    """`mayfly bake --push` with a BuildKit that nothing has been built with."""
    config = Config.model_validate(
        {
            "registry": {
                "kind": "external",
                "images": f"{there.host}/acme",
                "ca": f"{there.folder}/ca.crt",
                "username": USER,
                "password_file": f"{there.folder}/password",
            }
        }
    )
    environ = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    metadata = folder / "metadata.json"
    words = ["--push", "--mayfly-repo", "team/app", "--progress=plain"]
    words += ["--metadata-file", str(metadata), "web", "tool"]
    request = flow.prepare(words, config, environ, folder, verb="bake")
    key = ssh.new_key()
    with pytest.MonkeyPatch.context() as patch, buildkit(there, folder) as socket:
        patch.setattr(pair, "new", lambda: pair_of(key))
        async with fake_runner(ssh.public_line(key), socket) as runner, asyncio.timeout(120):
            farm = FakeFarm(runner)
            result = await flow.build(request, farm, config, print)
    assert result.outcome is Outcome.SUCCEEDED, farm.log.decode()
    return farm.log.decode(), farm, json.loads(metadata.read_text())


async def test_two_images_of_one_definition_are_pushed_and_cached_each_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0 or not (shutil.which("runc") or shutil.which("crun")):
        pytest.skip("a BuildKit without a VM needs root and runc")
    (tmp_path / "there").mkdir()
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text(DOCKERFILE)
    (tmp_path / "docker-bake.hcl").write_text(DEFINITION)
    monkeypatch.chdir(tmp_path)
    with elsewhere(tmp_path / "there") as there:
        cold, farm, told = await bake(there, tmp_path)
        assert not cached(cold)
        for name in ("web", "tool"):
            image = f"{there.host}/acme/team/app/{name}"
            there.skopeo("inspect", "--raw", f"docker://{image}:1")
            assert told[name]["containerimage.digest"].startswith("sha256:")
        assert told["mayfly"]["attempts"][0]["outcome"] == "succeeded"
        names = [name.rpartition("/")[2] for name in farm.reports[0]["images"]]  # type: ignore[attr-defined]
        assert sorted(names) == ["tool:1", "web:1"]
        warm, _, _ = await bake(there, tmp_path)
        assert len(cached(warm)) >= 3, warm
