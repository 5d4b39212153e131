"""Languages by their files, and defaults that are on the default ladder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly.config import Config
from mayfly.languages import LANGUAGES, found, known


def test_the_records_own_defaults() -> None:
    rust, javascript = LANGUAGES["rust"], LANGUAGES["javascript"]
    assert (rust.files, rust.cpu, rust.memory_gb) == (("Cargo.toml",), 4, 8)
    assert (javascript.files, javascript.cpu, javascript.memory_gb) == (("package.json",), 2, 4)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_default_is_a_rung_of_the_default_ladder(name: str) -> None:
    language = LANGUAGES[name]
    rungs = {(rung.cpu, rung.memory_gb) for rung in Config().ladder.values()}
    assert (language.cpu, language.memory_gb) in rungs


def test_no_file_tells_two_languages() -> None:
    files = [file for language in LANGUAGES.values() for file in language.files]
    assert len(set(files)) == len(files)


def test_languages_are_known_by_name_and_by_file(tmp_path: Path) -> None:
    assert known(["go.mod", "rust", "cobol", "Cargo.toml"]) == ("rust", "go")
    assert found(tmp_path) == found(tmp_path / "nowhere") == ()
    (tmp_path / "package.json").touch()
    (tmp_path / "Cargo.toml").mkdir()
    assert found(tmp_path) == ("javascript",)
