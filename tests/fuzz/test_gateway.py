"""Bodies, forms and messages of any kind: the gateway answers each, and never with a fault of its own."""

import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from fakes.triton_server import says, triton
from fuzzing import anything, fuzz, mutated
from gateway_server import GatewayServer, running_gateway, settings
from qwen3_tts_gateway.app import create_app
from qwen3_tts_gateway.routes.conversation import SessionConfig
from recordings import recording

PATIENCE_S = 20
GOOD = {"input": "Good morning.", "voice": "ryan", "response_format": "pcm"}
MODELS = ("qwen3_tts_custom_voice", "qwen3_tts_voice_design", "qwen3_tts_base", "create_voice", "voices")

FIELDS = sorted(
    {
        name
        for schema in create_app(settings()).openapi()["components"]["schemas"].values()
        for name in schema.get("properties", ())
    }
)
"""Of every body there is."""

ROUTES = [
    *(f"/api/v1/custom-voice/{what}" for what in ("generate", "generate-stream", "batch")),
    *(f"/api/v1/voice-design/{what}" for what in ("generate", "generate-stream", "batch")),
    *(f"/api/v1/base/{what}" for what in ("clone", "clone-stream", "create-prompt", "generate-with-prompt")),
    "/api/v1/base/upload-ref-audio",
    "/v1/audio/speech",
    "/v1/audio/speech/batch",
]
PLAUSIBLE = {
    "text": st.sampled_from(["Hello.", "", " ", "\ud800", "a. b. c."]),
    "input": st.sampled_from(["Hello.", "", "\0", "a. b. c."]),
    "texts": st.lists(st.sampled_from(["One.", ""]), max_size=3),
    "items": st.lists(
        st.fixed_dictionaries({}, optional={"input": st.just("One."), "voice": anything}), max_size=3
    ),
    "voice": st.sampled_from(
        ["ryan", "alloy", "nobody", "a(2)+b", "a+", "key-0123456789ab.x", "..", "\ud800"]
    ),
    "speaker": st.sampled_from(["Ryan", "", "\0", "\n"]),
    "speakers": st.lists(st.sampled_from(["Ryan", ""]), max_size=3),
    "instruct": st.sampled_from(["a warm voice", "", None]),
    "response_format": st.sampled_from(
        ["wav", "mp3", "opus", "aac", "flac", "pcm", "ulaw", "base64", "zip", "ogg"]
    ),
    "stream_format": st.sampled_from(["audio", "sse"]),
    "sample_rate": st.sampled_from([8000, 48_000, 0, -1, 2**40]),
    "speed": st.floats() | st.sampled_from([0.25, 4, 0.5, 1e-300, 1e300]),
    "ref_audio": mutated(st.just(recording("WAV, 16 bit", 1.2))).map(lambda file: file.hex()),
    "prompt_id": st.sampled_from(["prompt-1", "..", "", "a" * 300]),
}
BODIES = st.lists(st.sampled_from(FIELDS) | st.sampled_from([*PLAUSIBLE]), unique=True, max_size=7).flatmap(
    lambda names: st.fixed_dictionaries({name: PLAUSIBLE.get(name, anything) | anything for name in names})
)
NEARLY_GOOD = st.tuples(
    st.sampled_from(
        [
            GOOD,
            {"text": "Hello.", "speaker": "Ryan"},
            {"texts": ["One.", "Two."], "speakers": ["Ryan", "Vivian"]},
            {"items": [GOOD, GOOD]},
            {"text": "Hello.", "instruct": "a warm voice"},
        ]
    ),
    BODIES,
).map(lambda both: {**both[0], **both[1]})


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayServer]:
    with (
        triton(says(2), models=MODELS) as fake,
        running_gateway(settings(triton_grpc_port=fake.port)) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def http(gateway: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(autouse=True, scope="module")
def _it_still_speaks(http: httpx.Client) -> Iterator[None]:
    yield
    assert http.post("/v1/audio/speech", json=GOOD).status_code == 200


@fuzz(250, route=st.sampled_from(ROUTES), body=NEARLY_GOOD)
def test_a_body_with_strange_fields_is_served_or_refused(http: httpx.Client, route: str, body: Any) -> None:
    answered(http.post(route, content=json.dumps(body), headers={"Content-Type": "application/json"}))


@fuzz(
    150,
    route=st.sampled_from(ROUTES),
    body=anything.map(lambda value: json.dumps(value).encode()) | mutated(st.just(json.dumps(GOOD).encode())),
    kind=st.sampled_from(
        ["application/json", "text/plain", "", "multipart/form-data", "application/json; charset=x"]
    ),
)
def test_a_body_that_is_none_is_refused(http: httpx.Client, route: str, body: bytes, kind: str) -> None:
    answered(http.post(route, content=body, headers={"Content-Type": kind}))


@fuzz(
    100,
    fields=st.dictionaries(
        st.sampled_from(["name", "consent", "ref_text", "speaker_description", "x"]),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace").decode()),
        max_size=4,
    ),
    sample=mutated(st.just(recording("WAV, 16 bit", 1.2))),
    filename=st.text(min_size=1, max_size=20).map(lambda text: text.encode("utf-8", "replace").decode()),
)
def test_an_uploaded_voice_is_kept_or_refused(
    http: httpx.Client, fields: dict[str, str], sample: bytes, filename: str
) -> None:
    answered(http.post("/v1/audio/voices", data=fields, files={"audio_sample": (filename, sample)}))


@fuzz(
    150,
    path=st.text(max_size=40) | st.sampled_from(["..", "%2e%2e%2fx", "a%00b", "%ff", "key-0123456789ab.x"]),
)
def test_a_path_that_names_no_voice_is_not_found(http: httpx.Client, path: str) -> None:
    with suppress(httpx.InvalidURL):
        answered(http.delete(f"/v1/audio/voices/{path}"))


def answered(response: httpx.Response) -> None:
    assert response.status_code < 500, (response.status_code, response.text[:500])
    if response.status_code >= 400:
        assert {"error", "detail"} & {*response.json()}


# --- Conversations ----------------------------------------------------------------------------------------

COMMANDS = [
    "session.config",
    "input.text",
    "input.done",
    "response.cancel",
    "session.close",
    "",
    "audio.start",
]
CONFIGURED = {"type": "session.config", "voice": "ryan", "response_format": "pcm", "stream_audio": True}
SESSION_FIELDS = sorted({*SessionConfig.model_fields} - {"type"})
MESSAGES = (
    st.fixed_dictionaries(
        {"type": st.sampled_from(COMMANDS)},
        optional={name: PLAUSIBLE.get(name, anything) | anything for name in SESSION_FIELDS}
        | {"text": anything},
    ).map(json.dumps)
    | st.just(json.dumps({"type": "input.text", "text": "One. Two. Three."}))
    | anything.map(json.dumps)
    | st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace").decode())
    | st.binary(max_size=60)
)
GOOD_NIGHT = "Good night."
DONE = {"type": "input.done"}
LAST = [DONE, CONFIGURED, {"type": "input.text", "text": GOOD_NIGHT}, DONE]
"""A session that is still there can be configured anew and speaks."""
ENDS = {1000, 1001, 1003, 1007, 1008, 1009}
"""How a conversation may end; 1011 is a fault of the gateway's."""


@fuzz(60, messages=st.lists(MESSAGES, max_size=8), is_configured=st.booleans())
def test_a_conversation_goes_on_or_ends_in_order(
    gateway: GatewayServer, messages: list[str | bytes], is_configured: bool
) -> None:
    url = gateway.url.replace("http", "ws") + "/v1/audio/speech/stream"
    with connect(url, max_size=None) as socket:
        with suppress(ConnectionClosed):
            for message in [*([CONFIGURED] if is_configured else []), *messages, *LAST]:
                socket.send(json.dumps(message) if isinstance(message, dict) else message)
            hear_out(socket)
            socket.send(json.dumps({"type": "session.close"}))
        while socket.close_code is None:
            with suppress(ConnectionClosed):
                socket.recv(PATIENCE_S)
    assert socket.close_code in ENDS, socket.close_reason


def hear_out(socket: ClientConnection) -> None:
    """Everything up to the end of the last sentence."""
    is_last = False
    while True:
        heard = socket.recv(PATIENCE_S)
        event = {} if isinstance(heard, bytes) else json.loads(heard)
        is_last = is_last or event.get("sentence_text") == GOOD_NIGHT
        if is_last and event.get("type") == "session.done":
            return
