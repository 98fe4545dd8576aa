"""A real Prometheus looks at the real server and gateway: every panel and every alert has its figures."""

import math
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
import pytest
from playwright.sync_api import Locator, sync_playwright

from callers import ENDLESS, RESTLESS, client_of
from dashboard_page import page_of as dashboard_page
from fakes.triton_server import RefusalError, says, triton
from gateway_server import GatewayServer, running_gateway, settings
from metrics_page import metrics_at_rest
from prometheus_server import Curve, History, Prometheus, running_prometheus
from queries import ALERTS, DASHBOARD, PANELS, every_query
from qwen3_tts_client.alerts import ALERTS as EXPLAINED
from qwen3_tts_client.metrics import Watch, Watcher
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.repairs import Repairs, page_of
from qwen3_tts_engine.launch.server import Server

pytestmark = pytest.mark.triton

[MODEL] = DASHBOARD["templating"]["list"]
RATE_INTERVAL = "10m"  # whatever a slow machine takes for the traffic and the questions after it

# What a query asks for, by the unit that a panel shows it in.
UNITS = {
    "Bps": r"rate\(\w+_bytes_total",
    "bytes": r"^nv_\w+_bytes$",
    "none": r"rate\(\w+_(audio_seconds|frames)_total|real_time_factor|underruns_total.* / .*audio_seconds",
    "percentunit": r"_slots.* / .*_slots|requests_total.* / .*requests_total|^nv_gpu_utilization$",
    "reqps": r"^sum by \([\w, ]+\) \(rate\(\w+_(requests|finish)_total[^/]*$",
    "s": r"_seconds_bucket|_duration_us\b.* / 1e6 / ",
    "short": r"^sum( by \([\w, ]+\) )?\((?!rate)[^/]*$",
    "watt": r"^nv_gpu_power_usage$",
}


@dataclass(frozen=True)
class Live:
    """Prometheus after some traffic, and what the client's doctor made of the same pages."""

    prometheus: Prometheus
    watch: Watch
    began_s: float

    def ask(self, query: str) -> list[Curve]:
        """As Grafana does, with all models chosen."""
        return self.prometheus.ask(filled_in(query))

    def history(self, query: str) -> list[History]:
        """The same from the beginning on."""
        return self.prometheus.ask_since(self.began_s, filled_in(query))


def filled_in(query: str) -> str:
    return query.replace("$model", MODEL["allValue"]).replace("$__rate_interval", RATE_INTERVAL)


