"""Publishes the engine's measurements on Triton's /metrics, from a thread of its own."""

from __future__ import annotations

import logging
import os
import queue
import threading
from typing import Any

import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.metrics import FAMILIES, Family
from qwen3_tts_engine.processes import model_processes

logger = logging.getLogger(__name__)


class PublishedMetrics:
    """Every call becomes a message to Triton's process; the engine only puts it in a queue.

    Series exist from the start, at zero, so that a dashboard sees an outcome before its first time. Several
    instances of a model share a series: gauges move by differences. What a process that was killed had added
    to them stays until the first process after it takes it back.
    """

    def __init__(self, model: str, version: str) -> None:
        self._is_alone = model_processes(os.getpgid(0)).get(model, []) == [os.getpid()]
        labels = {"model": model, "version": version}
        self._families: list[Any] = []  # Triton drops a family's metrics with the object
        self._series = {key: metric for family in FAMILIES for key, metric in self._declare(family, labels)}
        self._measurements: queue.SimpleQueue[tuple[str, str, float, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._publish, name="metrics", daemon=True)
        self._thread.start()

    def add(self, family: Family, amount: float = 1, label: str = "") -> None:
        if amount:
            self._measurements.put((family.name, label, float(amount), False))

    def observe(self, family: Family, value: float) -> None:
        self._measurements.put((family.name, "", value, True))

    def close(self) -> None:
        """Publish what is left, then stop."""
        self._measurements.put(None)
        self._thread.join()

    def _declare(self, family: Family, labels: dict[str, str]) -> list[tuple[tuple[str, str], Any]]:
        kind = getattr(pb_utils.MetricFamily, family.kind.upper())
        declared = pb_utils.MetricFamily(family.name, family.description, kind)
        self._families.append(declared)
        series = []
        for value in family.label_values or ("",):
            own = labels | ({family.label: value} if value else {})
            buckets = {"buckets": list(family.buckets)} if family.buckets else {}
            metric = declared.Metric(labels=own, **buckets)
            if family.kind == "gauge" and self._is_alone:
                metric.set(0.0)
            series.append(((family.name, value), metric))
        return series

    def _publish(self) -> None:
        while (measurement := self._measurements.get()) is not None:
            name, label, value, is_observation = measurement
            metric = self._series[name, label]
            try:
                metric.observe(value) if is_observation else metric.increment(value)
            except Exception:  # one measurement is lost; without this thread all would be
                logger.exception("%s could not be published", name)
