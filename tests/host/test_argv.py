"""The shape of a VM: what template and clone must share."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from mayfly.host import argv
from mayfly.model import GIB

HARDWARE = argv.Hardware(
    qemu_version="10.0.2",
    machine="pc-q35-10.0",
    accelerator="tcg",
    cpu_model="max",
    cpus=4,
    boot_memory_bytes=GIB,
    max_memory_bytes=23 * GIB,
)
BOOT = argv.Boot(Path("/g/vmlinuz"), Path("/g/initrd.img"), "root=LABEL=root rw")
DISKS = argv.Disks(Path("/t/root.qcow2"), "qcow2", Path("/t/scratch.raw"), "raw")

DEVICES = ("-machine", "-accel", "-cpu", "-smp", "-m", "-append", "-kernel", "-initrd", "-device")


def pairs(command: list[str]) -> list[tuple[str, str]]:
    """What a guest can see of its machine: options with their values, in order."""
    return [(a, b) for a, b in itertools.pairwise(command) if a in DEVICES]


FROZEN = argv.template(
    "qemu", HARDWARE, ram=Path("/t/ram"), disks=DISKS, boot=BOOT, directory=Path("/t")
)
WOKEN = argv.clone(
    "qemu",
    HARDWARE,
    "abc-1",
    ram=Path("/t/ram"),
    disks=DISKS,
    boot=BOOT,
    directory=Path("/v"),
    ssh_port=2222,
)


def test_a_clone_has_the_very_hardware_of_its_template() -> None:
    assert pairs(FROZEN) == pairs(WOKEN)
    assert "-incoming" in WOKEN
    assert "-incoming" not in FROZEN


def test_only_the_template_writes_the_ram_file() -> None:
    (shared,) = [a for a in FROZEN if a.startswith("memory-backend-file")]
    (private,) = [a for a in WOKEN if a.startswith("memory-backend-file")]
    assert "share=on" in shared
    assert "share=off,readonly=on" in private


def test_every_device_has_an_address_of_its_own() -> None:
    pci = [v for o, v in pairs(FROZEN) if o == "-device" and ("pci" in v or "pcie" in v)]
    addresses = [v.rpartition("addr=")[2].partition(",")[0] for v in pci]
    assert len(set(addresses)) == len(addresses) == 6


def confined(**more: Any) -> list[str]:
    fences: dict[str, Any] = {
        "namespace": Path("/run/netns/x"),
        "uid": 61000,
        "groups": [],
        "lifetime_s": 90,
        "file_bytes": GIB,
        "cgroups": [Path("/cg/a"), Path("/cg/b")],
        "nice": False,
    }
    return argv.confined(["qemu", "-S"], **{**fences, **more})


def test_a_confined_command_is_ended_by_root_and_run_by_the_vms_uid() -> None:
    command = confined()
    assert command.index("timeout") < command.index("setpriv") < command.index("qemu")
    assert command[command.index("nsenter") + 1] == "--net=/run/netns/x"
    assert "90.0s" in command
    assert "--reuid=61000" in command
    assert "--clear-groups" in command


def test_a_confined_command_is_in_its_groups_before_anything_else() -> None:
    command = confined()
    assert command[3:9] == ["mayfly", str(GIB // 512), "500", "/cg/a", "/cg/b", "--"]
    assert command[9] == "nsenter"
    without = confined(cgroups=[], nice=True)
    assert without[6:10] == ["--", "nice", "-n", "10"]


def test_translated_code_has_a_bound() -> None:
    assert WOKEN[WOKEN.index("-accel") + 1] == "tcg,thread=multi,tb-size=256"
