"""The original server's routes: its bodies, headers, events and errors, for clients written for it."""

from __future__ import annotations

import base64
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from callers import client_of
from fakes.triton_server import (
    PATIENCE_S,
    SPEAKERS,
    Call,
    FakeTriton,
    RefusalError,
    chunk,
    final,
    samples_of,
)
from gateway_server import GatewayServer, running_gateway, settings
from listening import SAMPLE_RATE, events_in, samples_in
from qwen3_tts_engine.launch.server import Server
from recordings import humming, written

RECORDING = written(humming(3.0, seed=4))
ENCODED = base64.b64encode(RECORDING).decode()
TRANSCRIPT = "This is what I sound like."
REFERENCE = {"ref_audio_base64": ENCODED, "ref_text": TRANSCRIPT}

# route -> what its body needs besides the text
VOICES: dict[str, dict[str, Any]] = {
    "custom-voice/generate": {"speaker": "Vivian"},
    "voice-design/generate": {"instruct": "an old storyteller"},
    "base/clone": REFERENCE,
}
STREAMS = {
    "custom-voice/generate-stream": VOICES["custom-voice/generate"],
    "voice-design/generate-stream": VOICES["voice-design/generate"],
    "base/clone-stream": VOICES["base/clone"],
}
BATCHES = {"custom-voice/batch": {"speakers": "Vivian"}, "voice-design/batch": {"instructs": "an old man"}}
BODIES_THAT_ARE_NONE = [
    (b"", "application/json", "the body is missing"),
    (b"[]", "application/json", "the body is not a JSON object"),
    (b'{"text": }', "application/json", "not valid JSON: Expecting value, at character 9"),
    (b"{}", None, "the body has no Content-Type"),
    (b"{}", "text/plain", "the body has the Content-Type 'text/plain'"),
    (b"\xff{}", "application/json", "it is not UTF-8 at byte 0"),
    (b"[" * 100_000, "application/json", "it is nested too deeply"),
    (b'{"text": ' + b"9" * 5_000 + b"}", "application/json", "a number has too many digits"),
]
SPOKEN = [*VOICES.items(), *STREAMS.items()]

# What the fake says: three chunks of one frame.
SAID = np.concatenate([samples_of(index) for index in range(3)])


def post(http: httpx.Client, route: str, **body: Any) -> httpx.Response:
    return http.post(f"/api/v1/{route}", json=body)


def refusal(response: httpx.Response) -> tuple[int, Any]:
    assert [*response.json()] == ["detail"]
    return response.status_code, response.json()["detail"]


def create_prompt(http: httpx.Client, **body: Any) -> str:
    response = post(http, "base/create-prompt", **body)
    assert (response.status_code, response.json()["message"]) == (200, "Prompt created successfully")
    return str(response.json()["prompt_id"])


# --- one utterance ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "voice"), VOICES.items())
def test_an_utterance_comes_as_a_wav_file_with_figures_in_its_headers(
    http: httpx.Client, route: str, voice: dict[str, Any]
) -> None:
    response = post(http, route, text="Hello.", **voice)
    assert response.headers["content-type"] == "audio/wav"
    assert response.headers["content-disposition"].startswith("attachment; filename=")
    np.testing.assert_array_equal(samples_in(response.content), (SAID * 32768).astype(np.int16))
    generation_s, duration_s, rtf = (
        float(response.headers[name]) for name in ("X-Generation-Time", "X-Audio-Duration", "X-RTF")
    )
    assert generation_s >= 0
    assert duration_s == 0.24
    assert rtf == pytest.approx(generation_s / duration_s, abs=0.01)
    assert response.headers["X-Cache-Status"] == "disabled"


