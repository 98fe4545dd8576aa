"""What operators see of every request: an id, a line in the log, numbers, a trace; and what they must not."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from fakes.triton_server import Call, FakeTriton, RefusalError, Response, chunk, says, triton
from gateway_server import GatewayProcess, GatewayServer, running_gateway, settings
from qwen3_tts_gateway import tracing
from qwen3_tts_gateway.key_file import KeyFile, KeyTerms, hash_of
from qwen3_tts_gateway.speech import Narrator
from real_server import wait_until

MODELS = ("qwen3_tts_custom_voice", "qwen3_tts_voice_design", "qwen3_tts_base", "create_voice", "voices")

SPEECH = "/v1/audio/speech"
CONVERSATION = "/v1/audio/speech/stream"
RYAN = {"input": "Hello.", "voice": "ryan"}
FILE = "/api/v1/custom-voice/generate"
RYAN_ORIGINALLY = {"text": "Hello.", "speaker": "ryan"}

EVERY_KIND_OF_ANSWER = pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", SPEECH, RYAN, 200),
        ("POST", SPEECH, RYAN | {"response_format": "wav"}, 200),
        ("POST", SPEECH, {}, 400),
        ("POST", FILE, {}, 422),
        ("GET", "/nowhere", None, 404),
        ("GET", SPEECH, None, 405),
    ],
)


@EVERY_KIND_OF_ANSWER
def test_every_answer_has_the_id_that_the_caller_gave(
    http: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    response = http.request(method, path, json=body, headers={"X-Request-Id": "mine-1.2_3"})
    assert (response.status_code, response.headers["X-Request-Id"]) == (status, "mine-1.2_3")


@EVERY_KIND_OF_ANSWER
def test_every_answer_has_an_id_of_its_own_otherwise(
    http: httpx.Client, method: str, path: str, body: Any, status: int
) -> None:
    ids = {http.request(method, path, json=body).headers["X-Request-Id"] for _ in range(2)}
    assert len(ids) == 2


@pytest.mark.parametrize("given", ["", "a b", "x" * 65, '{"level": "ERROR"}', "a;b"])
def test_an_id_that_would_spoil_a_log_is_not_taken(http: httpx.Client, given: str) -> None:
    response = http.get("/health", headers={"X-Request-Id": given})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["X-Request-Id"])


@pytest.mark.parametrize(("path", "body"), [(SPEECH, RYAN), (FILE, RYAN_ORIGINALLY)])
def test_triton_knows_a_request_by_the_same_id(
    http: httpx.Client, fake_triton: FakeTriton, path: str, body: Any
) -> None:
    http.post(path, json=body, headers={"X-Request-Id": "mine"})
    answered = http.post(path, json=body)
    ids = [call.request.id for call in fake_triton.calls]
    assert ids == ["mine", answered.headers["X-Request-Id"]]


# What a caller says, and nobody else is to read: one word of each kind.
SECRETS = {
    "text": "rhododendron",
    "instruction": "melancholically",
    "transcript": "antidisestablishment",
    "key": "sk-live-4f9a",
    "wrong key": "sk-stolen-77",
    "query": "x-signature-31415",
    "recording": base64.b64encode(b"RIFF a voice that is mine").decode(),
}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every line that a gateway writes at DEBUG about all kinds of requests, good and bad."""
    directory = tmp_path_factory.mktemp("gateway")
    key_file = KeyFile(directory / "keys.json")
    terms = KeyTerms(name="app", scopes=("synth", "voices"))
    issued = key_file.create(terms, datetime.now(timezone.utc))
    environment = {
        "LOG_LEVEL": "DEBUG",
        "API_KEYS": SECRETS["key"],
        "API_KEYS_FILE": str(directory / "keys.json"),
        "REFERENCE_HOSTS": "audio.example",
        "CHUNK_TIMEOUT_S": "0.2",
    }
    with (
        triton(says(3), models=MODELS) as fake,
        GatewayProcess(directory, TRITON_GRPC_PORT=str(fake.port), **environment) as gateway,
    ):
        gateway.wait_until_ready()
        with httpx.Client(base_url=gateway.url, timeout=30) as http:
            ask_everything(http, fake)
            http.post(SPEECH, json=RYAN, headers={"X-API-Key": issued, "X-Request-Id": "of-the-app"})
        converse(gateway)
        gateway.process.terminate()
        gateway.process.wait(20)
        said = gateway.said()
    SECRETS["issued key"] = issued
    return [json.loads(line) for line in said.splitlines()]


