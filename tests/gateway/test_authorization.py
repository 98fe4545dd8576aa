"""Who may do what: keys, their scopes, their voices and their shares."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from http.client import HTTPResponse
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote, urlsplit

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from fakes.triton_server import (
    Call,
    FakeTriton,
    RefusalError,
    Response,
    Shelf,
    chunk,
    final,
    hears,
    says,
    triton,
)
from gateway_server import GatewayServer, running_gateway, settings
from qwen3_tts_client import AsyncSpeechClient, BuiltIn, Saved, UnknownVoice
from qwen3_tts_engine.voices.mixing import parse
from qwen3_tts_gateway import doorkeeper, recordings
from qwen3_tts_gateway.caller import HARMLESS
from qwen3_tts_gateway.errors import GatewayError
from qwen3_tts_gateway.key_file import KeyFile, KeyTerms
from qwen3_tts_gateway.keys import owner_of
from qwen3_tts_gateway.naming import VoiceNames
from qwen3_tts_gateway.speech import Narrator
from real_server import wait_until

MODELS = ("qwen3_tts_custom_voice", "qwen3_tts_voice_design", "qwen3_tts_base", "create_voice", "voices")
NOW = datetime(2025, 1, 31, tzinfo=timezone.utc)

SPEECH = "/v1/audio/speech"
RYAN = {"input": "Hello.", "voice": "ryan"}
FILE = "/api/v1/custom-voice/generate"
RYAN_ORIGINALLY = {"text": "Hello.", "speaker": "ryan"}
SPEAKING = pytest.mark.parametrize(
    ("path", "body"), [(SPEECH, RYAN), (FILE, RYAN_ORIGINALLY)], ids=["OpenAI", "original"]
)

GUESTS = count()

OPEN_TO_ALL = {
    "GET /",
    "GET /health",
    "GET /health/models",
    "GET /health/ready",
    "GET /playground",
    "GET /v1/audio/models",
    "GET /v1/audio/voices",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /v1/test",
}


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> KeyFile:
    return KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")


@pytest.fixture(scope="module")
def keys(key_file: KeyFile) -> dict[str, str]:
    """Secrets by the names of their keys."""
    terms = {
        "app": {},
        "other": {},
        "reader": {"scopes": ("synth",)},
        "clerk": {"scopes": ("voices",)},
        "expired": {"expires_at": NOW},
        "valid": {"expires_at": datetime.now(timezone.utc) + timedelta(days=1)},
    }
    both = {"scopes": ("synth", "voices")}
    return {
        name: key_file.create(KeyTerms(name=name, **(both | given)), NOW) for name, given in terms.items()
    }


@pytest.fixture
def issue(key_file: KeyFile) -> Callable[..., dict[str, str]]:
    """Headers with a key that nobody has used yet: `issue(max_streams=1)`."""

    def issue(**limits: int) -> dict[str, str]:
        name = f"guest-{next(GUESTS)}"
        return bearer(key_file.create(KeyTerms(name=name, scopes=("synth", "voices"), **limits), NOW))

    return issue


@pytest.fixture(scope="module")
def shared_triton() -> Iterator[FakeTriton]:
    with triton(says(1), models=MODELS) as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(shared_triton: FakeTriton, key_file: KeyFile, keys: dict[str, str]) -> Iterator[GatewayServer]:
    """A gateway that wants a key, from the file or the environment."""
    ours = settings(
        triton_grpc_port=shared_triton.port, api_keys_file=str(key_file._path), api_keys=("of-the-env",)
    )
    with running_gateway(ours) as running:
        yield running


@pytest.fixture(scope="module")
def http(gateway: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def open_gateway(shared_triton: FakeTriton) -> Iterator[httpx.Client]:
    """A client of a gateway that wants no key, and lets pages of one origin call."""
    ours = settings(triton_grpc_port=shared_triton.port, cors_origins=("https://app.example",))
    with running_gateway(ours) as running, httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.fixture
def fake_triton(shared_triton: FakeTriton) -> FakeTriton:
    """Triton with no voice saved and nobody's calls; it speaks with the voices that are there."""
    shared_triton.calls.clear()
    shared_triton.questions.clear()
    shelf = Shelf()
    shared_triton.answers = {"create_voice": hears, "voices": shelf}
    shared_triton.script = only_with_voices_of(shelf)
    return shared_triton