@pytest.mark.parametrize(
    ("route", "voice", "name"),
    [
        ("custom-voice/generate", {"speaker": "Vivian"}, "custom_voice_Vivian.wav"),
        ("custom-voice/generate", {"speaker": "grandpa"}, "custom_voice_grandpa.wav"),
        ("custom-voice/generate", {"speaker": 'a"\r\nX: y/../é'}, "custom_voice_a_X_y_.._.wav"),
        ("custom-voice/generate", {"speaker": "a" * 100}, f"custom_voice_{'a' * 67}.wav"),
        ("voice-design/generate", {"instruct": "an old storyteller"}, "voice_design.wav"),
        ("base/clone", REFERENCE, "voice_clone.wav"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_file_is_called_as_it_was(http: httpx.Client, route: str, voice: dict[str, str], name: str) -> None:
    response = post(http, route, text="Hello.", **voice)
    assert response.headers["content-disposition"] == f"attachment; filename={name}"


@pytest.mark.parametrize(("route", "voice"), VOICES.items())
def test_an_utterance_comes_as_base64_in_json(http: httpx.Client, route: str, voice: dict[str, Any]) -> None:
    wav = post(http, route, text="Hello.", **voice).content
    answer = post(http, route, text="Hello.", response_format="base64", **voice).json()
    assert answer == {
        "audio": base64.b64encode(wav).decode(),
        "sample_rate": SAMPLE_RATE,
        "format": "wav",
    }


@pytest.mark.parametrize(
    ("route", "body", "model", "inputs"),
    [
        (
            "custom-voice/generate",
            {"speaker": "Vivian", "instruct": "angrily", "language": "English"},
            "qwen3_tts_custom_voice",
            {"speaker": "Vivian", "instruct": "angrily", "language": "English"},
        ),
        (
            "custom-voice/generate-stream",
            {"speaker": "Vivian"},
            "qwen3_tts_custom_voice",
            {"speaker": "Vivian", "language": "Auto"},
        ),
        (
            "voice-design/generate",
            {"instruct": "an old man", "language": "Chinese"},
            "qwen3_tts_voice_design",
            {"instruct": "an old man", "language": "Chinese"},
        ),
        ("base/clone", REFERENCE, "qwen3_tts_base", {"ref_text": TRANSCRIPT, "language": "Auto"}),
        ("base/clone-stream", REFERENCE, "qwen3_tts_base", {"ref_text": TRANSCRIPT, "language": "Auto"}),
    ],
)
def test_what_the_body_says_is_what_the_engine_is_asked(
    http: httpx.Client,
    fake_triton: FakeTriton,
    route: str,
    body: dict[str, Any],
    model: str,
    inputs: dict[str, str],
) -> None:
    assert post(http, route, text="Hello.", **body).status_code == 200
    [call] = fake_triton.calls
    assert call.request.model_name == model
    assert {name: call.string(name) for name in inputs} == inputs
    assert call.text == "Hello."


def test_an_empty_instruction_is_none(http: httpx.Client, fake_triton: FakeTriton) -> None:
    post(http, "custom-voice/generate", text="Hello.", speaker="Ryan", instruct="")
    assert "instruct" not in fake_triton.calls[0].inputs


def test_a_clone_by_its_timbre_alone_needs_no_transcript(http: httpx.Client, fake_triton: FakeTriton) -> None:
    body = {"ref_audio_base64": ENCODED, "x_vector_only_mode": True}
    assert post(http, "base/clone", text="Hello.", **body).status_code == 200
    [call] = fake_triton.calls
    assert "speaker_embedding" in call.inputs
    assert "ref_codes" not in call.inputs


def test_a_recording_may_come_as_a_data_url_in_either_field(
    http: httpx.Client, fake_triton: FakeTriton
) -> None:
    url = f"data:audio/wav;base64,{ENCODED}"
    for body in (
        {"ref_audio_url": url},
        {"ref_audio_base64": url},
        {"ref_audio_url": url, "ref_audio_base64": ""},
    ):
        assert post(http, "base/clone", text="Hello.", ref_text=TRANSCRIPT, **body).status_code == 200
    assert fake_triton.questions[0].inputs["ref_audio"][4:] == RECORDING
    assert len({call.inputs["speaker_embedding"] for call in fake_triton.calls}) == 1


def test_recordings_that_begin_alike_are_not_alike(http: httpx.Client, fake_triton: FakeTriton) -> None:
    other = bytearray(RECORDING)
    other[-1] ^= 1
    for recording in (RECORDING, bytes(other)):
        body = {"ref_audio_base64": base64.b64encode(recording).decode(), "ref_text": TRANSCRIPT}
        assert post(http, "base/clone", text="Hello.", **body).status_code == 200
    assert len({call.inputs["speaker_embedding"] for call in fake_triton.calls}) == 2


@pytest.mark.parametrize(("route", "voice"), VOICES.items())
def test_speed_makes_it_shorter(http: httpx.Client, route: str, voice: dict[str, Any]) -> None:
    response = post(http, route, text="Hello.", speed=2.0, **voice)
    assert len(samples_in(response.content)) / SAMPLE_RATE == pytest.approx(0.12, abs=0.02)
    assert float(response.headers["X-Audio-Duration"]) == 0.12


# --- events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("route", "voice"), STREAMS.items())
def test_a_stream_is_metadata_then_wav_files_then_done(
    http: httpx.Client, route: str, voice: dict[str, Any]
) -> None:
    response = post(http, route, text="Hello.", **voice)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-cache"
    metadata, *audio, done = events_in(response.text)
    assert (metadata.name, metadata.json) == ("metadata", {"sample_rate": SAMPLE_RATE})
    assert [event.name for event in audio] == ["audio"] * 3
    assert (done.name, done.data) == ("done", "complete")
    whole = post(http, route.replace("-stream", ""), text="Hello.", **voice).content
    heard = np.concatenate([samples_in(event.audio) for event in audio])
    np.testing.assert_array_equal(heard, samples_in(whole))


@pytest.mark.parametrize(("route", "voice"), STREAMS.items())
def test_the_first_sound_is_heard_before_the_rest_is_spoken(
    http: httpx.Client, fake_triton: FakeTriton, route: str, voice: dict[str, Any]
) -> None:
    go_on = threading.Event()

    def script(call: Call) -> Iterator[Any]:
        yield chunk(0)
        if not go_on.wait(PATIENCE_S):
            raise RefusalError(grpc.StatusCode.INTERNAL, "nobody heard a thing")
        yield final(chunk(1, finish_reason="stop"))

    fake_triton.script = script
    with http.stream("POST", f"/api/v1/{route}", json={"text": "Hello.", **voice}) as response:
        pieces = response.iter_text()
        first = events_in(next(pieces))
        assert [event.name for event in first] == ["metadata", "audio"]
        go_on.set()
        assert [event.name for event in events_in("".join(pieces))] == ["audio", "done"]


def test_a_stream_that_breaks_off_says_why(http: httpx.Client, fake_triton: FakeTriton) -> None:
    def script(call: Call) -> Iterator[Any]:
        yield chunk(0)
        raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of breath")

    fake_triton.script = script
    response = post(http, "custom-voice/generate-stream", text="Hello.", speaker="Ryan")
    events = events_in(response.text)
    assert [event.name for event in events] == ["metadata", "audio", "error"]
    assert events[-1].json == {"detail": "out of breath"}


# --- batches ------------------------------------------------------------------------------------------------


@pytest.fixture
def named_chunks(fake_triton: FakeTriton) -> None:
    """Speech tells texts apart: text "n" is n + 1 frames long."""

    def script(call: Call) -> Iterator[Any]:
        num_frames = int(call.text) + 1
        yield final(chunk(0, samples=samples_of(int(call.text), num_frames), finish_reason="stop"))

    fake_triton.script = script


def batch(route: str, num_texts: int, **more: Any) -> dict[str, Any]:
    """A body with so many texts: "0", "1", …"""
    lists = {name: [value] * num_texts for name, value in {"languages": "Auto", **BATCHES[route]}.items()}
    return {"texts": [str(number) for number in range(num_texts)], **lists, **more}


@pytest.mark.usefixtures("named_chunks")
@pytest.mark.parametrize("response_format", [{}, {"response_format": "base64"}, {"response_format": "wav"}])
@pytest.mark.parametrize("route", BATCHES)
def test_a_batch_comes_as_base64_in_the_order_of_its_texts(
    http: httpx.Client, route: str, response_format: dict[str, str]
) -> None:
    answer = post(http, route, **batch(route, 20), **response_format).json()
    assert (answer["sample_rate"], answer["format"]) == (SAMPLE_RATE, "wav")
    lengths = [len(samples_in(base64.b64decode(audio))) for audio in answer["audios"]]
    assert lengths == [1920 * (number + 1) for number in range(20)]


@pytest.mark.usefixtures("named_chunks")
@pytest.mark.parametrize("route", BATCHES)
def test_a_batch_comes_as_a_zip_of_wav_files(http: httpx.Client, route: str) -> None:
    response = post(http, route, **batch(route, 3, response_format="zip"))
    assert response.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["audio_0.wav", "audio_1.wav", "audio_2.wav"]
        assert [len(samples_in(archive.read(name))) for name in archive.namelist()] == [1920, 3840, 5760]


def test_every_text_of_a_batch_has_its_own_speaker_language_and_instruction(
    http: httpx.Client, fake_triton: FakeTriton
) -> None:
    body = {
        "texts": ["One.", "Two."],
        "languages": ["English", "Chinese"],
        "speakers": ["Ryan", "Vivian"],
        "instructs": [None, "angrily"],
    }
    assert post(http, "custom-voice/batch", **body).status_code == 200
    one, two = sorted(fake_triton.calls, key=lambda call: call.text)
    assert [call.string("speaker") for call in (one, two)] == ["Ryan", "Vivian"]
    assert [call.string("language") for call in (one, two)] == ["English", "Chinese"]
    assert "instruct" not in one.inputs
    assert two.string("instruct") == "angrily"


@pytest.mark.parametrize("instructs", [{}, {"instructs": None}, {"instructs": []}], ids=str)
def test_a_batch_needs_no_instructions(http: httpx.Client, instructs: dict[str, Any]) -> None:
    assert post(http, "custom-voice/batch", **batch("custom-voice/batch", 2), **instructs).status_code == 200


@pytest.mark.parametrize("name", ["languages", "speakers", "instructs"])
def test_a_batch_whose_lists_differ_in_length_is_refused(
    http: httpx.Client, fake_triton: FakeTriton, name: str
) -> None:
    body = batch("custom-voice/batch", 2, instructs=["angrily"] * 2)
    body[name] = body[name][:1]
    assert refusal(post(http, "custom-voice/batch", **body)) == (400, f"1 {name} for 2 texts")
    assert fake_triton.calls == []


def test_a_batch_is_no_longer_than_it_may_be(http: httpx.Client) -> None:
    status, told = refusal(post(http, "voice-design/batch", **batch("voice-design/batch", 33)))
    assert (status, told) == (400, "texts has 33 items; at most 32 are taken")


@pytest.mark.parametrize("route", BATCHES)
def test_a_batch_has_no_more_text_than_there_is_memory_for(
    http: httpx.Client, fake_triton: FakeTriton, route: str
) -> None:
    body = batch(route, 5) | {"texts": ["a" * 4000] * 5}
    status, told = refusal(post(http, route, **body))
    assert status == 400
    assert told.startswith("texts has 20000 characters of text; at most 16384 are spoken in one batch")
    assert fake_triton.calls == []


def test_a_batch_fails_with_the_first_of_its_texts_that_does(
    http: httpx.Client, fake_triton: FakeTriton
) -> None:
    fake_triton.script = refusing(grpc.StatusCode.RESOURCE_EXHAUSTED, "out of breath")
    refused = post(http, "custom-voice/batch", **batch("custom-voice/batch", 3))
    assert refusal(refused) == (503, "out of breath")


# --- prompts ------------------------------------------------------------------------------------------------


def test_a_prompt_speaks_with_the_voice_it_was_made_from(http: httpx.Client, fake_triton: FakeTriton) -> None:
    prompt_id = create_prompt(http, **REFERENCE)
    response = post(http, "base/generate-with-prompt", text="Hello.", prompt_id=prompt_id)
    assert len(samples_in(response.content)) == len(SAID)
    assert response.headers["content-disposition"] == "attachment; filename=voice_clone_prompt.wav"
    [call] = fake_triton.calls
    assert (call.request.model_name, call.string("voice")) == ("qwen3_tts_base", f"prompt-{prompt_id}")
    again = post(
        http, "base/generate-with-prompt", text="Hello.", prompt_id=prompt_id, response_format="base64"
    )
    assert base64.b64decode(again.json()["audio"]) == response.content


def test_a_prompt_outlives_the_gateway_that_made_it(fake_triton: FakeTriton) -> None:
    def at_a_new_gateway(route: str, **body: Any) -> httpx.Response:
        with running_gateway(settings(triton_grpc_port=fake_triton.port)) as gateway:
            return httpx.post(f"{gateway.url}/api/v1/{route}", json=body)

    prompt_id = at_a_new_gateway("base/create-prompt", **REFERENCE).json()["prompt_id"]
    spoken = at_a_new_gateway("base/generate-with-prompt", text="Hello.", prompt_id=prompt_id)
    assert len(samples_in(spoken.content)) == len(SAID)


@pytest.mark.parametrize("prompt_id", ["0" * 32, "", "../grandpa", "a+b", "x" * 1_000])
def test_a_prompt_that_nobody_made_is_not_found(
    http: httpx.Client, fake_triton: FakeTriton, prompt_id: str
) -> None:
    response = http.post("/api/v1/base/generate-with-prompt", json={"text": "Hello.", "prompt_id": prompt_id})
    assert refusal(response) == (404, f"there is no prompt {prompt_id!r}")
    assert fake_triton.calls == []


@pytest.mark.parametrize("field", ["text", "prompt_id"])
def test_half_a_character_is_refused_by_its_field(
    http: httpx.Client, fake_triton: FakeTriton, field: str
) -> None:
    whole = json.dumps({"text": "Hello.", "prompt_id": "1"} | {field: "\ud800"})
    response = http.post(
        "/api/v1/base/generate-with-prompt", content=whole, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert problem["loc"] == ["body", field]
    assert fake_triton.calls == []


@pytest.mark.parametrize(("content", "kind", "told"), BODIES_THAT_ARE_NONE)
@pytest.mark.parametrize("route", ["/api/v1/custom-voice/generate", "/v1/audio/speech"])
def test_a_body_that_is_none_is_refused_in_words_about_it(
    http: httpx.Client, route: str, content: bytes, kind: str | None, told: str
) -> None:
    response = http.post(route, content=content, headers={"Content-Type": kind} if kind else {})
    assert response.status_code in (400, 422)
    assert told in response.text


def test_a_prompt_belongs_to_the_key_that_made_it(fake_triton: FakeTriton) -> None:
    locked = settings(triton_grpc_port=fake_triton.port, api_keys=("mine", "yours"))
    with running_gateway(locked) as gateway, httpx.Client(base_url=gateway.url) as http:
        http.headers["X-API-Key"] = "mine"
        prompt_id = create_prompt(http, **REFERENCE)
        assert post(http, "base/generate-with-prompt", text="Hi.", prompt_id=prompt_id).status_code == 200
        http.headers["X-API-Key"] = "yours"
        theirs = post(http, "base/generate-with-prompt", text="Hi.", prompt_id=prompt_id)
        assert refusal(theirs) == (404, f"there is no prompt {prompt_id!r}")
        del http.headers["X-API-Key"]
        assert post(http, "base/generate-with-prompt", text="Hi.", prompt_id=prompt_id).status_code == 401


# --- recordings ---------------------------------------------------------------------------------------------


def upload(http: httpx.Client, recording: bytes, kind: str = "audio/wav") -> httpx.Response:
    return http.post("/api/v1/base/upload-ref-audio", files={"file": ("me.wav", recording, kind)})


def test_an_uploaded_recording_comes_back_as_base64_that_clones(http: httpx.Client) -> None:
    answer = upload(http, RECORDING).json()
    assert answer == {
        "filename": "me.wav",
        "content_type": "audio/wav",
        "audio_base64": ENCODED,
        "message": "File uploaded and encoded successfully",
    }
    body = {"ref_audio_base64": answer["audio_base64"], "ref_text": TRANSCRIPT}
    assert post(http, "base/clone", text="Hello.", **body).status_code == 200


@pytest.mark.parametrize(
    "kind", ["audio/wav", "Audio/X-M4A", "application/octet-stream", "video/mp4", "video/ogg"]
)
def test_what_may_be_a_recording_is_taken(http: httpx.Client, kind: str) -> None:
    assert upload(http, RECORDING, kind).json()["content_type"] == kind


@pytest.mark.parametrize("kind", ["text/html", "image/png", "video/quicktime", ""])
def test_what_says_that_it_is_no_recording_is_refused(http: httpx.Client, kind: str) -> None:
    assert refusal(upload(http, RECORDING, kind)) == (400, "Invalid file type. Must be audio file.")


def test_there_is_no_cache_and_both_routes_say_so(http: httpx.Client) -> None:
    stats = http.get("/api/v1/base/cache/stats").json()
    assert stats == post(http, "base/cache/clear").json()
    assert stats["enabled"] is False
    assert "no cache" in stats["message"]


def test_five_megabytes_are_as_much_as_is_taken(http: httpx.Client) -> None:
    assert upload(http, bytes(5 << 20)).status_code == 200
    assert refusal(upload(http, bytes((5 << 20) + 1))) == (413, "file is larger than 5 MiB")


def test_an_empty_recording_is_refused(http: httpx.Client) -> None:
    assert refusal(upload(http, b"")) == (400, "file is empty")


@pytest.mark.parametrize("route", ["base/clone", "base/clone-stream", "base/create-prompt"])
@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"ref_text": TRANSCRIPT}, "give ref_audio_url or ref_audio_base64, one of them"),
        (
            {"ref_text": TRANSCRIPT, "ref_audio_url": "https://a/b", "ref_audio_base64": ENCODED},
            "give ref_audio_url or ref_audio_base64, one of them",
        ),
        ({"ref_audio_base64": ENCODED}, "ref_text is missing"),
        ({"ref_audio_base64": ENCODED, "ref_text": " "}, "ref_text is missing"),
        ({"ref_text": TRANSCRIPT, "ref_audio_base64": "?!"}, "ref_audio_base64 is neither base64 nor"),
        (
            {"ref_text": TRANSCRIPT, "ref_audio_url": "https://example.com/me.wav"},
            "ref_audio_url: recordings by URL are not allowed here",
        ),
        ({"ref_text": TRANSCRIPT, "ref_audio_url": "file:///etc/passwd"}, "not allowed"),
    ],
    ids=str,
)
def test_a_reference_that_lacks_something_is_refused(
    http: httpx.Client, fake_triton: FakeTriton, route: str, body: dict[str, Any], told: str
) -> None:
    status, detail = refusal(post(http, route, text="Hello.", **body))
    assert status == 400
    assert told in detail
    assert fake_triton.questions == []