def ask_everything(http: httpx.Client, fake: FakeTriton) -> None:
    """One request of every kind, with secrets wherever they may be; an id tells what it was about."""
    text, recording = SECRETS["text"], SECRETS["recording"]
    speech = {"input": text, "voice": "ryan", "instructions": SECRETS["instruction"]}
    clone = {"input": text, "ref_audio": recording, "ref_text": SECRETS["transcript"]}
    original = {"text": text, "speaker": "ryan", "instruct": SECRETS["instruction"]}
    url = f"https://audio.example/me.wav?{SECRETS['query']}"
    here = SECRETS["query"]

    def ask(path: str, *, about: str, key: str = SECRETS["key"], **request: Any) -> None:
        headers = {"Authorization": f"Bearer {key}", "X-Request-Id": about}
        with suppress(httpx.RemoteProtocolError):
            http.post(path, headers=headers | request.pop("headers", {}), **request)

    for form in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
        ask(f"{SPEECH}?{here}", about="fine", json=speech | {"response_format": form})
    ask(SPEECH, about="events", json=speech | {"stream_format": "sse"})
    ask(SPEECH, about="clone", json=clone)
    ask(f"{SPEECH}/batch", about="batch", json={"items": [speech, {"input": text, "speed": 9}, clone]})
    ask(FILE, about="original", json=original)
    ask(f"{FILE}-stream", about="original-stream", json=original)
    ask("/api/v1/base/create-prompt", about="prompt", json={"ref_audio_base64": recording, **clone})
    ask("/api/v1/base/upload-ref-audio", about="upload", files={"file": ("a.wav", recording.encode())})
    ask(
        "/v1/audio/voices",
        about="voice",
        data={"name": "grandpa", "consent": "yes", "ref_text": SECRETS["transcript"]},
        files={"audio_sample": ("me.wav", recording.encode())},
    )
    ask(SPEECH, about="wrong-key", key=SECRETS["wrong key"], json=speech)
    ask(SPEECH, about="too-long", json=speech | {"input": text * 1000})
    ask(SPEECH, about="bad-field", json=speech | {"speed": text})
    ask(SPEECH, about="no-unicode", content=json.dumps(speech | {"input": f"{text} \ud800"}))
    ask(SPEECH, about="no-json", content=f"{{{text}", headers={"Content-Type": "application/json"})
    ask(FILE, about="bad-field-original", json=original | {"speed": text})
    ask(SPEECH, about="bad-recording", json=clone | {"ref_audio": f"{recording}!"})
    ask(SPEECH, about="unfetchable", json=clone | {"ref_audio": url})
    ask(f"/nowhere/{text}?{here}", about="nowhere", json=speech)
    for about, script in (("broken", broken), ("breaks-off", breaks_off), ("silent", silent)):
        fake.script = script
        ask(SPEECH, about=about, json=speech | {"response_format": "pcm"})
        ask(SPEECH, about=about, json=speech | {"stream_format": "sse"})
        ask(FILE, about=about, json=original)
    fake.script = says(3)


def broken(call: Call) -> Iterator[Response]:
    raise RefusalError(grpc.StatusCode.INTERNAL, "the talker is out of memory")
    yield


def breaks_off(call: Call) -> Iterator[Response]:
    yield chunk(0)
    raise RefusalError(grpc.StatusCode.INTERNAL, "the talker is out of memory")


def silent(call: Call) -> Iterator[Response]:
    yield chunk(0)
    call.wait_until_gone()


