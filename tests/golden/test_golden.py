"""The recipe is whole, digests are stable, the catalogue shows whole images only."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.base import PLATFORMS
from mayfly.errors import InfrastructureError, MachineUnfit
from mayfly.golden import catalogue, disk, fetch, manifest, recipe, rootfs
from mayfly.golden import image as building

TODAY = date(2026, 11, 24)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


# --- manifest --------------------------------------------------------------------------------


@given(st.dictionaries(st.text(), values), st.dictionaries(st.text(), values))
def test_the_digest_is_that_of_what_is_said_not_of_how(
    content: dict[str, object], artifact: dict[str, object]
) -> None:
    one = manifest.digest(content, artifact)
    again = json.loads(json.dumps({"c": content, "a": artifact}, indent=3))
    two = manifest.digest(dict(reversed(again["c"].items())), again["a"])
    assert one == two and re.fullmatch(r"sha256:[0-9a-f]{64}", one)


@given(st.dictionaries(st.text(), values))
def test_the_digest_tells_content_from_artifact(content: dict[str, object]) -> None:
    assert manifest.digest({"x": content}, {}) != manifest.digest({}, {"x": content})


def test_packages_do_not_make_another_request() -> None:
    same = {"recipe_sha256": "1", "tools": {"a": 1}, "site_certificates": []}
    assert manifest.inputs({**same, "packages": [1]}) == manifest.inputs(same)
    assert manifest.inputs({**same, "tools": {}}) != manifest.inputs(same)


# --- recipe ----------------------------------------------------------------------------------


def test_the_recipe_reads_and_names_only_units_that_it_has() -> None:
    ours = recipe.load()
    assert ours.own_files()[f"{recipe.AGENT_PATH}/__main__.py"] == recipe.GUEST / "__main__.py"
    for unit in ours.enable:
        assert f"{rootfs.UNITS}/{rootfs.unit_file(unit)}" in ours.own_files()
    assert "root=LABEL=root" in ours.cmdline and "mitigations=off" not in ours.cmdline


def test_everything_that_is_no_debian_package_is_pinned() -> None:
    ours = recipe.load()
    for wheel in ours.wheels.values():
        assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256) and wheel.version
    for package in ours.npm.values():
        assert re.fullmatch(r"sha512-[A-Za-z0-9+/]{86}==", package.integrity)


def test_no_file_of_the_image_names_a_registry_or_holds_a_key() -> None:
    for path in recipe.load().own_files().values():
        text = path.read_text()
        assert "PRIVATE KEY-----\n" not in text
        assert not re.search(r"https?://", text), path


def test_buildkit_is_told_what_the_image_has_an_emulator_for() -> None:
    files = recipe.FOLDER / "files"
    lines = (files / "etc/binfmt.d/mayfly.conf").read_text().splitlines()
    emulated = {line.split(":")[1].removeprefix("qemu-") for line in lines if line[0] == ":"}
    told = tomllib.loads((files / "etc/buildkit/buildkitd.toml").read_text())["worker"]["oci"]
    names = {"arm64": "aarch64", "amd64": "x86_64"}
    found = [platform.split("/")[1] for platform in told["platforms"]]
    assert found[0] == "amd64", "its own"
    assert {names.get(name, name) for name in found[1:]} == emulated
    assert set(PLATFORMS) <= set(told["platforms"])


def test_the_agent_runs_with_nothing_but_the_standard_library_and_its_own_folder(
    tmp_path: Path,
) -> None:
    for name, path in recipe.agent().items():
        recipe.install(path, tmp_path / name)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import mayfly.guest.agent as it"
    folder = tmp_path / recipe.AGENT_PATH
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"{code}; print(it.__file__)", folder],
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()).is_relative_to(folder)


def test_the_recipes_checksum_sees_every_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text((recipe.FOLDER / "recipe.toml").read_text())
    before = recipe.load(tmp_path).sha256
    (tmp_path / "files").mkdir()
    (tmp_path / "files/x").write_text("1")
    after = recipe.load(tmp_path).sha256
    (tmp_path / "files/x").chmod(0o755)
    assert len({before, after, recipe.load(tmp_path).sha256}) == 3


# --- catalogue -------------------------------------------------------------------------------


def make_image(state: Path, folder: str, *, inputs: str = "r") -> Path:
    path = state / "golden" / folder
    path.mkdir(parents=True)
    for name in catalogue.FILES.values():
        (path / name).write_bytes(name.encode())
    content = {"cmdline": "quiet", "recipe_sha256": inputs, "tools": {}, "site_certificates": []}
    artifact = {
        part: {"sha256": recipe.file_sha256(path / name), "size_bytes": len(name)}
        for part, name in catalogue.FILES.items()
    }
    (path / "manifest.json").write_text(
        json.dumps(
            {
                "name": f"buildkit-runner-golden:{folder}",
                "created_at": "2026-11-24T10:00:00Z",
                "digest": manifest.digest(content, artifact),
                "content": content,
                "artifact": artifact,
            }
        )
    )
    return path


def test_an_empty_state_has_no_image(tmp_path: Path) -> None:
    assert catalogue.listing(tmp_path) == []
    assert catalogue.newest(tmp_path) is None


def test_images_are_listed_by_date_and_number(tmp_path: Path) -> None:
    for folder in ("2026-11-24.10", "2026-11-24", "2026-11-24.2", "2026-11-03"):
        make_image(tmp_path, folder)
    (tmp_path / "golden/.building-x").mkdir()
    (tmp_path / "golden/2026-11-30").mkdir()
    found = [golden.path.name for golden in catalogue.listing(tmp_path)]
    assert found == ["2026-11-03", "2026-11-24", "2026-11-24.2", "2026-11-24.10"]
    newest = catalogue.newest(tmp_path)
    assert newest is not None and newest.name == "buildkit-runner-golden:2026-11-24.10"
    assert newest.created_at.isoformat() == "2026-11-24T10:00:00+00:00"


def test_a_day_counts_on() -> None:
    assert catalogue.next_folder(set(), TODAY) == "2026-11-24"
    assert catalogue.next_folder({"2026-11-24", "2026-11-23.7"}, TODAY) == "2026-11-24.2"
    assert catalogue.next_folder({"2026-11-24.9", "2026-11-24"}, TODAY) == "2026-11-24.10"


def test_verify_names_the_file_that_changed(tmp_path: Path) -> None:
    path = make_image(tmp_path, "2026-11-24")
    golden = catalogue.load(path)
    catalogue.verify(golden)
    golden.kernel.write_bytes(b"other")
    with pytest.raises(InfrastructureError, match="vmlinuz has changed"):
        catalogue.verify(golden)
    golden.kernel.unlink()
    with pytest.raises(InfrastructureError, match="vmlinuz is gone"):
        catalogue.verify(golden)


def test_verify_sees_a_changed_manifest(tmp_path: Path) -> None:
    path = make_image(tmp_path, "2026-11-24")
    golden = catalogue.load(path)
    text = (path / "manifest.json").read_text().replace('"quiet"', '"loud"')
    (path / "manifest.json").write_text(text)
    with pytest.raises(InfrastructureError, match="manifest has changed"):
        catalogue.verify(golden)


# --- the build's own decisions ---------------------------------------------------------------


def test_nothing_is_built_twice_on_a_day(tmp_path: Path) -> None:
    make_image(tmp_path, "2026-11-23", inputs="same")
    content = {"recipe_sha256": "same", "tools": {}, "site_certificates": []}
    assert building._same(tmp_path, TODAY, content) is None
    make_image(tmp_path, "2026-11-24", inputs="same")
    same = building._same(tmp_path, TODAY, content)
    assert same is not None and same.path.name == "2026-11-24"
    make_image(tmp_path, "2026-11-24.2", inputs="other")
    assert building._same(tmp_path, TODAY, content) is None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "_programs", lambda *_: ({}, {}))
    monkeypatch.setattr(building, "_make_root", fail)
    (tmp_path / "golden/.building-old").mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        building.build(
            tmp_path, tools=tmp_path, site_certificates=[], today=TODAY, progress=lambda _: None
        )
    assert [path.name for path in (tmp_path / "golden").iterdir()] == [".lock"]


def test_missing_tools_are_named(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match="buildkitd"):
        building.build(
            tmp_path, tools=tmp_path, site_certificates=[], today=TODAY, progress=lambda _: None
        )


def test_a_full_disk_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(building, "_programs", full)
    with pytest.raises(InfrastructureError, match="the disk is full"):
        building.build(
            tmp_path, tools=tmp_path, site_certificates=[], today=TODAY, progress=lambda _: None
        )


@given(st.integers(0, 1 << 40), st.integers(0, 4096))
def test_the_disk_holds_its_content(content: int, slack_mib: int) -> None:
    size = disk.disk_bytes(content, slack_mib)
    assert size >= content + slack_mib * disk.MIB
    assert size % (16 * disk.MIB) == 0


def test_a_download_that_differs_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.tgz"
    file.write_bytes(b"abc")
    good = "sha512-" + base64.b64encode(hashlib.sha512(b"abc").digest()).decode()
    fetch.check_integrity(file, good)
    with pytest.raises(InfrastructureError):
        fetch.check_integrity(file, good[:-4] + "AA==")


def test_units_are_arranged_as_the_recipe_says(tmp_path: Path) -> None:
    ours = recipe.load()
    units = tmp_path / rootfs.UNITS
    (units / "getty.target.wants").mkdir(parents=True)
    for unit in ours.enable:
        (units / rootfs.unit_file(unit)).write_text("")
    rootfs.arrange_units(tmp_path, ours)
    wants = {path.name for path in (units / f"{ours.default_target}.wants").iterdir()}
    assert wants == set(ours.enable)
    own = units / f"{ours.default_target}.wants/buildkitd@own.service"
    assert own.readlink() == Path(f"/{rootfs.UNITS}/buildkitd@.service")
    assert not (units / "getty.target.wants").exists()
    assert (units / "getty.target").readlink() == Path("/dev/null")