# --- what is refused ----------------------------------------------------------------------------------------


def refusing(code: grpc.StatusCode, message: str) -> Any:
    def script(call: Call) -> Iterator[Any]:
        raise RefusalError(code, message)
        yield

    return script


@pytest.mark.parametrize(("route", "voice"), SPOKEN)
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"text": None}, "text"),
        ({"text": ""}, "text"),
        ({"text": 5}, "text"),
        ({"speed": 0.4}, "speed"),
        ({"speed": 2.1}, "speed"),
        ({"response_format": "mp3"}, "response_format"),
    ],
    ids=str,
)
def test_a_field_that_cannot_be_is_named_in_fastapis_own_list(
    http: httpx.Client, route: str, voice: dict[str, Any], change: dict[str, Any], field: str
) -> None:
    status, [problem] = refusal(post(http, route, **{"text": "Hello.", **voice, **change}))
    assert status == 422
    assert problem["loc"] == ["body", field]
    assert {*problem} == {"loc", "msg", "type"}


@pytest.mark.parametrize(
    ("route", "field"),
    [
        ("custom-voice/generate", "speaker"),
        ("custom-voice/batch", "speakers"),
        ("voice-design/generate", "instruct"),
        ("voice-design/batch", "instructs"),
        ("base/generate-with-prompt", "prompt_id"),
    ],
)
def test_a_missing_field_is_named(http: httpx.Client, route: str, field: str) -> None:
    status, [problem] = refusal(post(http, route, text="Hello.", texts=["Hello."]))
    assert (status, problem["loc"], problem["type"]) == (422, ["body", field], "missing")


