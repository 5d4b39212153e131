"""Where packages come from: apt's files in all their forms, and only Debian's own entries."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.debian import sources
from mayfly.debian.bootstrap import Package, match_packages
from mayfly.debian.process import failure
from mayfly.debian.sources import ARCHIVE_KEYRING, Source
from mayfly.errors import InfrastructureError, MachineUnfit

MIRROR = "http://mirror.example/debian"

names = st.text("abcdefghijklmnop", min_size=1, max_size=8)
entries = st.builds(
    Source,
    uris=st.lists(names.map(lambda n: f"http://{n}.example/debian"), min_size=1).map(tuple),
    suites=st.lists(names, min_size=1).map(tuple),
    components=st.lists(names, min_size=1).map(tuple),
    signed_by=st.sampled_from(["", ARCHIVE_KEYRING]),
)


@given(st.lists(entries))
def test_what_is_rendered_is_what_is_parsed(entries: list[Source]) -> None:
    assert sources.parse_deb822(sources.render(entries)) == entries


@given(st.text())
def test_no_text_breaks_the_parsers(text: str) -> None:
    sources.parse_deb822(text)
    sources.parse_one_line(text)


def test_deb822_as_people_write_it() -> None:
    text = f"""# a comment
Types: deb deb-src
# a snapshot: commented out in the middle
URIs: {MIRROR}
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: {ARCHIVE_KEYRING}

Types: deb
Enabled: no
URIs: {MIRROR}
Suites: bookworm
Components: main

Types: deb-src
URIs: {MIRROR}
Suites: bookworm
Components: main
"""
    assert sources.parse_deb822(text) == [
        Source((MIRROR,), ("bookworm", "bookworm-updates"), ("main",), ARCHIVE_KEYRING)
    ]


def test_one_line_as_people_write_it() -> None:
    text = f"""
# deb {MIRROR} sid main
deb-src {MIRROR} bookworm main
deb [ arch=amd64 signed-by={ARCHIVE_KEYRING} ] {MIRROR} bookworm main contrib # why
  deb {MIRROR} bookworm-security main
deb broken
"""
    assert sources.parse_one_line(text) == [
        Source((MIRROR,), ("bookworm",), ("main", "contrib"), ARCHIVE_KEYRING),
        Source((MIRROR,), ("bookworm-security",), ("main",)),
    ]


def test_only_debians_own_entries_are_moved() -> None:
    def entry(suite: str, signed: str = ARCHIVE_KEYRING, component: str = "main") -> Source:
        return Source((MIRROR,), (suite,), (component, "contrib"), signed)

    moved = sources.retarget(
        [
            entry("bookworm"),
            entry("bookworm-updates"),
            entry("bookworm-security"),
            entry("bookworm-backports"),
            entry("bookworm", component="stable"),
            entry("bookworm", signed="/etc/apt/keyrings/vendor.gpg"),
            entry("nodistro"),
            entry("bookworm"),
        ],
        "bookworm",
        "trixie",
    )
    assert [source.suites for source in moved] == [
        ("trixie",),
        ("trixie-updates",),
        ("trixie-security",),
    ]
    assert all(source.components == ("main",) for source in moved)


def test_entries_that_name_no_key_count_where_no_other_does() -> None:
    plain = Source((MIRROR,), ("stable",), ("main",))
    assert sources.retarget([plain], "trixie", "trixie") == [
        Source((MIRROR,), ("trixie",), ("main",), ARCHIVE_KEYRING)
    ]


def test_a_machine_that_is_not_debian_is_unfit(tmp_path: Path) -> None:
    with pytest.raises(MachineUnfit):
        sources.host_sources("trixie", tmp_path)


def test_a_machines_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    (tmp_path / "etc/apt/sources.list").write_text(f"deb {MIRROR} bookworm main\n")
    (folder / "x.sources.disabled").write_text("Types: deb\n")
    assert sources.host_sources("trixie", tmp_path)[0].suites == ("trixie",)


def test_a_clouds_list_of_mirrors_is_its_first_one(tmp_path: Path) -> None:
    apt = tmp_path / "etc/apt"
    (apt / "mirrors").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('VERSION_CODENAME="bookworm"\n')
    (apt / "sources.list").write_text(
        "deb mirror+file:/etc/apt/mirrors/debian.list bookworm main\n"
    )
    unread = ("mirror+file:/etc/apt/mirrors/debian.list",)
    assert sources.host_sources("trixie", tmp_path)[0].uris == unread
    listed = f"# ours\n\n{MIRROR}\tpriority:1\nhttp://other.example/debian\n"
    (apt / "mirrors/debian.list").write_text(listed)
    assert sources.host_sources("trixie", tmp_path)[0].uris == (MIRROR,)


STATUS = """Package: a
Status: install ok installed
Architecture: amd64
Version: 1

Package: gone
Status: deinstall ok config-files
Architecture: amd64
Version: 1
"""


def test_every_installed_package_has_its_checksum() -> None:
    index = "Package: a\nVersion: 1\nArchitecture: amd64\nDescription: x\n y\nSHA256: abc\n"
    assert match_packages(STATUS, [index]) == [Package("a", "1", "amd64", "abc")]


def test_a_package_without_a_checksum_is_a_fault() -> None:
    with pytest.raises(InfrastructureError, match="without a recorded checksum: a"):
        match_packages(STATUS, ["Package: a\nVersion: 2\nArchitecture: amd64\nSHA256: abc\n"])


def test_a_full_disk_is_called_that() -> None:
    said = ["dpkg: error: write: No space left on device", "E: mmdebstrap failed to run"]
    assert "disk is full" in str(failure("x", said, 1))
    assert "mmdebstrap failed" in str(failure("x", said[1:], 1))
