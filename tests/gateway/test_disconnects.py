"""A caller who hangs up stops what was begun for them, however they leave and whatever they waited for."""

from __future__ import annotations

import gc
import json
import random
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import numpy as np
import pytest
from uvicorn.protocols.http.flow_control import FlowControl

from fakes.triton_server import (
    Call,
    FakeTriton,
    RefusalError,
    Response,
    Shelf,
    chunk,
    error_text,
    final,
    hears,
    says,
    triton,
)
from gateway_server import GatewayServer, running_gateway, settings
from qwen3_tts_client import AsyncSpeechStream
from qwen3_tts_gateway import disconnects
from qwen3_tts_gateway.observing import IN_FLIGHT
from qwen3_tts_gateway.sound import SoundEncoder
from qwen3_tts_gateway.speech import Utterance
from real_server import wait_until

MODELS = ("qwen3_tts_custom_voice", "qwen3_tts_voice_design", "qwen3_tts_base", "create_voice", "voices")
PATIENCE_S = 10.0
LONG_S = 3 * PATIENCE_S  # a script that waits so long was never told that its caller had gone
HUGE = np.zeros(1 << 16, np.float32)  # 128 KiB as PCM: more than what waits on its way
LOUD = [np.full(HUGE.shape, level, np.float32) for level in (0.25, 0.5, 0.75)]

SPEECH = "/v1/audio/speech"
BATCH = "/v1/audio/speech/batch"
ORIGINAL = "/api/v1"

RYAN = {"input": "Hello.", "voice": "ryan"}
RYAN_ORIGINALLY = {"text": "Hello.", "speaker": "ryan"}
STORYTELLER = {"text": "Hello.", "instruct": "a warm old storyteller"}
RECORDING = {"text": "Hello.", "ref_audio_base64": "UklGRg==", "x_vector_only_mode": True}
PROMPT = {"text": "Hello.", "prompt_id": "0" * 32}
PROMPT_AS_SAVED = {
    "name": f"prompt-{PROMPT['prompt_id']}",
    "created_at": "2025-01-31T12:00:00Z",
    "model": "tiny",
    "x_vector_only": True,
    "ref_text": "",
    "metadata": {},
}

STREAMED = {
    "bytes": (SPEECH, RYAN | {"response_format": "pcm"}),
    "SSE": (SPEECH, RYAN | {"response_format": "pcm", "stream_format": "sse"}),
    "original, speaker": (f"{ORIGINAL}/custom-voice/generate-stream", RYAN_ORIGINALLY),
    "original, design": (f"{ORIGINAL}/voice-design/generate-stream", STORYTELLER),
    "original, clone": (f"{ORIGINAL}/base/clone-stream", RECORDING),
}
BUFFERED = {
    "a file": (SPEECH, RYAN | {"response_format": "wav"}),
    "original, a file": (f"{ORIGINAL}/custom-voice/generate", RYAN_ORIGINALLY),
    "original, base64": (f"{ORIGINAL}/voice-design/generate", STORYTELLER | {"response_format": "base64"}),
    "original, a clone": (f"{ORIGINAL}/base/clone", RECORDING),
    "original, a prompt": (f"{ORIGINAL}/base/generate-with-prompt", PROMPT),
}
BATCHES = {
    "batch": (BATCH, {"voice": "ryan", "items": [{"input": text} for text in "abc"]}),
    "original, batch of speakers": (
        f"{ORIGINAL}/custom-voice/batch",
        {"texts": ["a", "b", "c"], "speakers": ["ryan"] * 3},
    ),
    "original, batch of designs": (
        f"{ORIGINAL}/voice-design/batch",
        {"texts": ["a", "b", "c"], "instructs": ["old"] * 3, "response_format": "zip"},
    ),
}
LISTENING = {
    "speech": (SPEECH, {"input": "Hello.", "ref_audio": "UklGRg==", "x_vector_only_mode": True}),
    "original, a clone": (f"{ORIGINAL}/base/clone", RECORDING),
    "original, a streamed clone": (f"{ORIGINAL}/base/clone-stream", RECORDING),
    "original, a new prompt": (f"{ORIGINAL}/base/create-prompt", RECORDING),
}