@pytest.mark.parametrize(("route", "voice"), SPOKEN)
def test_what_cannot_be_said_is_refused(
    http: httpx.Client, fake_triton: FakeTriton, route: str, voice: dict[str, Any]
) -> None:
    for text, told in ((" \n", "nothing to say"), ("a" * 4097, "at most 4096")):
        status, detail = refusal(post(http, route, text=text, **voice))
        assert status == 400
        assert told in detail
    assert fake_triton.calls == []


@pytest.mark.parametrize(("route", "voice"), SPOKEN)
@pytest.mark.parametrize(
    ("code", "expected", "told"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, (400, None), "so it is"),
        (grpc.StatusCode.NOT_FOUND, (404, None), "so it is"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, (503, "1"), "so it is"),
        (grpc.StatusCode.INTERNAL, (500, None), "its log knows why"),
    ],
    ids=str,
)
def test_what_the_engine_refuses_has_a_status_of_its_own(
    http: httpx.Client,
    fake_triton: FakeTriton,
    route: str,
    voice: dict[str, Any],
    code: grpc.StatusCode,
    expected: tuple[int, str | None],
    told: str,
) -> None:
    fake_triton.script = refusing(code, "so it is")
    response = post(http, route, text="Hello.", **voice)
    status, detail = refusal(response)
    assert (status, response.headers.get("Retry-After")) == expected
    assert told in detail