@pytest.fixture
def grandpa(http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str]) -> str:
    """A voice that the key `other` saved, as the store has it."""
    files = {"audio_sample": ("grandpa.wav", b"RIFF")}
    form = {"name": "grandpa", "consent": "yes"}
    http.post("/v1/audio/voices", data=form, files=files, headers=bearer(keys["other"])).raise_for_status()
    [stored] = fake_triton.answers["voices"].voices
    fake_triton.questions.clear()
    return str(stored)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def only_with_voices_of(shelf: Shelf) -> Any:
    def script(call: Call) -> Iterator[Response]:
        if "voice" in call.inputs:
            for name in names_in(call.string("voice")):
                if name not in shelf.voices:
                    raise RefusalError(grpc.StatusCode.NOT_FOUND, f"no voice is saved as {name!r}")
        yield from says(1)(call)

    return script


def names_in(expression: str) -> list[str]:
    """The stored voices that an expression means to the engine."""
    parts = parse(expression)
    return [expression] if parts is None else [name for name, _ in parts]


def code_of(response: httpx.Response) -> str:
    """Of OpenAI's envelope; the original API's has none."""
    answer = response.json()
    if not response.request.url.path.startswith("/v1/"):
        assert isinstance(answer["detail"], str)
        return ""
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    return str(answer["error"]["code"])


def listed(paths: dict[str, Any]) -> set[str]:
    """The routes of an OpenAPI document: `GET /health`."""
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def test_every_route_wants_a_key_but_those_that_tell_what_this_is(http: httpx.Client) -> None:
    routes = listed(http.get("/openapi.json").json()["paths"])
    answers = {route: http.request(*route.split(" "), json={}) for route in routes}
    assert {route for route, answer in answers.items() if answer.status_code != 401} == OPEN_TO_ALL & routes
    assert {"POST /v1/audio/speech", "POST /api/v1/base/clone"} <= routes


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/health", "/health/models", "/health/ready", "/metrics", "/docs", "/redoc", "/openapi.json"),
        *("/playground", "/playground/playground.js"),
    ],
)
def test_what_operators_and_browsers_ask_first_needs_no_key(
    http: httpx.Client, fake_triton: FakeTriton, path: str
) -> None:
    assert http.get(path).status_code == 200
    assert http.request("GET", path, content=b"a body that nobody reads").status_code == 200


def test_what_needs_no_key_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
    keys = page.split("\n## Keys\n")[1].split("\n## ")[0]
    documented = {f"GET {path}" for path in re.findall(r"`(/[^`]*)`", keys)}
    unlisted = {"GET /metrics", "GET /docs", "GET /redoc", "GET /openapi.json"}  # of the OpenAPI document
    assert documented == OPEN_TO_ALL | unlisted


@pytest.mark.parametrize(
    ("headers", "is_told"),
    [({}, False), ({"X-API-Key": "wrong"}, False), ({"X-API-Key": "of-the-env"}, True)],
)
def test_why_a_model_is_away_is_told_to_those_who_have_a_key(
    http: httpx.Client, fake_triton: FakeTriton, headers: dict[str, str], is_told: bool
) -> None:
    fake_triton.repository, fake_triton.reasons = ("broken",), {"broken": "no file /srv/weights"}
    response = http.get("/health/models", headers=headers)
    assert response.json()["models"]["broken"]["state"] == "UNAVAILABLE"
    assert ("/srv/weights" in response.text) == is_told


def test_why_a_model_is_away_is_told_to_all_where_no_key_is_needed(
    open_gateway: httpx.Client, fake_triton: FakeTriton
) -> None:
    fake_triton.repository, fake_triton.reasons = ("broken",), {"broken": "no file /srv/weights"}
    assert "/srv/weights" in open_gateway.get("/health/models").text


