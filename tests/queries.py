"""What dashboard, alerts and autoscaler ask Prometheus."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

from real_server import ROOT

DOCKER = ROOT / "docker"
ALERTS = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/qwen3-tts.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def every_query() -> Iterator[tuple[str, str]]:
    """Every PromQL there is, by where it stands."""
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    scaled = yaml.safe_load((DOCKER / "kubernetes/overlays/gpu/scaled-object.yaml").read_text())
    for trigger in scaled["spec"]["triggers"]:
        yield f"trigger {trigger['name']}", trigger["metadata"]["query"]


def asked(query: str) -> set[str]:
    """The names of metrics in a query."""
    return set(re.findall(r"\b(?:qwen3_tts|nv)_\w+\b(?=[{\[) ]|$)|\bup\b", re.sub(r'"[^"]*"', '""', query)))