def test_the_original_header_brings_the_key(fake_triton: FakeTriton) -> None:
    locked = settings(triton_grpc_port=fake_triton.port, api_keys=("secret",))
    with running_gateway(locked) as gateway, httpx.Client(base_url=gateway.url) as http:
        assert post(http, "custom-voice/generate", text="Hi.", speaker="Ryan").status_code == 401
        http.headers["X-API-Key"] = "secret"
        assert post(http, "custom-voice/generate", text="Hi.", speaker="Ryan").status_code == 200


# --- lists --------------------------------------------------------------------------------------------------


def test_speakers_and_languages_are_the_checkpoints_own(http: httpx.Client) -> None:
    assert http.get("/api/v1/custom-voice/speakers").json() == {"speakers": SPEAKERS}
    assert http.get("/api/v1/custom-voice/languages").json() == {"languages": ["Auto", "Chinese", "English"]}


def test_health_is_as_it_was(http: httpx.Client) -> None:
    health = http.get("/health").json()
    assert health == {"status": "healthy", "version": http.get("/").json()["version"]}
    models = http.get("/health/models").json()
    for name in ("custom_voice_loaded", "voice_design_loaded", "base_loaded", "tokenizer_loaded"):
        assert models[name] is True


# --- through the real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_http(real_gateway: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real_gateway.url, timeout=60) as client:
        yield client


