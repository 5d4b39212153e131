"""`mayfly install` and `uninstall` below a folder: everything but systemd itself."""

from __future__ import annotations

import os
import py_compile
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from mayfly import users
from mayfly.config import Config, Server
from mayfly.errors import Conflict, InfrastructureError, MachineUnfit, MayflyError, UsageError
from mayfly.install import apply, code, former, lines, record, settings, story
from mayfly.install.places import Places
from mayfly.install.remove import uninstall
from mayfly.install.settings import Options
from mayfly.stack import apart, certificates, hosts, own_certificate
from tests.install.test_units import verify
from tests.stack_fixture import free_port

PAGE = Path(__file__).parents[2] / "docs/install.md"
MAYFLY = Path(sys.executable).with_name("mayfly")
NOW = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that stands for a server's `/`; short, since sockets' paths must be."""
    folder = Path(tempfile.mkdtemp(prefix="mi-"))
    (folder / "etc").mkdir()
    (folder / "etc/hosts").write_text("127.0.0.1 localhost\n")
    yield folder
    shutil.rmtree(folder)


def content(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        at = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(at.st_mode) else b""
        found[str(path.relative_to(root))] = (at.st_mode, at.st_uid, at.st_gid, data)
    return found


def cli(*words: str, status: int = 0) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAYFLY_")}
    done = subprocess.run(
        [MAYFLY, *words], capture_output=True, text=True, timeout=300, env=env, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    return said


def test_all_of_it_and_then_nothing(root: Path) -> None:
    places, before = Places(root), content(root)
    listen = f"127.0.0.1:{free_port()}"
    said = cli("install", "--root", str(root), "--listen", listen)
    assert said.startswith("installed\n")

    done = verify(places.units)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for path in [*places.environment.iterdir(), root / "var/lib/mayfly/admin.token"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert "registry.mayfly.internal" in places.hosts.read_text()
    said_of_units = re.search(r"mayfly-\{([a-z0-9,]+)\}\.service", PAGE.read_text())
    assert said_of_units is not None
    said_of_users = f"({min(users.IDS)} to {max(users.IDS)})"
    assert said_of_users in PAGE.read_text()
    made = [path.stem.removeprefix("mayfly-") for path in places.units.glob("mayfly-*.service")]
    assert set(said_of_units[1].split(",")) == set(made), "as docs/install.md says"
    assert places.command.resolve().parent.parent.parent == places.code
    there = content(root)
    assert not any("egg-info" in name or "/pytest/" in name for name in there), "for developers"
    assert any(name.endswith("/bin/uv") for name in there), "golden images are made with it"

    # The same once more, by the given code and by the installed; only sameness is written.
    assert "nothing changed" in cli("install", "--root", str(root))
    again = subprocess.run(
        [places.command, "install", "--root", str(root)], capture_output=True, check=True
    )
    assert b"nothing changed" in again.stdout
    assert _less_bytecode(content(root)) == _less_bytecode(there)

    said = cli("install", "--root", str(root), "--listen", "127.0.0.1:1", status=2)
    assert "change it there" in said
    assert cli("uninstall", "--root", str(root)).startswith("uninstalled\n")
    assert content(root) == before
    assert cli("uninstall", "--root", str(root)) == "nothing is installed\n"


def _less_bytecode(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    return {name: value for name, value in found.items() if "__pycache__" not in name}


def quick(root: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """An installation whose code is not copied: for all else."""

    def ensure(folder: Path, progress: object) -> Path:
        made = folder / "0-test"
        (made / "bin").mkdir(parents=True, exist_ok=True)
        (made / "bin/python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        (made / "bin/python").chmod(0o755)
        return made

    monkeypatch.setattr(code, "ensure", ensure)
    monkeypatch.setattr(code, "prune", lambda folder, keep: None)
    return Places(root)


def install(
    places: Places, environ: Mapping[str, str] = MappingProxyType({}), **options: Any
) -> bool:
    options.setdefault("listen", f"127.0.0.1:{free_port()}")
    done, _ = story.install(Options(**options), places, environ, print)
    return done


def test_data_stays_where_that_is_asked_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, before = quick(root, monkeypatch), content(root)
    install(places)
    token = (root / "var/lib/mayfly/admin.token").read_text()
    assert uninstall(places, True, print)
    left = content(root).keys() - before.keys()
    assert {name for name in left if not name.startswith("var")} == set()
    install(places)
    assert (root / "var/lib/mayfly/admin.token").read_text() == token


def test_an_operators_own_file_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = quick(root, monkeypatch)
    text = f'state = "{root}/s"\n[server]\nlisten = "127.0.0.1:{free_port()}"\n'
    places.settings.mkdir()
    places.config.write_text(text)
    install(places, listen="")
    assert uninstall(places, False, print)
    assert places.config.read_text() == text
    assert not (root / "s").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
def test_an_operators_file_stays_as_readable_as_it_was(
    mode: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may hold passwords."""
    places = quick(root, monkeypatch)
    places.settings.mkdir()
    places.config.write_text(f'state = "{root}/s"\n[s3]\n')
    os.chown(places.config, 1, 4)
    places.config.chmod(mode)
    install(places, name="builds.example.org")
    assert 'name = "builds.example.org"' in places.config.read_text()
    at = places.config.stat()
    assert (stat.S_IMODE(at.st_mode), at.st_uid, at.st_gid) == (mode, 1, 4)


