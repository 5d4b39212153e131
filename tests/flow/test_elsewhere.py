"""The whole client with a real BuildKit, buildx and somebody else's registry; no VM between them.

`tests/farm/test_registries.py` has the same with a runner.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mayfly import flow, tools
from mayfly.build import pair, ssh
from mayfly.config import Config
from mayfly.guest import buildkit as guest
from mayfly.model import Outcome
from tests.build.fake_runner import fake_runner, pair_of
from tests.farm.conftest import cached
from tests.farm.elsewhere import USER, Elsewhere, elsewhere
from tests.flow.fake_farm import FakeFarm

pytestmark = pytest.mark.services


# What buildkitd needs of runc(8) where there is none: Debian 12's crun runs in no hybrid cgroups. A
# command in its root, with no walls around it, which tests' own commands do not need.
RUNC = """\
#!/usr/bin/env python3
import json, os, sys
words = sys.argv[1:]
if "run" in words:
    bundle = words[words.index("--bundle") + 1]
    with open(bundle + "/config.json") as file:
        spec = json.load(file)
    os.chroot(os.path.join(bundle, spec["root"]["path"]))
    process = spec["process"]
    os.chdir(process["cwd"])
    env = dict(pair.split("=", 1) for pair in process["env"])
    os.environ["PATH"] = env.get("PATH", "")
    os.execvpe(process["args"][0], process["args"], env)
"""


@contextmanager
def buildkit(there: Elsewhere, folder: Path) -> Iterator[Path]:
    """The socket of a buildkitd that starts from nothing and trusts the registry's CA."""
    root = Path(tempfile.mkdtemp(prefix="buildkit-", dir=folder))
    (root / "buildkitd.toml").write_text(
        f'[registry."{there.host}"]\nca = ["{there.folder}/ca.crt"]\n'
    )
    argv = [
        *(str(tools.tools_dir() / "buildkitd"), "--root", str(root / "root")),
        *("--addr", f"unix://{root / 'sock'}", "--config", str(root / "buildkitd.toml")),
        *("--oci-worker-snapshotter=native", "--containerd-worker=false"),
    ]
    path = os.environ["PATH"]
    if not shutil.which("runc"):
        (root / "bin").mkdir()
        (root / "bin/runc").write_text(RUNC)
        (root / "bin/runc").chmod(0o755)
        path = f"{root / 'bin'}:{path}"
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(argv, stderr=log, env=os.environ | {"PATH": path})
    try:
        while not guest.serves(str(root / "sock")):
            assert process.poll() is None, (root / "log").read_text()
            time.sleep(0.05)
        yield root / "sock"
    finally:
        process.terminate()
        process.wait(30)


async def build(there: Elsewhere, folder: Path, *words: str) -> str:
    """`mayfly build` with a BuildKit that nothing has been built with; the build's log."""
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
    given = [*words, "--mayfly-repo", "team/app", "--progress=plain", str(folder / "context")]
    request = flow.prepare(given, config, environ, folder)
    key = ssh.new_key()
    with pytest.MonkeyPatch.context() as patch, buildkit(there, folder) as socket:
        patch.setattr(pair, "new", lambda: pair_of(key))
        async with fake_runner(ssh.public_line(key), socket) as runner, asyncio.timeout(120):
            farm = FakeFarm(runner)
            result = await flow.build(request, farm, config, print)
    assert result.outcome is Outcome.SUCCEEDED, farm.log.decode()
    return farm.log.decode()


async def test_image_cache_and_base_are_there_and_nobody_but_the_client_has_the_login(
    tmp_path: Path,
) -> None:
    if os.geteuid() != 0 or not (shutil.which("runc") or shutil.which("crun")):
        pytest.skip("a BuildKit without a VM needs root and runc")
    (tmp_path / "there").mkdir()
    (tmp_path / "context").mkdir()
    dockerfile = tmp_path / "context" / "Dockerfile"
    with elsewhere(tmp_path / "there") as there:
        dockerfile.write_text("FROM scratch\nCOPY Dockerfile /a\n")
        tag = ("-t", "images/team/app:1", "--push")
        assert not cached(await build(there, tmp_path, *tag))
        assert cached(await build(there, tmp_path, *tag))
        image = f"{there.host}/acme/team/app:1"
        there.skopeo("inspect", "--raw", f"docker://{image}")

        dockerfile.write_text(f"FROM {image}\nCOPY --from={image} /a /b\n")
        await build(there, tmp_path, "-o", f"type=tar,dest={tmp_path / 'out.tar'}")
        with tarfile.open(tmp_path / "out.tar") as made:
            assert made.getnames() == ["a", "b"]

        asked = [each for each in there.asked if not each["agent"].startswith("skopeo")]
    assert {each["agent"].partition("/")[0] for each in asked} == {"python-httpx"}
    assert all(each["known"] for each in asked)
    app, cache = ("repository:acme/team/app:", "repository:acme/mayfly-cache:")
    firsts = [each["scopes"] for each in asked if len(each["scopes"]) == 2]
    both = "pull,push"
    assert firsts[:2] == 2 * [[cache + both, app + both]]
    assert [cache + both, app + "pull"] in firsts
    bought = {scope for each in asked for scope in each["scopes"]}
    assert bought <= {app + both, app + "pull", cache + both, cache + "pull"}
