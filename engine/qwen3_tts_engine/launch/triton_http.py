"""What tritonserver is asked over HTTP."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Protocol

from qwen3_tts_engine.launch.judging import PROBE_PATIENCE_S

PAGE_TIMEOUT_S = 2.0  # of anything tritonserver itself answers
RELOAD_TIMEOUT_S = 1800.0  # as long as a first start may take
UNLOAD_PATIENCE_S = 2.0  # it takes a moment, or for ever
CANARY = "qwen3_tts_canary"


class Listener(Protocol):
    """A tritonserver, by its addresses."""

    @property
    def http_port(self) -> int: ...

    @property
    def metrics_port(self) -> int: ...

    @property
    def client_host(self) -> str: ...


class Triton:
    """Every question raises OSError unless it is answered."""

    def __init__(self, server: Listener, headers: Mapping[str, str]) -> None:
        self._server = server
        self._headers = dict(headers)

    def check_ready(self) -> None:
        self._ask("GET", "/v2/health/ready")

    def metrics(self) -> str:
        return self._ask("GET", "/metrics", port=self._server.metrics_port)

    def ready_models(self) -> list[str]:
        return [model for model, state in self._states().items() if state == "READY"]

    def config(self, model: str) -> dict[str, Any]:
        config: dict[str, Any] = json.loads(self._ask("GET", f"/v2/models/{model}/config"))
        return config

    def answers_canary(self, model: str) -> bool:
        """An input that does not exist: the model's own process says no, takes no slot and counts nothing."""
        asked = {"text": "", "stream": False, "priority": 1, CANARY: True}
        path = f"/v2/models/{model}/generate"
        status, answer = self._send("POST", path, asked, PROBE_PATIENCE_S, self._server.http_port)
        return CANARY in answer or status == 403  # locked for us, as an operator may have wanted

    def unload(self, model: str) -> None:
        """The first step of a reload: `load` alone does nothing for a model whose process is dead.

        Triton 24.10 never ends it if a request came after the death, though that was answered with an error;
        the model can be loaded in spite of that.
        """
        self._ask("POST", f"/v2/repository/models/{model}/unload", {})
        give_up_s = time.monotonic() + UNLOAD_PATIENCE_S
        while time.monotonic() < give_up_s and self._states()[model] == "UNLOADING":
            time.sleep(0.1)

    def load(self, model: str, config: Mapping[str, Any]) -> None:
        asked = {"parameters": {"config": json.dumps(config)}}
        self._ask("POST", f"/v2/repository/models/{model}/load", asked, timeout_s=RELOAD_TIMEOUT_S)

    def _states(self) -> dict[str, str]:
        """Of every model there is; one that was never loaded has none."""
        index = json.loads(self._ask("POST", "/v2/repository/index", {}))
        return {model["name"]: model.get("state", "") for model in index}

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        timeout_s: float = PAGE_TIMEOUT_S,
        port: int | None = None,
    ) -> str:
        status, answer = self._send(method, path, body, timeout_s, port or self._server.http_port)
        if status != 200:
            raise OSError(f"{method} {path}: {status} {answer[:200]}")
        return answer

    def _send(self, method: str, path: str, body: Any, timeout_s: float, port: int) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._server.client_host, port, timeout=timeout_s)
        with closing(connection):
            try:
                connection.request(method, path, None if body is None else json.dumps(body), self._headers)
                response = connection.getresponse()
                return response.status, response.read().decode(errors="replace")
            except http.client.HTTPException as error:
                raise OSError(f"{method} {path}: {error!r}") from error


SERIES = {
    "qwen3_tts_slots": "slots",
    "qwen3_tts_active_slots": "active",
    "qwen3_tts_waiting_requests": "waiting",
    "qwen3_tts_frames_total": "frames",
    "qwen3_tts_engine_failures_total": "failed",
}


def speech_series(page: str) -> Mapping[str, Mapping[str, float]]:
    """By model, what `Signs` takes from a Prometheus page."""
    found: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, labels, value in re.findall(r"^(qwen3_tts_\w+)\{(.*)\} (\S+)$", page, flags=re.MULTILINE):
        model = re.search(r'model="([^"]*)"', labels)
        if model and name in SERIES:
            found[model[1]][SERIES[name]] += float(value)  # of each version
    return found


def num_busy(page: str) -> float | None:
    """Requests being spoken or waiting, by the models' own gauges; None where no model tells."""
    told = [
        series[name]
        for series in speech_series(page).values()
        for name in ("active", "waiting")
        if name in series
    ]
    return sum(told) if told else None