def converse(gateway: GatewayProcess) -> None:
    """The same over a WebSocket: a sentence, and a message that is none."""
    url = f"ws://127.0.0.1:{gateway.port}{CONVERSATION}?{SECRETS['query']}"
    headers = {"X-API-Key": SECRETS["key"], "X-Request-Id": "conversation"}
    with connect(url, additional_headers=headers) as socket:
        for message in (
            {"type": "session.config", "voice": "ryan", "instructions": SECRETS["instruction"]},
            {"type": "input.text", "text": f"{SECRETS['text']}."},
            {"type": "input.done"},
            {"type": SECRETS["text"]},
            {"type": "session.close"},
        ):
            socket.send(json.dumps(message))
        with suppress(ConnectionClosed):
            while True:
                socket.recv(timeout=20)


def answered(log: list[dict[str, Any]], about: str) -> list[dict[str, Any]]:
    return [line for line in log if line["message"] == "answered" and line.get("request_id") == about]


def test_the_log_tells_of_every_request_on_one_line(log: list[dict[str, Any]]) -> None:
    [line] = answered(log, "of-the-app")
    assert line.keys() == {
        *("time", "level", "logger", "message", "request_id"),
        *("method", "route", "status", "key", "duration_ms", "first_byte_ms", "sent_bytes"),
    }
    assert (line["method"], line["route"], line["status"], line["key"]) == ("POST", SPEECH, 200, "app")
    assert line["duration_ms"] >= line["first_byte_ms"] > 0
    assert line["sent_bytes"] > 0


@pytest.mark.parametrize(
    ("about", "route", "statuses"),
    [
        ("fine", SPEECH, [200] * 6),
        ("voice", "/v1/audio/voices", [200]),
        ("wrong-key", SPEECH, [401]),
        ("too-long", SPEECH, [400]),
        ("no-json", SPEECH, [400]),
        ("bad-field-original", FILE, [422]),
        ("nowhere", "none", [404]),
        ("broken", SPEECH, [500, 500]),
        ("broken", FILE, [500]),
        ("breaks-off", SPEECH, [500, 200]),  # an answer without its end; events that end with an error
        ("breaks-off", FILE, [500]),
        ("silent", FILE, [503]),
        ("conversation", CONVERSATION, [200]),
    ],
)
def test_the_line_tells_how_the_request_ended(
    log: list[dict[str, Any]], about: str, route: str, statuses: list[int]
) -> None:
    assert [line["status"] for line in answered(log, about) if line["route"] == route] == statuses


def test_a_failure_is_on_a_line_of_its_own_under_the_same_id(log: list[dict[str, Any]]) -> None:
    for about in ("broken", "breaks-off"):
        reasons = [line["reason"] for line in log if line.get("request_id") == about and "reason" in line]
        assert len(reasons) == 3
        assert all("out of memory" in reason for reason in reasons)


def test_every_line_about_a_request_has_an_id(log: list[dict[str, Any]]) -> None:
    ours = [line for line in log if line["logger"].startswith("qwen3_tts_gateway")]
    assert {line["message"] for line in ours if "request_id" not in line} == {"listening", "stopped"}
    assert "conversation ended" in {line["message"] for line in ours}


def test_whoever_brings_no_name_is_known_by_the_keys_hash_and_never_by_the_key(
    log: list[dict[str, Any]],
) -> None:
    [name] = {line["key"] for line in answered(log, "fine")}
    assert re.fullmatch(r"env-[0-9a-f]+", name)
    assert name.removeprefix("env-") == hash_of(SECRETS["key"])[: len(name) - 4]
    assert {line["key"] for line in answered(log, "wrong-key")} == {""}


@pytest.mark.parametrize("kind", [*SECRETS, "issued key"])
def test_no_line_of_the_log_tells_what_only_the_caller_may_know(log: list[dict[str, Any]], kind: str) -> None:
    assert len(log) > 40
    telling = [line for line in log if SECRETS[kind] in json.dumps(line)]
    assert telling == []


