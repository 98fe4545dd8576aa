"""Triton is away, full, silent or broken: callers hear so at once, and are served again once it can."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import pytest

from fakes.triton_server import Call, FakeTriton, RefusalError, Response, chunk, error_text, says, triton
from gateway_server import running_gateway, settings
from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_gateway.speech import Narrator
from real_server import wait_until

SPEECH = "/v1/audio/speech"
RYAN = {"input": "Hello.", "voice": "ryan"}
FILE = "/api/v1/custom-voice/generate"
RYAN_ORIGINALLY = {"text": "Hello.", "speaker": "ryan"}
RECORDING = {"input": "Hello.", "ref_audio": "UklGRg==", "x_vector_only_mode": True}

OPENAI = {
    "a stream": (SPEECH, RYAN),
    "events": (SPEECH, RYAN | {"stream_format": "sse"}),
    "a file": (SPEECH, RYAN | {"response_format": "wav"}),
    "a described voice": (SPEECH, {"input": "Hello.", "instructions": "a warm old storyteller"}),
    "a recorded voice": (SPEECH, RECORDING),
}
ORIGINAL = {
    "original, a file": (FILE, RYAN_ORIGINALLY),
    "original, events": (f"{FILE}-stream", RYAN_ORIGINALLY),
    "original, a batch": ("/api/v1/custom-voice/batch", {"texts": ["a", "b"], "speakers": ["ryan"] * 2}),
}
every_way = pytest.mark.parametrize(
    ("path", "body"), [*OPENAI.values(), *ORIGINAL.values()], ids=[*OPENAI, *ORIGINAL]
)


@contextmanager
def gateway_at(port: int, **fields: Any) -> Iterator[httpx.Client]:
    """A client of a gateway in front of this port."""
    with (
        running_gateway(settings(triton_grpc_port=port, **fields)) as gateway,
        httpx.Client(base_url=gateway.url, timeout=30) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def lonely() -> Iterator[httpx.Client]:
    """A client of a gateway that nobody stands behind."""
    with gateway_at(free_ports(1)[0]) as client:
        yield client


@pytest.fixture
def impatient(fake_triton: FakeTriton) -> Iterator[httpx.Client]:
    """A client of a gateway that waits a tenth of a second for a chunk, and no longer."""
    with gateway_at(fake_triton.port, chunk_timeout_s=0.1, queue_timeout_s=0) as client:
        yield client


def refuses(code: grpc.StatusCode, words: str) -> Callable[[Call], Any]:
    def script(call: Call) -> Iterator[Response]:
        raise RefusalError(code, words)
        yield

    return script


def says_in_words(words: str) -> Callable[[Call], Any]:
    def script(call: Call) -> Iterator[Response]:
        yield error_text(words)

    return script


def silent(call: Call) -> Iterator[Response]:
    call.wait_until_gone()
    yield from ()


def falls_silent(call: Call) -> Iterator[Response]:
    yield chunk(0)
    call.wait_until_gone()


def never_answers(call: Call) -> dict[str, Any]:
    call.wait_until_gone()
    return {}


def assert_says(response: httpx.Response, status: int, code: str) -> str:
    """The error's message, from whichever envelope belongs to the route."""
    assert response.status_code == status, response.text
    assert ("Retry-After" in response.headers) == (status == 503)
    answer = response.json()
    if response.request.url.path.startswith("/v1/"):
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert (answer["error"]["type"], answer["error"]["code"]) == ("server_error", code)
        return answer["error"]["message"]  # type: ignore[no-any-return]
    assert answer.keys() == {"detail"}
    return answer["detail"]  # type: ignore[no-any-return]


