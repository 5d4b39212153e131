"""What a lease replaces: a plain Debian VM that installs BuildKit when it first boots."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import asyncssh

from bench.farm import Bench, free_port
from bench.lease import one
from bench.page import Found, Line
from bench.stats import duration, median, of
from mayfly.build import ssh
from mayfly.cli.output import show
from mayfly.config import Config, site_certificates
from mayfly.debian import sources
from mayfly.debian.bootstrap import bootstrap, remove_tree, trust
from mayfly.errors import InfrastructureError
from mayfly.golden import disk, rootfs
from mayfly.golden.recipe import Disk, install
from mayfly.host import machine, template
from mayfly.host.argv import Hardware
from mayfly.model import MIB, Size
from mayfly.tools import tools_dir

SUITE = "trixie"
LEASES = 4
LIMIT_S = 600.0
SLACK_MIB = 1500
DISK = Disk("root", SLACK_MIB, "62656e63-6800-4000-8000-726f6f740000")
CMDLINE = "root=LABEL=root rw console=ttyS0 quiet net.ifnames=0 panic=-1"
PACKAGES = (
    *("apt", "ca-certificates", "debian-archive-keyring", "e2fsprogs", "initramfs-tools"),
    *("iproute2", "kmod", "linux-image-cloud-amd64", "openssh-server", "systemd"),
    *("systemd-sysv", "udev", "util-linux", "zstd"),
)
WANTED = {
    "multi-user.target.wants/systemd-networkd.service": "systemd-networkd.service",
    "network-online.target.wants/systemd-networkd-wait-online.service": (
        "systemd-networkd-wait-online.service"
    ),
}
NETWORK = "[Match]\nName=eth0\n[Network]\nDHCP=ipv4\n"
FIRST_BOOT_UNIT = """\
[Unit]
Wants=network-online.target
After=network-online.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/first-boot
[Install]
WantedBy=multi-user.target
"""
FIRST_BOOT = """\
#!/bin/sh -e
step() { echo "$1 $(cut -d ' ' -f 1 /proc/uptime)" >> /run/steps; }
step network
apt-get -qq update
step lists
DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install crun
step packages
install /opt/buildkit/buildkitd /opt/buildkit/buildctl /usr/local/bin/
systemd-run --quiet --unit buildkit /usr/local/bin/buildkitd --oci-worker true \\
    --oci-worker-binary crun --containerd-worker false
step started
"""
HOST_KEYS = "[Service]\nExecStartPre=\nExecStartPre=/usr/bin/ssh-keygen -A\nRuntimeDirectory=sshd\n"
ANSWERS = """\
until buildctl debug workers > /dev/null 2>&1; do
    for unit in first-boot buildkit; do
        if systemctl -q is-failed $unit; then journalctl -u $unit -n 3 -o cat; exit 1; fi
    done
    until [ -S /run/buildkit/buildkitd.sock ] || systemctl -q is-failed first-boot buildkit; do
        sleep 0.5
    done
