"""The applications of docs/cookbook.md: what each of them sends, and what it reads of the answers.

Recorded from wyoming_openai 0.8.0, livekit-plugins-openai and livekit-plugins-baseten 1.8.9 and pipecat-ai
1.14.0; read in the sources of open-webui 0.12.4 and SillyTavern 1.12.6. None of them is needed here.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import wave
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from fakes.triton_server import PATIENCE_S, Call, FakeTriton, RefusalError, Script, Shelf, chunk, final
from gateway_server import GatewayServer, running_gateway, settings
from listening import decoded
from qwen3_tts_gateway.settings import OPENAI_VOICES

KEY = "sk-application"
NUM_SAMPLES = 3 * 1920  # of the fake Triton's utterance

# What the openai package sends with every request for speech.
OPENAI_HEADERS = {
    "Accept": "application/octet-stream",
    "Authorization": "Bearer none-needed",
    "User-Agent": "AsyncOpenAI/Python 3.54.0",
    "X-Stainless-Async": "async:asyncio",
    "X-Stainless-Lang": "python",
    "X-Stainless-Raw-Response": "stream",
    "X-Stainless-Retry-Count": "0",
}


@pytest.fixture
def keyed(fake_triton: FakeTriton) -> Iterator[httpx.Client]:
    """To a gateway where keys are configured; what is sent has none unless it says so."""
    locked = settings(triton_grpc_port=fake_triton.port, api_keys=(KEY,))
    with running_gateway(locked) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as client:
        yield client


@pytest.fixture
def go_on(fake_triton: FakeTriton) -> threading.Event:
    """Triton says one chunk, and the rest of them when this is set."""
    event = threading.Event()
    fake_triton.script = pausing_after_one(event)
    return event


@pytest.fixture
def talkative(fake_triton: FakeTriton) -> FakeTriton:
    """A Triton that has more to say than anybody wants to hear."""

    def script(call: Call) -> Iterator[Any]:
        index = 0
        while not call.wait_until_gone(0.02):
            yield chunk(index, samples=np.zeros(1920, np.float32))
            index += 1

    fake_triton.script = script
    return fake_triton


def pausing_after_one(go_on: threading.Event) -> Script:
    def script(call: Call) -> Iterator[Any]:
        yield chunk(0, samples=np.zeros(24_000, np.float32))
        if not go_on.wait(PATIENCE_S):
            raise RefusalError(grpc.StatusCode.INTERNAL, "nobody heard a thing")
        yield chunk(1, finish_reason="stop")
        yield final()

    return script


# --- Open WebUI ---------------------------------------------------------------------------------------------

AIOHTTP = {"User-Agent": "Python/3.12 aiohttp/3.14.5", "Accept": "*/*", "Accept-Encoding": "gzip, deflate"}


def open_webui_speaks(http: httpx.Client, key: str = "", **params: Any) -> httpx.Response:
    """What the page asks for, with the model, and with what AUDIO_TTS_OPENAI_PARAMS says."""
    body = {"input": "Hello there.", "voice": "ash", "model": "qwen3-tts", **params}
    headers = {**AIOHTTP, "Authorization": f"Bearer {key}"}
    return http.post("/v1/audio/speech", json=body, headers=headers)


def test_open_webui_lists_models_and_voices_without_the_key_it_was_given(keyed: httpx.Client) -> None:
    models = keyed.get("/v1/audio/models", headers=AIOHTTP).raise_for_status().json().get("models", [])
    assert {"qwen3-tts", "tts-1"} <= {model["id"] for model in models}
    listed = keyed.get("/v1/audio/voices", headers=AIOHTTP).raise_for_status().json().get("voices", [])
    voices = {voice["id"]: voice["name"] for voice in listed}
    assert (voices["Ryan"], voices["ash"]) == ("Ryan", "ash")


def test_open_webui_hears_mp3_without_having_asked_for_it(keyed: httpx.Client) -> None:
    answer = open_webui_speaks(keyed, KEY).raise_for_status()
    assert answer.headers["content-type"] == "audio/mpeg"
    assert len(decoded(answer.content, "mp3")) >= NUM_SAMPLES


def test_open_webuis_additional_parameters_reach_the_engine(
    http: httpx.Client, fake_triton: FakeTriton
) -> None:
    params = {"language": "English", "instructions": "Speak calmly.", "response_format": "opus"}
    answer = open_webui_speaks(http, "none-needed", **params).raise_for_status()
    [call] = fake_triton.calls
    assert [call.string(name) for name in ("speaker", "language", "instruct")] == [
        *("ryan", "English", "Speak calmly.")
    ]
    assert len(decoded(answer.content, "opus")) == NUM_SAMPLES


@pytest.mark.parametrize(
    ("key", "params", "status", "told"),
    [
        (KEY, {"input": " "}, 400, "nothing to say"),
        (KEY, {"response_format": "midi"}, 400, "must be one of mp3"),
        ("sk-nobody", {}, 401, "key"),
    ],
    ids=str,
)
def test_open_webui_reads_what_went_wrong(
    keyed: httpx.Client, key: str, params: dict[str, Any], status: int, told: str
) -> None:
    answer = open_webui_speaks(keyed, key, **params)
    assert answer.status_code == status
    assert told in answer.json()["error"]["message"]


# --- SillyTavern --------------------------------------------------------------------------------------------


def silly_tavern_speaks(endpoint: str, key: str = "") -> tuple[int, bytes]:
    """By http.client, which sends the `Bearer ` of an empty key as it is; httpx would refuse to."""
    url = urlsplit(endpoint)
    assert url.hostname
    body = {"input": "Hello there.", "response_format": "mp3", "voice": "ash", "speed": 1, "model": "tts-1"}
    headers = {
        "Content-Type": "application/json",
        "Authorization": f"Bearer {key}",
        "Accept": "*/*",
        "User-Agent": "node-fetch/1.0 (+https://github.com/bitinn/node-fetch)",
        "Accept-Encoding": "gzip,deflate",
        "Connection": "close",
    }
    with closing(HTTPConnection(url.hostname, url.port, timeout=PATIENCE_S)) as connection:
        connection.request("POST", url.path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_silly_tavern_speaks_without_a_key(gateway: GatewayServer) -> None:
    status, audio = silly_tavern_speaks(f"{gateway.url}/v1/audio/speech")
    assert status == 200
    assert len(decoded(audio, "mp3")) >= NUM_SAMPLES


def test_silly_tavern_needs_a_key_where_there_are_any(keyed: httpx.Client) -> None:
    endpoint = str(keyed.base_url.join("/v1/audio/speech"))
    status, told = silly_tavern_speaks(endpoint)
    assert status == 401
    assert "key" in json.loads(told)["error"]["message"]
    assert silly_tavern_speaks(endpoint, KEY)[0] == 200


# --- Home Assistant, by wyoming_openai ----------------------------------------------------------------------

WYOMING_HEADERS = {name: value for name, value in OPENAI_HEADERS.items() if name != "Authorization"}
WYOMING_PIECE = 2048  # bytes that it reads at a time
WYOMING_BODY = {"input": "Hello there.", "model": "qwen3-tts", "voice": "Ryan"}


def test_wyoming_openai_finds_out_whose_voices_to_read_and_reads_them(keyed: httpx.Client) -> None:
    assert keyed.get("/v1/readyz").is_error, "it would take us for LocalAI"
    assert keyed.get("/health").text != "OK", "it would take us for Speaches"
    assert keyed.get("/v1/test").raise_for_status().json()["status"] == "ok"
    listed = keyed.get("/v1/audio/voices").raise_for_status().json()["voices"]
    names = [voice.get("id") or voice.get("name") for voice in listed]
    assert {"Ryan", "ash"} <= {*names}


def test_wyoming_openai_reads_the_voices_of_a_model_as_speaches_has_them(keyed: httpx.Client) -> None:
    answer = keyed.get("/v1/models/qwen3-tts").raise_for_status().json()
    assert {"Ryan", "ash"} <= {voice["name"] for voice in answer["voices"]}


@pytest.mark.parametrize("extra", [{}, {"stream": True}], ids=str)
def test_wyoming_openai_finds_the_header_of_a_wav_in_the_first_piece(
    http: httpx.Client, extra: dict[str, Any]
) -> None:
    body = {**WYOMING_BODY, "response_format": "wav", **extra}
    with http.stream("POST", "/v1/audio/speech", json=body, headers=WYOMING_HEADERS) as answer:
        first, *rest = answer.iter_bytes(WYOMING_PIECE)
    with wave.open(io.BytesIO(first)) as header:
        assert (header.getframerate(), header.getnchannels(), header.getsampwidth()) == (24_000, 1, 2)
    assert len(first) + sum(map(len, rest)) == 44 + 2 * NUM_SAMPLES


def test_wyoming_openai_hears_the_beginning_first_if_it_asks_for_pcm(
    http: httpx.Client, go_on: threading.Event
) -> None:
    body = {**WYOMING_BODY, "response_format": "pcm"}
    with http.stream("POST", "/v1/audio/speech", json=body, headers=WYOMING_HEADERS) as answer:
        assert answer.headers["content-type"] == "audio/pcm"
        pieces = answer.iter_bytes(WYOMING_PIECE)
        assert next(pieces)
        go_on.set()
        assert sum(map(len, pieces)) == 2 * (24_000 + 1920) - WYOMING_PIECE


# --- LiveKit, OpenAI's plugin -------------------------------------------------------------------------------

# What LiveKit decodes; anything else it would take for audio/<response_format>.
DECODABLE = {"audio/mpeg", "audio/aac", "audio/flac", "audio/wav", "audio/ogg", "audio/pcm"}


def livekit_asks(model: str, response_format: str) -> dict[str, Any]:
    """It wants events from every model but two of OpenAI's."""
    return {
        "model": model,
        "input": "Hello there.",
        "voice": "ash",
        "response_format": response_format,
        "speed": 1.0,
        "instructions": "Speak calmly.",
        "stream_format": "audio" if model in ("tts-1", "tts-1-hd") else "sse",
    }