@pytest.mark.triton
@pytest.mark.parametrize(("route", "voice"), VOICES.items())
def test_every_voice_speaks_whole_and_streamed(
    real_http: httpx.Client, route: str, voice: dict[str, Any]
) -> None:
    whole = post(real_http, route, text="Good morning.", **voice)
    num_samples = len(samples_in(whole.content))
    assert num_samples > 0
    assert float(whole.headers["X-Audio-Duration"]) == pytest.approx(num_samples / SAMPLE_RATE, abs=1e-3)
    assert float(whole.headers["X-Generation-Time"]) > 0
    stream = f"{route}-stream"
    metadata, *audio, done = events_in(post(real_http, stream, text="Good morning.", **voice).text)
    assert (metadata.name, done.name) == ("metadata", "done")
    assert all(len(samples_in(event.audio)) % 1920 == 0 for event in audio)


@pytest.mark.triton
@pytest.mark.parametrize("route", BATCHES)
def test_every_batch_speaks(real_http: httpx.Client, route: str) -> None:
    body = batch(route, 2)
    answer = post(real_http, route, **body).json()
    assert all(len(samples_in(base64.b64decode(audio))) for audio in answer["audios"])
    archive = zipfile.ZipFile(io.BytesIO(post(real_http, route, **body, response_format="zip").content))
    assert all(len(samples_in(archive.read(name))) for name in archive.namelist())
    assert len(answer["audios"]) == len(archive.namelist()) == 2


