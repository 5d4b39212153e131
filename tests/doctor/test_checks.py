"""Each check tells a sick machine from a well one, and every line that is not well has a mend."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mayfly import doctor
from mayfly.config import Config
from mayfly.doctor import check, kept, machine, serving
from mayfly.doctor.check import Check, State
from mayfly.errors import MachineUnfit
from mayfly.golden import catalogue, recipe
from mayfly.golden import manifest as manifests
from mayfly.host import cgroup, forwarding, process
from mayfly.host.machine import Machine
from mayfly.model import GIB
from mayfly.pid import ProcessId
from mayfly.stack import Status, record
from mayfly.stack.lifecycle import ServiceStatus
from tests.stack_fixture import Stack

MACHINE = Machine((10, 0, 2), "tcg", "why", 2, 8 * GIB, "cpu", disk_bytes=500 * GIB)


def config(state: Path, **more: Any) -> Config:
    return Config.model_validate({"state": state, "cache": state / "cache", **more})


def states(checks: Iterable[Check]) -> dict[str, State]:
    found = list(checks)
    for each in found:
        assert (each.mend == "") == (each.state is State.OK), each
        assert "\n" not in each.found + each.mend
    return {each.name: each.state for each in found}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("no space left on device", False),
        ("Permission denied", True),
    ],
)
def test_a_check_that_cannot_look_says_so(words: str, names: bool) -> None:
    def look() -> Iterable[Check]:
        raise OSError(13, words, "/a/file") if names else MachineUnfit(words, hint="do that")

    (found,) = check.safely("thing", look)
    assert (found.name, found.state) == ("thing", State.FAIL)
    assert words in found.found
    assert found.mend == (check.as_root() if names else "do that")


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(machine.packages()) == {"packages": State.OK}
    monkeypatch.setattr(machine, "PATH", "/nowhere")
    (found,) = machine.packages()
    assert "nft" in found.found
    assert found.mend.startswith("apt-get install ")
    assert "nftables" in found.mend


@pytest.mark.parametrize(
    ("memory", "state", "says"),
    [
        (64 * GIB, State.OK, "too large for"),
        (8 * GIB, State.OK, "medium ("),
        (2 * GIB, State.FAIL, "not even small"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    tmp_path: Path, memory: int, state: State, says: str
) -> None:
    from dataclasses import replace

    found = list(machine.sizes(config(tmp_path), replace(MACHINE, memory_bytes=memory)))
    assert (found[0].name, found[0].state) == ("sizes", state)
    assert says in found[0].found


def test_a_pool_larger_than_the_machine_is_told(tmp_path: Path) -> None:
    sick = config(tmp_path, pool={"memory_gb": 100})
    assert states(machine.sizes(sick, MACHINE))["pool"] is State.WARN


def test_control_groups_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: cgroup.Place(Path("/x"), 1) for name in ("cpu", "io", "pids")}
    monkeypatch.setattr(cgroup, "survey", lambda: cgroup.Tree(some))
    (found,) = machine.control_groups()
    assert (found.state, "memory" in found.found) == (State.WARN, True)
    assert "mount -t cgroup -o memory none" in found.mend
    whole = {**some, "memory": cgroup.Place(Path("/x"), 2)}
    monkeypatch.setattr(cgroup, "survey", lambda: cgroup.Tree(whole))
    (found,) = machine.control_groups()
    assert (found.state, found.found.endswith("(v1, v2)")) == (State.OK, True)


@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_the_trial_of_namespaces_and_rules_stands_and_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = states(machine.network(config(tmp_path)))
    assert (found["namespaces"], found["nftables"]) == (State.OK, State.OK)
    monkeypatch.setattr(machine, "_TRIAL", "add table inet\n")
    assert states(machine.network(config(tmp_path)))["nftables"] is State.FAIL
    tables = _output("nft", "list", "tables")
    assert "table inet t\n" not in tables
    assert not re.search(r"^mf[01]\b", _output("ip", "-br", "link"), re.MULTILINE)


def _output(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_a_firewall_that_drops_what_is_forwarded_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[forwarding.Obstacle] = []

    async def obstacles(_: Config) -> tuple[forwarding.Obstacle, ...]:
        return tuple(there)

    monkeypatch.setattr(forwarding, "obstacles", obstacles)
    assert states(machine._firewall(config(tmp_path))) == {"firewall": State.OK}
    there.append(forwarding.Obstacle("ip filter FORWARD", "nft 'insert rule …'"))
    (found,) = machine._firewall(config(tmp_path))
    assert (found.state, found.mend) == (State.WARN, "nft 'insert rule …'")
    assert "ip filter FORWARD drops" in found.found
    monkeypatch.undo()
    monkeypatch.setattr(process, "PATH", str(tmp_path))
    (found,) = machine._firewall(config(tmp_path))
    assert (found.state, found.mend) == (State.WARN, "nft list ruleset")
    assert "'nft'" in found.found


def test_a_resolver_that_answers_is_told_from_one_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer() -> None:
            asked, who = server.recvfrom(512)
            server.sendto(asked[:2] + b"\x81\x82" + asked[4:], who)

        port = server.getsockname()[1]
        thread = threading.Thread(target=answer)
        thread.start()
        assert machine.answers("127.0.0.1", port)
        thread.join()
        monkeypatch.setattr(machine, "DNS_S", 0.3)
        assert not machine.answers("127.0.0.1", port), "nobody reads this one"
    monkeypatch.setattr(machine, "answers", lambda address: address == "9.9.9.9")
    sick = config(tmp_path, network={"resolvers": ["9.9.9.9", "9.9.9.8"]})
    (found,) = machine.resolvers(sick)
    assert (found.state, "9.9.9.8" in found.found) == (State.WARN, True)
    well = config(tmp_path, network={"resolvers": ["9.9.9.9"]})
    assert states(machine.resolvers(well)) == {"DNS": State.OK}


def image(
    state: Path, *, sha256: str = "", kernel: str = "6.12.1", made_at: datetime | None = None
) -> None:
    """A golden image as far as its manifest goes."""
    folder = state / "golden" / "2026-01-02"
    folder.mkdir(parents=True)
    for name in catalogue.FILES.values():
        (folder / name).touch()
    content = {
        "cmdline": "",
        "recipe_sha256": sha256 or recipe.load().sha256,
        "packages": [{"name": f"linux-image-{kernel}-amd64", "version": "1"}],
    }
    made = (made_at or datetime(2026, 1, 2, tzinfo=UTC)).isoformat()
    manifest = {
        "name": "buildkit-runner-golden:2026-01-02",
        "created_at": made.replace("+00:00", "Z"),
        "content": content,
        "artifact": {},
        "digest": manifests.digest(content, {}),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_clock_before_the_image_was_made_is_wrong(tmp_path: Path) -> None:
    assert states(machine.clock(config(tmp_path)))["clock"] in (State.OK, State.WARN)
    image(tmp_path, made_at=datetime.now(UTC) + timedelta(days=2))
    assert states(machine.clock(config(tmp_path))) == {"clock": State.FAIL}


def test_an_image_older_than_the_recipe_is_told(tmp_path: Path) -> None:
    assert states(kept.golden_image(config(tmp_path))) == {"golden image": State.WARN}
    image(tmp_path)
    assert states(kept.golden_image(config(tmp_path))) == {"golden image": State.OK}
    other = tmp_path / "other"
    image(other, sha256="0" * 64)
    (found,) = kept.golden_image(config(other))
    assert (found.state, found.mend) == (State.WARN, "mayfly golden build")


def test_clones_are_twins_of_nobody_when_qemu_and_the_guests_kernel_see_to_it(
    tmp_path: Path,
) -> None:
    image(tmp_path / "new", kernel="6.12.1")
    image(tmp_path / "old", kernel="5.10.0")
    assert states(kept.twins(config(tmp_path / "new"))) == {"twins": State.OK}
    assert states(kept.twins(config(tmp_path / "old"))) == {"twins": State.FAIL}
    bare = tmp_path / "qemu"
    bare.write_text("#!/bin/sh\n")
    bare.chmod(0o755)
    found = states(kept.twins(config(tmp_path / "new", vm={"qemu": str(bare)})))
    assert found == {"twins": State.FAIL}
    assert states(kept.twins(config(tmp_path / "none"))) == {}


def test_a_state_of_another_version_or_of_something_else_is_a_fault(tmp_path: Path) -> None:
    assert states(kept.state(config(tmp_path / "none"))) == {"state": State.OK}
    (tmp_path / "version").write_text("99\n")
    (found,) = check.safely("state", lambda: kept.state(config(tmp_path)))
    assert found.state is State.FAIL
    assert "another version of Mayfly (99" in found.found
    assert found.mend


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "NEEDED_BYTES", 1 << 60)
    assert states(kept.disk(config(tmp_path))) == {"disk": State.WARN}
    monkeypatch.setattr(kept, "NEEDED_BYTES", 1)
    monkeypatch.setattr(kept, "NEEDED_INODES", 1)
    assert states(kept.disk(config(tmp_path))) == {"disk": State.OK}


@pytest.mark.parametrize(
    ("days", "text", "state", "says"),
    [
        (365, "", State.OK, "1 of this site's own"),
        (3, "", State.WARN, "expires on"),
        (-1, "", State.WARN, "has expired on"),
        (365, "nonsense", State.WARN, "no PEM certificate"),
    ],
)
def test_site_certificates_are_read(
    tmp_path: Path, days: int, text: str, state: State, says: str
) -> None:
    file = tmp_path / "site.crt"
    file.write_bytes(text.encode() or certificate(days))
    (found,) = kept.certificates(config(tmp_path, golden={"site_certificates": [str(file)]}))
    assert found.state is state
    assert says in found.found
    assert (found.mend == "") == (state is State.OK)


def certificate(days: int) -> bytes:
    """A certificate, PEM, that ends so many days from now."""
    from cryptography.hazmat.primitives.serialization import Encoding

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "site")])
    end = datetime.now(UTC) + timedelta(days=days)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(end - timedelta(days=400))
        .not_valid_after(end)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM)


def test_who_has_our_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()
        assert serving.listener(port) == (os.getpid(), name)
        (found,) = serving.address(config(tmp_path, server={"listen": f"127.0.0.1:{port}"}))
        assert found.state is State.FAIL
        assert f"taken by {name} (process {os.getpid()})" in found.found
        assert found.mend.startswith(f"kill {os.getpid()}, or ")
        # Of a farm whose supervisor was killed `mayfly up` takes over what runs.
        config(tmp_path).run.mkdir()
        kept = record.Kept(ProcessId.of(os.getpid()), "")
        dead = record.Record(ProcessId(2**22 + 1, 1), "", True, {"edge": kept})
        record.save(config(tmp_path).run, dead)
        (found,) = serving.address(config(tmp_path, server={"listen": f"127.0.0.1:{port}"}))
        assert (found.state, found.mend) == (State.WARN, "mayfly up --detach")
    free = config(tmp_path, server={"listen": f"127.0.0.1:{port}"})
    assert states(serving.address(free)) == {"address": State.OK}
    assert serving.listener(port) is None


def test_each_program_of_a_farm_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert states(serving.farm(config(tmp_path))) == {"farm": State.OK}
    programs = (
        ServiceStatus("registry", 1, True, 0),
        ServiceStatus("host", 2, True, 3),
        ServiceStatus("edge", 3, False, 1),
    )
    status = Status(1, datetime.now(UTC), True, programs)
    monkeypatch.setattr("mayfly.stack.running", lambda _: status)
    found = states(serving.farm(config(tmp_path)))
    assert (found["registry"], found["host"]) == (State.OK, State.WARN)
    assert found["edge"] is State.FAIL
    assert found["answers"] is State.WARN, "there is no token to ask with"


def test_an_installation_is_a_farm_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = (ServiceStatus("registry", 1, True, 0), ServiceStatus("edge", 3, False, 1))
    monkeypatch.setattr("mayfly.install.running.running", lambda state, places: programs)
    found = list(serving.farm(config(tmp_path)))
    assert {check.name: check.state for check in found}["registry"] is State.OK
    (edge,) = (check for check in found if check.name == "edge")
    assert (edge.state, edge.mend) == (State.FAIL, "journalctl --unit mayfly-edge.service")
    with socket.create_server(("127.0.0.1", 0)) as its:
        listen = f"127.0.0.1:{its.getsockname()[1]}"
        (address,) = serving.address(config(tmp_path, server={"listen": listen}))
        assert (address.state, address.found) == (State.OK, f"{listen} is this farm's")
    stopped = (ServiceStatus("edge", 0, False, 0),)
    monkeypatch.setattr("mayfly.install.running.running", lambda state, places: stopped)
    (farm,) = serving.farm(config(tmp_path))
    assert (farm.state, farm.mend) == (State.FAIL, "systemctl start mayfly.target")
    with socket.create_server(("127.0.0.1", 0)) as anothers:
        listen = f"127.0.0.1:{anothers.getsockname()[1]}"
        (address,) = serving.address(config(tmp_path, server={"listen": listen}))
        assert address.state is State.FAIL, "what does not run listens nowhere"


@pytest.mark.services
def test_a_registry_is_asked_for_something_as_dockers_clients_do(stack: Stack) -> None:
    url = f"https://{stack.address}"
    assert serving.registry_status(url, stack.admin_token, stack.tls) == 404, "no such image"
    assert serving.registry_status(url, "wrong", stack.tls) == 401
    assert serving.registry_status("https://localhost:1", "any", stack.tls) == 0


def test_the_whole_of_it_raises_nothing_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mayfly.doctor.speed.measured", _unmeasured)
    sick = config(tmp_path / "state", vm={"accelerator": "tcg"})
    found = doctor.checks(sick)
    states(found)
    names = {each.name for each in found}
    assert {"root", "QEMU", "speed", "sizes", "DNS", "disk", "address", "farm"} <= names
    assert list(tmp_path.rglob("*")) == []
    unfit = config(tmp_path / "state", vm={"qemu": "/nowhere/qemu"})
    assert states(doctor.checks(unfit))["QEMU"] is State.FAIL


def _unmeasured(*_: object) -> None:
    raise MachineUnfit("no measure in this test", hint="none")
