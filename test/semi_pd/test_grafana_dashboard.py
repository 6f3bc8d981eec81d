# SPDX-License-Identifier: Apache-2.0
"""The Grafana dashboard asks for metrics, labels and values that a server exports."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from sglang.semi_pd.monitoring.instance_view import InstanceView
from sglang.semi_pd.monitoring.metrics_exporter import FAMILIES, PREFIX, InstanceMetrics
from sglang.semi_pd.sm_allocation import SMAllocation
from status_document import Parts

FILE = (
    Path(__file__).resolve().parents[2]
    / "examples/semi_pd/grafana/semi_pd_dashboard.json"
)
DASHBOARD = json.loads(FILE.read_text(encoding="utf-8"))
SCRAPED = {"model_name", "engine_type", "instance"}
_SELECTOR = re.compile(r"([a-zA-Z_:]+)\{([^}]*)\}")
_MATCH = re.compile(r'(\w+)(=~?)"([^"]*)"')
_GROUPED = re.compile(r"(?:by|on) ?\(([^)]*)\)")
OWN_LABEL = {family.full_name: family.label for family in FAMILIES}


def queries() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard, and the legend made from its labels."""
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"], target["legendFormat"]
    for note in DASHBOARD["annotations"]["list"]:
        yield note["expr"], ""
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            inside = re.fullmatch(
                r"label_values\((.*), (\w+)\)", variable["definition"]
            )
            assert inside and variable["query"]["query"] == variable["definition"]
            yield f"{inside[1]}{{}}", f"{{{{{inside[2]}}}}}"


@pytest.fixture(scope="module")
def exported() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    """Names and labels of the samples of an instance that lived a little."""
    parts = Parts()
    parts.serve(20, ttft_ms=80, tpot_ms=20)
    parts.controller.tick()
    parts.rotation.request_sm_reallocation(SMAllocation(60, 40))
    registry = CollectorRegistry()
    view = InstanceView.from_status(parts.status())
    registry.register(InstanceMetrics(lambda: view, {"model_name": "tiny"}))
    return {
        (sample.name, tuple(sample.labels.items()))
        for family in registry.collect()
        for sample in family.samples
    }


@pytest.mark.parametrize(("query", "legend"), list(queries()))
def test_what_it_asks_for_is_exported(
    query: str, legend: str, exported: set[tuple[str, Any]]
) -> None:
    selectors = _SELECTOR.findall(query)
    assert selectors
    assert query.count(PREFIX) == len(selectors)
    for name, matchers in selectors:
        known = SCRAPED | {OWN_LABEL[name]}
        wanted = _MATCH.findall(matchers)
        used = {label for label, _, _ in wanted}
        for group in _GROUPED.findall(query):
            used |= {label.strip() for label in group.split(",")}
        assert used | set(re.findall(r"\{\{(\w+)\}\}", legend)) <= known
        fixed = {(label, value) for label, kind, value in wanted if kind == "="}
        if name != f"{PREFIX}sm_share_realised_ratio":
            assert any(one == name and fixed <= set(labels) for one, labels in exported)


def test_it_shows_every_metric() -> None:
    asked = {name for query, _ in queries() for name, _ in _SELECTOR.findall(query)}
    assert asked == set(OWN_LABEL)


def test_it_can_be_imported() -> None:
    """What Grafana wants of a file: ids, places that do not overlap, a data source."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y)
            for x in range(place["w"])
            for y in range(place["h"])
        }
        assert max(x for x, _ in cells) < 24 and not taken & cells
        taken |= cells
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