def samples(http: httpx.Client) -> dict[str, list[Any]]:
    """The gateway's own series, by family."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        family.name: family.samples for family in families if family.name.startswith("qwen3_tts_gateway_")
    }


def value(http: httpx.Client, name: str, **labels: str) -> float:
    everything = (sample for family in samples(http).values() for sample in family)
    return sum(
        sample.value
        for sample in everything
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_the_numbers_are_these(http: httpx.Client) -> None:
    http.post(SPEECH, json=RYAN)
    families = samples(http)
    assert {name: set(samples[0].labels) - {"le"} for name, samples in families.items()} == {
        "qwen3_tts_gateway_requests": {"route", "status"},
        "qwen3_tts_gateway_key_requests": {"key", "status"},
        "qwen3_tts_gateway_key_first_audio_seconds": {"key"},
        "qwen3_tts_gateway_key_audio_seconds": {"key"},
        "qwen3_tts_gateway_key_waited_seconds": {"key"},
        "qwen3_tts_gateway_requests_in_flight": set(),
        "qwen3_tts_gateway_first_byte_seconds": {"route"},
        "qwen3_tts_gateway_request_seconds": {"route"},
        "qwen3_tts_gateway_sent_bytes": {"route"},
        "qwen3_tts_gateway_limits_store_failures": set(),
    }


def test_a_keys_audio_is_counted_and_how_long_it_was_waited_for(
    http: httpx.Client, fake_triton: FakeTriton
) -> None:
    def numbers(path: str, **fields: Any) -> list[float]:
        def now() -> list[float]:
            names = ("first_audio_seconds_count", "audio_seconds_total", "waited_seconds_total")
            return [value(http, f"qwen3_tts_gateway_key_{name}", key="anyone") for name in names]

        before = now()
        assert http.post(path, json={"voice": "ryan", "response_format": "pcm", **fields}).status_code == 200
        return [after - earlier for after, earlier in zip(now(), before, strict=True)]

    num_first, audio_s, waited_s = numbers(SPEECH, input="Hello.")
    assert (num_first, audio_s) == (1, pytest.approx(3 * 0.08))
    assert waited_s > 0
    assert numbers(SPEECH, input="Hello.", speed=2.0)[1] == pytest.approx(3 * 0.04)
    num_first, audio_s, _ = numbers(f"{SPEECH}/batch", items=[{"input": "One."}, {"input": "Two."}])
    assert (num_first, audio_s) == (0, pytest.approx(6 * 0.08))


def test_the_numbers_count_requests_and_bytes(http: httpx.Client) -> None:
    def numbers() -> list[float]:
        return [
            value(http, "qwen3_tts_gateway_requests_total", route=SPEECH, status="200"),
            value(http, "qwen3_tts_gateway_request_seconds_count", route=SPEECH),
            value(http, "qwen3_tts_gateway_first_byte_seconds_count", route=SPEECH),
            value(http, "qwen3_tts_gateway_sent_bytes_total", route=SPEECH),
        ]

    before = numbers()
    sent = http.post(SPEECH, json=RYAN).content
    after = numbers()
    assert [now - then for now, then in zip(after, before, strict=True)] == [1, 1, 1, len(sent)]
    assert value(http, "qwen3_tts_gateway_requests_in_flight") == 1  # the one that asks for it


def test_each_sentence_of_a_conversation_counts_as_a_request(
    http: httpx.Client, gateway: GatewayServer
) -> None:
    def numbers() -> list[float]:
        names = ("requests_total", "request_seconds_count", "first_byte_seconds_count", "sent_bytes_total")
        return [value(http, f"qwen3_tts_gateway_{name}", route=CONVERSATION) for name in names]

    before = numbers()
    heard = b""
    with connect(gateway.url.replace("http", "ws") + CONVERSATION) as socket:
        socket.send(json.dumps({"type": "session.config", "voice": "ryan", "response_format": "pcm"}))
        socket.send(json.dumps({"type": "input.text", "text": "This is one sentence. And this is another."}))
        socket.send(json.dumps({"type": "input.done"}))
        while isinstance(message := socket.recv(30), bytes) or json.loads(message)["type"] != "session.done":
            heard += message if isinstance(message, bytes) else b""
    assert [now - then for now, then in zip(numbers(), before, strict=True)] == [2, 2, 2, len(heard)]
    assert value(http, "qwen3_tts_gateway_requests_in_flight") == 1


def test_a_conversation_that_is_refused_is_counted(http: httpx.Client, gateway: GatewayServer) -> None:
    def refused() -> float:
        return value(http, "qwen3_tts_gateway_requests_total", route=CONVERSATION, status="403")

    before = refused()
    with pytest.raises(InvalidStatus):
        connect(gateway.url.replace("http", "ws") + CONVERSATION, origin="https://elsewhere.example")
    assert refused() == before + 1


@pytest.mark.parametrize("given", ["mine-1.2_3", None])
def test_a_handshake_is_answered_with_an_id_as_everything_is(
    gateway: GatewayServer, fake_triton: FakeTriton, given: str | None
) -> None:
    url = gateway.url.replace("http", "ws") + CONVERSATION
    with connect(url, additional_headers={"X-Request-Id": given} if given else {}) as socket:
        assert socket.response is not None
        told = socket.response.headers["X-Request-Id"]
        for message in ({"type": "session.config", "voice": "ryan"}, {"type": "input.text", "text": "Hi. "}):
            socket.send(json.dumps(message))
        while isinstance(message := socket.recv(30), bytes) or json.loads(message)["type"] != "audio.done":
            pass
    assert told == given or re.fullmatch(r"[0-9a-f]{32}", told)
    assert [call.request.id for call in fake_triton.calls] == [told]


def test_what_visitors_make_up_makes_no_labels(http: httpx.Client) -> None:
    def ask() -> None:
        for path in ("/nowhere", "/wp-admin.php", "/v1/audio/voices/nobody", f"{SPEECH}/../{SPEECH}", "//"):
            for method in ("GET", "POST", "BREW"):
                http.request(method, f"{path}?q=1")

    def labels() -> set[tuple[str, ...]]:
        return {tuple(sample.labels.values()) for family in samples(http).values() for sample in family}

    ask()
    before = labels()
    for number in range(3):
        http.get(f"/nowhere/{number}")
        http.get(f"/v1/audio/voices/nobody-{number}")
    ask()
    assert labels() == before
    assert ("none", "404") in before
    assert ("/v1/audio/voices/{name}", "404") in before


def test_a_bug_is_counted_as_one(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Narrator, "utterance")

    def num_bugs() -> float:
        return value(http, "qwen3_tts_gateway_requests_total", route=SPEECH, status="500")

    before = num_bugs()
    assert http.post(SPEECH, json=RYAN).status_code == 500
    assert num_bugs() == before + 1


def test_a_bug_within_a_conversation_is_counted_as_one(
    http: httpx.Client, gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Narrator, "utterance")

    def counted() -> list[float]:
        name = "qwen3_tts_gateway_requests_total"
        return [value(http, name, route=CONVERSATION, status=status) for status in ("500", "499")]

    bugs, gone = counted()
    with connect(gateway.url.replace("http", "ws") + CONVERSATION) as socket:
        for message in ({"type": "session.config", "voice": "ryan"}, {"type": "input.text", "text": "Hi. "}):
            socket.send(json.dumps(message))
        assert json.loads(socket.recv(30))["type"] == "audio.start"
        with pytest.raises(ConnectionClosed):
            socket.recv(30)
    assert counted() == [bugs + 1, gone]


@pytest.mark.parametrize(("breaks", "status"), [("the engine", "500"), ("the caller", "499")])
def test_an_answer_without_its_end_is_counted_for_whoever_broke_it_off(
    http: httpx.Client, fake_triton: FakeTriton, breaks: str, status: str
) -> None:
    def counted() -> float:
        return value(http, "qwen3_tts_gateway_requests_total", route=SPEECH, status=status)

    before = counted()
    fake_triton.script = breaks_off if breaks == "the engine" else silent
    with (
        suppress(httpx.RemoteProtocolError),
        http.stream("POST", SPEECH, json=RYAN | {"response_format": "pcm"}) as response,
    ):
        if breaks == "the engine":
            response.read()
    wait_until(lambda: counted() == before + 1, f"it is counted as {status}")


TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Where the spans of a gateway go that is started after this."""
    exporter = InMemorySpanExporter()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", lambda endpoint: exporter)
    return exporter


