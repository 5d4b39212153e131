"""What comes back from a runner, which may be anybody's."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mayfly.errors import UsageError
from mayfly.run import artifacts


def tar(*entries: tuple[str, bytes | str], mode: int = 0o644) -> io.BytesIO:
    """A tar; an entry with a text instead of bytes is a link to it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.mode = mode
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                made.addfile(entry)
            else:
                entry.size = len(content)
                made.addfile(entry, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def test_what_was_asked_for_is_written_over_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.xml").write_text("old")
    source = tar(("./out/a.xml", b"new"), ("out/deep/b.xml", b"b"), ("one.txt", b"1"), mode=0o755)
    taken = artifacts.take(source, ("out", "*.txt"), tmp_path)
    assert taken.files == ["out/a.xml", "out/deep/b.xml", "one.txt"] and not taken.refused
    assert (tmp_path / "out/a.xml").read_bytes() == b"new"
    assert (tmp_path / "one.txt").stat().st_mode & 0o100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.txt", "out"]


def test_a_star_brings_no_hidden_files_unless_they_are_asked_for(tmp_path: Path) -> None:
    hostile = [(".git/hooks/post-checkout", b"x"), (".bashrc", b"x"), ("out/.hidden", b"x")]
    taken = artifacts.take(tar(*hostile), ("*",), tmp_path)
    assert taken.files == ["out/.hidden"] and len(taken.refused) == 2
    taken = artifacts.take(tar(*hostile), (".ba*", "out/?hidden"), tmp_path)
    assert taken.files == [".bashrc"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("../evil", b"x"),
        ("/etc/evil", b"x"),
        ("out/../../evil", b"x"),
        (".git/hooks/post-checkout", b"x"),
        ("outer", b"x"),
        ("out/link", "/etc/passwd"),
    ],
)
def test_what_was_not_asked_for_is_not_written(
    tmp_path: Path, name: str, content: bytes | str
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    taken = artifacts.take(tar((name, content), ("out/good", b"g")), ("out",), folder)
    assert taken.files == ["out/good"] and len(taken.refused) == 1
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [
        "here",
        "here/out",
        "here/out/good",
    ]


def test_a_hard_link_is_one_to_what_came_before_and_to_nothing_else(tmp_path: Path) -> None:
    made, folder = tmp_path / "made", tmp_path / "here"
    (made / "out").mkdir(parents=True)
    folder.mkdir()
    (folder / "mine").write_text("mine")
    (made / "out/a").write_text("a")
    (made / "out/b").hardlink_to(made / "out/a")
    (made / "mine").write_text("theirs")
    (made / "out/c").hardlink_to(made / "mine")
    words = (
        "tar",
        "-C",
        made,
        "--transform=s,^,x/,",
        "-cf",
        "-",
        "out/a",
        "out/b",
        "mine",
        "out/c",
    )
    packed = io.BytesIO(subprocess.run(words, capture_output=True, check=True).stdout)
    taken = artifacts.take(packed, ("out",), folder, "x")
    assert taken.files == ["out/a", "out/b"]
    assert (folder / "out/b").samefile(folder / "out/a")
    assert [reason.partition(":")[0] for reason in taken.refused] == ["'mine'", "'out/c'"]
    assert (folder / "mine").read_text() == "mine"


def test_where_hard_links_cannot_be_they_are_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(new: Path, first: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", denied)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        entry = tarfile.TarInfo("out/a")
        entry.size, entry.mode = 1, 0o755
        made.addfile(entry, io.BytesIO(b"a"))
        entry = tarfile.TarInfo("out/b")
        entry.type, entry.linkname = tarfile.LNKTYPE, "out/a"
        made.addfile(entry)
    buffer.seek(0)
    assert artifacts.take(buffer, ("out",), tmp_path).files == ["out/a", "out/b"]
    assert (tmp_path / "out/b").read_bytes() == b"a"
    assert (tmp_path / "out/b").stat().st_mode & 0o100


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    folder, other = tmp_path / "here", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (folder / "out").symlink_to(other)
    with pytest.raises(UsageError, match="artifact out/x: out is a link here"):
        artifacts.take(tar(("out/x", b"x")), ("out",), folder)
    assert list(other.iterdir()) == []


def test_a_link_in_the_files_place_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").symlink_to("mine")
    artifacts.take(tar(("out", b"theirs")), ("out",), tmp_path)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "out").read_text() == "theirs" and not (tmp_path / "out").is_symlink()


@given(st.binary(max_size=2000))
def test_nonsense_writes_nothing(data: bytes) -> None:
    taken = artifacts.take(io.BytesIO(data), ("out",), Path("/nowhere"))
    assert taken.files == []


def test_a_header_that_says_nonsense_ends_what_comes_back_and_nothing_else(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        for name, headers in (("out/a", {}), ("out/b", {"GNU.sparse.map": "x,y"})):
            entry = tarfile.TarInfo(name)
            entry.pax_headers = headers
            made.addfile(entry)
    buffer.seek(0)
    taken = artifacts.take(buffer, ("out",), tmp_path)
    assert taken.files == ["out/a"]
    assert taken.refused[0].startswith("the rest: it cannot be read: ")


def test_a_file_with_holes_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as made:
        entry = tarfile.TarInfo("out/huge")
        entry.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 24)}
        made.addfile(entry)
        made.addfile(tarfile.TarInfo("out/a"))
    buffer.seek(0)
    taken = artifacts.take(buffer, ("out",), tmp_path)
    assert taken.files == ["out/a"]
    assert taken.refused == ["'out/huge': it is no plain file"]


@pytest.mark.parametrize("pattern", ["", "/x", "../x", "a/../../b", "-x", ".", "a\nb"])
def test_a_pattern_that_leaves_the_directory_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="--artifact"):
        artifacts.checked([pattern])


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30))
def test_a_shell_expands_stars_and_nothing_else(pattern: str) -> None:
    plain = pattern.replace("*", "").replace("?", "")
    if not plain:
        return
    said = subprocess.run(
        ["/bin/sh", "-fc", f"printf %s {artifacts.shell_words([plain])}"],
        capture_output=True,
        text=True,
        check=True,
        env={"HOME": "/nowhere"},
    )
    assert said.stdout == plain


def test_a_shell_finds_what_the_pattern_means(tmp_path: Path) -> None:
    for name in ("a b.xml", "c.xml", "[x].xml", "d.txt"):
        (tmp_path / name).touch()
    script = f'for f in {artifacts.shell_words(["*.xml", "a b.xml"])}; do echo "$f"; done'
    said = subprocess.run(
        ["/bin/sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(said.stdout.splitlines()) == {"a b.xml", "c.xml", "[x].xml"}
    assert artifacts.asked_for("[x].xml", ["[x].xml"]) and not artifacts.asked_for("x", ["[x]"])
