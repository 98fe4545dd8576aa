"""What the client knows of alerts is what alerts.yml, the runbook and the alerts' own tests say."""

import re

import pytest
import yaml

from queries import ALERTS as PROMETHEUS
from queries import asked
from qwen3_tts_client.alerts import ALERTS
from qwen3_tts_client.metrics import Page, Series, Watch, page_in
from real_server import ROOT

CASES = {
    # BaseLoader: to promtool, `0x240` is a nought, 240 times, and no hexadecimal number.
    case["name"]: case
    for case in yaml.load((ROOT / "tests/docker/alerts_test.yml").read_text(), yaml.BaseLoader)["tests"]
}
RUNBOOK = (ROOT / "docs/runbook.md").read_text()


def test_every_alert_of_prometheus_is_known_and_no_other() -> None:
    assert list(ALERTS) == [rule["alert"] for rule in PROMETHEUS]


@pytest.mark.parametrize("rule", PROMETHEUS, ids=lambda rule: rule["alert"])
def test_its_limit_is_that_of_prometheus(rule: dict[str, str]) -> None:
    limit = re.search(r"> ([\d.]+)$", rule["expr"].strip())
    assert ALERTS[rule["alert"]].limit == (float(limit[1]) if limit else 0)


@pytest.mark.parametrize("rule", PROMETHEUS, ids=lambda rule: rule["alert"])
def test_it_looks_at_the_metrics_that_prometheus_looks_at(rule: dict[str, str]) -> None:
    looked_at: set[str] = set()

    class Recorder(Watch):
        def now(self, name: str, *by: str, **labels: str) -> dict[str, float]:
            looked_at.add(name)
            return super().now(name, *by, **labels)

        def growth(self, name: str, *by: str, **labels: str) -> dict[str, float]:
            looked_at.add(name)
            return super().growth(name, *by, **labels)

    ALERTS[rule["alert"]].measured(Recorder({}, {}))
    assert looked_at >= asked(rule["expr"].strip()) - {"up"}


@pytest.mark.parametrize("alert", ALERTS.values(), ids=lambda alert: alert.name)
def test_its_words_are_the_runbooks(alert) -> None:
    section = RUNBOOK.split(f"\n## {alert.name}\n")[1].split("\n## ")[0]
    plain = re.sub(r"\[[^\]]+\]\((\w+\.md)\)", r"docs/\1", section)
    assert [" ".join(paragraph.split()) for paragraph in plain.strip().split("\n\n")] == [
        alert.meaning,
        alert.remedy,
    ]


def page_of(case: str, scrape: int) -> Page:
    """What a case of alerts_test.yml has after so many scrapes."""
    page: dict[Series, float] = {}
    for given in CASES[case]["input_series"]:
        series = re.sub(r'instance="\w+"(, )?', "", given["series"]).replace(", ", ",")
        instance = re.search(r'instance="(\w+)"', given["series"])
        page |= page_in(f"{series} {at(given['values'], scrape)}", instance[1] if instance else "")
    return page


def at(values: str, scrape: int) -> float:
    """Of promtool's notation: `0+5x240 7x10` begins with 0, 5, 10 and ends with 7."""
    told: list[float] = []
    for start, step, times in re.findall(r"(\d+)(?:\+(\d+))?x(\d+)", values):
        told += [float(start) + float(step or 0) * number for number in range(int(times) + 1)]
    return told[scrape]


def fire(case: str, *scrapes: int) -> set[str]:
    watch = Watch(*(page_of(case, scrape) for scrape in scrapes))
    return {name for name, alert in ALERTS.items() if alert.above(alert.measured(watch))}


def test_it_would_fire_on_the_series_on_which_prometheus_fires() -> None:
    case = "everything else that can be wrong, at once"
    [checked] = CASES[case]["promql_expr_test"]
    names = {re.search(r'"(\w+)"', sample["labels"])[1] for sample in checked["exp_samples"]}  # type: ignore[index]
    assert len(names) > 10
    assert fire(case, 0, 4) == names


def test_it_would_not_fire_on_a_healthy_hour() -> None:
    assert fire("a healthy hour", 0, 4) == set()


def test_an_engine_that_hangs_is_told_from_one_that_speaks() -> None:
    assert fire("an engine that hangs", 16, 20) == set()
    assert fire("an engine that hangs", 22, 26) == {"NoAudio"}
    held = ALERTS["NoAudio"].measured(
        Watch(page_of("an engine that hangs", 22), page_of("an engine that hangs", 26))
    )
    assert held == {"m, a": 3, "m, b": 0}
