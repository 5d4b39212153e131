"""Which registry a farm runs is settled once, and what it lacks is said before anything starts."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mayfly import users
from mayfly.config import Config, load
from mayfly.errors import ConfigError, MachineUnfit
from mayfly.stack import lifecycle, preflight, registry
from mayfly.stack.certificates import authority, dump, load_key
from mayfly.stack.secrets import key
from tests.stack_fixture import free_port, temporary_state

EXTERNAL = {"kind": "external", "images": "ghcr.io/acme"}


@pytest.fixture
def state() -> Iterator[Path]:
    made = temporary_state()
    users.make_folders(made)
    yield made
    shutil.rmtree(made.parent)


def config(state: Path, **options: Any) -> Config:
    listen = {"listen": f"127.0.0.1:{free_port()}"}
    return Config.model_validate({"state": state, "server": listen, "registry": options})


@pytest.fixture
def zot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name on PATH."""
    program = tmp_path / "bin" / "zot"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return program


def test_without_zot_it_is_distribution_and_stays_so(state: Path, zot: Path) -> None:
    zot.rename(zot.with_name("zot-"))
    assert registry.settle(config(state)).registry.kind == "distribution"
    zot.with_name("zot-").rename(zot)
    assert registry.settle(config(state)).registry.kind == "distribution", "its images are there"
    assert registry.settle(config(state, kind="zot")).registry.kind == "zot", "but as one says"


def test_where_zot_is_found_it_is_zot_with_a_port_that_is_kept(state: Path, zot: Path) -> None:
    settled = registry.settle(config(state)).registry
    assert settled.kind == "zot"
    assert 20_000 <= settled.port < 32_000
    assert registry.settle(config(state)).registry == settled
    assert registry.settle(config(state, port=1234)).registry.port == 1234
    assert registry.program(config(state)) == zot


def test_zot_that_is_gone_is_said(state: Path, zot: Path) -> None:
    registry.settle(config(state))
    zot.unlink()
    (fault,) = registry.faults(config(state))
    assert isinstance(fault, MachineUnfit)
    assert "zot" in str(fault)
    with pytest.raises(MachineUnfit, match="zot"):
        preflight.check(config(state))


def test_nothing_runs_beside_somebody_elses_registry(state: Path) -> None:
    wanted = config(state, **EXTERNAL)
    table = lifecycle.make_state(wanted, datetime.now(UTC))
    assert [service.name for service in table] == ["host", "edge", "orchestrator", "builders"]
    assert not (state / "s3" / "ports.json").exists()
    assert not (state / "registry" / "kind").exists()


def test_what_it_takes_to_reach_it_is_looked_at(state: Path, tmp_path: Path) -> None:
    pem = tmp_path / "ca.pem"
    options = {
        **EXTERNAL,
        "ca": str(pem),
        "username": "farm",
        "password_file": str(tmp_path / "pw"),
    }
    wanted = config(state, **options)
    assert [str(fault).partition(":")[0] for fault in registry.faults(wanted)] == [
        "registry.ca",
        "registry.password_file",
    ]
    (tmp_path / "pw").write_text("hush\n")
    pem.write_text("no certificate")
    (fault,) = registry.faults(wanted)
    assert "holds no certificate" in str(fault)
    private = load_key(key(tmp_path / "key"))
    pem.write_bytes(dump(authority(private, datetime.now(UTC))))
    assert list(registry.faults(wanted)) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": "external"}, "needs images"),
        ({"images": "ghcr.io/acme"}, "for kind"),
        ({"kind": "zot", "ca": "/ca"}, "for kind"),
        ({**EXTERNAL, "username": "a"}, "go together"),
        ({**EXTERNAL, "password_file": "/a"}, "go together"),
        ({"kind": "external", "images": "ghcr.io"}, "HOST/OWNER"),
        ({**EXTERNAL, "cache": "ghcr.io"}, "HOST/OWNER"),
        ({"kind": "external", "images": "acme"}, "HOST/OWNER"),
        ({"kind": "external", "images": "ghcr.io/acme:1"}, "HOST/OWNER"),
        ({"kind": "external", "images": "https://ghcr.io/acme"}, "HOST/OWNER"),
        ({"kind": "external", "images": "ghcr.io/Acme"}, "HOST/OWNER"),
        ({"kind": "external", "images": "ghcr.io/acme/"}, "HOST/OWNER"),
        ({"kind": "nexus"}, "zot"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, options: dict[str, str], said: str
) -> None:
    file = tmp_path / "mayfly.toml"
    file.write_text("[registry]\n" + "".join(f'{k} = "{v}"\n' for k, v in options.items()))
    with pytest.raises(ConfigError) as caught:
        load({"MAYFLY_CONFIG": str(file)})
    (fault,) = caught.value.faults
    assert said in fault


@pytest.mark.parametrize(
    "images", ["ghcr.io/acme", "docker.io/acme", "localhost:5000/a/b", "192.0.2.1:5000/a", "h:1/a"]
)
def test_what_a_registry_is_called(tmp_path: Path, images: str) -> None:
    assert config(tmp_path, kind="external", images=images).registry.images == images
