"""Alerts, dashboard and autoscaling ask for what is there."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from prometheus_server import prometheus_binary
from queries import ALERTS, DASHBOARD, PANELS, asked
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.metrics import FAMILIES, FINISH_REASONS, OUTCOMES
from qwen3_tts_gateway import observing
from real_server import ROOT

DOCKER = ROOT / "docker"
# Of those in Triton's documentation, the ones we ask for.
TRITONS = {
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_utilization",
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_request_success",
}
PROMETHEUS = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())


def series(name: str, kind: str) -> set[str]:
    """The names that a family has on a page of metrics."""
    if kind == "histogram":
        return {f"{name}_bucket", f"{name}_sum", f"{name}_count"}
    return {name}


def known() -> set[str]:
    ours = [series(family.name, family.kind) for family in FAMILIES]
    gateways = [
        series(metric.name + ("_total" if metric.type == "counter" else ""), metric.type)
        for wrapper in vars(observing).values()
        if isinstance(wrapper, MetricWrapperBase)
        for metric in wrapper.describe()
    ]
    repairs = set(re.findall(r"^# TYPE (\w+) ", Repairs().metrics(), flags=re.MULTILINE))
    return {"up"}.union(TRITONS, repairs, *ours, *gateways)


def test_every_query_asks_for_something_that_is_there(queries: dict[str, str]) -> None:
    assert len(queries) > 30
    for place, query in queries.items():
        names = asked(query.strip())
        assert names, place
        assert names <= known(), place


def test_every_outcome_and_reason_asked_for_is_one(queries: dict[str, str]) -> None:
    values = re.findall(r'\b(outcome|reason)="(\w+)"', " ".join(queries.values()))
    assert values
    assert {*values} <= {("outcome", it) for it in OUTCOMES} | {("reason", it) for it in FINISH_REASONS}


def test_everything_that_we_measure_is_on_the_dashboard(queries: dict[str, str]) -> None:
    shown = set().union(*map(asked, queries.values()))
    for family in FAMILIES:
        assert shown & series(family.name, family.kind), family.name


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_is_wrong_and_how_bad_it_is(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"].endswith(".")
    assert rule["for"]


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    sections = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)
    assert sections == [rule["alert"] for rule in ALERTS]


def test_each_alert_fires_when_it_should() -> None:
    promtool = prometheus_binary("promtool")
    for command in (
        ["check", "config", DOCKER / "prometheus/prometheus.yml"],
        ["check", "rules", DOCKER / "prometheus/alerts.yml"],
        ["test", "rules", "alerts_test.yml"],
    ):
        done = subprocess.run([promtool, *command], cwd=Path(__file__).parent, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test() -> None:
    tests = (Path(__file__).parent / "alerts_test.yml").read_text()
    assert {*re.findall(r'alertname="(\w+)"', tests)} == {rule["alert"] for rule in ALERTS}


def targets() -> set[tuple[str, int]]:
    """Who is scraped, and where."""
    found = [search for job in PROMETHEUS["scrape_configs"] for search in job["dns_sd_configs"]]
    return {(name, search["port"]) for search in found for name in search["names"]}


def test_what_is_scraped_is_a_service_of_the_composition(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert targets() == {
        ("triton", services["triton"]["environment"]["TRITON_METRICS_PORT"]),
        ("triton", services["triton"]["environment"]["SUPERVISOR_PORT"]),
        ("gateway", services["gateway"]["environment"]["PORT"]),
    }
    for name, _ in targets():
        assert {*services[name]["networks"]} & {*services["prometheus"]["networks"]}


def test_what_is_scraped_is_every_pod_of_a_service_of_the_cluster(base: list[dict[str, Any]]) -> None:
    services = {it["metadata"]["name"]: it["spec"] for it in base if it["kind"] == "Service"}
    for name, port in targets():
        assert services[name]["clusterIP"] == "None"
        assert port in [it["port"] for it in services[name]["ports"]]


def test_the_panels_stand_side_by_side() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_panels_ask_the_prometheus_that_grafana_is_given() -> None:
    given = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert {panel["datasource"]["uid"] for panel in PANELS} == {it["uid"] for it in given["datasources"]}
    assert [it["url"] for it in given["datasources"]] == ["http://prometheus:9090"]


def test_grafana_finds_the_dashboard(compose: dict[str, Any]) -> None:
    mounts = [volume.split(":") for volume in compose["services"]["grafana"]["volumes"]]
    places = {target: source for source, target, *_ in mounts}
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/dashboards.yaml").read_text())[
        "providers"
    ][0]
    folder = provider["options"]["path"]
    assert (DOCKER / places[folder] / "qwen3-tts.json").is_file()
    home = compose["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/qwen3-tts.json"
