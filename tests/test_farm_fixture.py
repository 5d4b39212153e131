"""What the whole-farm tests do with this machine's golden images, without a farm."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.farm.conftest import link_or_copy


def test_an_image_is_linked_where_that_is_possible(tmp_path: Path) -> None:
    (tmp_path / "image").write_text("golden")
    link_or_copy(str(tmp_path / "image"), str(tmp_path / "same"))
    assert (tmp_path / "same").samefile(tmp_path / "image")


def test_an_image_on_another_file_system_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: str) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    (tmp_path / "image").write_text("golden")
    link_or_copy(str(tmp_path / "image"), str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_text() == "golden"


def test_other_faults_of_linking_are_faults(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        link_or_copy(str(tmp_path / "nothing"), str(tmp_path / "copy"))
