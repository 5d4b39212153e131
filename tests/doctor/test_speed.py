"""What is measured is the same work on both sides, and it is measured once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mayfly.doctor import speed
from mayfly.errors import MachineUnfit

QEMU = "qemu-system-x86_64"


@pytest.mark.vm
def test_the_same_loop_runs_here_and_in_a_guest_and_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 200_000)
    found = speed.measured(QEMU, "10.0.2", "tcg", None, tmp_path)
    assert found.least
    assert found.native_s > 0
    assert found.guest_s > 0
    assert "at least " in str(found)
    assert "a loop of integer code" in str(found)
    monkeypatch.setattr(speed, "loop", lambda *_: pytest.fail("measured again"))
    assert speed.measured(QEMU, "10.0.2", "tcg", None, tmp_path) == found
    with pytest.raises(BaseException, match="measured again"):
        speed.measured(QEMU, "10.0.3", "tcg", None, tmp_path)


@pytest.mark.vm
def test_a_guest_that_computes_something_else_is_no_measure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "ROUNDS", 1000)
    wrong = speed.image().replace(bytes.fromhex("c1e20d"), bytes.fromhex("c1e20c"))
    monkeypatch.setattr(speed, "image", lambda: wrong)
    with pytest.raises(MachineUnfit, match="computes"):
        speed.loop(QEMU, "tcg")
    monkeypatch.setattr(speed, "image", lambda: b"no kernel")
    with pytest.raises(MachineUnfit, match="did not run the measured loop"):
        speed.loop(QEMU, "tcg")


def test_how_long_python_takes_to_compile_is_read_off_its_cpu_time() -> None:
    took = speed._took(["python3", "-I", "-S", "-c", speed.SOURCE])
    assert 0 < took < 60


def test_a_program_that_says_nothing_is_ended() -> None:
    with pytest.raises(MachineUnfit, match="last line: 'words'"):
        speed._took(["sh", "-c", "echo words; exec sleep 603.1"], 5)
    left = subprocess.run(["pgrep", "-fx", "sleep 603.1"], capture_output=True, check=False)
    assert left.returncode == 1


@pytest.mark.parametrize(
    ("accelerator", "guest_s", "least", "says"),
    [
        ("tcg", 0.08, False, "compiling is about 8 times slower: x takes 80 ms in a guest, 10 ms"),
        ("kvm", 0.011, False, "nearly as fast as this machine: x takes 11 ms in a guest, 10 ms on"),
        ("tcg", 0.03, True, "at least 3.0 times slower: x takes 30 ms"),
    ],
)
def test_the_words_for_it(accelerator: str, guest_s: float, least: bool, says: str) -> None:
    assert str(speed.Speed(accelerator, "x", 0.01, guest_s, least)).startswith(says)