@SPEAKING
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Basic b2YtdGhlLWVudg=="},
        {"X-API-Key": "wrong"},
        {"Api-Key": "wrong"},
        {"X-API-Key": "wrong", "Authorization": "Bearer of-the-env"},
        {"Cookie": "Authorization=of-the-env"},
    ],
    ids=lambda headers: "; ".join(f"{name}: {value}" for name, value in headers.items()) or "none",
)
def test_no_key_and_a_wrong_key_are_a_401_that_says_how_to_bring_one(
    http: httpx.Client, fake_triton: FakeTriton, path: str, body: Any, headers: dict[str, str]
) -> None:
    response = http.post(path, json=body, headers=headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert code_of(response) in ("invalid_api_key", "")
    assert fake_triton.calls == []


@contextmanager
def half_a_body(url: str, path: str, *headers: str) -> Iterator[HTTPResponse]:
    """The answer to a request whose body does not come to its end."""
    kind = "multipart/form-data; boundary=x" if path.endswith("voices") else "application/json"
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {kind}", "Content-Length: 1000"]
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall("\r\n".join([*lines, *headers, "", "--x"]).encode())
        response = HTTPResponse(connection)
        response.begin()
        yield response


BODIES = pytest.mark.parametrize("path", [SPEECH, FILE, "/v1/audio/voices"])


@BODIES
@pytest.mark.parametrize("headers", [[], ["X-API-Key: wrong"]], ids=["no key", "a wrong key"])
def test_nobodys_body_is_waited_for_without_a_key(
    gateway: GatewayServer, path: str, headers: list[str]
) -> None:
    with half_a_body(gateway.url, path, *headers) as response:
        assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")


@BODIES
def test_the_body_of_a_page_from_elsewhere_is_not_waited_for(open_gateway: httpx.Client, path: str) -> None:
    url = str(open_gateway.base_url)
    with half_a_body(url, path, "Origin: https://evil.example") as response:
        assert response.status == 403


@BODIES
def test_a_body_that_does_not_come_to_its_end_is_a_408(
    gateway: GatewayServer, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorkeeper, "BODY_TIMEOUT_S", 0.1)
    with half_a_body(gateway.url, path, "X-API-Key: of-the-env") as response:
        assert (response.status, response.headers["Connection"]) == (408, "close")
        answer = json.loads(response.read())
    message = answer["detail"] if path == FILE else answer["error"]["message"]
    assert message == "the body did not come within 0.1 s"


def test_an_answer_may_take_longer_than_the_body_may(
    http: httpx.Client, fake_triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doorkeeper, "BODY_TIMEOUT_S", 1)

    def takes_its_time(call: Call) -> Iterator[Response]:
        yield chunk(0)
        assert not call.wait_until_gone(1.2)
        yield final(chunk(1, finish_reason="stop"))

    fake_triton.script = takes_its_time
    body = RYAN | {"response_format": "pcm"}
    assert len(http.post(SPEECH, json=body, headers={"X-API-Key": "of-the-env"}).content) == 2 * 1920 * 2


def test_a_body_is_taken_where_a_key_is_needed_and_by_no_harmless_method(http: httpx.Client) -> None:
    """Or it would be read before the key is looked at."""
    paths = http.get("/openapi.json").json()["paths"]
    operations = {route: paths[route.split()[1]][route.split()[0].lower()] for route in listed(paths)}
    taking = {route for route, operation in operations.items() if "requestBody" in operation}
    assert "POST /v1/audio/speech" in taking
    assert not taking & OPEN_TO_ALL
    assert not {route.split()[0] for route in taking} & {*HARMLESS}


@SPEAKING
def test_an_expired_key_is_a_401(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str], path: str, body: Any
) -> None:
    response = http.post(path, json=body, headers=bearer(keys["expired"]))
    assert response.status_code == 401
    assert "expired" in response.text
    assert http.post(path, json=body, headers=bearer(keys["valid"])).status_code == 200


@SPEAKING
@pytest.mark.parametrize(
    "scheme", ["X-API-Key", "Authorization: Bearer", "Authorization: Api-Key", "Api-Key"]
)
@pytest.mark.parametrize("name", ["app", "of-the-env"])
def test_a_key_may_come_in_any_of_three_headers(
    http: httpx.Client,
    fake_triton: FakeTriton,
    keys: dict[str, str],
    path: str,
    body: Any,
    scheme: str,
    name: str,
) -> None:
    header, _, prefix = scheme.partition(": ")
    secret = keys.get(name, name)
    response = http.post(path, json=body, headers={header: f"{prefix} {secret}".strip()})
    assert response.status_code == 200