def pushed_by_livekit(answer: httpx.Response) -> tuple[bytes, dict[str, int]]:
    """The audio and the usage, from lines as the plugin reads them: it knows no names of events."""
    audio, usage = b"", {}
    for line in answer.iter_lines():
        if not line.startswith("data: "):
            continue
        event = json.loads(line[6:])
        if event["type"] == "speech.audio.delta":
            audio += base64.b64decode(event.get("delta", "") or event.get("audio", ""))
        elif event["type"] == "speech.audio.done":
            usage = event["usage"]
    return audio, usage


@pytest.mark.parametrize("form", ["mp3", "pcm"])
def test_livekit_hears_events(http: httpx.Client, form: str) -> None:
    asked = livekit_asks("qwen3-tts", form)
    with http.stream("POST", "/v1/audio/speech", json=asked, headers=OPENAI_HEADERS) as answer:
        assert answer.headers["content-type"].split(";")[0] == "text/event-stream"
        audio, usage = pushed_by_livekit(answer)
    assert len(decoded(audio, form)) >= NUM_SAMPLES
    assert (usage["input_tokens"], usage["output_tokens"]) == (len("Hello there."), 3)


@pytest.mark.parametrize("form", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_livekit_hears_bytes_of_a_kind_that_it_can_decode(http: httpx.Client, form: str) -> None:
    asked = livekit_asks("tts-1", form)
    answer = http.post("/v1/audio/speech", json=asked, headers=OPENAI_HEADERS).raise_for_status()
    assert answer.headers["content-type"].split(";")[0].strip().lower() in DECODABLE
    assert len(decoded(answer.content, form)) >= NUM_SAMPLES


def test_livekit_speaks_on_the_connection_that_it_has_warmed(gateway: GatewayServer) -> None:
    """Whatever the answer to the warming is: what counts is that the connection stays."""
    url = urlsplit(gateway.url)
    assert url.hostname
    with closing(HTTPConnection(url.hostname, url.port, timeout=PATIENCE_S)) as connection:
        connection.request("GET", "/v1/", headers={**OPENAI_HEADERS, "Accept": "application/json"})
        connection.getresponse().read()
        socket = connection.sock
        assert socket is not None, "the gateway has closed it"
        headers = {**OPENAI_HEADERS, "Content-Type": "application/json"}
        connection.request("POST", "/v1/audio/speech", json.dumps(livekit_asks("qwen3-tts", "mp3")), headers)
        assert connection.getresponse().status == 200
        assert connection.sock is socket


# --- LiveKit, Baseten's plugin ------------------------------------------------------------------------------

CONFIG = {
    "type": "session.config",
    "task_type": "CustomVoice",
    "response_format": "pcm",
    "stream_audio": True,
    "speed": 1.0,
    "voice": "ryan",
    "language": "Auto",
}


class BasetenPlugin:
    """Its end of the socket, which it keeps between the turns of a conversation."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket

    def send(self, kind: str, **fields: Any) -> None:
        self._socket.send(json.dumps({"type": kind, **fields}))

    def configure(self, **changes: Any) -> None:
        self._socket.send(json.dumps(CONFIG | changes))

    def speak(self, *texts: str) -> tuple[bytes, list[dict[str, Any]]]:
        """One turn: the audio, and the events up to `session.done`."""
        for text in texts:
            self.send("input.text", text=text)
        self.send("input.done")
        audio, events = b"", [{"type": ""}]
        while events[-1]["type"] != "session.done":
            message = self._socket.recv(PATIENCE_S)
            if isinstance(message, bytes):
                audio += message
            else:
                events.append(json.loads(message))
                assert events[-1]["type"] != "error", events[-1]
        return audio, events[1:]

    def hear_a_piece(self) -> None:
        while not isinstance(self._socket.recv(PATIENCE_S), bytes):
            pass

    def hear_the_end(self) -> int:
        """The code that the server closes with."""
        with pytest.raises(ConnectionClosed) as closed:
            self._socket.recv(PATIENCE_S)
        assert closed.value.rcvd is not None
        return closed.value.rcvd.code


@contextmanager
def baseten_plugin(gateway_url: httpx.URL) -> Iterator[BasetenPlugin]:
    url = f"ws://{gateway_url.host}:{gateway_url.port}/v1/audio/speech/stream"
    headers = {"Authorization": f"Api-Key {KEY}"}
    with connect(url, additional_headers=headers, compression=None) as socket:
        yield BasetenPlugin(socket)


@pytest.fixture
def plugin(keyed: httpx.Client) -> Iterator[BasetenPlugin]:
    with baseten_plugin(keyed.base_url) as plugin:
        yield plugin


def test_the_plugin_for_baseten_hears_a_turn_word_by_word(plugin: BasetenPlugin) -> None:
    plugin.configure()
    audio, events = plugin.speak("Hello ", "there. ", "How ", "are ", "you?")
    assert {event["sample_rate"] for event in events if event["type"] == "audio.start"} == {24_000}
    assert [event["error"] for event in events if event["type"] == "audio.done"] == [False, False]
    assert len(audio) == 2 * 2 * NUM_SAMPLES


def test_the_plugin_for_baseten_keeps_its_socket_alive_and_speaks_again(plugin: BasetenPlugin) -> None:
    plugin.configure()
    plugin.speak("Hello there.")
    assert plugin.speak() == (b"", [{"type": "session.done", "utterance_index": 1, "total_sentences": 0}])
    audio, _ = plugin.speak("Hello again.")
    assert len(audio) == 2 * NUM_SAMPLES
    plugin.send("session.close")
    assert plugin.hear_the_end() == 1000


def test_the_plugin_for_baseten_closes_its_socket_on_who_interrupts(
    keyed: httpx.Client, talkative: FakeTriton
) -> None:
    with baseten_plugin(keyed.base_url) as plugin:
        plugin.configure()
        plugin.send("input.text", text="Once upon a time. ")
        plugin.hear_a_piece()
    assert talkative.cancelled.wait(PATIENCE_S)


def test_the_plugin_for_baseten_wants_saved_voices_by_default(
    plugin: BasetenPlugin, keyed: httpx.Client, fake_triton: FakeTriton
) -> None:
    form = {"name": "grandpa", "consent": "He said so."}
    recording = {"audio_sample": ("grandpa.wav", b"RIFF", "audio/wav")}
    headers = {"X-API-Key": KEY}
    keyed.post("/v1/audio/voices", data=form, files=recording, headers=headers).raise_for_status()
    plugin.configure(task_type="Base", voice="grandpa", initial_codec_chunk_frames=4)
    plugin.speak("Hello there.")
    assert fake_triton.calls[-1].request.model_name == "qwen3_tts_base"


def test_the_plugin_for_baseten_brings_a_recording_along(
    plugin: BasetenPlugin, fake_triton: FakeTriton
) -> None:
    recording = base64.b64encode(b"RIFF").decode()
    plugin.configure(task_type="Base", voice="me", ref_audio=recording, ref_text="What I say in it.")
    plugin.speak("Hello there.")
    assert fake_triton.calls[-1].request.model_name == "qwen3_tts_base"
    assert fake_triton.calls[-1].string("ref_text") == "What I say in it."


# --- Pipecat ------------------------------------------------------------------------------------------------

# All that its OpenAITTSService lets through.
PIPECAT_VOICES = (
    *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
    *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
)
PIPECAT_PIECE = 24_000  # bytes: half a second


def pipecat_asks(voice: str = "ash") -> dict[str, Any]:
    return {"model": "qwen3-tts", "input": "Hello there.", "voice": voice, "response_format": "pcm"}


def test_pipecat_hears_pcm_as_it_is_being_spoken(http: httpx.Client, go_on: threading.Event) -> None:
    with http.stream("POST", "/v1/audio/speech", json=pipecat_asks(), headers=OPENAI_HEADERS) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_bytes(PIPECAT_PIECE)
        assert len(next(pieces)) == PIPECAT_PIECE
        go_on.set()
        assert sum(map(len, pieces)) == 2 * (24_000 + 1920) - PIPECAT_PIECE


@pytest.mark.parametrize("voice", PIPECAT_VOICES)
def test_every_voice_that_pipecat_knows_is_one_of_the_checkpoints_speakers(
    http: httpx.Client, fake_triton: FakeTriton, voice: str
) -> None:
    fake_triton.answers["voices"] = Everyone()
    http.post("/v1/audio/speech", json=pipecat_asks(voice), headers=OPENAI_HEADERS).raise_for_status()
    [call] = fake_triton.calls
    assert call.request.model_name == "qwen3_tts_custom_voice"
    assert call.string("speaker") == OPENAI_VOICES[voice]


class Everyone(Shelf):
    """Knows the speakers of the published checkpoints."""

    def speakers(self, call: Call) -> dict[str, Any]:
        names = ("Vivian", "Serena", "Uncle_Fu", "Dylan", "Eric", "Ryan", "Aiden", "Ono_Anna", "Sohee")
        facts = {"description": "", "native_language": "English"}
        return {"speakers": [{"name": name, **facts} for name in names]}


def test_pipecat_interrupts_by_closing_the_connection(http: httpx.Client, talkative: FakeTriton) -> None:
    with http.stream("POST", "/v1/audio/speech", json=pipecat_asks(), headers=OPENAI_HEADERS) as answer:
        pieces = answer.iter_bytes(PIPECAT_PIECE)  # kept: an iterator that is forgotten closes the connection
        assert next(pieces)
        assert not talkative.cancelled.is_set()
    assert talkative.cancelled.wait(PATIENCE_S)


# --- telephony ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "media_type"), [("ulaw", "audio/PCMU"), ("alaw", "audio/PCMA")])
def test_a_telephone_hears_frames_of_20_ms_and_no_header(
    http: httpx.Client, form: str, media_type: str
) -> None:
    body = {"input": "Please hold.", "voice": "vivian", "response_format": form}
    with http.stream("POST", "/v1/audio/speech", json=body) as call:
        assert call.headers["content-type"] == media_type
        frames = list(call.iter_bytes(160))
    assert [len(frame) for frame in frames] == [160] * (NUM_SAMPLES // 3 // 160)


def test_a_switch_may_have_samples_at_8_khz(http: httpx.Client) -> None:
    body = {"input": "Please hold.", "voice": "vivian", "response_format": "pcm", "sample_rate": 8000}
    answer = http.post("/v1/audio/speech", json=body).raise_for_status()
    assert len(answer.content) == 2 * NUM_SAMPLES // 3


def test_a_telephone_on_the_websocket_is_told_its_rate(plugin: BasetenPlugin) -> None:
    plugin.configure(response_format="ulaw")
    audio, [start, *_] = plugin.speak("Please hold.")
    assert (start["format"], start["sample_rate"]) == ("ulaw", 8000)
    assert len(audio) == NUM_SAMPLES // 3


# --- a web page ---------------------------------------------------------------------------------------------

PAGE = "https://chat.example.com"


@pytest.mark.parametrize(("origin", "is_let_in"), [(PAGE, True), ("https://elsewhere.example.com", False)])
def test_a_page_is_let_in_if_its_origin_is_allowed(
    fake_triton: FakeTriton, origin: str, is_let_in: bool
) -> None:
    """A browser asks first, without a key, and reads nothing unless the answer names its origin."""
    allowing = settings(triton_grpc_port=fake_triton.port, api_keys=(KEY,), cors_origins=(PAGE,))
    with running_gateway(allowing) as gateway, httpx.Client(base_url=gateway.url, timeout=30) as browser:
        preflight = browser.options(
            "/v1/audio/speech",
            headers={
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )
        assert preflight.is_success == is_let_in
        headers = {"Origin": origin, "Authorization": f"Bearer {KEY}"}
        body = {"input": "Hello.", "voice": "ryan"}
        answers = [preflight, browser.post("/v1/audio/speech", json=body, headers=headers)]
    allowed = [answer.headers.get("access-control-allow-origin") for answer in answers]
    assert allowed == ([PAGE] * 2 if is_let_in else [None] * 2)
    if is_let_in:
        assert preflight.headers["access-control-allow-headers"] == "authorization,content-type"