@pytest.mark.triton
def test_a_prompt_speaks_through_another_gateway_on_the_same_server(
    real_http: httpx.Client, server: Server
) -> None:
    prompt_id = create_prompt(real_http, **REFERENCE)
    with running_gateway(settings(triton_grpc_port=server.grpc_port)) as another:
        body = {"text": "Good morning.", "prompt_id": prompt_id}
        spoken = httpx.post(f"{another.url}/api/v1/base/generate-with-prompt", json=body, timeout=60)
    assert len(samples_in(spoken.content)) > 0
    with client_of(server) as tts:
        tts.voices.delete(f"prompt-{prompt_id}")
    gone = post(real_http, "base/generate-with-prompt", text="Good morning.", prompt_id=prompt_id)
    assert refusal(gone) == (404, f"there is no prompt {prompt_id!r}")
    nonsense = post(real_http, "base/generate-with-prompt", text="Good morning.", prompt_id="../x")
    assert refusal(nonsense)[0] == 404


@pytest.mark.triton
def test_an_upload_clones_and_what_is_no_audio_does_not(real_http: httpx.Client) -> None:
    encoded = upload(real_http, RECORDING).json()["audio_base64"]
    cloned = post(real_http, "base/clone", text="Hi.", ref_audio_base64=encoded, x_vector_only_mode=True)
    assert len(samples_in(cloned.content)) > 0
    noise = base64.b64encode(b"no audio at all").decode()
    status, _ = refusal(
        post(real_http, "base/clone", text="Hi.", ref_audio_base64=noise, x_vector_only_mode=True)
    )
    assert status == 400


@pytest.mark.triton
def test_the_real_lists_are_the_originals(real_http: httpx.Client) -> None:
    speakers = real_http.get("/api/v1/custom-voice/speakers").json()["speakers"]
    assert {"Vivian", "Serena", "Uncle_Fu", "Dylan", "Eric", "Ryan", "Aiden", "Ono_Anna", "Sohee"} == {
        speaker["name"] for speaker in speakers
    }
    assert all(speaker["description"] and speaker["native_language"] for speaker in speakers)
    languages = real_http.get("/api/v1/custom-voice/languages").json()["languages"]
    assert languages[0] == "Auto"
    assert {"Chinese", "English", "German", "Italian", "Korean"} < set(languages)
