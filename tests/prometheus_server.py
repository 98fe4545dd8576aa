"""A real Prometheus with the configuration that is shipped, looking at a test's own servers."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from qwen3_tts_engine.launch.ports import free_ports
from real_server import ROOT, wait_until

SHIPPED = ROOT / "docker" / "prometheus"


def prometheus_binary(name: str) -> str:
    """The path of `prometheus` or `promtool`."""
    binary = shutil.which(name)
    if binary is None and not os.environ.get("CI"):
        pytest.skip(f"there is no {name} on this machine: apt-get install prometheus")
    assert binary, f"{name} is missing"
    return binary


@dataclass(frozen=True)
class Curve:
    """One series of an answer, at this moment."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class History:
    """One series of an answer, over time: pairs of a moment in seconds and a value."""

    labels: Mapping[str, str]
    points: Sequence[tuple[float, float]]


class Prometheus:
    """What Grafana asks, too."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/api/v1/", timeout=20)

    def close(self) -> None:
        self._http.close()

    def ask(self, query: str) -> list[Curve]:
        """The answer to a query that has labels, or none and one value."""
        answer = self._get("query", query=query)
        assert answer["resultType"] == "vector", query
        return [Curve(it["metric"], float(it["value"][1])) for it in answer["result"]]

    def ask_since(self, moment_s: float, query: str) -> list[History]:
        """The answers to a query, second by second, until now."""
        answer = self._get("query_range", query=query, start=str(moment_s), end=str(time.time()), step="1")
        return [
            History(it["metric"], [(at_s, float(value)) for at_s, value in it["values"]])
            for it in answer["result"]
        ]

    def rules(self) -> dict[str, dict[str, Any]]:
        """The alerts that it watches for, by name."""
        return {rule["name"]: rule for group in self._get("rules")["groups"] for rule in group["rules"]}

    def values_of(self, label: str, series: str) -> set[str]:
        return {*self._get(f"label/{label}/values", **{"match[]": series})}

    def wait_for_scrapes(self, number: int) -> None:
        """Until each target has been looked at so often from now on."""
        for _ in range(number):
            now_s = time.time()
            wait_until(lambda now_s=now_s: self._all_seen_since(now_s), "Prometheus looks at its targets")

    def _all_seen_since(self, moment_s: float) -> bool:
        targets = self._get("targets", state="active")["activeTargets"]
        # Of `up == 1`, which is computed, timestamp() would be the time of the question.
        seen = self.ask(f"timestamp(up) > {moment_s} and up == 1")
        return len(seen) == len(targets) > 0

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer.get('error')}"
        return answer["data"]


@contextmanager
def running_prometheus(directory: Path, targets: Mapping[str, str]) -> Iterator[Prometheus]:
    """It looks every second, until the end of the block.

    Args:
        directory: for its configuration, its data and its log.
        targets: `host:port` for each job of the configuration.
    """
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    config["rule_files"] = [str(SHIPPED / name) for name in config["rule_files"]]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [targets[job["job_name"]]]}]
    (directory / "prometheus.yml").write_text(yaml.safe_dump(config))

    [port] = free_ports(1)
    command = [
        prometheus_binary("prometheus"),
        f"--config.file={directory / 'prometheus.yml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or _is_ready(url), "Prometheus is ready")
        assert process.poll() is None, (directory / "prometheus.log").read_text()
        prometheus = Prometheus(url)
        yield prometheus
        prometheus.close()
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(f"{url}/-/ready").status_code == 200
    return False
