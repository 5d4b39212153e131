"""The plugin's image: built by a farm, small, and a build through what is in it."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.farm.conftest import Farm

pytestmark = [pytest.mark.vm, pytest.mark.services, pytest.mark.long, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
NAME = "images/mayfly/buildkit-launcher"
LARGEST_BYTES = 120 * 10**6
"""Of all its layers, compressed: most of it are buildx, Python and the site's base."""


def test_the_plugins_image_is_built_by_a_farm_and_builds_on_it(
    farm: Farm, python_base: str, context: Callable[[str], Path], tmp_path: Path
) -> None:
    script = [str(ROOT / "scripts/plugin-image"), "--mayfly-size", "t3"]
    subprocess.run(script, env=farm.env, check=True, timeout=1500)
    token = (farm.config.state / "admin.token").read_text().strip()
    image = f"docker://{farm.config.registry_host}/{NAME}:latest"
    trusting = ["--src-cert-dir", str(farm.config.state / "trust"), "--src-creds", f"x:{token}"]
    copied = tmp_path / "image"
    subprocess.run(["skopeo", "copy", "-q", *trusting, image, f"dir:{copied}"], check=True)
    manifest = json.loads((copied / "manifest.json").read_text())
    size = sum(layer["size"] for layer in manifest["layers"])
    print(f"{size / 1e6:.0f} MB")
    assert size < LARGEST_BYTES
    config = json.loads((copied / manifest["config"]["digest"].partition(":")[2]).read_text())

    root = tmp_path / "root"
    root.mkdir()
    for layer in manifest["layers"]:
        blob = copied / layer["digest"].partition(":")[2]
        subprocess.run(["tar", "--extract", f"--file={blob}", "-C", str(root)], check=True)
    (root / "etc" / "hosts").write_text(Path("/etc/hosts").read_text())

    status, said = step(root, config, {})
    assert (status, "repo: is missing" in said) == (2, True), said

    (root / "step").mkdir(exist_ok=True)
    with tarfile.open(tmp_path / "context.tar", "w") as packed:
        packed.add(context("echo built inside"), ".")
    subprocess.run(["tar", "-xf", tmp_path / "context.tar", "-C", root / "step"], check=True)
    settings = {
        "URL": farm.config.url,
        "TOKEN": token,
        "REPO": "images/team/inside",
        "SIZE": "t2",
        "SPEC": "none",
    }
    status, said = step(root, config, {f"PLUGIN_{name}": v for name, v in settings.items()})
    assert status == 0, said
    assert "built inside" in said and token not in said


def step(root: Path, config: Mapping[str, Any], settings: Mapping[str, str]) -> tuple[int, str]:
    """The image's entry point, as a container runtime starts it, but for its isolation."""
    about = config["config"]
    env = dict(line.split("=", 1) for line in about["Env"])
    env |= {"CI_REPO": "team/inside", "CI_COMMIT_REF": "refs/heads/main", "HOME": "/root"}
    inside = (
        f"mount --rbind /dev {root}/dev && mount -t proc proc {root}/proc && cd {root} && "
        f'exec chroot {root} sh -c \'mkdir -p /step && cd /step && exec "$@"\' - "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", inside, "-", *about["Entrypoint"]],
        env={"PATH": os.environ["PATH"], **env, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
        check=False,
    )
    return done.returncode, done.stdout