@contextmanager
def tracing_gateway(fake: FakeTriton) -> Iterator[httpx.Client]:
    """A client of a gateway that traces; its spans have been sent once the block is left."""
    ours = settings(triton_grpc_port=fake.port, otel_exporter_otlp_endpoint="http://collector:4318")
    with running_gateway(ours) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


def test_a_callers_trace_goes_on_to_triton(fake_triton: FakeTriton, spans: InMemorySpanExporter) -> None:
    with tracing_gateway(fake_triton) as http:
        assert http.post(SPEECH, json=RYAN, headers=PARENT).status_code == 200
    calls = [*fake_triton.questions, *fake_triton.calls]
    contexts = [call.metadata["traceparent"].split("-") for call in calls]
    assert len(calls) > 1
    assert {trace for _, trace, _, _ in contexts} == {TRACE}
    [sent] = spans.get_finished_spans()
    assert {span for _, _, span, _ in contexts} == {f"{sent.context.span_id:016x}"}


def test_a_trace_tells_routes_and_nothing_that_was_said(
    fake_triton: FakeTriton, spans: InMemorySpanExporter
) -> None:
    with tracing_gateway(fake_triton) as http:
        body = RYAN | {"input": SECRETS["text"]}
        http.post(SPEECH, json=body, headers=PARENT | {"X-API-Key": SECRETS["key"]})
        http.get("/v1/audio/voices/nobody")
        for path in ("/health", "/metrics"):  # asked all day long
            http.get(path)
    sent = spans.get_finished_spans()
    assert [span.name for span in sent] == [f"POST {SPEECH}", "GET /v1/audio/voices/{name}"]
    assert {span.resource.attributes["service.name"] for span in sent} == {"qwen3-tts-gateway"}
    told = "".join(span.to_json() for span in sent)
    assert SECRETS["text"] not in told
    assert SECRETS["key"] not in told


