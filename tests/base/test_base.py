"""Base images: layouts that say what they hold, layers that depend on content alone."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
from datetime import date
from pathlib import Path

import pytest

from mayfly.base import KINDS, make, make_base, oci, push
from mayfly.base.kinds import STORE, environment
from mayfly.base.push import auth_file
from mayfly.debian.bootstrap import Package
from mayfly.errors import UsageError
from mayfly.registry.credentials import Login

EPOCH = 1_800_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name in ("etc", "dev", "proc/1", "bin"):
        (root / name).mkdir(parents=True)
    (root / "etc/b").write_text("b")
    (root / "etc/a").write_text("a")
    (root / "bin/a").hardlink_to(root / "etc/a")
    (root / "bin/link").symlink_to("/etc/b")
    (root / "dev/console").write_text("")
    (root / "etc/suid").write_text("")
    (root / "etc/suid").chmod(0o4755)
    os.mkfifo(root / "etc/fifo")
    return root


def tar_of(root: Path) -> bytes:
    out = io.BytesIO()
    oci.write_tar(root, out, EPOCH)
    return out.getvalue()


def test_a_layer_has_no_devices_and_is_sorted(root: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of(root))) as tar:
        names = tar.getnames()
        assert "dev" in names and "proc" in names
        assert not [name for name in names if name.startswith(("dev/", "proc/"))]
        assert "etc/fifo" not in names
        assert names.index("etc/a") < names.index("etc/b")
        assert tar.getmember("etc/suid").mode == 0o4755
        links = [member for member in tar.getmembers() if member.islnk()]
        assert len(links) == 1
        assert tar.getmember("bin/link").linkname == "/etc/b"


def test_a_layer_depends_on_content_alone(root: Path) -> None:
    for name, then in (("etc/a", EPOCH - 10), ("etc/b", EPOCH + 10)):
        os.utime(root / name, (then, then))
    before = tar_of(root)
    os.utime(root / "etc/b", (EPOCH + 99, EPOCH + 99))
    assert tar_of(root) == before


def test_a_layout_is_what_it_says(root: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    digest = oci.write_layout(
        layout,
        root,
        tag="latest",
        platform={"os": "linux", "architecture": "arm", "variant": "v7"},
        env={"B": "2", "A": "1"},
        command=["bash"],
        labels={"k": "v"},
        created="2026-11-24T00:00:00Z",
        epoch=EPOCH,
    )
    blobs = layout / "blobs/sha256"
    for blob in blobs.iterdir():
        assert hashlib.sha256(blob.read_bytes()).hexdigest() == blob.name
    index = json.loads((layout / "index.json").read_bytes())
    assert index["manifests"][0]["digest"] == digest
    manifest = json.loads((blobs / digest.removeprefix("sha256:")).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    assert config["config"]["Env"] == ["A=1", "B=2"]
    assert (config["os"], config["architecture"], config["variant"]) == ("linux", "arm", "v7")
    assert oci.descriptor(layout)["digest"] == digest
    layer = blobs / manifest["layers"][0]["digest"][7:]
    assert layer.stat().st_size == manifest["layers"][0]["size"]
    tar = subprocess.run(["zstd", "-dc", layer], capture_output=True, check=True).stdout
    assert "sha256:" + hashlib.sha256(tar).hexdigest() == config["rootfs"]["diff_ids"][0]


def test_a_sites_certificates_are_trusted_by_everything_or_nothing_is_said() -> None:
    python = KINDS["python"]
    assert environment(python, trusting=True)["PIP_CERT"] == STORE
    assert "PIP_CERT" not in environment(python, trusting=False)


def test_what_dockerfiles_install_themselves_is_found_before_debians() -> None:
    path = environment(KINDS["rust"], trusting=False)["PATH"].split(":")
    assert path[0] == "/usr/local/cargo/bin"
    assert "/usr/bin" in path


def test_a_login_is_one_in_every_table_and_has_a_home(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\n")
    make.add_user(tmp_path, "node")
    assert (tmp_path / "etc/passwd").read_text().splitlines()[1].split(":")[:4] == [
        "node",
        "x",
        "1000",
        "1000",
    ]
    assert {line.split(":")[0] for line in (tmp_path / "etc/shadow").read_text().split()} == {
        "node"
    }
    assert (tmp_path / "home/node").stat().st_uid == 1000


def test_the_packages_digest_is_that_of_a_set() -> None:
    packages = [Package("a", "1", "amd64", "x"), Package("b", "1", "amd64", "y")]
    assert make.packages_digest(packages) == make.packages_digest(packages[::-1])
    assert make.packages_digest(packages) != make.packages_digest(packages[:1])


def test_help_names_every_kind() -> None:
    """`docs/reference.md` is what the commands say, which another test holds."""
    text = (Path(__file__).parents[2] / "docs/reference.md").read_text()
    (named,) = re.findall(r"^  NAME… <list\[str\]>  ([a-z, ]+)\.", text, re.M)
    assert set(named.split(", ")) == set(KINDS)


def test_an_unknown_kind_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="debian, python, rust"):
        make_base(
            "x", tmp_path, site_certificates=[], today=date(2026, 1, 1), progress=lambda _: None
        )


def test_an_auth_file_holds_the_token() -> None:
    auths = json.loads(auth_file("host:5000", Login("lease", "secret")))["auths"]
    assert auths == {"host:5000": {"auth": "bGVhc2U6c2VjcmV0"}}


def test_a_reference_without_a_host_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        push(tmp_path, "debian", ca_dir=None, login=None)


def made(out: Path, said: list[str], kind: str = "debian") -> Path:
    return make_base(
        kind, out, site_certificates=[], today=date(2026, 11, 24), progress=said.append
    )


@pytest.mark.services
def test_debian_for_real(tmp_path: Path) -> None:
    """Built from packages, unpacked by skopeo's own reading, and free of devices."""
    said: list[str] = []
    layout = made(tmp_path, said)
    subprocess.run(
        ["skopeo", "copy", "-q", f"oci:{layout}:latest", f"dir:{tmp_path / 'copy'}"], check=True
    )
    manifest = json.loads((tmp_path / "copy/manifest.json").read_bytes())
    layer = tmp_path / "copy" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    tar = subprocess.run(["zstd", "-dc", layer], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        names = set(opened.getnames())
        assert {"usr/bin/bash", "etc/apt/sources.list.d/debian.sources"} <= names
        assert not any(member.isdev() for member in opened.getmembers())
        assert not {name for name in names if name.startswith("etc/ssh/ssh_host")}
    assert said[-1] == "base image debian is ready"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "debian"]


@pytest.mark.long
@pytest.mark.services
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_packages_and_day_give_the_same_image(tmp_path: Path, kind: str) -> None:
    first, second = (made(tmp_path / folder, [], kind) for folder in ("one", "two"))
    assert oci.descriptor(first) == oci.descriptor(second)
