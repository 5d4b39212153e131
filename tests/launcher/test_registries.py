"""Pushing to other people's registries with logins out of settings: what goes where."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mayfly import client, flow
from mayfly.build import pair, ssh
from mayfly.config import Config
from mayfly.errors import Denied
from mayfly.launcher.plan import Plan, plan
from mayfly.launcher.values import given
from mayfly.model import Outcome
from mayfly.registry import credentials
from tests.build.fake_runner import fake_runner, pair_of
from tests.build.third_party import third_party
from tests.farm.elsewhere import PASSWORD, USER, elsewhere
from tests.flow.fake_farm import FakeFarm
from tests.flow.test_elsewhere import buildkit

CI = {"CI_REPO": "team/app", "CI_COMMIT_REF": "refs/heads/main", "CI_COMMIT_SHA": "c0ffee"}


def of(settings: Mapping[str, str]) -> Plan:
    environ = {**CI, "PATH": os.environ["PATH"]}
    environ |= {f"PLUGIN_{name.upper()}": value for name, value in settings.items()}
    made = plan(given(environ), environ, {}, datetime(2026, 11, 28, tzinfo=UTC))
    assert made.faults == ()
    return made


# As they answer to `GET /v2/` without a login (2026-11).
DIALECTS = {
    "forgejo": 'service="container_registry",scope="*"',
    "docker hub": 'service="registry.docker.io"',
    "ghcr": 'service="ghcr.io",scope="repository:user/image:pull"',
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("form", ["one login", "logins", "config"])
async def test_a_login_of_the_settings_buys_a_token_for_this_image_alone(
    tmp_path: Path, dialect: str, form: str
) -> None:
    async with third_party(tmp_path) as (there, ca):
        there.parameters = DIALECTS[dialect]
        there.lives_s = None if dialect == "ghcr" else 300  # ghcr says nothing about it
        login = {"registry": f"https://{there.address}/v2/", "username": "me", "password": "hush"}
        config = {"auths": {there.address: {"auth": "bWU6aHVzaA=="}}}
        settings = {
            "one login": login,
            "logins": {"logins": json.dumps([login])},
            "config": {"config": json.dumps(config)},
        }[form]
        made = of({"repo": f"{there.address}/acme/app", **settings})
        assert "hush" not in " ".join(made.argv)
        wants = credentials.wanted([], [f"{there.address}/acme/app:latest"])
        logins = credentials.Logins(made.environ)
        found = await credentials.gather({}, wants, logins, client.tls_context(ca))
    assert found.warnings == ()
    scope = "repository:acme/app:pull,push"
    assert there.asked[-1]["scopes"] == [scope]
    assert there.asked[-1]["service"] == DIALECTS[dialect].split('"')[1]
    assert found.exchanges[there.address].token == f"for {scope}"
    assert "hush" not in json.dumps(found.config({})), "the runner can ask for a token only"


async def test_a_registry_without_tokens_gets_the_login_and_a_warning(tmp_path: Path) -> None:
    async with third_party(tmp_path) as (there, ca):
        there.challenge = "basic"
        made = of({"repo": f"{there.address}/a/b", "registry": there.address, "username": "me",
                   "password": "hush"})  # fmt: skip
        wants = credentials.wanted([], [f"{there.address}/a/b:latest"])
        logins = credentials.Logins(made.environ)
        found = await credentials.gather({}, wants, logins, client.tls_context(ca))
    assert "can use your login there" in found.warnings[0]


async def test_a_wrong_login_is_denied_before_anything_is_built(tmp_path: Path) -> None:
    async with third_party(tmp_path) as (there, ca):
        made = of({"repo": f"{there.address}/a/b", "registry": there.address, "username": "me",
                   "password": "wrong"})  # fmt: skip
        wants = credentials.wanted([], [f"{there.address}/a/b:latest"])
        with pytest.raises(Denied):
            await credentials.gather(
                {}, wants, credentials.Logins(made.environ), client.tls_context(ca)
            )


@pytest.mark.services
async def test_an_image_is_pushed_there_by_a_real_buildkit_that_never_has_the_login(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0 or not (shutil.which("runc") or shutil.which("crun")):
        pytest.skip("a BuildKit without a VM needs root and runc")
    (tmp_path / "there").mkdir()
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /a\n")
    with elsewhere(tmp_path / "there") as there:
        made = of(
            {
                "context": str(tmp_path / "context"),
                "dockerfile": str(tmp_path / "context" / "Dockerfile"),
                "repo": f"{there.host}/acme/app",
                "tags": "1,latest",
                "registry": there.host,
                "username": USER,
                "password": PASSWORD,
            }
        )
        config = Config.model_validate(
            {
                "registry": {
                    "kind": "external",
                    "images": f"{there.host}/farm",
                    "ca": f"{there.folder}/ca.crt",
                }
            }
        )
        request = flow.prepare(made.argv, config, made.environ, tmp_path)
        request = replace(request, secrets=made.secrets)
        key = ssh.new_key()
        with pytest.MonkeyPatch.context() as patch, buildkit(there, tmp_path) as socket:
            patch.setattr(pair, "new", lambda: pair_of(key))
            async with fake_runner(ssh.public_line(key), socket) as runner, asyncio.timeout(120):
                farm = FakeFarm(runner)
                result = await flow.build(request, farm, config, print)
        assert result.outcome is Outcome.SUCCEEDED, farm.log.decode()
        for tag in ("1", "latest"):
            found = json.loads(there.skopeo("inspect", f"docker://{there.host}/acme/app:{tag}"))
            assert found["Digest"] == result.last.digest
            assert found["Labels"]["org.opencontainers.image.revision"] == "c0ffee"
        image = f"docker://{there.host}/acme/app"
        index = json.loads(there.skopeo("inspect", "--raw", f"{image}:1"))
        manifest = f"{image}@{index['manifests'][0]['digest']}"
        notes = json.loads(there.skopeo("inspect", "--raw", manifest))["annotations"]
        assert notes["org.opencontainers.image.created"] == "2026-11-28T00:00:00Z"
        asked = [each for each in there.asked if not each["agent"].startswith("skopeo")]
    assert {each["agent"].partition("/")[0] for each in asked} == {"python-httpx"}
    assert PASSWORD.encode() not in farm.log
