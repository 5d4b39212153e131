"""The fake provider keeps the provider's promises, and those of its script."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key

from mayfly import vm
from mayfly.config import Config
from mayfly.errors import InfrastructureError
from mayfly.model import GIB, RunnerSpec, Size
from mayfly.vm.fake import Fake

SIZE = Size("t1", 1, GIB, 4 * GIB)


def spec(name: str) -> RunnerSpec:
    return RunnerSpec(name, SIZE, "ssh-ed25519 AAAA", 60)


async def test_create_is_idempotent_and_destroy_is_silent() -> None:
    fake = Fake()
    first = await fake.create(spec("a-1"))
    fake.create_s = 0.001  # a second making would show in its timings
    assert await fake.create(spec("a-1")) == first
    assert first.ready
    assert await fake.list() == (first,)
    await fake.destroy("a-1")
    await fake.destroy("a-1")
    assert await fake.list() == ()


async def test_host_keys_are_well_formed_and_differ() -> None:
    fake = Fake()
    keys = [(await fake.create(spec(name))).ssh_host_key for name in ("a-1", "b-1")]
    assert len(set(keys)) == 2
    for key in keys:
        load_ssh_public_key(key.encode())


async def test_failures_are_for_the_named_runner_and_as_often_as_told() -> None:
    fake = Fake()
    fake.fail("create", InfrastructureError("no"), runner="a-*", times=2)
    await fake.create(spec("b-1"))
    for _ in range(2):
        with pytest.raises(InfrastructureError):
            await fake.create(spec("a-1"))
    await fake.create(spec("a-1"))
    assert [c for c in fake.calls if c[1] == "a-1"] == [("create", "a-1")] * 3


async def test_held_calls_wait() -> None:
    fake = Fake()
    release = fake.hold("create")
    task = asyncio.create_task(fake.create(spec("a-1")))
    await asyncio.sleep(0.01)
    assert not task.done()
    release()
    await task


async def test_progress_is_told() -> None:
    lines: list[str] = []
    await Fake(lines=("one", "two")).prepare(lines.append)
    assert lines == ["one", "two"]


async def test_runners_in_a_directory_outlive_the_process(tmp_path: Path) -> None:
    runner = await Fake(directory=tmp_path / "fake").create(spec("a-1"))
    again = Fake(directory=tmp_path / "fake")
    assert [(r.name, r.size, r.ssh_host_key) for r in await again.list()] == [
        ("a-1", "t1", runner.ssh_host_key)
    ]
    await again.destroy("a-1")
    assert await Fake(directory=tmp_path / "fake").list() == ()


@pytest.mark.parametrize("name", ["fake", "qemu"])
def test_the_configured_provider_is_made(tmp_path: Path, name: str) -> None:
    config = Config.model_validate({"state": tmp_path, "vm": {"provider": name}})
    assert vm.provider(config).name == name


def test_every_provider_that_can_be_configured_exists() -> None:
    annotation = type(Config().vm).model_fields["provider"].annotation
    assert set(vm.PROVIDERS) == set(annotation.__args__)  # type: ignore[union-attr]