ASKING = {
    "for a voice by name": (SPEECH, RYAN),
    "for a batch's voices": BATCHES["batch"],
    "for a prompt": BUFFERED["original, a prompt"],
    "for all voices": ("/v1/audio/voices", None),
    "for one voice": ("/v1/audio/voices/grandpa", None),
    "for the speakers": (f"{ORIGINAL}/custom-voice/speakers", None),
}

LEAVING = pytest.mark.parametrize("leave", ["hang_up", "reset"])


@pytest.fixture(scope="module")
def shared_triton() -> Iterator[FakeTriton]:
    with triton(says(3), models=MODELS) as fake:
        yield fake


@pytest.fixture(scope="module")
def gateway(shared_triton: FakeTriton) -> Iterator[GatewayServer]:
    """A gateway with small socket buffers: whoever does not read stops it at once."""
    with running_gateway(settings(triton_grpc_port=shared_triton.port), send_buffer_bytes=4096) as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def num_tasks_at_rest(gateway: GatewayServer) -> int:
    return gateway.num_tasks()


@pytest.fixture
def fake_triton(shared_triton: FakeTriton, gateway: GatewayServer) -> FakeTriton:
    """Triton as if nobody had called it yet; it knows one prompt."""
    shared_triton.script = says(3)
    shared_triton.calls.clear()
    shared_triton.questions.clear()
    shared_triton.cancelled.clear()
    shared_triton.answers = {"create_voice": hears, "voices": Shelf()}
    shared_triton.answers["voices"].voices[PROMPT_AS_SAVED["name"]] = PROMPT_AS_SAVED
    gateway.gateway.tts._finder.forget()  # what the gateway heard before
    return shared_triton


@pytest.fixture(scope="module")
def http(gateway: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, timeout=PATIENCE_S) as client:
        yield client