def test_a_key_does_only_what_it_is_for(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str]
) -> None:
    form = {"data": {"name": "me", "consent": "yes"}, "files": {"audio_sample": ("me.wav", b"RIFF")}}
    synth, voices = bearer(keys["reader"]), bearer(keys["clerk"])
    for response in (
        http.post("/v1/audio/voices", headers=synth, **cast(Any, form)),
        http.delete("/v1/audio/voices/me", headers=synth),
        http.post("/api/v1/base/create-prompt", json=RECORDING, headers=synth),
        http.post(SPEECH, json=RYAN, headers=voices),
        http.post(FILE, json=RYAN_ORIGINALLY, headers=voices),
    ):
        assert response.status_code == 403, response.request.url
        assert code_of(response) in ("insufficient_scope", "")
    assert fake_triton.calls == fake_triton.questions == []
    assert http.post("/v1/audio/voices", headers=voices, **cast(Any, form)).status_code == 200
    assert http.post("/api/v1/base/create-prompt", json=RECORDING, headers=voices).status_code == 200
    assert http.post(SPEECH, json=RYAN, headers=synth).status_code == 200


def test_a_revoked_key_stops_working_and_a_new_one_works_without_a_restart(
    http: httpx.Client, fake_triton: FakeTriton, key_file: KeyFile
) -> None:
    secret = key_file.create(KeyTerms(name="guest", scopes=("synth",)), NOW)
    assert http.post(SPEECH, json=RYAN, headers=bearer(secret)).status_code == 200
    key_file.revoke("guest")
    assert http.post(SPEECH, json=RYAN, headers=bearer(secret)).status_code == 401


def test_its_own_voice_is_a_keys_to_list_describe_speak_with_and_delete(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str], grandpa: str
) -> None:
    ours = bearer(keys["other"])
    assert grandpa == f"key-{owner_of('other')}.grandpa"
    assert "grandpa" in http.get("/v1/audio/voices?legacy=true", headers=ours).json()["voices"]
    assert http.get("/v1/audio/voices/grandpa", headers=ours).status_code == 200
    body = {"input": "Hello.", "voice": "grandpa"}
    assert http.post(SPEECH, json=body, headers=ours).status_code == 200
    assert [call.string("voice") for call in fake_triton.calls] == [grandpa]
    assert http.delete("/v1/audio/voices/grandpa", headers=ours).status_code == 200
    assert fake_triton.answers["voices"].voices == {}


def test_another_keys_voice_is_not_there(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str], grandpa: str
) -> None:
    theirs = bearer(keys["app"])
    for response in (
        http.get("/v1/audio/voices/grandpa", headers=theirs),
        http.delete("/v1/audio/voices/grandpa", headers=theirs),
        http.post(SPEECH, json={"input": "Hello.", "voice": "grandpa"}, headers=theirs),
        http.post(FILE, json={"text": "Hello.", "speaker": "grandpa"}, headers=theirs),
    ):
        assert response.status_code == 404, response.request.url
        assert code_of(response) in ("voice_not_found", "not_found", "")
    assert "grandpa" not in http.get("/v1/audio/voices", headers=theirs).text
    assert "grandpa" not in http.get("/v1/audio/voices").text
    assert grandpa in fake_triton.answers["voices"].voices


@pytest.mark.parametrize(
    "spelling",
    [
        "{grandpa}",
        " {grandpa} ",
        "\t{grandpa}",
        "{grandpa}(1)",
        "{grandpa}(1e0)",
        "{grandpa} ( 1 )",
        "mine+{grandpa}",
        "mine(2)+{grandpa}(1)",
        "mine(2) + {grandpa} ( 0.5 )",
        "{grandpa}+mine",
        "{grandpa}+",
        "+{grandpa}",
        "({grandpa})",
        "mine(2)({grandpa})",
    ],
)
def test_no_spelling_of_its_stored_name_reaches_another_keys_voice(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str], grandpa: str, spelling: str
) -> None:
    theirs = bearer(keys["app"])
    form = {"data": {"name": "mine", "consent": "yes"}, "files": {"audio_sample": ("me.wav", b"RIFF")}}
    http.post("/v1/audio/voices", headers=theirs, **cast(Any, form)).raise_for_status()
    fake_triton.questions.clear()
    name = spelling.format(grandpa=grandpa)
    voice = f"/v1/audio/voices/{quote(name)}"
    for response in (
        http.post(SPEECH, json={"input": "Hello.", "voice": name}, headers=theirs),
        http.post(FILE, json={"text": "Hello.", "speaker": name}, headers=theirs),
        http.get(voice, headers=theirs),
        http.delete(voice, headers=theirs),
    ):
        assert response.status_code in (400, 404), response.request.url
    assert fake_triton.calls == []
    assert grandpa not in {call.string("name") for call in fake_triton.questions if "name" in call.inputs}
    assert grandpa in fake_triton.answers["voices"].voices