def test_who_hangs_up_is_no_longer_spoken_to_while_traced_either(
    fake_triton: FakeTriton, spans: InMemorySpanExporter
) -> None:
    fake_triton.script = silent
    with tracing_gateway(fake_triton) as http:
        with http.stream("POST", SPEECH, json=RYAN | {"response_format": "pcm"}) as response:
            assert response.status_code == 200
        assert fake_triton.cancelled.wait(10)
    assert [span.name for span in spans.get_finished_spans()] == [f"POST {SPEECH}"]


def test_what_the_caller_has_nobody_record_triton_is_not_asked_to(
    fake_triton: FakeTriton, spans: InMemorySpanExporter
) -> None:
    with tracing_gateway(fake_triton) as http:
        http.post(SPEECH, json=RYAN, headers={"traceparent": PARENT["traceparent"][:-1] + "0"})
    assert "traceparent" not in fake_triton.calls[0].metadata
    assert spans.get_finished_spans() == ()


def test_errors_are_told_the_same_while_traced(fake_triton: FakeTriton, spans: InMemorySpanExporter) -> None:
    with tracing_gateway(fake_triton) as http:
        fake_triton.script = broken
        assert http.post(SPEECH, json=RYAN).json()["error"]["code"] == "engine_failed"
        fake_triton.script = breaks_off
        with pytest.raises(httpx.RemoteProtocolError):
            http.post(SPEECH, json=RYAN | {"response_format": "pcm"})


def test_without_a_collector_nothing_is_traced(fake_triton: FakeTriton, spans: InMemorySpanExporter) -> None:
    with tracing_gateway(fake_triton):
        pass
    with running_gateway(settings(triton_grpc_port=fake_triton.port)) as gateway:
        assert httpx.post(f"{gateway.url}{SPEECH}", json=RYAN, headers=PARENT).status_code == 200
    assert "traceparent" not in fake_triton.calls[0].metadata
