"""Templates and golden images that are not as they were made, and a disk that is full meanwhile.

Booting is put in by the tests; real templates are in tests/farm.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mayfly import golden
from mayfly.config import Config
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.host import template as module
from mayfly.host.machine import Machine
from mayfly.host.seal import Seals
from mayfly.host.template import ATTEMPTS, SEALED, Template, ensure
from mayfly.model import GIB
from tests.golden.test_golden import make_image

FOUND = Machine((10, 0, 2), "tcg", "test", 2, 24 * GIB, "a cpu", 500 * GIB)


class Here:
    """A state with a golden image; what is made is counted."""

    def __init__(self, state: Path) -> None:
        self.config = Config(state=state)
        self.said: list[str] = []
        self.templates = self.images = 0
        self.seals = Seals()
        self.image = make_image(state, "2026-11-24")
        (state / "ca").mkdir()
        (state / "ca" / "ca.crt").write_text("a certificate")

    async def ensure(self) -> Template:
        return await ensure(self.config, FOUND, self.said.append, self.seals)

    async def make_template(self, config: Config, template: Template, *_: Any) -> None:
        self.templates += 1
        for name in SEALED:
            (template.path / name).write_bytes(name.encode() * 1000)

    async def make_image(self, config: Config, progress: Any) -> None:
        self.images += 1
        make_image(self.config.state, "2026-11-25")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    here = Here(tmp_path)
    monkeypatch.setattr(module, "_make", here.make_template)
    monkeypatch.setattr(golden, "make_apart", here.make_image)
    return here


async def test_what_is_sound_is_made_once_and_read_once(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await here.ensure()
    read: list[Path] = []
    monkeypatch.setattr(Seals, "check", lambda self, files, digest: read.extend(files))
    assert await here.ensure() == made
    assert (here.templates, here.images, read) == (1, 0, [])
    here.seals = Seals()  # the host program has started again
    assert await here.ensure() == made
    assert len(read) == len(SEALED) + 3


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


SPOIL = [flip, cut, Path.unlink]


@pytest.mark.parametrize("spoil", SPOIL)
@pytest.mark.parametrize("name", [*SEALED, "seal.json"])
async def test_a_spoiled_template_is_made_anew(
    here: Here, name: str, spoil: Callable[[Path], None]
) -> None:
    made = await here.ensure()
    spoil(made.path / name)
    assert await here.ensure() == made
    assert here.templates == 2
    assert any("spoiled" in line for line in here.said)
    await here.ensure()
    assert here.templates == 2


@pytest.mark.parametrize("spoil", SPOIL)
@pytest.mark.parametrize("name", ["disk.raw", "vmlinuz", "initrd.img", "manifest.json"])
@pytest.mark.parametrize("older", [False, True], ids=["only", "newest"])
async def test_a_spoiled_golden_image_is_made_anew(
    here: Here, name: str, spoil: Callable[[Path], None], older: bool
) -> None:
    if older:
        make_image(here.config.state, "2026-11-20")
    before = await here.ensure()
    spoil(here.image / name)
    after = await here.ensure()
    assert here.images == 1
    assert not here.image.exists()
    assert after.boot.kernel.parent.name == "2026-11-25"
    assert any("golden image 2026-11-24 is spoiled" in line for line in here.said)
    assert before.boot != after.boot
    await here.ensure()
    assert here.images == 1


async def test_what_a_removal_left_is_in_nobodys_way(here: Here) -> None:
    """The host was killed while it removed a spoiled template, whose name the next one has."""
    made = await here.ensure()
    (made.path / "template.json").unlink()
    assert await here.ensure() == made
    assert here.templates == 2


@pytest.mark.parametrize("failing", range(1, ATTEMPTS + 1))
async def test_a_boot_that_failed_is_tried_again_with_more_time(
    here: Here, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    limits: list[float] = []

    async def fails(config: Config, template: Template, _: Any, __: Any, boot_s: float) -> None:
        limits.append(boot_s)
        (template.path / "ram").write_bytes(b"half")
        if len(limits) <= failing:
            raise InfrastructureError("the golden image did not come up")
        await here.make_template(config, template)

    monkeypatch.setattr(module, "_make", fails)
    if failing < ATTEMPTS:
        await here.ensure()
        assert sum("did not come up; trying again" in line for line in here.said) == failing
    else:
        with pytest.raises(InfrastructureError, match="did not come up"):
            await here.ensure()
        assert list((here.config.state / "templates").iterdir()) == []
    assert limits == [module.BOOT_TIMEOUT_S * n for n in range(1, len(limits) + 1)]
    assert len(limits) == min(failing + 1, ATTEMPTS)


async def test_where_there_never_was_an_image_none_is_made(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match="no golden image"):
        await ensure(Config(state=tmp_path), FOUND, print, Seals())


@pytest.fixture
def small(here: Here) -> Iterator[Path]:
    """A file system of 32 MiB where templates are made."""
    if os.geteuid() != 0:
        pytest.fail("mounting needs root")
    place = here.config.state / "templates"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("how", ["an error", "QEMU ends"])
async def test_a_full_disk_is_one_clear_error_and_leaves_nothing(
    here: Here, small: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def fills(config: Config, template: Template, *_: Any) -> None:
        here.templates += 1
        try:
            (template.path / "ram").write_bytes(bytes(64 << 20))
        except OSError:
            if how == "an error":
                raise
            raise InfrastructureError("QEMU ended: Bus error") from None

    monkeypatch.setattr(module, "_make", fills)
    with pytest.raises(InfrastructureError, match=r"the disk of .*templates is full - make room"):
        await here.ensure()
    assert here.templates == 1
    assert list(small.iterdir()) == []
    monkeypatch.setattr(module, "_make", here.make_template)
    await here.ensure()
