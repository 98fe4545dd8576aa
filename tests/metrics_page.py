"""Triton's /metrics as numbers by series, and what became of them since."""

from __future__ import annotations

import http.client
import re
from collections.abc import Mapping
from contextlib import closing, suppress

from qwen3_tts_engine.launch.server import Server
from real_server import wait_until

ACTIVE = "qwen3_tts_active_slots"
WAITING = "qwen3_tts_waiting_requests"  # at the engine's door or in its waiting room
QUEUED = "nv_inference_pending_request_count"  # in Triton's queue
FRAMES = "qwen3_tts_frames_total"


def metrics_text(server: Server) -> str:
    with closing(http.client.HTTPConnection("127.0.0.1", server.metrics_port, timeout=20)) as connection:
        wait_until(lambda: _connects(connection), "the metrics are served")  # Triton opens their port last
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()


def _connects(connection: http.client.HTTPConnection) -> bool:
    with suppress(ConnectionRefusedError):
        connection.connect()
    return connection.sock is not None


def read_metrics(server: Server, model: str = "qwen3_tts_custom_voice") -> dict[str, float]:
    """One model's series, without the labels they all share: `qwen3_tts_requests_total{outcome="ok"}`."""
    lines = re.findall(r"^(\w+)\{(.*)\} (\S+)$", metrics_text(server), flags=re.MULTILINE)
    return {
        _series(name, labels): float(value) for name, labels, value in lines if f'model="{model}"' in labels
    }


def _series(name: str, labels: str) -> str:
    own = [label for label in labels.split(",") if not label.startswith(("model=", "version="))]
    return f"{name}{{{','.join(own)}}}" if own else name


def wait_for_metrics(server: Server, wanted: Mapping[str, float]) -> None:
    wait_until(lambda: wanted.items() <= read_metrics(server).items(), f"the metrics show {dict(wanted)}")


def metrics_at_rest(server: Server) -> dict[str, float]:
    """The page once nobody speaks or waits, and what earlier callers caused has been counted."""
    pages: list[dict[str, float]] = []

    def nothing_moves() -> bool:
        pages.append(read_metrics(server))
        return pages[-2:-1] == pages[-1:] and not any(pages[-1][gauge] for gauge in (ACTIVE, WAITING, QUEUED))

    wait_until(nothing_moves, "nobody speaks and nothing is counted any more", timeout_s=60)
    return pages[-1]


class MetricsWatch:
    """What moves on a server's page from now on; both looks are at a server at rest."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = metrics_at_rest(server)

    def moved(self, answered: int = 1) -> dict[str, float]:
        """Our own series that changed, and by how much, once this many requests have been answered."""
        wait_until(
            lambda: sum(outcomes(self._changes(read_metrics(self._server))).values()) >= answered,
            f"{answered} requests are answered",
        )
        return self._changes(metrics_at_rest(self._server))

    def outcomes(self, answered: int = 1) -> dict[str, float]:
        """The same, only how the requests ended."""
        return outcomes(self.moved(answered))

    def _changes(self, after: Mapping[str, float]) -> dict[str, float]:
        changes = {series: value - self._before.get(series, 0) for series, value in after.items()}
        return {series: by for series, by in changes.items() if by and series.startswith("qwen3_tts_")}


def outcomes(page: Mapping[str, float]) -> dict[str, float]:
    """`qwen3_tts_requests_total` by outcome."""
    totals = {
        re.fullmatch(r'qwen3_tts_requests_total{outcome="(\w+)"}', series): page[series] for series in page
    }
    return {match[1]: value for match, value in totals.items() if match}