class Caller:
    """Sends one request over a socket of its own, reads as much of the answer as it likes, and leaves.

    Args:
        body: as JSON; None: it is a GET.
        form: in place of a body, as httpx takes it.
    """

    def __init__(self, gateway: GatewayServer, path: str, body: Any = None, **form: Any) -> None:
        method = "POST" if form or body is not None else "GET"
        request = httpx.Request(method, gateway.url + path, json=body, **form)
        request.read()
        lines = [f"{name}: {value}" for name, value in request.headers.items()]
        self._socket = unhurried_socket(gateway)
        head = "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""])
        self._socket.sendall(head.encode() + request.content)

    def read(self, num_bytes: int) -> bytes:
        """So many bytes of the answer, head and all, or fewer if it ends."""
        answer = b""
        while len(answer) < num_bytes and (part := self._socket.recv(min(4096, num_bytes - len(answer)))):
            answer += part
        return answer

    def read_until(self, words: bytes) -> bytes:
        answer = b""
        while words not in answer:
            part = self._socket.recv(4096)
            assert part, f"no {words!r} in {answer!r}"
            answer += part
        return answer

    def hang_up(self) -> None:
        """With a FIN, as browsers do; a RST, too, where something was left unread."""
        self._socket.close()

    def reset(self) -> None:
        """With a RST, as those who crash."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()


def unhurried_socket(gateway: GatewayServer) -> socket.socket:
    """Connected; little fits in what it was sent and has not read."""
    url = urlsplit(gateway.url)
    fresh = socket.socket()
    fresh.settimeout(PATIENCE_S)
    fresh.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    fresh.connect((url.hostname, url.port))
    return fresh


def silent(call: Call) -> Iterator[Response]:
    call.wait_until_gone(LONG_S)
    yield from ()


def falls_silent(call: Call) -> Iterator[Response]:
    yield chunk(0)
    call.wait_until_gone(LONG_S)


def endless(call: Call) -> Iterator[Response]:
    index = 0
    while not call.wait_until_gone(0):
        yield chunk(index, samples=HUGE)
        index += 1


def speaks_up(call: Call) -> Iterator[Response]:
    for index, samples in enumerate(LOUD):
        yield chunk(index, samples=samples, finish_reason="stop" if index == 2 else "")
    yield final()


def never_answers(call: Call) -> dict[str, Any]:
    call.wait_until_gone(LONG_S)
    return {}


def is_called(fake: FakeTriton, num_calls: int = 1) -> None:
    wait_until(lambda: len(fake.calls) >= num_calls, f"Triton is called {num_calls} times")


def everyone_is_gone(calls: list[Call]) -> bool:
    return all(call.wait_until_gone(PATIENCE_S) for call in calls)


def cases(table: dict[str, tuple[str, Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("path", "body"), table.values(), ids=table.keys())


@LEAVING
@cases(STREAMED | BUFFERED)
def test_who_leaves_before_the_first_chunk_is_no_longer_spoken_to(
    gateway: GatewayServer, fake_triton: FakeTriton, path: str, body: Any, leave: str
) -> None:
    fake_triton.script = silent
    caller = Caller(gateway, path, body)
    is_called(fake_triton)
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.calls)
    assert fake_triton.cancelled.wait(PATIENCE_S)


@LEAVING
@cases(STREAMED)
def test_who_leaves_between_two_chunks_is_no_longer_spoken_to(
    gateway: GatewayServer, fake_triton: FakeTriton, path: str, body: Any, leave: str
) -> None:
    fake_triton.script = falls_silent
    caller = Caller(gateway, path, body)
    assert caller.read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.calls)
    assert fake_triton.cancelled.wait(PATIENCE_S)


@LEAVING
@cases(STREAMED)
def test_who_never_reads_and_then_leaves_is_no_longer_spoken_to(
    gateway: GatewayServer, fake_triton: FakeTriton, path: str, body: Any, leave: str
) -> None:
    fake_triton.script = endless
    caller = Caller(gateway, path, body)
    wait_until(lambda: num_busy_networks() == 1, "the network takes no more")
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.calls)
    assert fake_triton.cancelled.wait(PATIENCE_S)


@cases(STREAMED)
def test_who_never_reads_and_never_leaves_is_no_longer_spoken_to(
    gateway: GatewayServer, fake_triton: FakeTriton, monkeypatch: pytest.MonkeyPatch, path: str, body: Any
) -> None:
    monkeypatch.setattr(disconnects, "SEND_TIMEOUT_S", 0.1)
    fake_triton.script = endless
    caller = Caller(gateway, path, body)
    is_called(fake_triton)
    assert everyone_is_gone(fake_triton.calls)
    assert fake_triton.cancelled.wait(PATIENCE_S)
    caller.hang_up()


@LEAVING
@cases(BUFFERED)
def test_who_waits_for_a_file_and_leaves_midway_is_no_longer_spoken_to(
    gateway: GatewayServer, fake_triton: FakeTriton, path: str, body: Any, leave: str
) -> None:
    fake_triton.script = falls_silent
    caller = Caller(gateway, path, body)
    is_called(fake_triton)
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.calls)
    assert fake_triton.cancelled.wait(PATIENCE_S)


@LEAVING
@cases(BATCHES)
def test_who_leaves_a_batch_leaves_all_of_its_items(
    gateway: GatewayServer, fake_triton: FakeTriton, path: str, body: Any, leave: str
) -> None:
    fake_triton.script = falls_silent
    caller = Caller(gateway, path, body)
    is_called(fake_triton, 3)
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.calls)
    assert len(fake_triton.calls) == 3


@LEAVING
@cases(LISTENING)
def test_who_leaves_while_a_recording_is_listened_to_is_not_waited_for(
    gateway: GatewayServer, fake_triton: FakeTriton, path: str, body: Any, leave: str
) -> None:
    fake_triton.answers["create_voice"] = never_answers
    caller = Caller(gateway, path, body)
    wait_until(lambda: bool(fake_triton.questions), "the recording is listened to")
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.questions)
    assert fake_triton.calls == []


@LEAVING
def test_who_leaves_while_their_voice_is_being_saved_is_not_waited_for(
    gateway: GatewayServer, fake_triton: FakeTriton, leave: str
) -> None:
    fake_triton.answers["create_voice"] = never_answers
    files = {"audio_sample": ("me.wav", b"RIFF")}
    caller = Caller(gateway, "/v1/audio/voices", data={"name": "me", "consent": "yes"}, files=files)
    wait_until(lambda: bool(fake_triton.questions), "the recording is listened to")
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.questions)
    assert "me" not in fake_triton.answers["voices"].voices


@LEAVING
@cases(ASKING)
def test_who_leaves_while_a_question_is_asked_is_not_waited_for(
    gateway: GatewayServer, fake_triton: FakeTriton, path: str, body: Any, leave: str
) -> None:
    fake_triton.answers["voices"] = never_answers
    caller = Caller(gateway, path, body)
    wait_until(lambda: bool(fake_triton.questions), "the voices model is asked")
    getattr(caller, leave)()
    assert everyone_is_gone(fake_triton.questions)
    assert fake_triton.calls == []


def test_two_hundred_who_leave_anywhere_leave_nothing_behind(
    gateway: GatewayServer, fake_triton: FakeTriton, footprint: Footprint
) -> None:
    chance = random.Random(1)
    fake_triton.script = speaks_up
    routes = [*STREAMED.values(), *BUFFERED.values(), *BATCHES.values()]

    def come_and_leave(number: int, num_bytes: int) -> None:
        caller = Caller(gateway, *routes[number % len(routes)])
        caller.read(num_bytes)
        caller.reset() if number % 3 else caller.hang_up()

    with ThreadPoolExecutor(4) as callers:
        visits = [callers.submit(come_and_leave, n, chance.choice((0, 1, 5_000, 90_000))) for n in range(200)]
    for visit in visits:
        visit.result()
    footprint.assert_nothing_remains()


def test_sixty_four_slow_readers_get_every_byte_and_leave_nothing_behind(
    gateway: GatewayServer, fake_triton: FakeTriton, footprint: Footprint
) -> None:
    fake_triton.script = speaks_up
    with ExitStack() as stack:
        readers = reading = [stack.enter_context(closing(SlowReader(gateway))) for _ in range(64)]
        wait_until(lambda: num_busy_networks() == len(readers), "everybody's network takes no more")
        while reading:
            reading = [reader for reader in reading if not reader.is_done_after_a_little_more()]
    spoken = (np.concatenate(LOUD) * 2**15).astype("<i2").tobytes()
    assert all(reader.body == spoken for reader in readers)
    footprint.assert_nothing_remains()


@pytest.mark.parametrize("breaks_off", ["refused", "mute", "told", "buggy"])
@pytest.mark.parametrize("response_format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
def test_what_breaks_off_midway_never_looks_complete(
    http: httpx.Client, fake_triton: FakeTriton, breaks_off: str, response_format: str, monkeypatch: Any
) -> None:
    fake_triton.script = breaking_off(breaks_off)
    if breaks_off == "buggy":
        monkeypatch.setattr(SoundEncoder, "finish", lambda self: 1 / 0)
    body = RYAN | {"response_format": response_format, "stream": True}
    with http.stream("POST", SPEECH, json=body) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            response.read()


@pytest.mark.parametrize("breaks_off", ["refused", "mute", "told"])
def test_events_that_break_off_midway_end_with_an_error(
    http: httpx.Client, fake_triton: FakeTriton, breaks_off: str
) -> None:
    fake_triton.script = breaking_off(breaks_off)
    path, body = STREAMED["SSE"]
    events = events_of(http.post(path, json=body).text)
    assert [name for name, _ in events] == ["speech.audio.delta"] * 2 + ["speech.audio.error"]
    assert json.loads(events[-1][1])["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("breaks_off", ["refused", "mute", "told"])
def test_events_of_the_original_api_that_break_off_midway_end_with_an_error(
    http: httpx.Client, fake_triton: FakeTriton, breaks_off: str
) -> None:
    fake_triton.script = breaking_off(breaks_off)
    path, body = STREAMED["original, speaker"]
    events = events_of(http.post(path, json=body).text)
    assert [name for name, _ in events] == ["metadata", "audio", "audio", "error"]


@cases(BUFFERED)
def test_a_file_that_breaks_off_midway_is_an_error_and_no_file(
    http: httpx.Client, fake_triton: FakeTriton, path: str, body: Any
) -> None:
    fake_triton.script = breaking_off("refused")
    response = http.post(path, json=body)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/json"


class SlowReader:
    """Has asked for speech, and is in no hurry to hear it."""

    def __init__(self, gateway: GatewayServer) -> None:
        self.body = b""
        self._connection = HTTPConnection(urlsplit(gateway.url).netloc)
        self._connection.sock = unhurried_socket(gateway)
        body = json.dumps(STREAMED["bytes"][1])
        self._connection.request("POST", SPEECH, body, {"Content-Type": "application/json"})
        self._response: HTTPResponse | None = None

    def is_done_after_a_little_more(self) -> bool:
        if self._response is None:
            self._response = self._connection.getresponse()
        part = self._response.read(1 << 16)
        self.body += part
        return not part

    def close(self) -> None:
        self._connection.close()
        if self._response is not None:
            self._response.close()


@pytest.fixture
def footprint(
    gateway: GatewayServer, http: httpx.Client, fake_triton: FakeTriton, num_tasks_at_rest: int
) -> Footprint:
    for path, body in (STREAMED["bytes"], STREAMED["original, clone"]):  # what is made once is not counted
        assert http.post(path, json=body).status_code == 200
    footprint = Footprint(gateway, fake_triton, num_tasks_at_rest)
    footprint.wait_until_at_rest()
    footprint.num_files = num_open_files()
    return footprint


@dataclass
class Footprint:
    """What a gateway holds for its callers, which is nothing once they are gone."""

    gateway: GatewayServer
    fake: FakeTriton
    num_tasks: int
    num_files: int = 0

    def wait_until_at_rest(self) -> None:
        assert everyone_is_gone(self.fake.calls)
        wait_until(lambda: IN_FLIGHT._value.get() == 0, "nothing is being answered")
        wait_until(lambda: self.gateway.num_tasks() == self.num_tasks, "every task has ended")
        wait_until(lambda: alive() == [], f"no {[kind.__name__ for kind in KEPT_PER_REQUEST]} is kept")

    def assert_nothing_remains(self) -> None:
        self.wait_until_at_rest()
        # Fewer, where an idle connection was closed meanwhile.
        wait_until(lambda: num_open_files() <= self.num_files, "every file and socket is closed")


KEPT_PER_REQUEST = (AsyncSpeechStream, SoundEncoder, Utterance)


def alive() -> list[Any]:
    gc.collect()
    # By type: isinstance asks the things themselves, and some of torch's answer with a warning.
    return [thing for thing in gc.get_objects() if issubclass(type(thing), KEPT_PER_REQUEST)]


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def num_busy_networks() -> int:
    """Connections of the gateway whose caller takes no more for now."""
    return sum(thing.write_paused for thing in gc.get_objects() if type(thing) is FlowControl)


def breaking_off(how: str) -> Any:
    def script(call: Call) -> Iterator[Response]:
        yield chunk(0)
        yield chunk(1)
        if how == "refused":
            raise RefusalError(grpc.StatusCode.INTERNAL, "the engine is broken")
        if how == "told":
            yield error_text("the engine is broken")
        if how == "buggy":
            yield chunk(2, finish_reason="stop")
            yield final()

    return script


def events_of(text: str) -> list[tuple[str, str]]:
    lines = [block.split("\n") for block in text.strip().split("\n\n")]
    return [(name.removeprefix("event: "), data.removeprefix("data: ")) for name, data in lines]
