"""One trace from the caller through the gateway and Triton to what the engine did, at a collector."""

from __future__ import annotations

import gzip
import json
import queue
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from tritonclient import grpc as triton
from tritonclient.utils import triton_to_np_dtype

from callers import MODEL, PATIENCE_S, grpc_address
from gateway_server import running_gateway, settings
from qwen3_tts_engine.collector import VARIABLE
from qwen3_tts_engine.launch.server import Server
from real_server import ROOT, clean_server, on_free_ports

pytestmark = pytest.mark.triton

GATEWAY, TRITON, ENGINE = "qwen3-tts-gateway", "qwen3-tts-triton", "qwen3-tts-engine"
CALLER = "b7ad6b7169203331"  # a span of theirs
SOON = "OTEL_BSP_SCHEDULE_DELAY", "100"  # ms; spans wait 5 s for others otherwise
TRIES, COMES_WITHIN_S = 5, 10.0
WORDS = "The password is swordfish."
REQUEST, UTTERANCE = (TRITON, "InferRequest"), (ENGINE, "speak")
STAGES = [(ENGINE, stage) for stage in ("wait", "prefill", "decode")]
ASKED = (GATEWAY, "POST /v1/audio/speech")


@dataclass(frozen=True)
class Span:
    """What a collector is told; ids are hexadecimal, a span without a parent has ""."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]


class Collector:
    """Takes OTLP over HTTP, in protobuf as Python's SDK sends it and in JSON as Triton does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.bodies = b""
        self.asked: set[str] = set()  # traces that somebody began
        self._spans: list[Span] = []
        self._arrival = threading.Condition()

    @property
    def traces(self) -> set[str]:
        """The ids of all that it has heard of."""
        with self._arrival:
            return {span.trace for span in self._spans}

    def take(self, body: bytes, is_json: bool) -> None:
        with self._arrival:
            self.bodies += body
            self._spans += _in_json(body) if is_json else _in_protobuf(body)
            self._arrival.notify_all()

    def follow(self, ask: Callable[[str], None], *wanted: tuple[str, str]) -> list[Span]:
        """Ask in a new trace, and wait for its spans that are called so, (service, name), in that order.

        tritonserver 2.51 overlooks the `traceparent` of 2 or 3 streams of 100: then another is asked for.
        """
        for _ in range(TRIES):
            trace = secrets.token_hex(16)
            ask(trace)
            self.asked.add(trace)
            with self._arrival:
                if self._arrival.wait_for(lambda: {*wanted} <= self._of(trace).keys(), COMES_WITHIN_S):  # noqa: B023
                    return [self._of(trace)[name] for name in wanted]
        raise AssertionError(f"of {wanted} only these came: {[*self._of(trace)]}")

    def _of(self, trace: str) -> dict[tuple[str, str], Span]:
        return {(span.service, span.name): span for span in self._spans if span.trace == trace}


@contextmanager
def running_collector() -> Iterator[Collector]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers["Content-Encoding"] == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/traces":
                collector.take(body, is_json=self.headers["Content-Type"] == "application/json")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        collector = Collector(f"http://127.0.0.1:{http.server_port}")
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield collector
        http.shutdown()
        thread.join()


def _in_protobuf(body: bytes) -> Iterator[Span]:
    for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        service = _values(resource.resource.attributes)["service.name"]
        for scope in resource.scope_spans:
            for span in scope.spans:
                ids = span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex()
                yield Span(service, span.name, *ids, _values(span.attributes))


def _values(attributes: Any) -> dict[str, Any]:
    def value(attribute: KeyValue) -> Any:
        return getattr(attribute.value, attribute.value.WhichOneof("value"))

    return {attribute.key: value(attribute) for attribute in attributes}


