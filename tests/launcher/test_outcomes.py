"""Every way in which a build can end, through the plugin, on a farm whose answers are scripted."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly.config import Config
from mayfly.errors import MayflyError
from mayfly.flow import Request
from mayfly.launcher import main
from mayfly.launcher.will import Will
from mayfly.model import OUTCOME_EXIT, Outcome
from tests.flow.fake_farm import FakeFarm
from tests.flow.test_flow import request


class Ended(FakeFarm):
    """A farm that ends every build before it has a runner; `asked` counts them."""

    asked = 0

    async def __aenter__(self) -> Ended:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def holding(self, token: str) -> Ended:
        self.asked += 1
        return self


async def exit_code(asked: Request, farm: Ended, said: list[str]) -> int:
    """What `main._run` makes of it."""
    nobodys = Will(-1)
    try:
        result = await main._build(asked, Config(), farm, nobodys, said.append)  # type: ignore[arg-type]
    except MayflyError as error:
        said.append(str(error))
        return error.exit_status
    return result.exit_status


@pytest.mark.parametrize("outcome", [each for each in Outcome if each != Outcome.SUCCEEDED])
async def test_every_end_of_a_build_has_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome
) -> None:
    monkeypatch.setattr(main, "PAUSE_S", 0)
    farm, said = Ended(ended=(outcome, "that is how it was")), list[str]()
    documented = OUTCOME_EXIT[outcome] or 20
    assert await exit_code(request(tmp_path, ""), farm, said) == documented
    assert "that is how it was" in said[-1]
    assert farm.asked == (2 if documented == 20 else 1), "only the farm's own fault is tried again"