def test_nobody_saves_a_voice_in_anothers_name(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str], grandpa: str
) -> None:
    form = {"name": grandpa, "consent": "yes"}
    files = {"audio_sample": ("me.wav", b"FORGED")}
    response = http.post("/v1/audio/voices", data=form, files=files, headers=bearer(keys["app"]))
    assert response.status_code == 400
    assert list(fake_triton.answers["voices"].voices) == [grandpa]


THEIRS = f"key-{owner_of('other')}.grandpa"


@given(
    st.lists(
        st.sampled_from(
            [THEIRS, "mine", "key-", "+", "(", ")", "1", ".5", "1e0", " ", "\n", "\u3000", "\x00"]
        )
        | st.text(max_size=2),
        max_size=8,
    ).map("".join)
)
async def test_nothing_that_can_be_said_names_another_keys_voice_to_the_engine(said: str) -> None:
    async def find(name: str) -> Saved:
        return Saved(name)

    async def describe(name: str) -> None:
        assert name != THEIRS
        raise UnknownVoice("nobody saved it")

    tts = SimpleNamespace(find=find, voices=SimpleNamespace(describe=describe))
    try:
        found = await VoiceNames(cast(AsyncSpeechClient, tts), {}).resolve(said, owner_of("app"))
    except GatewayError:
        return
    assert not isinstance(found, BuiltIn)
    assert THEIRS not in {name.strip() for name in found.name.replace("(", "+").split("+")}


