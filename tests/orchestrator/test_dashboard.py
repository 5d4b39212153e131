"""The Grafana dashboard asks for metrics that there are, and for all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from mayfly.orchestrator.metrics import Metrics

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana-dashboard.json"


def queries() -> list[str]:
    board: Any = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def exported() -> dict[str, set[str]]:
    """The families, each with the names that its samples have, or would have with labels."""
    suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    text = Metrics().render([]).decode()
    return {
        family.name: {family.name + suffix for suffix in suffixes[family.type]}
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }


def test_every_name_in_the_dashboard_is_exported_and_every_family_is_shown() -> None:
    asked = set(re.findall(r"mayfly_\w+", " ".join(queries())))
    families = exported()
    assert asked <= set().union(*families.values())
    assert {name for name, samples in families.items() if not samples & asked} == set()


def test_labels_in_the_dashboard_are_those_of_the_metrics() -> None:
    source = (Path(__file__).parents[2] / "mayfly/orchestrator/metrics.py").read_text()
    labels = set(re.findall(r'"(\w+)"', " ".join(re.findall(r"\[(\"[^]]+)\]", source))))
    for query in queries():
        for words in re.findall(r"by \(([^)]*)\)", query):
            assert set(words.replace(" ", "").split(",")) <= labels | {"le"}, query


def test_no_panel_covers_another() -> None:
    board: Any = json.loads(DASHBOARD.read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in board["panels"]]
    assert len(set(places)) == len(places)
