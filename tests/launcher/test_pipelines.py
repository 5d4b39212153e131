"""The pipelines in this repo: YAML that Woodpecker reads, settings that the plugin takes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from mayfly.build import args
from mayfly.launcher import page
from mayfly.launcher.plan import plan
from mayfly.launcher.values import given

ROOT = Path(__file__).parents[2]
PIPELINES = sorted([*ROOT.glob(".woodpecker/*.yaml"), *ROOT.glob("examples/woodpecker/*.yaml")])
CI = {"CI_REPO": "team/app", "CI_REPO_DEFAULT_BRANCH": "main", "CI_COMMIT_REF": "refs/heads/main"}
NOW = datetime(2026, 11, 28, tzinfo=UTC)


def as_woodpecker_passes(settings: Mapping[str, Any]) -> dict[str, str]:
    """`PLUGIN_*` of a step, as `pipeline/frontend/yaml/compiler/settings/params.go` makes them."""

    def secret(value: Any) -> Any:
        if isinstance(value, dict):
            if "from_secret" in value:
                return f"secret of {value['from_secret']}"
            return {name: secret(each) for name, each in value.items()}
        return [secret(each) for each in value] if isinstance(value, list) else value

    def text(value: Any) -> str:
        value = secret(value)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, list) and not any(isinstance(v, dict | list) for v in value):
            return ",".join(text(each) for each in value)
        return json.dumps(value) if isinstance(value, dict | list) else str(value)

    return {
        f"PLUGIN_{name.upper().replace('-', '_').replace('.', '_')}": text(value)
        for name, value in settings.items()
        if value is not None
    }


def steps(file: Path) -> list[dict[str, Any]]:
    # What Woodpecker puts in for ${…} is a word; here any will do.
    found = yaml.safe_load(file.read_text().replace("${CI_REPO}", "team/app").replace("${", "x{"))
    return [step for step in found["steps"] if step["image"] == page.IMAGE]


@pytest.mark.parametrize("file", PIPELINES, ids=lambda file: file.name)
def test_a_pipeline_is_read_and_its_settings_are_right(file: Path) -> None:
    read = yaml.safe_load(file.read_text())
    assert read["when"] and all(step["name"] and step["image"] for step in read["steps"])
    for step in steps(file):
        assert not {"commands", "environment", "privileged"} & set(step)
        assert set(step["settings"]) <= set(page.schema()["properties"])
        settings = {n: v for n, v in step["settings"].items() if n != "tags"}
        environ = {**CI, **as_woodpecker_passes(settings)}
        made = plan(given(environ), environ, {}, NOW)
        assert (made.faults, made.remarks) == ((), ())
        assert args.parse(made.argv, "registry.mayfly.internal:5000").builds
        assert "secret of" not in " ".join(made.argv)


@pytest.mark.parametrize(
    "file", sorted(ROOT.glob(".woodpecker/*.yaml")), ids=lambda file: file.name
)
def test_no_pipeline_of_ours_has_a_secret_that_says_more_than_the_pipeline_itself(
    file: Path,
) -> None:
    """Whoever may push a tag writes the pipeline that runs, and gets each secret that there is."""
    for step in yaml.safe_load(file.read_text())["steps"]:
        secrets = re.findall(r"'from_secret': '(.*?)'", str(step))
        assert secrets == (["mayfly_token"] if step["image"] == page.IMAGE else [])


def test_the_examples_of_the_page_are_pipelines_too() -> None:
    text = (ROOT / "docs/woodpecker.md").read_text()
    blocks = [block.split("```")[0] for block in text.split("```yaml\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        read = yaml.safe_load(block)
        settings = read["settings"] if "settings" in read else read["steps"][0]["settings"]
        environ = {**CI, **as_woodpecker_passes(settings)}
        assert plan(given(environ), environ, {}, NOW).faults == ()
