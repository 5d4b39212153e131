"""`mayfly install` where it belongs: on a Debian server with systemd, which is a VM here.

The server has prebuilt wheels and tools, and no network. `server.py` is what happens on it; each of
its steps is a line here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from mayfly import config as configuration
from mayfly.debian import sources
from mayfly.debian.bootstrap import bootstrap, in_root, remove_tree
from mayfly.debian.process import run
from mayfly.golden.disk import content_bytes, disk_bytes
from mayfly.golden.rootfs import take_boot_files
from mayfly.stack import certificates
from mayfly.tools import tools_dir
from tests.install.server import steps as all_steps

pytestmark = [pytest.mark.vm, pytest.mark.long]

ROOT = Path(__file__).parents[2]
SUITE, PYTHON = "trixie", "3.13"

PACKAGES = [
    *("ca-certificates", "e2fsprogs", "initramfs-tools", "iproute2", "kmod"),
    *("linux-image-cloud-amd64", "nftables", "procps", "python3", "qemu-system-x86"),
    *("qemu-utils", "systemd", "systemd-sysv", "udev", "util-linux"),
]

UNIT = """\
[Unit]
Description=The test
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -u /opt/server.py
ExecStopPost=/usr/bin/systemctl poweroff --force
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
"""

SETTINGS = '[vm]\nprovider = "fake"\n\n[pool]\nmemory_gb = 8\ndisk_gb = 100\n'

BOOT_S = 3600
"""How long the whole of it may take, also beside other work: emulated, it keeps two cores busy."""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What went wrong in each step that was done; empty where nothing did."""
    folder = tmp_path_factory.mktemp("server")
    root = folder / "root"
    try:
        _make_root(root, folder)
        take_boot_files(root, folder)
        disk = folder / "disk"
        size = disk_bytes(content_bytes(root), 3000)
        run(
            ["mke2fs", "-q", "-t", "ext4", "-L", "root", "-m", "0", "-d", root, disk,
             f"{size // 1024}k"],
            what="making the disk",
        )  # fmt: skip
    finally:
        remove_tree(root)
    yield _boot(folder, disk)
    disk.unlink()


@pytest.mark.timeout(BOOT_S + 900)
@pytest.mark.parametrize("step", all_steps())
def test_on_a_server(steps: dict[str, str], step: str) -> None:
    assert step in steps, "a step before it failed"
    assert steps[step] == ""


def _make_root(root: Path, folder: Path) -> None:
    bootstrap(
        root,
        suite=SUITE,
        variant="essential",
        packages=PACKAGES,
        architecture="amd64",
        epoch=int(time.time()),
        progress=print,
        mirror=sources.host_sources(SUITE),
        exclude=["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"],
    )
    _add_mayfly(root, folder)
    tools = tools_dir(configuration.load().cache).parent
    shutil.copytree(tools, root / "var/cache/mayfly/tools" / tools.name)
    (root / "etc/mayfly").mkdir()
    (root / "etc/mayfly/mayfly.toml").write_text(SETTINGS)
    _other_certificate(root / "opt")
    shutil.copy(Path(__file__).with_name("server.py"), root / "opt/server.py")
    units = root / "etc/systemd/system"
    (units / "the-test.service").write_text(UNIT)
    (units / "default.target").unlink(missing_ok=True)
    (units / "default.target").symlink_to("/usr/lib/systemd/system/multi-user.target")
    (units / "multi-user.target.wants").mkdir(exist_ok=True)
    (units / "multi-user.target.wants/the-test.service").symlink_to("../the-test.service")
    for unit in ("systemd-timesyncd.service", "apt-daily.timer", "apt-daily-upgrade.timer",
                 "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer"):  # fmt: skip
        (units / unit).unlink(missing_ok=True)
        (units / unit).symlink_to("/dev/null")
    (root / "etc/hostname").write_text("server\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost server\n")
    (root / "etc/fstab").write_text("LABEL=root / ext4 rw 0 0\n")
    (root / "etc/machine-id").write_text("0123456789abcdef0123456789abcdef\n")


def _add_mayfly(root: Path, folder: Path) -> None:
    """An environment as pip makes it, of wheels only: what a person has before `mayfly install`."""
    wheels = folder / "wheels"
    lock = folder / "requirements.lock"
    lock.write_text((ROOT / "requirements.lock").read_text())
    run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--require-hashes", "--only-binary=:all:", "--python-version", PYTHON,
         "--platform", "manylinux2014_x86_64", "--platform", "manylinux_2_28_x86_64",
         "--platform", "manylinux_2_34_x86_64", "--platform", "manylinux_2_17_x86_64",
         "--dest", wheels, "-r", lock], what="fetching wheels")  # fmt: skip
    run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels],
        what="building Mayfly's wheel", cwd=ROOT)  # fmt: skip
    uv = Path(sys.executable).with_name("uv")
    there = root / "tmp/wheels"
    shutil.copytree(wheels, there)
    shutil.copy(uv, root / "tmp/uv")
    in_root(root, ["python3", "-m", "venv", "--without-pip", "/opt/mayfly"], what="venv")
    in_root(root, ["/tmp/uv", "pip", "install", "--quiet", "--offline", "--no-index",
                   "--no-cache", "--find-links", "/tmp/wheels", "--compile-bytecode",
                   "--python", "/opt/mayfly/bin/python", "mayfly"], what="installing")  # fmt: skip
    shutil.rmtree(there)
    (root / "tmp/uv").unlink()
    shutil.rmtree(wheels)


def _other_certificate(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.now(UTC) - timedelta(days=1)
    made = certificates.self_signed(key, ("other.example.org",), now)
    (folder / "other.crt").write_bytes(certificates.dump(made))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "other.key").write_bytes(pem)


def _boot(folder: Path, disk: Path) -> dict[str, str]:
    """Run the server to its end; what its steps said."""
    said = folder / "said"
    done = subprocess.run(
        ["timeout", "-k", "10", str(BOOT_S), "qemu-system-x86_64", "-machine", "q35",
         "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072",
         "-nodefaults", "-nographic", "-no-reboot", "-nic", "none",
         "-kernel", folder / "vmlinuz", "-initrd", folder / "initrd.img",
         "-append", "root=LABEL=root rw console=ttyS0 quiet systemd.show_status=false",
         "-drive", f"file={disk},format=raw,if=virtio,cache=unsafe",
         "-device", "virtio-rng-pci",
         "-serial", f"file:{folder / 'console'}", "-serial", f"file:{said}"],
        capture_output=True, text=True, check=False, env=dict(os.environ),
    )  # fmt: skip
    found: dict[str, str] = {}
    for line in said.read_text(errors="replace").splitlines():
        if line.startswith("{"):
            message = json.loads(line)
            if "step" in message:
                print(message["step"], message["s"], "s")
                found[message["step"]] = message["fault"]
    assert found, f"{done.stderr}\n{(folder / 'console').read_text(errors='replace')[-3000:]}"
    return found
