"""All that is wrong with a request is said at once; the lowest exit status decides."""

from __future__ import annotations

from pathlib import Path

import pytest

from mayfly import flow
from mayfly.config import Config
from mayfly.errors import (
    Denied,
    InfrastructureError,
    MayflyError,
    SchemaError,
    UsageError,
    together,
)

CI = {"CI_REPO": "team/app"}


def faults(folder: Path, *words: str) -> list[MayflyError]:
    with pytest.raises(MayflyError) as caught:
        flow.prepare(words, Config(), CI, folder)
    return [caught.value, *caught.value.also]


def test_spec_dockerfile_result_and_registry_path_at_once(tmp_path: Path) -> None:
    (tmp_path / ".build-spec.ncl").write_text("{ cpu = 0 }")
    words = ("--push", "-t", "images/other/app", "-t", "images/team/x/y", "-t", "elsewhere/app")
    found = faults(tmp_path, *words, "--metadata-file", "absent/m.json", ".")
    assert [type(each) for each in found] == [UsageError, UsageError, SchemaError, Denied]
    assert "there is no Dockerfile" in str(found[0])
    assert "absent/m.json" in str(found[1])
    assert "images/other/app, images/team/x/y" in str(found[3])


def test_without_a_context_nothing_is_made_up_about_it(tmp_path: Path) -> None:
    found = faults(tmp_path, "--push", "-t", "images/other/app", "absent")
    assert [type(each) for each in found] == [UsageError, Denied]


def test_the_lowest_exit_status_goes_first_and_order_stays_else() -> None:
    errors = [InfrastructureError("a"), Denied("b"), UsageError("c"), UsageError("d")]
    first = together(errors)
    assert (str(first), [str(each) for each in first.also]) == ("c", ["d", "b", "a"])
    assert together([errors[0]]).also == ()
