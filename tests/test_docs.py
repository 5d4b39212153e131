"""What README and docs say is so: links, paths, commands and targets that they name exist."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mayfly.spec import FIELDS

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *ROOT.glob("examples/*/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(
        r"`((?:mayfly|docs|tests|scripts|examples|tools|catalog|schemas)/[\w./-]+)`", text
    ):
        assert (ROOT / path).exists(), f"{page.name} names {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = re.findall(r"(?:^\s+|`)make ([a-z-]+)", page.read_text(), re.M)
    assert set(named) <= targets


@functools.cache
def verbs() -> set[str]:
    """Every verb and group that `mayfly --help` lists."""
    done = subprocess.run(
        [sys.executable, "-m", "mayfly.cli.main", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(re.findall(r"^\s{2}([a-z]+)\s{2,}\S", done.stdout, re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_exist(page: Path) -> None:
    text = re.sub(r"^## Unreleased.*?(?=^## |\Z)", "", page.read_text(), flags=re.M | re.S)
    for word in re.findall(r"(?:^\s+|`)(?:\.venv/bin/)?mayfly ([a-z]+)", text, re.M):
        assert word in verbs(), f"{page.name} names `mayfly {word}`"


def test_the_architecture_names_every_room_and_says_which_faults_live_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    story, _, faults = text.partition("## Where a fault lives")
    rooms = [p.name for p in (ROOT / "mayfly").iterdir() if (p / "__init__.py").exists()]
    assert [name for name in rooms if f"{name}/" not in story] == []
    assert [name for name in rooms if f"`mayfly/{name}/" not in faults] == []


def test_the_golden_recipe_and_the_record_agree_on_the_image() -> None:
    recipe = (ROOT / "mayfly/golden/recipe/recipe.toml").read_text()
    assert 'name = "buildkit-runner-golden"' in recipe
    component = (ROOT / "catalog/components/buildkit_runner.ncl").read_text()
    assert re.search(r"persistent.*=.*false", component)  # the record's own check


def test_every_field_of_a_build_spec_is_documented() -> None:
    text = (ROOT / "docs/build-spec.md").read_text()
    contract = (ROOT / "schemas/lib/build_spec.ncl").read_text()
    for name in FIELDS:
        assert f"\n| `{name}` |" in text
        assert re.search(rf"^  {name}\b", contract, re.M)