@given(
    there=st.sampled_from(["", "# x", "[pool]\ngrow = true", "[server] # y", "[server]\nport=1\n"]),
    after=st.sampled_from(["", "\n[vm]\nqemu = 'q'\n"]),
)
def test_an_option_is_added_to_an_operators_file(there: str, after: str) -> None:
    text = there + after
    added = settings._with(text, "server", "name", "x.example")
    expected = tomllib.loads(text)
    expected.setdefault("server", {})["name"] = "x.example"
    assert tomllib.loads(added) == expected
    assert all(line in added.splitlines() for line in text.splitlines())


def test_secrets_are_roots_and_are_remembered(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = quick(root, monkeypatch)
    keys = {"MAYFLY_S3__ACCESS_KEY": "id", "MAYFLY_S3__SECRET_KEY": "hidden"}
    install(places, keys, s3="http://127.0.0.1:9", listen="127.0.0.1:5999")
    assert "hidden" not in places.config.read_text()
    assert stat.S_IMODE(places.secrets.stat().st_mode) == 0o600
    assert settings.secret(places, {}) == keys
    assert not (places.units / "mayfly-s3.service").exists()
    said = [path.read_text() for path in places.units.glob("mayfly*")]
    assert not any("hidden" in text for text in said)
    assert "hidden" in (places.environment / "bucket.env").read_text()
    assert not install(places, s3="http://127.0.0.1:9", listen="127.0.0.1:5999")


def test_two_at_once_do_not_spoil_each_others_work(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, before = quick(root, monkeypatch), content(root)
    with record.alone(root):
        with pytest.raises(Conflict, match=r"another `mayfly install` .* is at work"):
            install(places)
        with pytest.raises(Conflict, match=r"another `mayfly install` .* is at work"):
            uninstall(places, False, print)
    assert content(root) == before
    assert install(places)


def test_what_is_no_more_wanted_goes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = quick(root, monkeypatch)
    install(places, listen="127.0.0.1:5998")
    assert (places.units / "mayfly-s3.service").exists()
    with places.config.open("a") as file:
        file.write('[registry]\nkind = "external"\nimages = "ghcr.io/acme"\n')
    assert install(places, registry="ghcr.io/acme", listen="127.0.0.1:5998")
    units = {path.name for path in places.units.glob("mayfly-*")}
    assert not units & {"mayfly-s3.service", "mayfly-bucket.service", "mayfly-registry.service"}


def test_what_fails_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, before = quick(root, monkeypatch), content(root)
    (root / "usr/local/bin").mkdir(parents=True)
    (root / "usr/local/bin/mayfly").write_text("somebody else's")
    with pytest.raises(UsageError, match="was not made by `mayfly install` - move it away"):
        install(places)
    shutil.rmtree(root / "usr")
    assert content(root) == before


def ends_after_the_code(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """From now on `error` comes when the installed code has done its part."""
    hear = apart.hear

    def ending(*words: Any, **options: Any) -> Any:
        hear(*words, **options)
        raise error

    monkeypatch.setattr(apart, "hear", ending)


def test_an_interrupt_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, before = quick(root, monkeypatch), content(root)
    ends_after_the_code(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        install(places)
    assert content(root) == before


def test_data_that_was_there_before_an_interrupt_stays(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an earlier installation, or of `mayfly up`: an image in the bucket, say."""
    places = quick(root, monkeypatch)
    install(places)
    image = root / "var/lib/mayfly/s3/image"
    image.write_text("the only one")
    assert uninstall(places, True, print)

    def fails(*words: Any) -> Any:
        raise OSError(28, "No space left on device", "/etc/hosts")

    ends_after_the_code(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        install(places)
    assert image.read_text() == "the only one"
    assert not places.record.exists()
    monkeypatch.setattr(hosts, "add", fails)
    text = 'state = "{}"\n'.format(root / "var/lib/mayfly")
    ready = apply.Ready(places, text, {}, settings.load(text, {}, places.config))
    with pytest.raises(OSError, match="No space"):
        apply.apply(ready, print)
    assert image.read_text() == "the only one"
    assert not places.record.exists()


def test_what_was_installed_goes_or_stays_whatever_the_file_says_since(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = quick(root, monkeypatch)
    install(places)
    image = root / "var/lib/mayfly/s3/image"
    image.write_text("the only one")
    text = places.config.read_text()
    places.config.write_text(text.replace("var/lib/mayfly", "var/lib/elsewhere"))
    with pytest.raises(Conflict, match="uninstall it first"):
        install(places, listen="")
    assert uninstall(places, True, print)
    assert image.read_text() == "the only one"
    assert "mayfly" not in places.hosts.read_text()


def test_settings_are_kept_with_what_runs_by_them(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what comes after them (golden image and template) fails."""
    places, hear = quick(root, monkeypatch), apart.hear
    install(places)
    ends_after_the_code(monkeypatch, InfrastructureError("no template"))
    options = {"listen": "", "public_port": 443}
    with pytest.raises(InfrastructureError, match="no template"):
        install(places, {"MAYFLY_METRICS__PASSWORD": "hush"}, **options)
    assert tomllib.loads(places.config.read_text())["server"]["public_port"] == 443
    assert "hush" in places.secrets.read_text()
    monkeypatch.setattr(apart, "hear", hear)
    assert not install(places, listen=""), "nothing is left to change"


def test_an_upgrade_that_fails_is_taken_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = quick(root, monkeypatch)
    install(places, listen="127.0.0.1:5997")
    there, config = content(root), settings.load(places.config.read_text(), {}, places.config)
    made = record.load(places.record)
    assert made is not None
    made_before = set(made.made)
    before = former.keep(made, places, config)
    # Another version: one program less, one more, other variables and settings, another command.
    made.forget(places.units / "mayfly-s3.service")
    made.write(places.units / "mayfly-new.service", "[Service]\n")
    made.write(places.environment / "new.env", "A=b\n", 0o600)
    made.write(places.environment / "edge.env", "A=b\n", 0o600)
    (config.run / "mayfly.toml").write_text("an_option_of_the_new_version = 1\n")
    made.link(places.command, "/elsewhere")
    hosts.add(config.model_copy(update={"server": Server(name="new.example")}), places.hosts)
    assert "new.example" in places.hosts.read_text()
    former.put_back(before, made, places, print)
    now = content(root)
    assert now.keys() == there.keys()
    # The order of making has changed, and nothing else.
    assert {name for name in now if now[name] != there[name]} <= {"etc/mayfly/installed.json"}
    again = record.load(places.record)
    assert again is not None
    assert again.made.keys() == made_before


def test_another_interrupt_does_not_stop_what_puts_back(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = quick(root, monkeypatch)
    install(places, listen="127.0.0.1:5997")
    there, text = content(root), places.config.read_text()
    ready = apply.Ready(places, text, {}, settings.load(text, {}, places.config))

    def interrupted(*words: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return put_back(*words)

    def fails(*words: Any) -> Any:
        (places.units / "mayfly-edge.service").write_text("half of another one")
        raise KeyboardInterrupt

    put_back = former.put_back
    monkeypatch.setattr(former, "put_back", interrupted)
    monkeypatch.setattr(hosts, "add", fails)
    with pytest.raises(KeyboardInterrupt):
        apply.apply(ready, print)
    now = content(root)
    assert {name for name in there if now.get(name) != there[name]} <= {"etc/mayfly/installed.json"}
    with pytest.raises(KeyboardInterrupt):  # as before
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)


def test_what_is_wrong_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, before = quick(root, monkeypatch), content(root)

    def said(error: type[MayflyError], **options: Any) -> str:
        with pytest.raises(error) as caught:
            install(places, **options)
        assert content(root) == before
        assert "\n" not in str(caught.value)
        return str(caught.value)

    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        assert "cannot listen" in said(MachineUnfit, listen=f"127.0.0.1:{port}")
    assert "no such file" in said(MachineUnfit, tls_cert="/no", tls_key="/no").lower()
    assert "go together" in said(UsageError, tls_cert="/no")
    assert "write it as HOST/OWNER" in said(UsageError, registry="ghcr.io/")
    monkeypatch.setattr(users, "IDS", (0,))
    assert "user id 0 is root's" in said(MachineUnfit)
    monkeypatch.setattr(users, "IDS", ())
    (root / "var/lib/mayfly").mkdir(parents=True)
    (root / "var/lib/mayfly/version").write_text("99\n")
    before = content(root)
    assert "another version of Mayfly (99" in said(Conflict)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "run it as root" in said(MachineUnfit)


def test_without_systemd_it_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mayfly.install.systemd.booted", lambda: False)
    with pytest.raises(MachineUnfit, match="systemd does not run this machine - use `mayfly up`"):
        story.install(Options(), Places(), {}, print)


def test_a_record_of_another_version_is_left_alone(root: Path) -> None:
    places = Places(root)
    places.settings.mkdir()
    places.record.write_text('{"version": 99}')
    with pytest.raises(Conflict, match="another version"):
        record.load(places.record)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"version": 1}',
        b'{"version": 1, "state": 7, "made": []}',
        b'{"version": 1, "state": "/s", "made": 7}',
        b'{"version": 1, "state": "/s", "made": ["x"]}',
        b'{"version": 1, "state": "/s", "made": [["tree", "usr"]]}',
        b'{"version": 1, "state": "/s", "made": [["all", "/usr"]]}',
        b'{"version": 1, "state": "/s", "made": [[[], "/usr"]]}',
    ],
)
def test_a_record_that_cannot_be_read_is_one_line_and_nothing_is_touched(
    root: Path, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = quick(root, monkeypatch)
    places.settings.mkdir()
    places.record.write_bytes(text)
    before = content(root)
    for asked in (
        lambda: install(places),
        lambda: uninstall(places, False, print),
        lambda: record.refuse(places.record, root / "s", "x"),
    ):
        with pytest.raises(Conflict, match="is no record of an installation") as caught:
            asked()
        assert str(places.record) in str(caught.value)
        assert "put it back" in caught.value.hint
        assert "\n" not in str(caught.value)
        assert content(root) == before


def test_nobody_else_starts_or_stops_what_systemd_runs(root: Path) -> None:
    state = root / "state"
    record.Record(root / "etc/installed.json", state).save()
    with pytest.raises(Conflict, match=r"Mayfly is installed here, .* - use `x`"):
        record.refuse(root / "etc/installed.json", state, "x")
    record.refuse(root / "etc/installed.json", root / "another", "x")
    record.refuse(root / "etc/nothing.json", state, "x")


def test_everything_shipped_is_copied() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    section = text.partition("[tool.hatch.build.targets.wheel.force-include]\n")[2]
    shipped = [line.split('"')[1] for line in section.partition("\n\n")[0].splitlines()]
    assert tuple(shipped) == code.SHIPPED


def test_a_certificate_of_ones_own_is_looked_at() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    made = certificates.dump(
        certificates.self_signed(key, ("builds.example.org", "*.farm.example.org"), NOW)
    )

    def faults(certificate: bytes, key: bytes, name: str, days: int = 1) -> list[str]:
        return list(own_certificate.faults(certificate, key, name, NOW + timedelta(days=days)))

    assert faults(made, pem, "builds.example.org") == []
    assert faults(made, pem, "a.farm.example.org") == []
    assert "not for a.b.farm.example.org" in faults(made, pem, "a.b.farm.example.org")[0]
    assert faults(made, other, "builds.example.org") == ["does not go with the key"]
    assert "is not valid now" in faults(made, pem, "builds.example.org", days=9999)[0]
    assert "holds no certificate" in faults(b"x", pem, "x")[0]
    assert "no private key" in faults(made, b"x", "builds.example.org")[0]


def test_the_lines_to_paste_name_this_farm() -> None:
    config = Config.model_validate({"server": {"name": "builds.example.org", "public_port": 443}})
    said = lines.to_paste(config, Places())
    assert "https://builds.example.org:443/v1/woodpecker/secrets" in said
    assert "image: builds.example.org:443/images/mayfly/buildkit-launcher" in said


def test_what_python_has_compiled_is_taken_along_and_used(root: Path) -> None:
    given, put = root / "given/lib/module.py", root / "put/lib/module.py"
    given.parent.mkdir(parents=True)
    given.write_text("print('compiled', (lambda: 0).__code__.co_filename)\n")
    py_compile.compile(str(given))
    text = given.read_text().replace("compiled", "as text!")
    at = given.stat()
    given.write_text(text)  # of the same size and time: Python takes what it has compiled
    os.utime(given, ns=(at.st_atime_ns, at.st_mtime_ns))
    code._copy(given, put, root)
    run = [sys.executable, "-B", "-c", "import module"]
    done = subprocess.run(run, cwd=put.parent, capture_output=True, text=True, check=True)
    assert done.stdout == f"compiled {put}\n"
    os.utime(given, (at.st_atime, at.st_mtime + 10))  # changed since: it is not used any more
    code._copy(given, put, root)
    done = subprocess.run(run, cwd=put.parent, capture_output=True, text=True, check=True)
    assert done.stdout == f"as text! {put}\n"
