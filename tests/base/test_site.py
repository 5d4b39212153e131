"""A site's mirrors reach images from this machine's own settings, and no password does."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mayfly.base import KINDS
from mayfly.base.make import public
from mayfly.base.site import READERS, Machine, Site, read, unfit
from mayfly.debian.sources import Source

MIRROR = "https://mirror.example.org"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine({}, tmp_path / "home", tmp_path / "root")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_every_tool_of_a_kind_is_known() -> None:
    assert {tool for kind in KINDS.values() for tool in kind.site} == set(READERS)


def test_a_machine_without_settings_says_nothing_but_where_npms_global_packages_are(
    machine: Machine,
) -> None:
    assert read(("cargo", "go", "pip"), machine) == Site({}, {})
    (text,) = read(("npm",), machine).files.values()
    assert text == "prefix=/usr/local\n"


def test_pips_user_stands_above_the_machine_and_the_environment_above_both(
    machine: Machine,
) -> None:
    put(machine.root / "etc/pip.conf", f"[global]\nindex-url = {MIRROR}/1\ncert = /x\n")
    assert read(("pip",), machine).files["etc/pip.conf"] == f"[global]\nindex-url = {MIRROR}/1\n"
    put(machine.home / ".config/pip/pip.conf", f"[global]\nindex-url = {MIRROR}/2\n")
    assert f"= {MIRROR}/2" in read(("pip",), machine).files["etc/pip.conf"]
    environment = Machine({"PIP_INDEX_URL": f"{MIRROR}/3"}, machine.home, machine.root)
    assert f"= {MIRROR}/3" in read(("pip",), environment).files["etc/pip.conf"]


def test_npms_registries_are_taken_and_its_tokens_are_not(machine: Machine) -> None:
    put(
        machine.home / ".npmrc",
        f"registry={MIRROR}/npm/\n@team:registry = {MIRROR}/team/\n"
        "//mirror.example.org/:_authToken=hush\naudit=false\n",
    )
    (text,) = read(("npm",), machine).files.values()
    assert text.splitlines()[1:] == [f"registry={MIRROR}/npm/", f"@team:registry={MIRROR}/team/"]


def test_cargos_replacement_of_a_source_is_taken_whole(machine: Machine) -> None:
    put(
        machine.home / ".cargo/config.toml",
        '[source.crates-io]\nreplace-with = "mirror"\n[source.mirror]\n'
        f'registry = "sparse+{MIRROR}/"\n[registries.team]\nindex = "sparse+{MIRROR}/team/"\n'
        'token = "hush"\n[build]\njobs = 3\n[source.vendored]\ndirectory = "vendor"\n',
    )
    (text,) = read(("cargo",), machine).files.values()
    assert tomllib.loads(text) == {
        "source": {
            "crates-io": {"replace-with": "mirror"},
            "mirror": {"registry": f"sparse+{MIRROR}/"},
        },
        "registries": {"team": {"index": f"sparse+{MIRROR}/team/"}},
    }


def test_gos_proxy_is_taken_from_its_own_file_and_the_environment(machine: Machine) -> None:
    put(machine.home / ".config/go/env", f"GOFLAGS=-v\nGOPROXY={MIRROR},direct\nGOSUMDB=off\n")
    assert read(("go",), machine).env == {"GOPROXY": f"{MIRROR},direct", "GOSUMDB": "off"}
    environment = Machine({"GOPROXY": "direct"}, machine.home, machine.root)
    assert read(("go",), environment).env["GOPROXY"] == "direct"


def test_an_address_with_a_password_stays_out_and_is_named(machine: Machine) -> None:
    bad = "https://me:hush@mirror.example.org/"
    put(machine.home / ".config/pip/pip.conf", f"[global]\nextra-index-url = {MIRROR} {bad}\n")
    put(machine.home / ".npmrc", f"registry={bad}\n")
    put(machine.home / ".config/go/env", f"GOPROXY=direct,{bad}\n")
    put(
        machine.home / ".cargo/config.toml",
        f'[source.crates-io]\nreplace-with = "m"\n[source.m]\nregistry = "sparse+{bad}"\n',
    )
    found = read(tuple(READERS), machine)
    assert "hush" not in "".join((*found.files.values(), *found.env.values()))
    assert not any("replace-with" in text for text in found.files.values())
    names = (
        "pip's extra-index-url",
        "npm's registry",
        "Go's GOPROXY",
        "cargo's source.m's registry",
    )
    assert set(found.left_out) == {f"{name} has a password in it" for name in names}


def test_an_at_sign_in_a_path_is_no_password() -> None:
    assert not unfit(f"{MIRROR}/@team/")
    assert unfit("direct,https://a@b/") == "has a password in it"


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:3142", "127.1", "localhost./x", "LOCALHOST", "[::1]:80", "[::ffff:127.0.0.1]"],
)
def test_what_is_at_loopback_here_stays_out(machine: Machine, host: str) -> None:
    put(machine.root / "etc/pip.conf", f"[global]\nindex-url = http://{host}\n")
    found = read(("pip",), machine)
    assert found == Site(left_out=("pip's index-url is at this machine's loopback",))
    for other in (
        "http://127.example.org",
        "http://localhost.example.org/",
        "http://[2001:db8::1]/",
        "http://10.0.0.1",
    ):
        assert not unfit(other)


def test_what_cannot_be_parsed_is_not_there(machine: Machine) -> None:
    put(machine.root / "etc/pip.conf", "index-url\n= [")
    put(machine.home / ".cargo/config.toml", "[[[")
    put(machine.home / ".config/go/env", "\0\n")
    assert read(("cargo", "go", "pip"), machine) == Site({}, {})


def test_of_apts_settings_none_with_a_password_is_in_an_image() -> None:
    mirror = [
        Source(("https://ci:hush@mirror.example/debian", "http://open.example"), ("trixie",), ()),
        Source(("https://ci:hush@other.example",), ("trixie",), ()),
    ]
    options = ('Acquire::http::Proxy "http://ci:hush@proxy:3128";', 'Acquire::Retries "3";')
    kept, open_options, left_out = public(mirror, options)
    assert [each.uris for each in kept] == [("http://open.example",)]
    assert open_options == (options[1],)
    assert left_out == (
        "apt's Acquire::http::Proxy has a password in it",
        "an address of apt's sources has a password in it",
    )
    proxy = ('Acquire::http::Proxy "http://127.0.0.1:3142";',)
    assert public([], proxy) == (
        (),
        (),
        ("apt's Acquire::http::Proxy is at this machine's loopback",),
    )