def _in_json(body: bytes) -> Iterator[Span]:
    for resource in json.loads(body)["resourceSpans"]:
        labels = {label["key"]: label["value"] for label in resource["resource"]["attributes"]}
        service = labels["service.name"]["stringValue"]
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                yield Span(
                    service, span["name"], span["traceId"], span["spanId"], span.get("parentSpanId", ""), {}
                )


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(
    collector: Collector, tiny_checkpoints: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server that tells the collector, soon."""
    config = on_free_ports(
        model_repository=ROOT / "model_repository",
        log_path=tmp_path_factory.mktemp("traced") / "tritonserver.log",
        preload_models=False,
        extra_args=(f"--load-model={MODEL}", "--load-model=qwen3_tts"),
        environment={VARIABLE: collector.url, **dict([SOON])},
    )
    with clean_server(config) as server:
        yield server


@pytest.fixture
def gateway_url(traced: Server, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(*SOON)
    ours = settings(triton_grpc_port=traced.grpc_port, otel_exporter_otlp_endpoint=collector.url)
    with running_gateway(ours) as gateway:
        yield gateway.url


def traceparent(trace: str, is_recorded: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{trace}-{CALLER}-{is_recorded:02}"}


def ask_triton(server: Server, headers: dict[str, str]) -> None:
    """A stream with these headers, heard to its end."""
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    inputs = [
        _input("text", "BYTES", WORDS.encode()),
        _input("max_frames", "INT32", 5),
        _input("seed", "INT64", 1),
    ]
    with triton.InferenceServerClient(grpc_address(server)) as client:
        client.start_stream(lambda result, error: heard.put(error or result), headers=headers)
        client.async_stream_infer(MODEL, inputs, enable_empty_final_response=True)
        while not _is_final(heard.get(timeout=PATIENCE_S)):
            pass


def _input(name: str, kind: str, value: Any) -> triton.InferInput:
    tensor = triton.InferInput(name, [1, 1], kind)
    return tensor.set_data_from_numpy(np.array([[value]], triton_to_np_dtype(kind)))


def _is_final(response: Any) -> bool:
    assert isinstance(response, triton.InferResult), response
    return response.get_response().parameters["triton_final_response"].bool_param


def ask_gateway(url: str, headers: dict[str, str]) -> None:
    body = {"input": WORDS, "voice": "ryan", "response_format": "pcm", "seed": 1}
    answer = httpx.post(f"{url}/v1/audio/speech", json=body, headers=headers, timeout=PATIENCE_S)
    assert answer.status_code == 200


def test_a_callers_trace_goes_through_triton_to_the_engine(traced: Server, collector: Collector) -> None:
    request, model, utterance, *stages = collector.follow(
        lambda trace: ask_triton(traced, traceparent(trace)), REQUEST, (TRITON, MODEL), UTTERANCE, *STAGES
    )
    assert {stage.parent for stage in stages} == {utterance.id}
    assert [request.parent, model.parent, utterance.parent] == [CALLER, request.id, model.id]
    assert utterance.attributes["qwen3_tts.model"] == MODEL
    assert utterance.attributes["qwen3_tts.frames"] == 5
    assert utterance.attributes["qwen3_tts.finish_reason"] == "length"


def test_through_the_gateway_it_is_one_trace_too(gateway_url: str, collector: Collector) -> None:
    asked, request, model, utterance = collector.follow(
        lambda trace: ask_gateway(gateway_url, traceparent(trace)), ASKED, REQUEST, (TRITON, MODEL), UTTERANCE
    )
    parents = [asked.parent, request.parent, model.parent, utterance.parent]
    assert parents == [CALLER, asked.id, request.id, model.id]


def test_a_model_that_asks_another_is_in_it_too(traced: Server, collector: Collector) -> None:
    values = {"text": ("BYTES", WORDS), "max_frames": ("INT32", 5)}
    inputs = [
        {"name": name, "datatype": kind, "shape": [1, 1], "data": [value]}
        for name, (kind, value) in values.items()
    ]
    url = f"http://127.0.0.1:{traced.http_port}/v2/models/qwen3_tts/infer"

    def ask(trace: str) -> None:
        answer = httpx.post(url, json={"inputs": inputs}, headers=traceparent(trace), timeout=PATIENCE_S)
        assert answer.status_code == 200

    whole, model, utterance = collector.follow(ask, (TRITON, "qwen3_tts"), (TRITON, MODEL), UTTERANCE)
    assert [model.parent, utterance.parent] == [whole.id, model.id]


def test_who_brings_no_trace_gets_none(traced: Server, collector: Collector) -> None:
    ask_triton(traced, {})
    # What ends first is sent first.
    collector.follow(lambda trace: ask_triton(traced, traceparent(trace)), REQUEST, UTTERANCE)
    assert collector.traces <= collector.asked


def test_what_nobody_is_to_record_is_not_recorded(gateway_url: str, collector: Collector) -> None:
    ask_gateway(gateway_url, traceparent(secrets.token_hex(16), is_recorded=False))
    collector.follow(lambda trace: ask_gateway(gateway_url, traceparent(trace)), ASKED, REQUEST, UTTERANCE)
    assert collector.traces <= collector.asked


def test_what_is_said_is_in_no_span(traced: Server, gateway_url: str, collector: Collector) -> None:
    collector.follow(lambda trace: ask_gateway(gateway_url, traceparent(trace)), ASKED, REQUEST, UTTERANCE)
    assert b"swordfish" not in collector.bodies
    assert "swordfish" not in traced.log_path.read_text()