done
cat /run/steps
"""


async def generic(bench: Bench) -> Found:
    """One first boot of a plain Debian, beside a few leases of a runner of the same size."""
    show("making a plain Debian disk")
    with tempfile.TemporaryDirectory(prefix="mayfly-bench-", dir=bench.config.state) as name:
        folder, key = Path(name), ssh.new_key()
        try:
            await asyncio.to_thread(make, bench.config, folder, ssh.public_line(key))
            leases = [(await one(bench.config, bench.default)).answered_s for _ in range(LEASES)]
            show("its first boot")
            login_s, answer_s, steps = await first_boot(bench, folder, key)
        finally:
            remove_tree(folder / "root")
    times = answer_s / median(leases)
    return Found(
        lines=(
            Line(
                "worker list: a generic Debian VM that installs BuildKit at its first boot, against"
                f" the lease; {bench.default}",
                "print",
                f"{times:.0f}x; generic {duration(answer_s)} (n=1), lease {of(leases)}",
                None,
            ),
        ),
        notes=(
            f"the generic VM: Debian {SUITE} with its cloud kernel and sshd, booted by QEMU "
            "directly, from its start; logged in over SSH at "
            f"{duration(login_s)}. At its first boot it makes host keys, runs `apt-get update` and "
            "`apt-get install crun` from this machine's mirror, and copies buildkitd and buildctl, "
            "which are on its disk already (no Debian package has them, and no download is "
            f"counted). Seconds since its kernel's start: {', '.join(steps)}.",
        ),
    )


def make(config: Config, folder: Path, public_key: str) -> None:
    """`disk`, `vmlinuz` and `initrd.img` of a plain Debian in `folder`. Raises `MayflyError`."""
    root, epoch = folder / "root", int(datetime.now(UTC).timestamp())
    mirror = sources.host_sources(SUITE)
    bootstrap(
        root,
        suite=SUITE,
        variant="essential",
        packages=PACKAGES,
        architecture="amd64",
        epoch=epoch,
        progress=lambda _: None,
        mirror=mirror,
    )
    trust(root, site_certificates(config))
    _write(root, "etc/apt/sources.list.d/debian.sources", sources.render(mirror))
    _write(root, "etc/apt/apt.conf.d/90mirror", "\n".join([*sources.host_apt_options(), ""]))
    (root / "etc/apt/sources.list").unlink(missing_ok=True)
    _write(root, "etc/resolv.conf", "nameserver 10.0.2.3\n")
    _write(root, "etc/hostname", "generic\n")
    _write(root, "etc/fstab", "LABEL=root / ext4 defaults 0 0\n")
    _write(root, "etc/systemd/network/10-eth0.network", NETWORK)
    _write(root, "etc/systemd/system/first-boot.service", FIRST_BOOT_UNIT)
    _write(root, "etc/systemd/system/ssh.service.d/keys.conf", HOST_KEYS)
    _write(root, "usr/local/sbin/first-boot", FIRST_BOOT, mode=0o755)
    _write(root, "root/.ssh/authorized_keys", public_key + "\n", mode=0o600)
    (root / "root/.ssh").chmod(0o700)
    units = root / "etc/systemd/system"
    for link, unit in WANTED.items():
        (units / link).parent.mkdir(exist_ok=True)
        (units / link).unlink(missing_ok=True)
        (units / link).symlink_to(f"/usr/lib/systemd/system/{unit}")
    wanted = units / "multi-user.target.wants/first-boot.service"
    wanted.symlink_to("/etc/systemd/system/first-boot.service")
    for old in (root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    for program in ("buildkitd", "buildctl"):
        install(tools_dir(config.cache) / program, root / "opt/buildkit" / program)
    rootfs.take_boot_files(root, folder)
    disk.make_disk(root, folder / "disk", DISK, epoch)


def _write(root: Path, name: str, text: str, mode: int = 0o644) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


async def first_boot(bench: Bench, folder: Path, key: ssh.Key) -> tuple[float, float, list[str]]:
    """Seconds from QEMU's start to being logged in and to BuildKit's workers; the steps' times.

    A VM whose QEMU dies, as under TCG some do while they boot, is started again from its disk as it
    was. Raises `InfrastructureError`.
    """
    hardware = machine.hardware(bench.config, await machine.inspect(bench.config))
    for _ in range(template.ATTEMPTS):
        shutil.copyfile(folder / "disk", folder / "own")
        port, started_at = free_port(), time.monotonic()
        argv = qemu_argv(bench.config.vm.qemu, hardware, bench.default, folder, port)
        async with _running(argv, folder / "qemu.log") as process:
            try:
                async with asyncio.timeout(LIMIT_S):
                    connection = await _logged_in(process, port, key)
                    login_s = time.monotonic() - started_at
                    async with connection:
                        done = await connection.run(ANSWERS, check=True)
                    answer_s = time.monotonic() - started_at
                    return login_s, answer_s, str(done.stdout).split("\n")[:-1]
            except asyncssh.ProcessError as error:
                said = str(error.stdout).strip()
                raise InfrastructureError(f"the first boot failed: {said[-300:]}") from None
            except TimeoutError:
                raise InfrastructureError(f"no BuildKit within {LIMIT_S:.0f} s") from None
            except (OSError, asyncssh.Error):
                if process.returncode is None:
                    raise
    raise InfrastructureError("QEMU died at every first boot")


def qemu_argv(qemu: str, hardware: Hardware, size: Size, folder: Path, port: int) -> list[str]:
    """A VM of `size` that boots `folder`'s disk; its SSH server is at `port` of loopback. Pure."""
    accel = "tcg,thread=multi" if hardware.accelerator == "tcg" else hardware.accelerator
    return [
        *("timeout", "--foreground", "--signal=KILL", f"{LIMIT_S + 60:.0f}s", qemu),
        *("-name", "bench-generic", "-machine", hardware.machine, "-accel", accel),
        *("-cpu", hardware.cpu_model, "-smp", str(size.cpus), "-m", f"{size.memory_bytes // MIB}M"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.img")),
        *("-append", CMDLINE),
        *("-drive", f"file={folder / 'own'},format=raw,if=none,id=root,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=root"),
        *("-netdev", f"user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:{port}-:22"),
        *("-device", "virtio-net-pci,netdev=net", "-device", "virtio-rng-pci"),
        *("-serial", f"file:{folder / 'serial.log'}"),
    ]


@asynccontextmanager
async def _running(argv: Sequence[str], log: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()


async def _logged_in(
    process: asyncio.subprocess.Process, port: int, key: ssh.Key
) -> asyncssh.SSHClientConnection:
    """The first login that succeeds. The host key is the VM's own invention, so any is taken."""
    while True:
        try:
            return await asyncssh.connect(
                "127.0.0.1", port, config=None, username="root", client_keys=[key],
                known_hosts=None, agent_path=None, connect_timeout=20, login_timeout=20,
            )  # fmt: skip
        except (OSError, asyncssh.Error, TimeoutError):
            if process.returncode is not None:
                raise
            await asyncio.sleep(0.2)
