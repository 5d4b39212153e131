"""What a person sees, in a whole farm: a definition baked, a page opened, the machine's health."""

from __future__ import annotations

import json
import re
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.farm.conftest import Farm, cached

pytestmark = [pytest.mark.vm, pytest.mark.services]

EXAMPLE = Path(__file__).parents[2] / "examples/bake"


def test_a_second_up_is_refused_and_changes_nothing(farm: Farm) -> None:
    before = farm.pid("edge")
    done = farm.mayfly("up", "--detach", check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "Mayfly is already running here (process " in line
    assert farm.pid("edge") == before


def test_doctor_finds_a_running_farm_well_and_says_how_fast_it_is(
    farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {each["name"]: each for each in farm.json("doctor")}
    assert [each for each in found.values() if each["state"] == "fail"] == []
    for program in ("s3", "registry", "host", "edge", "orchestrator"):
        assert found[program]["state"] != "fail", found[program]
    assert found["registry answers"]["state"] == "ok"
    assert found["orchestrator answers"]["state"] == "ok"
    assert found["address"]["found"].endswith("is this farm's")
    assert "compiling a piece of Python takes" in found["speed"]["found"]
    assert "reseeds by it" in found["twins"]["found"]
    assert found["template"]["state"] == "ok"


@pytest.mark.long
def test_two_images_from_one_definition_cold_and_from_cache_and_the_page_that_shows_it(
    farm: Farm, python_base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EXAMPLE)
    words = ("bake", "--mayfly-repo", "team/bake", "--mayfly-size", "t2", "--progress=plain",
             "--var", f"BASE={python_base}", "--push",
             "--set", "server.tags=images/team/bake/server:1",
             "--set", "client.tags=images/team/bake/client:1")  # fmt: skip
    cold = farm.mayfly(*words, "--metadata-file", tmp_path / "cold.json")
    told = json.loads((tmp_path / "cold.json").read_text())
    assert told["mayfly"]["attempts"] == [{"size": "t2", "outcome": "succeeded"}]
    host = farm.config.registry_host
    for name in ("server", "client"):
        digest = told[name]["containerimage.digest"]
        token = (farm.config.state / "admin.token").read_text().strip()
        raw = subprocess.run(
            ["skopeo", "inspect", "--config", "--cert-dir", str(farm.config.state / "trust"),
             "--creds", f"x:{token}", f"docker://{host}/images/team/bake/{name}@{digest}"],
            check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        assert f"{name}.py" in json.dumps(json.loads(raw)["config"])
    build = farm.json("status")["builds"][0]
    assert build["id"] == told["mayfly"]["build"]
    assert (build["outcome"], build["target"]) == ("succeeded", "client,server")
    assert sorted(build["images"]) == [
        f"{host}/images/team/bake/{name}:1" for name in ("client", "server")
    ]

    # What the address in the first line leads to.
    first = cold.stderr.splitlines()[0]
    match = re.fullmatch(rf"mayfly: build {build['id']} of team/bake: (\S+)#token=(\S+)", first)
    assert match, first
    assert cold.stdout == ""
    trust = ssl.create_default_context(cafile=farm.config.state / "ca" / "ca.crt")
    at = f"https://127.0.0.1:{farm.config.server.port}"
    with httpx.Client(verify=trust, base_url=at, trust_env=False) as browser:
        page = browser.get(httpx.URL(match[1]).path)
        assert "<title>Mayfly build</title>" in page.text
        bearer = {"Authorization": f"Bearer {match[2]}"}
        shown = browser.get(f"/v1/builds/{build['id']}/log?follow=true", headers=bearer)
    assert shown.text == farm.mayfly("logs", build["id"]).stdout
    assert "compileall" in shown.text

    # Once more, on another VM: nothing runs again.
    warm = farm.mayfly(*words)
    steps = set(re.findall(r"^#(\d+) \[(?:server|client) [a-z]+ \d/\d\] (?:RUN|COPY|WORKDIR)",
                           warm.stderr, re.M))  # fmt: skip
    assert len(steps) >= 5
    assert steps <= cached(warm.stderr), warm.stderr
