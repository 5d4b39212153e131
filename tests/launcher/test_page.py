"""The plugin's page and schema are what its settings are; the pipelines fit both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from mayfly.errors import MayflyError
from mayfly.launcher import page
from mayfly.launcher.settings import GROUPS, TABLE, Use
from mayfly.model import OUTCOME_EXIT, Outcome

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/woodpecker.md").read_text()
# https://woodpecker-ci.org/docs/usage/plugins/creating-plugins#metadata
INDEX = {"name", "icon", "description", "author", "tags", "containerImage", "containerImageUrl",
         "url"}  # fmt: skip


def test_the_page_is_made_of_the_settings() -> None:
    assert page.page() == TEXT, "run: python -m mayfly.launcher.page > docs/woodpecker.md"


def test_the_schema_is_made_of_the_settings() -> None:
    kept = json.loads((ROOT / "schemas/woodpecker.json").read_text())
    how = "run: python -m mayfly.launcher.page --schema > schemas/woodpecker.json"
    assert page.schema() == kept, how


def test_the_index_can_read_the_page() -> None:
    _, head, body = TEXT.split("---\n", 2)
    fields = dict(line.split(": ", 1) for line in head.splitlines())
    assert set(fields) <= INDEX and {"name", "description", "containerImage"} <= set(fields)
    assert re.search(r"^# ", body, re.M)


@pytest.mark.parametrize("name", sorted(TABLE))
def test_every_setting_has_its_line(name: str) -> None:
    assert re.search(rf"^\| `{name}`", TEXT, re.M)
    assert set(page.schema()["properties"]) >= set(TABLE[name].names)


def test_a_group_is_of_one_use() -> None:
    for group in GROUPS.values():
        assert len({setting.use for setting in group}) == 1
    assert {setting.use for setting in TABLE.values()} == set(Use)


def test_every_exit_code_is_told() -> None:
    for outcome, code in OUTCOME_EXIT.items():
        if code is not None:
            assert f"| {code} | `{outcome}` |" in TEXT
    assert Outcome(MayflyError.code) in page._MEANINGS