@SPEAKING
@pytest.mark.parametrize("limit", [{"requests_per_minute": 2}, {"characters_per_minute": 12}], ids=str)
def test_a_key_that_has_used_up_its_share_hears_when_to_come_again(
    http: httpx.Client,
    fake_triton: FakeTriton,
    keys: dict[str, str],
    issue: Callable[..., dict[str, str]],
    path: str,
    body: Any,
    limit: dict[str, int],
) -> None:
    guest = issue(**limit)
    answers = [http.post(path, json=body, headers=guest) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert code_of(answers[-1]) in ("rate_limit_exceeded", "")
    assert http.post(path, json=body, headers=bearer(keys["app"])).status_code == 200


RECORDING = {"ref_audio_base64": "UklGRg==", "x_vector_only_mode": True}
SAVING: dict[str, dict[str, Any]] = {
    "/v1/audio/voices": {"data": {"name": "me"}, "files": {"audio_sample": ("me.wav", b"RIFF")}},
    "/api/v1/base/create-prompt": {"json": RECORDING},
}


@pytest.mark.parametrize(("path", "form"), SAVING.items())
def test_a_voice_that_is_saved_is_a_request_of_its_key(
    http: httpx.Client,
    fake_triton: FakeTriton,
    issue: Callable[..., dict[str, str]],
    path: str,
    form: dict[str, Any],
) -> None:
    guest = issue(requests_per_minute=1)
    answers = [http.post(path, headers=guest, **form) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert len(fake_triton.answers["voices"].voices) == 1


def test_a_voice_is_not_saved_beside_as_many_streams_as_the_key_may_have(
    http: httpx.Client, fake_triton: FakeTriton, issue: Callable[..., dict[str, str]]
) -> None:
    def never_ends(call: Call) -> Iterator[Response]:
        yield chunk(0)
        call.wait_until_gone()

    fake_triton.script = never_ends
    guest = issue(max_streams=1)
    with http.stream("POST", SPEECH, json=RYAN | {"response_format": "pcm"}, headers=guest):
        for path, form in SAVING.items():
            assert http.post(path, headers=guest, **form).status_code == 429, path


REFERENCES: dict[str, dict[str, Any]] = {
    SPEECH: {"input": "Hi.", "ref_audio": "https://audio.example.com/me.wav", "x_vector_only_mode": True},
    "/api/v1/base/clone": {"text": "Hi.", "ref_audio_url": "https://audio.example.com/me.wav"},
    "/api/v1/base/create-prompt": {"ref_audio_url": "https://audio.example.com/me.wav"},
}


@pytest.mark.parametrize(("path", "body"), REFERENCES.items())
def test_no_recording_is_fetched_for_who_is_not_admitted(
    http: httpx.Client,
    fake_triton: FakeTriton,
    issue: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    fetched: list[str] = []

    async def fetch(url: str, *_: Any, **options: Any) -> bytes:
        fetched.append(url)
        return b"RIFF"

    monkeypatch.setattr(recordings, "fetch_recording", fetch)
    guest = issue(requests_per_minute=1)
    answers = [http.post(path, json=body | {"x_vector_only_mode": True}, headers=guest) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert len(fetched) == 1


def test_requests_are_counted_by_the_name_of_their_key_and_unknown_keys_for_nobody(
    http: httpx.Client, fake_triton: FakeTriton, key_file: KeyFile
) -> None:
    def counted() -> dict[tuple[str, str], float]:
        families = text_string_to_metric_families(http.get("/metrics").text)
        [requests] = (family for family in families if family.name == "qwen3_tts_gateway_key_requests")
        return {(sample.labels["key"], sample.labels["status"]): sample.value for sample in requests.samples}

    before = counted()
    secret = key_file.create(KeyTerms(name="counted", scopes=("synth",), requests_per_minute=2), NOW)
    for _ in range(3):
        http.post(SPEECH, json=RYAN, headers=bearer(secret))
    http.post(SPEECH, json=RYAN, headers=bearer("made-up"))
    assert counted() == before | {("counted", "200"): 2, ("counted", "429"): 1}


@SPEAKING
def test_a_key_whose_streams_are_all_open_hears_when_to_come_again(
    http: httpx.Client,
    fake_triton: FakeTriton,
    keys: dict[str, str],
    issue: Callable[..., dict[str, str]],
    path: str,
    body: Any,
) -> None:
    go_on = threading.Event()

    def pauses(call: Call) -> Iterator[Response]:
        yield chunk(0)
        if call.text == "Once upon a time.":
            go_on.wait(10)
        yield final(chunk(1, finish_reason="stop"))

    fake_triton.script = pauses
    guest = issue(max_streams=1)
    story = {"input": "Once upon a time.", "voice": "ryan", "response_format": "pcm"}
    with http.stream("POST", SPEECH, json=story, headers=guest) as first:
        assert first.status_code == 200
        second = http.post(path, json=body, headers=guest)
        assert second.status_code == 429
        assert int(second.headers["Retry-After"]) >= 1
        assert code_of(second) in ("rate_limit_exceeded", "")
        assert http.post(path, json=body, headers=bearer(keys["app"])).status_code == 200
        go_on.set()
        assert len(first.read()) == 2 * 1920 * 2
    assert http.post(path, json=body, headers=guest).status_code == 200


def test_who_hangs_up_has_their_stream_back(
    http: httpx.Client, fake_triton: FakeTriton, issue: Callable[..., dict[str, str]]
) -> None:
    def never_ends(call: Call) -> Iterator[Response]:
        yield chunk(0)
        call.wait_until_gone()

    fake_triton.script = never_ends
    guest = issue(max_streams=1)
    with http.stream("POST", SPEECH, json=RYAN | {"response_format": "pcm"}, headers=guest) as first:
        assert first.status_code == 200
    fake_triton.script = says(1)
    wait_until(lambda: http.post(SPEECH, json=RYAN, headers=guest).status_code == 200, "the stream is free")


BATCHES = {
    "OpenAI": (f"{SPEECH}/batch", {"voice": "ryan", "items": [{"input": text} for text in "abcdef"]}),
    "original": ("/api/v1/custom-voice/batch", {"texts": list("abcdef"), "speakers": ["ryan"] * 6}),
}


@pytest.mark.parametrize(("path", "body"), BATCHES.values(), ids=BATCHES.keys())
def test_a_batch_of_more_than_the_key_may_have_at_once_is_spoken_in_turns(
    http: httpx.Client, fake_triton: FakeTriton, issue: Callable[..., dict[str, str]], path: str, body: Any
) -> None:
    pair = threading.Barrier(2)
    open_calls = Counter[str]()
    most_open = 0

    def in_pairs(call: Call) -> Iterator[Response]:
        nonlocal most_open
        open_calls[call.text] += 1
        pair.wait(10)
        most_open = max(most_open, open_calls.total())
        pair.wait(10)
        del open_calls[call.text]
        yield from says(1)(call)

    fake_triton.script = in_pairs
    response = http.post(path, json=body, headers=issue(max_streams=2))
    assert response.status_code == 200
    answer = response.json()
    assert answer.get("succeeded", len(answer.get("audios", ()))) == 6
    assert most_open == 2


BATCH, SIX_TEXTS = BATCHES["original"]


@pytest.mark.parametrize("limit", [{"requests_per_minute": 5}, {"characters_per_minute": 5}], ids=str)
def test_a_batch_of_more_than_the_keys_share_of_a_minute_is_to_come_in_parts(
    http: httpx.Client,
    fake_triton: FakeTriton,
    issue: Callable[..., dict[str, str]],
    limit: dict[str, int],
) -> None:
    guest = issue(**limit)
    response = http.post(BATCH, json=SIX_TEXTS, headers=guest)
    assert response.status_code == 400
    assert "send it in parts" in response.json()["detail"]
    assert fake_triton.calls == []
    parts = {"texts": ["a"] * 5, "speakers": ["ryan"] * 5}
    assert http.post(BATCH, json=parts, headers=guest).status_code == 200


def test_a_batch_is_admitted_as_a_whole_or_spends_nothing(
    http: httpx.Client, fake_triton: FakeTriton, issue: Callable[..., dict[str, str]]
) -> None:
    guest = issue(requests_per_minute=7)
    answers = [http.post(BATCH, json=SIX_TEXTS, headers=guest) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert len(fake_triton.calls) == 6
    assert http.post(FILE, json=RYAN_ORIGINALLY, headers=guest).status_code == 200


@pytest.mark.parametrize("origins", [("*",), ("https://app.example",)], ids=", ".join)
def test_pages_of_an_allowed_origin_may_call_with_keys_and_never_with_cookies(
    shared_triton: FakeTriton, fake_triton: FakeTriton, origins: tuple[str, ...]
) -> None:
    ours = settings(triton_grpc_port=shared_triton.port, cors_origins=origins, api_keys=("secret",))
    page = {"Origin": "https://app.example"}
    asking = page | {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-api-key",
    }
    with running_gateway(ours) as gateway, httpx.Client(base_url=gateway.url) as http:
        preflight = http.options(SPEECH, headers=asking)
        spoken = http.post(SPEECH, json=RYAN, headers=page | bearer("secret"))
        refused = http.post(SPEECH, json=RYAN, headers=page)
    assert [preflight.status_code, spoken.status_code, refused.status_code] == [200, 200, 401]
    assert "authorization" in preflight.headers["Access-Control-Allow-Headers"].lower()
    assert {"Retry-After", "X-RTF"} <= set(spoken.headers["Access-Control-Expose-Headers"].split(", "))
    for response in (preflight, spoken, refused):
        assert response.headers["Access-Control-Allow-Origin"] in ("*", "https://app.example")
        assert "Access-Control-Allow-Credentials" not in response.headers


def test_pages_of_other_origins_may_not_call(shared_triton: FakeTriton, fake_triton: FakeTriton) -> None:
    ours = settings(triton_grpc_port=shared_triton.port, cors_origins=("https://app.example",))
    page = {"Origin": "https://evil.example"}
    with running_gateway(ours) as gateway, httpx.Client(base_url=gateway.url) as http:
        preflight = http.options(SPEECH, headers=page | {"Access-Control-Request-Method": "POST"})
        assert preflight.status_code == 400
        assert "Access-Control-Allow-Origin" not in http.get("/v1/models", headers=page).headers


FORM = (
    "multipart/form-data; boundary=x",
    b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nme\r\n--x--\r\n',
)
FORMS = {
    "speech": ("POST", SPEECH, "text/plain", b"{}"),
    "a file": ("POST", FILE, "application/json", b'{"text": "Hello.", "speaker": "ryan"}'),
    "a voice": ("POST", "/v1/audio/voices", *FORM),
    "an upload": ("POST", "/api/v1/base/upload-ref-audio", *FORM),
    "a voice less": ("DELETE", "/v1/audio/voices/grandpa", "text/plain", b""),
}


@pytest.mark.parametrize(("method", "path", "kind", "body"), FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://["])
def test_no_page_from_elsewhere_does_anything_where_no_key_is_needed(
    open_gateway: httpx.Client,
    fake_triton: FakeTriton,
    method: str,
    path: str,
    kind: str,
    body: bytes,
    origin: str,
) -> None:
    headers = {"Origin": origin, "Content-Type": kind}
    response = open_gateway.request(method, path, content=body, headers=headers)
    assert response.status_code == 403
    assert code_of(response) in ("origin_not_allowed", "")
    assert fake_triton.calls == fake_triton.questions == []


@pytest.mark.parametrize("origin", [None, "https://app.example", "{gateway}"])
def test_allowed_pages_and_those_of_the_gateway_itself_speak_where_no_key_is_needed(
    open_gateway: httpx.Client, fake_triton: FakeTriton, origin: str | None
) -> None:
    gateway = f"https://{open_gateway.base_url.netloc.decode()}"  # as a page behind TLS knows it
    headers = {} if origin is None else {"Origin": origin.format(gateway=gateway)}
    assert open_gateway.post(SPEECH, json=RYAN, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8080", 200),
        ("192.168.1.7", 200),
        ("[::1]:8080", 200),
        ("localhost:8080", 200),
        ("LOCALHOST", 200),
        ("app.example", 200),  # of CORS_ORIGINS
        ("evil.example:8080", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
def test_a_page_is_the_gateways_own_by_no_name_that_a_stranger_could_point_here(
    open_gateway: httpx.Client, fake_triton: FakeTriton, host: str, status: int
) -> None:
    """DNS rebinding: the page's own name means this machine by now, so that its Origin is our Host."""
    page = {"Origin": f"https://{host}", "Host": host}
    assert open_gateway.post(SPEECH, json=RYAN, headers=page).status_code == status


def test_a_gateway_is_called_by_the_name_it_listens_on(
    shared_triton: FakeTriton, fake_triton: FakeTriton
) -> None:
    page = {"Origin": "http://Speech.lan:8080", "Host": "Speech.lan:8080"}
    ours = settings(triton_grpc_port=shared_triton.port, host="speech.LAN")
    with running_gateway(ours) as gateway:
        assert httpx.post(f"{gateway.url}{SPEECH}", json=RYAN, headers=page).status_code == 200


@pytest.mark.parametrize("host", ["gateway:8080", "host.docker.internal:8080", "tts.svc.cluster.local"])
def test_programs_which_are_no_pages_call_by_any_name(
    open_gateway: httpx.Client, fake_triton: FakeTriton, host: str
) -> None:
    assert open_gateway.post(SPEECH, json=RYAN, headers={"Host": host}).status_code == 200


def test_where_keys_are_needed_the_gateways_own_page_goes_by_any_name(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str]
) -> None:
    page = {"Origin": "https://speech.example", "Host": "speech.example"}
    assert http.post(SPEECH, json=RYAN, headers=page | bearer(keys["app"])).status_code == 200


def test_a_page_from_elsewhere_may_look_where_no_key_is_needed(
    open_gateway: httpx.Client, fake_triton: FakeTriton
) -> None:
    assert open_gateway.get("/v1/audio/voices", headers={"Origin": "https://evil.example"}).status_code == 200


def test_where_keys_are_needed_a_key_is_all_that_a_page_needs(
    http: httpx.Client, fake_triton: FakeTriton, keys: dict[str, str]
) -> None:
    headers = bearer(keys["app"]) | {"Origin": "https://evil.example"}
    assert http.post(SPEECH, json=RYAN, headers=headers).status_code == 200


def test_a_bug_is_told_to_pages_too(
    shared_triton: FakeTriton, fake_triton: FakeTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Narrator, "utterance")
    ours = settings(triton_grpc_port=shared_triton.port, cors_origins=("*",))
    with running_gateway(ours) as gateway:
        response = httpx.post(f"{gateway.url}{SPEECH}", json=RYAN, headers={"Origin": "https://app.example"})
    assert response.status_code == 500
    assert response.headers["Access-Control-Allow-Origin"] == "*"


def test_without_allowed_origins_no_page_is_told_anything(
    http: httpx.Client, fake_triton: FakeTriton
) -> None:
    response = http.get("/v1/models", headers={"Origin": "https://app.example"})
    assert not [name for name in response.headers if name.lower().startswith("access-control")]
