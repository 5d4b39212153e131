"""Everything that is wrong is said before anything is started."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

import mayfly
from mayfly.config import Config
from mayfly.errors import Conflict, MachineUnfit, MayflyError
from mayfly.host import network
from mayfly.pid import ProcessId
from mayfly.stack import hosts, lifecycle, preflight, record, seaweed, supervise
from tests.stack_fixture import free_port, temporary_state


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """One whose state has a short path, unlike pytest's."""
    monkeypatch.setattr(preflight, "tools_dir", lambda cache: cache)
    listen = f"127.0.0.1:{free_port()}"
    state = temporary_state()
    yield Config.model_validate({"state": state, "cache": tmp_path, "server": {"listen": listen}})
    shutil.rmtree(state.parent)


def test_a_new_state_is_fine(config: Config) -> None:
    preflight.check(config)
    assert not config.state.exists(), "a check makes nothing"


def test_every_fault_is_said_at_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise MachineUnfit("no weed")

    def no_tools(cache: Path) -> Path:
        raise MachineUnfit("no tools")

    monkeypatch.setattr(seaweed, "binary", none)
    monkeypatch.setattr(preflight, "tools_dir", no_tools)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(network, "faults", lambda config: iter([MachineUnfit("no nft")]))
    (config.cache / "closed.py").touch(0o600)
    monkeypatch.setattr(mayfly, "__file__", str(config.cache / "closed.py"))
    config = config.model_copy(update={"state": config.state / ("x" * 100)})
    with supervise.listen(config.server.listen), pytest.raises(MachineUnfit) as caught:
        preflight.check(config)
    lines = str(caught.value).splitlines()
    for part in (
        "root",
        "longer than 50 bytes",
        "no weed",
        "no tools",
        "no nft",
        "already in use",
        "be read",
    ):
        assert any(part in line for line in lines), part
    assert len(lines) == 7


@pytest.mark.parametrize("below", [f"vms/{36 * 'r'}/qemu", f"templates/.{16 * 'k'}.partial"])
def test_the_longest_state_has_room_for_every_socket(config: Config, below: str) -> None:
    room = preflight.LONGEST_STATE - len(str(config.state.parent)) - 1
    longest = config.state.parent / (room * "s")
    preflight.check(config.model_copy(update={"state": longest}))
    (longest / below).mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(longest / below / "agent.sock"))
    with pytest.raises(MachineUnfit, match="longer than 50 bytes"):
        preflight.check(config.model_copy(update={"state": Path(f"{longest}s")}))


def test_the_state_of_another_version_is_left_alone(config: Config) -> None:
    config.state.mkdir()
    (config.state / "version").write_text("0\n")
    with pytest.raises(Conflict, match="another version"):
        preflight.check(config)
    with pytest.raises(Conflict, match="another version"):
        lifecycle.down(config, True, print)
    assert config.state.exists()


def test_a_folder_that_is_not_ours_is_left_alone(config: Config) -> None:
    config.state.mkdir()
    (config.state / "thesis.tex").touch()
    with pytest.raises(Conflict, match=r"thesis\.tex"):
        preflight.check(config)
    with pytest.raises(Conflict, match=r"thesis\.tex"):
        lifecycle.down(config, True, print)
    assert (config.state / "thesis.tex").exists()


def test_what_is_not_ours_in_a_state_stays(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "remove", lambda config: None)
    (config.state / "ca").mkdir(parents=True)
    (config.state / "golden").symlink_to(config.state.parent)
    for name in ("version", "thesis.tex", "ca/ca.crt", ".version.x", ".admin.token.x"):
        (config.state / name).write_text("1\n")
    said: list[str] = []
    lifecycle.down(config, True, said.append)
    assert [path.name for path in config.state.iterdir()] == ["thesis.tex"]
    assert any("thesis.tex is not Mayfly's and stays" in line for line in said)


def test_a_purge_that_fails_can_be_repeated(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hosts, "remove", lambda config: None)
    (config.state / "golden").mkdir(parents=True)
    for name in ("version", "thesis.tex"):
        (config.state / name).write_text("1\n")
    with monkeypatch.context() as patch:

        def busy(path: Path) -> None:
            raise OSError(16, "Device or resource busy", str(path))

        patch.setattr(shutil, "rmtree", busy)
        with pytest.raises(MayflyError, match="golden cannot be removed: Device or resource busy"):
            lifecycle.down(config, True, print)
    lifecycle.down(config, True, print)
    assert [path.name for path in config.state.iterdir()] == ["thesis.tex"]


def test_a_state_that_is_a_link_is_emptied(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hosts, "remove", lambda config: None)
    config.state.symlink_to(tmp_path)
    (tmp_path / "version").write_text("1\n")
    (tmp_path / "lost+found").mkdir()
    lifecycle.down(config, True, print)
    assert config.state.is_symlink()
    assert [path.name for path in tmp_path.iterdir()] == ["lost+found"]


def test_down_leaves_alone_what_is_just_starting(config: Config) -> None:
    config.run.mkdir(parents=True)
    (config.state / "version").write_text("1\n")
    with record.lock(config.run), pytest.raises(Conflict, match="just starting"):
        lifecycle.down(config, True, print)
    assert (config.state / "version").exists()


def test_a_golden_image_may_be_there_first(config: Config) -> None:
    (config.state / "golden").mkdir(parents=True)
    preflight.check(config)


def test_a_file_in_the_way_is_named(config: Config) -> None:
    config.state.write_text("")
    with pytest.raises(MayflyError, match=str(config.state)):
        preflight.check(config)


def test_a_port_of_the_embedded_s3_that_another_took_is_named(config: Config) -> None:
    folder = seaweed.folder(config)
    folder.mkdir(parents=True)
    port = seaweed.ports(folder)["filer"]
    preflight.check(config)
    with supervise.listen(f"127.0.0.1:{port}"), pytest.raises(MachineUnfit, match=str(port)):
        preflight.check(config)


def test_a_running_supervisor_is_named(config: Config) -> None:
    config.run.mkdir(parents=True)
    me = ProcessId.of(os.getpid())
    record.save(config.run, record.Record(me, "2026-11-24T00:00:00+00:00"))
    with pytest.raises(Conflict, match=f"already running here \\(process {me.pid}, since 2026"):
        preflight.check(config)
    status = lifecycle.running(config)
    assert status is not None
    assert (status.pid, status.ready, status.services) == (me.pid, False, ())


def test_down_of_nothing_is_fine(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "remove", lambda config: None)
    lifecycle.down(config, True, print)
    lifecycle.down(config, False, print)
    assert lifecycle.running(config) is None
