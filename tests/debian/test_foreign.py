"""Programs of another architecture: emulated in namespaces of their own, or refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.debian import foreign
from mayfly.debian.bootstrap import apart
from mayfly.errors import MachineUnfit

MAGIC = r"\x7fELF:\xff\xff\xff\xff"


def conf(folder: Path, interpreter: Path, flags: str = "OPF") -> Path:
    interpreter.touch()
    (folder / "qemu-riscv64.conf").write_text(
        f"# a comment\n:qemu-riscv64:M::{MAGIC}:{interpreter}:{flags}\n"
    )
    return folder


def test_a_registration_is_debians_own_and_names_an_emulator_that_is_there(tmp_path: Path) -> None:
    folder = conf(tmp_path, tmp_path / "qemu")
    line = foreign.registration("riscv64", [tmp_path / "none", folder])
    assert line == f":qemu-riscv64:M::{MAGIC}:{tmp_path / 'qemu'}:OPF"
    assert foreign.registration("arm64", [folder]) == ""
    (tmp_path / "qemu").unlink()
    assert foreign.registration("riscv64", [folder]) == ""


def test_an_emulator_that_would_be_looked_for_in_the_foreign_root_is_none(tmp_path: Path) -> None:
    assert foreign.registration("riscv64", [conf(tmp_path, tmp_path / "qemu", flags="OP")]) == ""


def test_this_machines_own_programs_need_nothing() -> None:
    assert foreign.emulation("amd64", []) == []
    assert apart("amd64")[0] == "unshare"


def native(architecture: str) -> bool:
    """Whether the machine runs them anyway: it has registered an emulator."""
    return (
        subprocess.run(["arch-test", architecture], capture_output=True, check=False).returncode
        == 0
    )


@pytest.mark.skipif(native("s390x"), reason="this machine runs programs of s390x")
def test_without_an_emulator_the_machine_is_unfit_and_the_mend_is_said() -> None:
    with pytest.raises(MachineUnfit, match="programs of s390x - apt-get install qemu-user-static"):
        foreign.emulation("s390x", [])


@pytest.mark.skipif(native("riscv64"), reason="this machine runs programs of riscv64")
def test_an_emulator_that_does_not_work_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit, match="lets no namespace have one"):
        foreign.emulation("riscv64", [conf(tmp_path, tmp_path / "qemu")])


def namespaces() -> bool:
    """Whether a user namespace can be made here."""
    return subprocess.run(["unshare", "--user", "true"], check=False).returncode == 0


@pytest.mark.skipif(
    not namespaces(), reason="no user namespace can be made, as in a chroot (unshare(2))"
)
def test_a_command_has_its_status_and_the_machine_stays_unchanged(tmp_path: Path) -> None:
    """In the namespaces root is root of every file, and only there is anything registered."""
    emulator = tmp_path / "emulator"
    emulator.write_bytes(Path("/bin/true").read_bytes())
    emulator.chmod(0o755)
    line = rf":mayfly-test:M::mayfly\x00test::{emulator}:F"
    before = sorted(path.name for path in foreign.BINFMT.iterdir())
    program = tmp_path / "program"
    program.write_bytes(b"mayfly\0test")
    program.chmod(0o755)
    script = f"chown 4000:4000 {tmp_path}/owned && {program} && exit 7"
    (tmp_path / "owned").touch()
    done = subprocess.run(
        [sys.executable, "-m", "mayfly.debian.foreign", line, "sh", "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (7, "")
    assert (tmp_path / "owned").stat().st_uid == 4000
    assert sorted(path.name for path in foreign.BINFMT.iterdir()) == before
    with pytest.raises(OSError, match="Exec format"):
        subprocess.run([program], check=False)
