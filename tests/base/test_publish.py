"""Base images in a real registry: what is there stays, what is missing is added, tags come last."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mayfly.base import PLATFORMS, oci, publish, push
from mayfly.base.platform import OWN, Platform, name_of
from mayfly.config import Registry
from mayfly.errors import Denied, InfrastructureError, Unreachable, UsageError
from tests.stack_fixture import Stack

pytestmark = pytest.mark.services

ROOM = sys.modules["mayfly.base.publish"]  # the package's `publish` is the function
ARM, ARM7 = PLATFORMS["linux/arm64"], PLATFORMS["linux/arm/v7"]


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The platforms that an image was made for: tiny ones, each with content of its own."""
    made: list[str] = []

    def make_base(kind: str, out: Path, *, platform: Platform, **_: Any) -> Path:
        made.append(platform.name)
        (out / "root").mkdir(parents=True)
        (out / "root" / "who").write_text(f"{kind} {platform.name} {len(made)}")
        oci.write_layout(
            out / kind,
            out / "root",
            tag="latest",
            platform=platform.oci,
            env={},
            command=["x"],
            labels={},
            created="2026-11-24T00:00:00Z",
            epoch=1_800_000_000,
        )
        return out / kind

    monkeypatch.setattr(ROOM, "make_base", make_base)
    return made


def raw(stack: Stack, kind: str, below: str = "base", at: str = ":latest") -> dict[str, Any]:
    """What the tag (or `@` a digest) stands for, as another client reads it."""
    shown = stack.skopeo(
        *("inspect", "--raw", "--cert-dir", stack.cert_dir),
        *("--creds", f"someone:{stack.admin_token}"),
        f"docker://{stack.address}/images/{below}/{kind}{at}",
    )
    found: dict[str, Any] = json.loads(shown.stdout)
    return found


def in_tag(stack: Stack, kind: str, below: str = "base") -> dict[str, str]:
    """Platform to digest, of an index, each of which can be read."""
    digests = {name_of(m["platform"]): m["digest"] for m in raw(stack, kind, below)["manifests"]}
    for digest in digests.values():
        assert raw(stack, kind, below, f"@{digest}")["mediaType"] == oci.MANIFEST
    return digests


def test_a_platform_is_made_once_and_joins_those_that_are_there(
    stack: Stack, made: list[str]
) -> None:
    said: list[str] = []
    first = publish(stack.config, "debian", said.append)
    assert raw(stack, "debian")["mediaType"] == oci.MANIFEST
    assert publish(stack.config, "debian", said.append) == first
    assert made == ["linux/amd64"]
    assert said[-1] == "base image debian is in the registry"

    both = publish(stack.config, "debian", said.append, platforms=(OWN, ARM, ARM7))
    assert made == ["linux/amd64", "linux/arm64", "linux/arm/v7"]
    digests = in_tag(stack, "debian")
    assert sorted(digests) == ["linux/amd64", "linux/arm/v7", "linux/arm64"]
    assert digests["linux/amd64"] == first.digest
    assert publish(stack.config, "debian", said.append, platforms=(ARM,)) == both
    assert len(made) == 3

    publish(stack.config, "debian", said.append, platforms=(ARM,), force=True)
    assert made[3:] == ["linux/arm64"]
    anew = in_tag(stack, "debian")
    assert anew.pop("linux/arm64") != digests.pop("linux/arm64")
    assert anew == digests
    folder = stack.config.state / "base"
    assert [path.name for path in folder.iterdir()] == [".lock"]
    (folder / ".new-killed").mkdir()  # of one that was killed
    publish(stack.config, "debian", said.append, platforms=(ARM,), force=True)
    assert [path.name for path in folder.iterdir()] == [".lock"]


def test_of_two_at_once_neither_loses_the_others(stack: Stack, made: list[str]) -> None:
    with ThreadPoolExecutor() as pool:
        told = [
            pool.submit(publish, stack.config, "rust", print, platforms=(platform,))
            for platform in (ARM, ARM7)
        ]
    assert {each.result().reference for each in told}
    assert sorted(in_tag(stack, "rust")) == ["linux/arm/v7", "linux/arm64"]


def test_only_a_foreign_platform_is_an_image_of_that_platform(
    stack: Stack, made: list[str]
) -> None:
    publish(stack.config, "go", print, platforms=(ARM7,))
    publish(stack.config, "go", print, platforms=(ARM7,))
    assert made == ["linux/arm/v7"]
    publish(stack.config, "go", print)
    assert sorted(in_tag(stack, "go")) == ["linux/amd64", "linux/arm/v7"]


def test_a_tag_never_stands_for_half_of_what_was_asked(
    stack: Stack, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = publish(stack.config, "node", print)

    def fails_at_the_last(layout: Path, reference: str, **words: Any) -> str:
        if reference.endswith(":latest"):
            raise InfrastructureError("cut")
        return push(layout, reference, **words)

    monkeypatch.setattr(ROOM, "push", fails_at_the_last)
    with pytest.raises(InfrastructureError, match="cut"):
        publish(stack.config, "node", print, platforms=(ARM,))
    assert raw(stack, "node")["mediaType"] == oci.MANIFEST
    monkeypatch.undo()
    assert publish(stack.config, "node", print) == before


def test_what_is_wrong_is_said_before_anything_is_made(stack: Stack, made: list[str]) -> None:
    with pytest.raises(UsageError, match="no base image is called 'perl' - use debian, python"):
        publish(stack.config, "perl", print)
    nobody = stack.config.model_copy(
        update={"server": stack.config.server.model_copy(update={"listen": "127.0.0.1:1"})}
    )
    with pytest.raises(Unreachable, match="start it with `mayfly up`"):
        publish(nobody, "debian", print)
    assert made == []


def test_into_somebody_elses_registry_with_its_login(
    stack: Stack, made: list[str], tmp_path: Path
) -> None:
    """The stack plays the other one: reached by its name, its CA and a password."""
    (tmp_path / "password").write_text(stack.admin_token)
    registry = Registry(
        kind="external",
        images=f"{stack.address}/images/acme",
        username="me",
        password_file=str(tmp_path / "password"),
        ca=str(stack.config.state / "trust" / "ca.crt"),
    )
    config = stack.config.model_copy(update={"registry": registry})
    first = publish(config, "debian", print)
    assert first.reference == f"{stack.address}/images/acme/base/debian:latest"
    publish(config, "debian", print, platforms=(OWN, ARM))
    assert sorted(in_tag(stack, "debian", "acme/base")) == ["linux/amd64", "linux/arm64"]
    assert made == ["linux/amd64", "linux/arm64"]

    (tmp_path / "password").write_text("wrong")
    with pytest.raises(Denied, match=f"{stack.address} refuses the login"):
        publish(config, "debian", print)
