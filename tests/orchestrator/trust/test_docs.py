"""docs/trust.md says what the code does."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel

from mayfly.config import Issuer, Trust, Woodpecker
from mayfly.orchestrator.trust import Origin, Principal, policy
from tests.orchestrator.trust.test_policy import ASKED, PULL, PUSH

PAGE = (Path(__file__).parents[3] / "docs" / "trust.md").read_text()

ELSEWHERE = replace(PUSH, branch="feature")
TAG = replace(PUSH, event="tag", branch="")

ROWS: dict[str, list[tuple[Origin | None, bool]]] = {
    "push to the default branch": [(PUSH, False)],
    "cron on the default branch": [(replace(PUSH, event="cron"), False)],
    "manual on the default branch": [(replace(PUSH, event="manual"), False)],
    "tag whose commit is on the default branch": [(TAG, True)],
    "tag of another commit": [(TAG, False)],
    "push to another branch": [(ELSEWHERE, True)],
    "cron or manual on another branch": [
        (replace(ELSEWHERE, event=event), True) for event in ("cron", "manual")
    ],
    "pull request": [
        (PULL, True),
        (replace(PULL, pull_request=0), True),
        (replace(PUSH, pull_request=7), True),
    ],
    "pull request from a fork": [(replace(PULL, fork=True), True)],
    "release or deployment": [
        (replace(PUSH, event=event), True) for event in ("release", "deployment")
    ],
    "any other event": [(replace(PUSH, event=event), True) for event in ("", "x", "forge:push")],
    "static token": [(Origin(("team/app",), vouched=False), True)],
    "static token made with --trusted": [(Origin(("team/app",), vouched=True), False)],
    "administrator": [(None, False)],
}
"""Each row of the page's table, by what stands in its first cell: who asks, and whether the commit
was seen on a trusted branch."""


def table() -> dict[str, str]:
    (rows,) = re.findall(r"\| who \| trusted \| how .*\n\| ---.*\n((?:\|.*\n)+)", PAGE)
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows.splitlines()]
    return {who: trusted for who, trusted, _ in cells}


def test_the_table_has_every_row() -> None:
    assert list(table()) == list(ROWS)


@pytest.mark.parametrize("who", ROWS)
def test_each_row_is_what_the_policy_decides(who: str) -> None:
    for origin, seen in ROWS[who]:
        asks = Principal("a:b", admin=origin is None, origin=origin)
        decision = policy.decide(asks, ASKED, Trust(), "t2", seen=seen)
        assert table()[who] == ("yes" if decision.trusted else "no"), decision.terms.why


def test_options_that_the_page_names_exist() -> None:
    sections: dict[str, type[BaseModel]] = {"trust": Trust, "woodpecker": Woodpecker}
    for section, option in re.findall(r"`(trust|woodpecker)\.([a-z_]+)`", PAGE):
        assert option in sections[section].model_fields, (section, option)
    for option in ("repos", "audience", "claims", "events", "default_branch", "default_branches"):
        assert option in Issuer.model_fields
        assert f"`{option}`" in PAGE or f"{option} =" in PAGE
    for option in Trust.model_fields:
        assert f"`trust.{option}`" in PAGE, option