@pytest.fixture(scope="module")
def live(
    server: Server, real_gateway: GatewayServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    repairs = Repairs()
    [supervisor_port] = free_ports(1)
    targets = {
        "triton": f"127.0.0.1:{server.metrics_port}",
        "supervisor": f"127.0.0.1:{supervisor_port}",
        "gateway": real_gateway.url.removeprefix("http://"),
    }
    with (
        page_of(repairs, "127.0.0.1", supervisor_port),
        running_prometheus(tmp_path_factory.mktemp("prometheus"), targets) as prometheus,
    ):
        began_s = time.time()
        watcher = Watcher([f"http://{target}/metrics" for target in targets.values()], seconds=0)
        for _ in range(2):  # a counter that is born with its first event has not grown yet
            repair(repairs)
            speak(server, real_gateway)
            fail()
            metrics_at_rest(server)
            prometheus.wait_for_scrapes(2)
        yield Live(prometheus, watcher.look(answers=True), began_s)


def repair(repairs: Repairs) -> None:
    repairs.begin("qwen3_tts_base", "died")
    repairs.end("qwen3_tts_base")


def speak(server: Server, gateway: GatewayServer) -> None:
    body = {"input": "Good morning.", "voice": "ryan", "response_format": "pcm"}
    assert httpx.post(f"{gateway.url}/v1/audio/speech", json=body, timeout=60).status_code == 200
    with client_of(server) as tts:
        tts.synthesize("Good morning.", voice="ryan", **RESTLESS, max_frames=20)
        with tts.stream("Good morning.", voice="ryan", **ENDLESS) as stream:
            next(stream)  # and leave


def fail() -> None:
    """A wrong key, and a full Triton; gateways of one process share their metrics."""

    def full(call: Any) -> Iterator[Any]:
        raise RefusalError(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")
        yield

    assert refused(triton(says(1), api_key="right"), triton_api_key="wrong", preload_models=False) == 502
    assert refused(triton(full)) == 503


def refused(server: AbstractContextManager[Any], **fields: Any) -> int:
    """The status that a gateway of these settings gives a caller."""
    body = {"input": "Good morning.", "voice": "ryan"}
    with server as fake, running_gateway(settings(triton_grpc_port=fake.port, **fields)) as gateway:
        return httpx.post(f"{gateway.url}/v1/audio/speech", json=body, timeout=60).status_code


def needs_a_gpu(query: str) -> bool:
    return "nv_gpu_" in query


def measured_in(query: str) -> list[str]:
    """What an alert compares, which has a value when all is well, too; other queries as they are."""
    return [re.sub(r" (>|==) [\d.]+$", "", part.strip()) for part in query.split(" and ")]


@pytest.mark.parametrize(("place", "query"), [*every_query()], ids=dict(every_query()))
def test_every_query_has_figures(live: Live, place: str, query: str) -> None:
    live.ask(query)
    for part in measured_in(query.strip()):
        curves = live.ask(part)
        if place in ("NobodyServes", "NoGateway"):
            assert curves == [], "somebody is there"
        elif not needs_a_gpu(part):
            assert any(math.isfinite(curve.value) for curve in curves), part


def test_prometheus_watches_for_every_alert(live: Live) -> None:
    rules = live.prometheus.rules()
    assert list(rules) == [rule["alert"] for rule in ALERTS]
    assert {(rule["health"], rule.get("lastError")) for rule in rules.values()} == {("ok", None)}


def test_the_choice_of_a_model_is_among_those_that_speak(live: Live) -> None:
    series, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", MODEL["query"]).groups()  # type: ignore[union-attr]
    models = live.prometheus.values_of(label, series)
    assert len(models) == 3
    assert all(re.fullmatch(MODEL["allValue"], model) for model in models)


def drawn(live: Live, panel: dict[str, Any]) -> list[tuple[str, float]]:
    """A panel's curves: each one's legend and its figure now."""
    return [
        (legend(target["legendFormat"], curve), curve.value)
        for target in panel["targets"]
        for curve in live.ask(target["expr"])
    ]


def legend(form: str, curve: Curve | History) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: curve.labels[label[1]], form)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_draws_curves_that_can_be_told_apart(live: Live, panel: dict[str, Any]) -> None:
    curves = drawn(live, panel)
    if panel["type"] == "stat":
        assert len(curves) == 1
    legends = Counter(legend.strip() for legend, _ in curves)
    assert "" not in legends
    assert [legend for legend, times in legends.items() if times > 1] == []


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panels_unit_is_that_of_its_figures(live: Live, panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    for target in panel["targets"]:
        assert re.search(UNITS[defaults["unit"]], target["expr"]), target["expr"]
    most = 1.0 if defaults["unit"] == "percentunit" else math.inf
    figures = [figure for _, figure in drawn(live, panel) if not math.isnan(figure)]
    assert all(defaults["min"] <= figure <= most and figure < math.inf for figure in figures)


def test_a_browser_shows_a_curve_in_every_panel(live: Live) -> None:
    def curves_of(panel: Mapping[str, Any]) -> list[tuple[str, History]]:
        return [
            (legend(target["legendFormat"], history), history)
            for target in panel["targets"]
            for history in live.history(target["expr"])
        ]

    path = shutil.which("chromium") or shutil.which("google-chrome")
    assert path, "there is no browser on this machine; on Debian: apt-get install chromium"
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser,
    ):
        page = browser.new_page(viewport={"width": 1600, "height": 2600})
        page.set_content(dashboard_page(DASHBOARD["panels"], curves_of))
        for panel in PANELS:
            shown = page.get_by_role("figure", name=panel["title"], exact=True)
            if any(needs_a_gpu(target["expr"]) for target in panel["targets"]):
                assert "No data" in shown.inner_text()
            else:
                assert has_a_curve(shown), panel["title"]


def has_a_curve(figure: Locator) -> bool:
    """A line of some length, and every line within its frame."""
    lengths = figure.locator("path").evaluate_all("paths => paths.map((path) => path.getTotalLength())")
    frame = figure.locator("svg").bounding_box()
    assert frame
    for line in filter(None, (path.bounding_box() for path in figure.locator("path[d^=M]").all())):
        for edge, size in (("x", "width"), ("y", "height")):
            outside = max(frame[edge] - line[edge], line[edge] + line[size] - frame[edge] - frame[size])
            assert outside < 4, "more than the pen is wide"
    return max(lengths) > 1


def test_the_doctor_has_figures_for_every_alert_on_the_same_pages(live: Live) -> None:
    assert [name for name, alert in EXPLAINED.items() if not alert.measured(live.watch)] == []


@pytest.mark.parametrize("name", ["SlotsFull", "Repairs"])
def test_the_doctor_reads_of_a_gauge_what_prometheus_reads(live: Live, name: str) -> None:
    [query] = [rule["expr"] for rule in ALERTS if rule["alert"] == name]
    [part] = measured_in(query)
    by = ("what", "instance") if name == "Repairs" else ("model",)
    said = {", ".join(curve.labels[label] for label in by): curve.value for curve in live.ask(part)}
    assert EXPLAINED[name].measured(live.watch) == said
