"""Whatever is sent, the gateway answers as its OpenAPI document says, and never with a bug of its own."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.config import GenerationConfig, ProjectConfig, ProjectsConfig, SchemathesisConfig
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from fakes.triton_server import MODEL_INPUTS, says, triton
from gateway_server import GatewayServer, running_gateway, settings
from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.body import MOST_BYTES
from qwen3_tts_gateway.errors import REPLIES
from qwen3_tts_gateway.settings import OPENAI_VOICES
from qwen3_tts_gateway.sound import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "gateway.md"
DOCUMENT = create_app(settings()).openapi()
EXAMPLES = 40  # of each operation, besides those that every boundary in its schema gives

schema = schemathesis.openapi.from_dict(
    DOCUMENT,
    config=SchemathesisConfig(
        projects=ProjectsConfig(
            default=ProjectConfig(generation=GenerationConfig(deterministic=True, max_examples=EXAMPLES))
        )
    ),
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayServer]:
    """An open gateway in front of a Triton that says a single frame, for all the requests of this module."""
    with (
        triton(says(1), models=tuple(MODEL_INPUTS)) as fake,
        running_gateway(settings(triton_grpc_port=fake.port)) as running,
    ):
        yield running


@schema.parametrize()
@hypothesis_settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_is_answered_as_documented(case: schemathesis.Case, gateway: GatewayServer) -> None:
    case.call_and_validate(base_url=gateway.url, checks=CHECKS)


# --- one wrong thing in an otherwise good request -----------------------------------------------------------

RECORDING = "data:audio/wav;base64,UklGRg=="
GOOD: dict[str, dict[str, Any]] = {
    "/v1/audio/speech": {"input": "Hello.", "voice": "ryan", "response_format": "pcm"},
    "/v1/audio/speech/batch": {"items": [{"input": "Hello."}], "voice": "ryan", "response_format": "pcm"},
    "/api/v1/custom-voice/generate": {"text": "Hello.", "speaker": "Ryan"},
    "/api/v1/custom-voice/batch": {"texts": ["Hello."], "speakers": ["Ryan"]},
    "/api/v1/voice-design/generate-stream": {"text": "Hello.", "instruct": "an old man"},
    "/api/v1/voice-design/batch": {"texts": ["Hello."], "instructs": ["an old man"]},
    "/api/v1/base/clone": {"text": "Hello.", "ref_audio_base64": RECORDING, "x_vector_only_mode": True},
    "/api/v1/base/create-prompt": {"ref_audio_base64": RECORDING, "x_vector_only_mode": True},
    "/api/v1/base/generate-with-prompt": {"text": "Hello.", "prompt_id": "0" * 32},
}
numbers = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**400, 1e39, -0.0, 5e-324]),
)
# Halves of surrogate pairs among them, which JSON can name and UTF-8 cannot hold.
texts = st.text(st.characters(categories=None, codec=None), max_size=20)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def fields_of(path: str) -> list[str]:
    """Of the body that a route takes, and as an item of a batch has them."""
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    name = content["schema"]["$ref"].rsplit("/")[-1]
    own = [*DOCUMENT["components"]["schemas"][name]["properties"]]
    return own if path != "/v1/audio/speech/batch" else [*own, *fields_of("/v1/audio/speech")]


@pytest.mark.parametrize("path", GOOD)
def test_no_value_in_any_field_is_a_bug(http: httpx.Client, path: str) -> None:
    @hypothesis_settings(derandomize=True, max_examples=150, deadline=None, database=None)
    @given(st.sampled_from(fields_of(path)), values)
    def send(field: str, value: Any) -> None:
        response = post(http, path, json.dumps({**GOOD[path], field: value}))
        assert response.status_code in (200, 400, 404, 422)
        if response.status_code != 200:
            assert message_of(response)

    send()


def post(
    http: httpx.Client, path: str, body: str | bytes, content_type: str = "application/json"
) -> httpx.Response:
    return http.post(path, content=body, headers={"Content-Type": content_type} if content_type else {})


def message_of(response: httpx.Response) -> Any:
    """What an error tells, in the shape of its API."""
    answer = response.json()
    if response.request.url.path.startswith("/v1/"):
        assert {*answer["error"]} == {"message", "type", "param", "code"}
        return answer["error"]["message"]
    assert {*answer} == {"detail"}
    return answer["detail"]


@pytest.fixture(scope="module")
def http(gateway: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


HELLO = '{"input": "Hello.", "voice": "ryan", "text": "Hello.", "speaker": "ryan"}'
ROUTES = ["/v1/audio/speech", "/api/v1/custom-voice/generate"]


def test_the_request_that_is_spoilt_below_is_a_good_one(http: httpx.Client) -> None:
    for path in ROUTES:
        assert post(http, path, HELLO).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "body",
    [
        "",
        HELLO[:-1],
        "null",
        "[]",
        "5",
        '"Hello."',
        "{]",
        f"{HELLO}{HELLO}",
        HELLO.replace("Hello", "\u00e9").encode("latin-1"),
        b"\xff\xfe\x00",
        "[" * 100_000,
        '{"input":' * 100_000,
        HELLO.replace("}", ', "speed": ' + "9" * 5000 + "}"),
        HELLO.replace("}", ', "speed": NaN}'),
        HELLO.replace("}", ', "speed": -Infinity}'),
        HELLO.replace("}", ', "speed": 1e400}'),
        HELLO.replace("Hello.", "\\ud800"),
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_cannot_be_read_is_refused(http: httpx.Client, path: str, body: str | bytes) -> None:
    response = post(http, path, body)
    assert response.status_code in (400, 422)
    assert message_of(response)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"]
)
def test_what_does_not_call_itself_json_is_refused(http: httpx.Client, path: str, content_type: str) -> None:
    response = post(http, path, HELLO, content_type)
    assert response.status_code in (400, 422)
    assert message_of(response)


@pytest.mark.parametrize("path", ["/v1/audio/voices", "/api/v1/base/upload-ref-audio"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data"),
        (b"", "multipart/form-data; boundary=x"),
        (b"--x\r\n", "multipart/form-data; boundary=x"),
        (b"--y--\r\n", "multipart/form-data; boundary=x"),
        (b"\xff" * 100, "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="\xff"\r\n\r\n\xff\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
        (b"name=a&file=b", "application/x-www-form-urlencoded"),
        (b"{}", "application/json"),
    ],
    ids=repr,
)
def test_a_form_that_cannot_be_read_is_refused(
    http: httpx.Client, path: str, body: bytes, content_type: str
) -> None:
    response = post(http, path, body, content_type)
    assert response.status_code in (400, 422)
    assert message_of(response)


# --- too much -----------------------------------------------------------------------------------------------


@contextmanager
def connected(gateway: GatewayServer) -> Iterator[socket.socket]:
    url = httpx.URL(gateway.url)
    with socket.create_connection((url.host, url.port or 0), timeout=30) as connection:
        yield connection


def head(path: str, size: str, content_type: str = "application/json") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: gateway", f"Content-Type: {content_type}", size, "", ""]
    return "\r\n".join(lines).encode()


def answer_on(connection: socket.socket) -> tuple[int, Any]:
    """Status and JSON of the answer that comes."""
    with connection.makefile("rb") as file:
        status = int(file.readline().split()[1])
        length = 0
        while line := file.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, json.loads(file.read(length))


def told_of(answer: Any) -> str:
    return str(answer["error"]["message"] if "error" in answer else answer["detail"])


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_that_says_it_is_too_large_is_refused_before_it_comes(
    gateway: GatewayServer, path: str
) -> None:
    with connected(gateway) as connection:
        connection.sendall(head(path, f"Content-Length: {MOST_BYTES + 1}"))
        status, answer = answer_on(connection)
    assert (status, told_of(answer)) == (413, "the body is larger than 16 MiB")


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_that_does_not_say_how_large_it_is_is_refused_once_it_is_too_large(
    gateway: GatewayServer, path: str
) -> None:
    mebibyte = b"%x\r\n%b\r\n" % (1 << 20, b" " * (1 << 20))
    with connected(gateway) as connection:
        connection.sendall(head(path, "Transfer-Encoding: chunked"))
        for _ in range(MOST_BYTES >> 20):
            connection.sendall(mebibyte)
        connection.sendall(b"1\r\n \r\n")
        status, answer = answer_on(connection)
    assert (status, told_of(answer)) == (413, "the body is larger than 16 MiB")


def test_a_form_that_is_too_large_is_refused(gateway: GatewayServer) -> None:
    with connected(gateway) as connection:
        size = f"Content-Length: {MOST_BYTES + 1}"
        connection.sendall(head("/v1/audio/voices", size, "multipart/form-data; boundary=x"))
        status, answer = answer_on(connection)
    assert (status, answer["error"]["code"]) == (413, "too_large")


LONG_LISTS = [
    ("/v1/audio/speech/batch", "items"),
    *(("/api/v1/custom-voice/batch", name) for name in ("texts", "languages", "speakers", "instructs")),
    *(("/api/v1/voice-design/batch", name) for name in ("texts", "languages", "instructs")),
]


@pytest.mark.parametrize(("path", "field"), [*LONG_LISTS, ("/v1/audio/speech", "speaker_embedding")])
def test_a_list_without_end_is_refused_unread(http: httpx.Client, path: str, field: str) -> None:
    """Each of its items is wrong in a way of its own, and nobody wants to be told of all of them."""
    response = post(http, path, json.dumps({**GOOD.get(path, {}), field: [0] * (1 << 18)}))
    assert response.status_code in (400, 422)
    assert "at most" in str(message_of(response))
    assert len(response.content) < 2048


@pytest.mark.parametrize("path", ["/api/v1/custom-voice/batch", "/api/v1/voice-design/batch"])
def test_no_more_is_told_of_a_body_than_somebody_would_read(http: httpx.Client, path: str) -> None:
    response = post(http, path, json.dumps({**GOOD[path], "texts": [0] * 1024}))
    assert (response.status_code, len(message_of(response))) == (422, 20)


# --- what the document says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "shape"), [("/v1/", "OpenAIError"), ("/api/v1/", "OriginalError")], ids=["OpenAI", "original"]
)
def test_every_route_documents_its_errors_in_the_shape_of_its_api(prefix: str, shape: str) -> None:
    operations = [
        operation
        for path, methods in DOCUMENT["paths"].items()
        if path.startswith(prefix)
        for operation in methods.values()
    ]
    assert operations
    for operation in operations:
        for status in ("400", "401", "403", "404", "408", "413", "429", "500", "503"):
            content = operation["responses"][status]["content"]
            assert content["application/json"]["schema"]["$ref"].endswith(f"/{shape}")
        for status in ("429", "503"):
            assert "Retry-After" in operation["responses"][status]["headers"]
        assert ("422" in operation["responses"]) <= (prefix == "/api/v1/")


def test_every_code_of_an_error_is_documented_with_its_status() -> None:
    page = PAGE.read_text()
    [table] = re.findall(r"\| status \| `code` \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    rows = (row.split("|")[1:3] for row in table.splitlines())
    documented = {(int(status), code) for status, codes in rows for code in re.findall(r"`([a-z_]+)`", codes)}
    assert documented == {(reply.status, reply.code) for reply in REPLIES.values()}


def test_the_documentation_says_whom_openais_names_mean() -> None:
    page = PAGE.read_text()
    section = page.split("### OpenAI's voices")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.MULTILINE)
    documented = {name: speaker for speaker, names in rows for name in re.findall(r"`(\w+)`", names)}
    assert documented == OPENAI_VOICES


def test_speech_is_documented_in_every_format_it_comes_in() -> None:
    content = DOCUMENT["paths"]["/v1/audio/speech"]["post"]["responses"]["200"]["content"]
    assert {form.media_type for form in FORMATS.values()} | {"text/event-stream"} == {*content}


# --- through the real server --------------------------------------------------------------------------------


@pytest.mark.triton
@pytest.mark.parametrize("letter", ["x", "語"])
@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/audio/speech", "voice"),
        ("/v1/audio/speech", "language"),
        ("/api/v1/custom-voice/generate", "speaker"),
        ("/api/v1/custom-voice/generate", "language"),
        ("/api/v1/custom-voice/batch", "languages"),
        ("/api/v1/base/generate-with-prompt", "prompt_id"),
    ],
)
def test_a_name_that_is_far_too_long_is_the_callers_mistake(
    real_gateway: GatewayServer, path: str, field: str, letter: str
) -> None:
    with httpx.Client(base_url=real_gateway.url, timeout=30) as http:
        for length in (65, 1_300, 20_000):  # the engine repeats what it refuses, as far as gRPC lets it
            name = letter * length
            body = {**GOOD[path], field: [name] if field == "languages" else name}
            assert post(http, path, json.dumps(body)).status_code in (400, 404, 422)