@every_way
def test_an_unreachable_triton_is_a_503_that_says_when_to_come_again(
    lonely: httpx.Client, path: str, body: Any
) -> None:
    response = lonely.post(path, json=body)
    assert "does not answer" in assert_says(response, 503, "unavailable")
    assert int(response.headers["Retry-After"]) >= 1


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/audio/voices"),
        ("GET", "/v1/audio/voices/grandpa"),
        ("DELETE", "/v1/audio/voices/grandpa"),
        ("GET", "/api/v1/custom-voice/speakers"),
        ("GET", "/api/v1/custom-voice/languages"),
    ],
)
def test_what_only_triton_knows_is_a_503_while_it_is_away(
    lonely: httpx.Client, method: str, path: str
) -> None:
    assert_says(lonely.request(method, path), 503, "unavailable")


def test_the_items_of_a_batch_say_so_each(lonely: httpx.Client) -> None:
    body = {"voice": "ryan", "items": [{"input": "a"}, {"input": "b"}]}
    answer = lonely.post(f"{SPEECH}/batch", json=body).json()
    assert all("does not answer" in item["error"] for item in answer["results"])


def test_an_outage_tells_nobody_where_triton_is(
    lonely: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        message = assert_says(lonely.post(SPEECH, json=RYAN), 503, "unavailable")
    assert "127.0.0.1" not in message
    assert any("127.0.0.1" in getattr(record, "reason", "") for record in caplog.records)


def test_a_gateway_without_triton_is_healthy_and_says_that_no_model_is(lonely: httpx.Client) -> None:
    assert lonely.get("/health").json()["status"] == "healthy"
    response = lonely.get("/health/models")
    assert response.status_code == 200
    health = response.json()
    assert not any(health[f"{talker}_loaded"] for talker in ("custom_voice", "voice_design", "base"))
    assert health["triton"] != "ready"
    assert health["models"] == {}


def test_the_health_of_models_tells_nobody_where_triton_is(lonely: httpx.Client) -> None:
    assert "127.0.0.1" not in lonely.get("/health/models").text
    assert "does not answer" in lonely.get("/health/models").json()["triton"]


def test_a_key_that_triton_refuses_is_the_operators_to_mend_and_nobody_elses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not a 400: the caller's own key is good, and there is nothing that they could do better."""
    lazy = {"triton_api_key": "wrong", "preload_models": False}
    with (
        triton(says(1), api_key="right") as fake,
        gateway_at(fake.port, **lazy) as http,
        caplog.at_level(logging.ERROR),
    ):
        message = assert_says(http.post(SPEECH, json=RYAN), 502, "misconfigured")
        assert http.post(FILE, json=RYAN_ORIGINALLY).status_code == 502
        assert "does not accept this gateway's key" in http.get("/health/models").json()["triton"]
    assert "restricted" not in message
    assert "Triton refuses the gateway's key: set TRITON_API_KEY to Triton's" in caplog.messages


def test_triton_comes_back_by_itself_on_its_port() -> None:
    with triton(says(1)) as fake:
        port = fake.port
    with gateway_at(port) as http:
        for _ in range(3):
            assert http.post(SPEECH, json=RYAN).status_code == 503
        with triton(says(1), port=port):
            wait_until(lambda: http.post(SPEECH, json=RYAN).status_code == 200, "Triton is found again")
            assert http.get("/health/models").json()["triton"] == "ready"
        assert http.post(SPEECH, json=RYAN).status_code == 503
        assert http.get("/health/models").json()["triton"] != "ready"
        with triton(says(1), port=port):
            wait_until(lambda: http.post(SPEECH, json=RYAN).status_code == 200, "Triton is found again")


@every_way
@pytest.mark.parametrize(
    "full",
    [
        refuses(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size"),
        says_in_words("[request id: 7] Exceeds maximum queue size"),
        refuses(grpc.StatusCode.UNAVAILABLE, "Request timeout expired"),
    ],
    ids=["refused", "told", "waited in vain"],
)
def test_a_full_triton_is_a_503_that_says_when_to_come_again(
    http: httpx.Client, fake_triton: FakeTriton, full: Any, path: str, body: Any
) -> None:
    fake_triton.script = full
    response = http.post(path, json=body)
    assert_says(response, 503, "overloaded")
    assert int(response.headers["Retry-After"]) >= 1


@every_way
def test_a_silent_triton_is_a_503_after_the_time_between_chunks(
    impatient: httpx.Client, fake_triton: FakeTriton, path: str, body: Any
) -> None:
    fake_triton.script = silent
    assert_says(impatient.post(path, json=body), 503, "unavailable")
    assert fake_triton.cancelled.wait(10)


@every_way
def test_who_waits_in_tritons_queue_is_waited_with(
    fake_triton: FakeTriton, path: str, body: dict[str, Any]
) -> None:
    def waits(call: Call) -> Iterator[Response]:
        wait_until(lambda: fake_triton.num_health_checks > 2, "the gateway asks whether anybody is there")
        yield from says(1)(call)

    fake_triton.script = waits
    with gateway_at(fake_triton.port, chunk_timeout_s=0.1) as client:
        assert client.post(path, json=body).status_code == 200


@pytest.mark.parametrize(
    ("path", "body"), [OPENAI["a file"], *ORIGINAL.values()][:-2], ids=["a file", "original"]
)
def test_a_triton_that_falls_silent_midway_is_a_503_to_who_wants_all_at_once(
    impatient: httpx.Client, fake_triton: FakeTriton, path: str, body: Any
) -> None:
    fake_triton.script = falls_silent
    assert_says(impatient.post(path, json=body), 503, "unavailable")
    assert fake_triton.cancelled.wait(10)


def test_a_stream_that_falls_silent_midway_breaks_off(
    impatient: httpx.Client, fake_triton: FakeTriton
) -> None:
    fake_triton.script = falls_silent
    with impatient.stream("POST", SPEECH, json=RYAN | {"response_format": "pcm"}) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()
    assert fake_triton.cancelled.wait(10)


@pytest.mark.parametrize(
    ("model", "body"),
    [("voices", RYAN), ("create_voice", RECORDING)],
)
def test_a_model_that_never_answers_is_a_503_after_the_same_time(
    impatient: httpx.Client, fake_triton: FakeTriton, model: str, body: Any
) -> None:
    fake_triton.answers[model] = never_answers
    assert_says(impatient.post(SPEECH, json=body), 503, "unavailable")


@every_way
def test_a_model_that_is_not_loaded_is_a_503(
    http: httpx.Client, fake_triton: FakeTriton, path: str, body: Any
) -> None:
    fake_triton.models = ("voices",)
    assert_says(http.post(path, json=body), 503, "unavailable")


@every_way
def test_an_engine_that_fails_is_a_500_that_keeps_its_secrets(
    http: httpx.Client, fake_triton: FakeTriton, caplog: pytest.LogCaptureFixture, path: str, body: Any
) -> None:
    fake_triton.script = refuses(grpc.StatusCode.INTERNAL, "CUDA error at /opt/engine/talker.py:12")
    with caplog.at_level(logging.WARNING):
        message = assert_says(http.post(path, json=body), 500, "engine_failed")
    assert "failed" in message
    assert "talker.py" not in message
    assert any("talker.py:12" in getattr(record, "reason", "") for record in caplog.records)


@every_way
def test_a_bug_is_a_500_that_tells_nothing_but_that(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    def utterance(*_: Any) -> None:
        raise LookupError("the bug's own words")

    monkeypatch.setattr(Narrator, "utterance", utterance)
    monkeypatch.setattr(Narrator, "recite_all", utterance)
    response = http.post(path, json=body)
    assert "bug" not in assert_says(response, 500, "internal_error")
    assert "Traceback" not in response.text
    assert response.headers["X-Request-Id"]


def test_the_gateway_outlives_a_bug(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.delattr(Narrator, "utterance")
        assert http.post(SPEECH, json=RYAN).status_code == 500
    assert http.post(SPEECH, json=RYAN).status_code == 200
