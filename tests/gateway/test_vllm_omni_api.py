"""What vllm-omni adds to OpenAI's API: tasks, batches, voices to keep; and the lists that others ask for."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from callers import client_of
from fakes.triton_server import Call, FakeTriton, RefusalError, Shelf, chunk, final, says
from gateway_server import GatewayServer, running_gateway, settings
from listening import samples_in
from qwen3_tts_client import ClonedVoice
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_gateway.keys import owner_of
from qwen3_tts_gateway.routes.openai import SpeechBody
from recordings import humming, written

RECORDING = written(humming(3.0, seed=4))
ENCODED = base64.b64encode(RECORDING).decode()
TRANSCRIPT = "This is what I sound like."
EMBEDDING = [0.5, -0.25, 1.0, 0.0]
HELLO = {"input": "Hello.", "response_format": "pcm"}
VOICES = "/v1/audio/voices"

CUSTOM_VOICE, VOICE_DESIGN, BASE = "qwen3_tts_custom_voice", "qwen3_tts_voice_design", "qwen3_tts_base"


def speak(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/audio/speech", json={**HELLO, **body})


def refusal(response: httpx.Response) -> tuple[int, str | None, str]:
    """Status, field and message of an error in OpenAI's shape."""
    assert [*response.json()] == ["error"]
    error = response.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["message"]


def save(http: httpx.Client, name: str, **fields: Any) -> httpx.Response:
    """Keep a voice; of the recording, unless an embedding is given."""
    audio = {"audio_sample": ("me.wav", RECORDING, "audio/wav")}
    files = None if "speaker_embedding" in fields else audio
    return http.post(VOICES, data={"name": name, **fields}, files=files)


@pytest.fixture
def shelf(fake_triton: FakeTriton) -> Shelf:
    """The voices that the fake keeps."""
    shelf = fake_triton.answers["voices"]
    assert isinstance(shelf, Shelf)
    return shelf


# --- which model speaks -------------------------------------------------------------------------------------

RECORDED = {"ref_audio": ENCODED, "ref_text": TRANSCRIPT}
TIMBRE = {"ref_audio": f"data:audio/wav;base64,{ENCODED}", "x_vector_only_mode": True}


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({}, CUSTOM_VOICE),
        ({"voice": ""}, CUSTOM_VOICE),
        ({"voice": "ryan"}, CUSTOM_VOICE),
        ({"speaker": "ryan"}, CUSTOM_VOICE),
        ({"voice": "coral"}, CUSTOM_VOICE),
        ({"voice": "ryan", "instructions": "whisper"}, CUSTOM_VOICE),
        ({"voice": "ryan", "instructions": ""}, CUSTOM_VOICE),
        ({"instructions": "an old man"}, VOICE_DESIGN),
        ({"voice": "", "instructions": "an old man"}, VOICE_DESIGN),
        ({"voice": "grandpa"}, BASE),
        ({"voice": "grandpa(2)+grandma(1)"}, BASE),
        ({"voice": "grandpa", "instructions": ""}, BASE),
        (RECORDED, BASE),
        (TIMBRE, BASE),
        ({**RECORDED, "voice": "alloy"}, BASE),
        ({"speaker_embedding": EMBEDDING}, BASE),
        ({"speaker_embedding": EMBEDDING, "voice": "alloy"}, BASE),
        ({"task_type": "CustomVoice"}, CUSTOM_VOICE),
        ({"task_type": "CustomVoice", "voice": "ryan"}, CUSTOM_VOICE),
        ({"task_type": "CustomVoice", "instructions": "whisper"}, CUSTOM_VOICE),
        ({"task_type": "VoiceDesign", "instructions": "an old man"}, VOICE_DESIGN),
        ({"task_type": "Base", "voice": "grandpa"}, BASE),
        ({"task_type": "Base", **RECORDED}, BASE),
        ({"task_type": "Base", "speaker_embedding": EMBEDDING}, BASE),
        ({"task_type": "", "voice": "ryan"}, CUSTOM_VOICE),
        ({"voice": None, "speaker": "ryan"}, CUSTOM_VOICE),
        ({"voice": {"id": "ryan", "name": "Ryan", "object": "audio.voice"}}, CUSTOM_VOICE),
        ({"references": [{"audio_path": ENCODED, "text": TRANSCRIPT}]}, BASE),
        ({"references": [{"audio": ENCODED, "text": TRANSCRIPT}], "ref_audio": ENCODED}, BASE),
        ({"references": [{"audio": ENCODED, "text": None}], "x_vector_only_mode": True}, BASE),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_what_the_body_brings_says_which_model_speaks(
    http: httpx.Client, fake_triton: FakeTriton, body: dict[str, Any], model: str
) -> None:
    assert speak(http, **body).status_code == 200
    [call] = fake_triton.calls
    assert call.request.model_name == model


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"task_type": "Singing"}, "task_type", "'CustomVoice', 'VoiceDesign' or 'Base'"),
        ({"task_type": "VoiceDesign"}, "instructions", "the voice in words"),
        ({"task_type": "VoiceDesign", "instructions": " "}, "instructions", "the voice in words"),
        ({"task_type": "VoiceDesign", "instructions": "old", "voice": "ryan"}, "voice", "'ryan'"),
        ({"task_type": "VoiceDesign", "instructions": "old", **RECORDED}, "task_type", "only Base"),
        ({"task_type": "CustomVoice", **RECORDED}, "task_type", "only Base"),
        ({"task_type": "CustomVoice", "speaker_embedding": EMBEDDING}, "task_type", "only Base"),
        ({"task_type": "CustomVoice", "voice": "grandpa"}, "voice", "built-in speakers only"),
        ({"task_type": "Base"}, "voice", "ref_audio, speaker_embedding or a saved voice"),
        ({"task_type": "Base", "voice": "ryan"}, "voice", "a built-in speaker"),
        ({"task_type": "Base", "voice": "alloy"}, "voice", "'alloy'"),
        ({"voice": "grandpa", "instructions": "whisper"}, "instructions", "only built-in speakers"),
        ({**RECORDED, "instructions": "whisper"}, "instructions", "takes no instructions"),
        ({**RECORDED, "speaker_embedding": EMBEDDING}, "speaker_embedding", "not both"),
        ({"ref_audio": ENCODED}, "ref_text", "ref_text is missing"),
        ({"ref_audio": "?!", "ref_text": "Hi."}, "ref_audio", "neither base64 nor"),
        ({"ref_audio": "", "ref_text": "Hi."}, "ref_audio", "empty"),
        ({"ref_audio": "https://example.com/a", "ref_text": "Hi."}, "ref_audio", "not allowed here"),
        ({"ref_audio": "file:///etc/passwd", "ref_text": "Hi."}, "ref_audio", "not allowed here"),
        ({"ref_audio": "data:audio/wav,abc", "ref_text": "Hi."}, "ref_audio", "without ;base64"),
        ({"references": []}, "references", "one object"),
        ({"references": ENCODED}, "references", "one object"),
        ({"references": [{"audio_path": ENCODED, "text": "Hi."}] * 2}, "references", "one recording"),
        ({"references": [{"text": "Hi."}]}, "references", "none of audio_path, audio"),
        (
            {"references": [{"audio_path": ENCODED}], **RECORDED, "ref_audio": "UklGRg=="},
            "references",
            "ref_audio",
        ),
        ({"references": [{"audio_path": ENCODED}]}, "ref_text", "ref_text is missing"),
        (
            {"extra_params": {"seed": 7, "mood": 1, "tempo": 2}},
            "extra_params",
            "has 'mood', 'tempo'; it may have",
        ),
        ({"extra_params": [7]}, "extra_params", "not an object"),
        ({"extra_params": {"max_new_tokens": 0}}, "max_new_tokens", "greater than"),
        ({"speaker_embedding": []}, "speaker_embedding", "at least 1"),
        ({"speaker_embedding": [1, "x"]}, "speaker_embedding.1", "number"),
        ({"speaker_embedding": [1e39]}, "speaker_embedding.0", "less than"),
        ({"speaker_embedding": [10**400]}, "speaker_embedding.0", "number"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_a_contradiction_is_refused_before_anything_is_done(
    http: httpx.Client, fake_triton: FakeTriton, body: dict[str, Any], param: str, told: str
) -> None:
    if body.get("voice") == "alloy":
        fake_triton.answers["voices"].speakers = lambda call: {"speakers": [SERENA]}  # type: ignore[attr-defined]
    status, field, message = refusal(speak(http, **body))
    assert (status, field) == (400, param)
    assert told in message
    assert fake_triton.calls == []
    assert "create_voice" not in {question.request.model_name for question in fake_triton.questions}


SERENA = {"name": "Serena", "description": "a warm voice", "native_language": "Chinese"}


def test_an_embedding_is_spoken_with_as_it_is(http: httpx.Client, fake_triton: FakeTriton) -> None:
    assert speak(http, speaker_embedding=EMBEDDING).status_code == 200
    [call] = fake_triton.calls
    assert call.array("speaker_embedding").tolist() == [EMBEDDING]
    assert "ref_codes" not in call.inputs


def test_a_recording_is_spoken_with_as_it_was_heard(http: httpx.Client, fake_triton: FakeTriton) -> None:
    assert speak(http, **RECORDED).status_code == 200
    [call] = fake_triton.calls
    [heard] = [question for question in fake_triton.questions if "ref_audio" in question.inputs]
    assert heard.inputs["ref_audio"][4:] == RECORDING
    assert call.string("ref_text") == TRANSCRIPT
    assert call.array("ref_codes").shape == (1, 3, 16)


def test_a_sample_rate_is_heard(http: httpx.Client) -> None:
    for rate in (8_000, 16_000, 24_000, 48_000):
        num_samples = len(speak(http, sample_rate=rate).content) / 2
        assert num_samples == pytest.approx(0.24 * rate, abs=rate / 100)


NULLS = [name for name in SpeechBody.model_fields if name not in HELLO]


def test_a_field_that_is_null_is_absent(http: httpx.Client, fake_triton: FakeTriton) -> None:
    """As clients with types send them; everything but what is said, and how the test hears it."""
    assert speak(http, **dict.fromkeys([*NULLS, "speaker", "user"])).status_code == 200
    [call] = fake_triton.calls
    assert call.inputs.keys() == {"text"}
    answer = http.post("/v1/audio/speech", json={"input": "Hello.", "response_format": None})
    assert answer.headers["content-type"] == "audio/mpeg"


def test_extra_params_are_fields_that_give_way_to_those_beside_them(
    http: httpx.Client, fake_triton: FakeTriton
) -> None:
    extra = {"seed": 7, "temperature": 0.5, "top_k": 3, "max_new_tokens": 9, "repetition_penalty": None}
    assert speak(http, extra_params=extra, top_k=5).status_code == 200
    [call] = fake_triton.calls
    sent = {name: call.array(name).item() for name in call.inputs if name != "text"}
    assert sent == {"seed": 7, "temperature": 0.5, "top_k": 5, "max_frames": 8}


def test_fields_that_nobody_knows_are_ignored(http: httpx.Client) -> None:
    assert speak(http, word_timestamps=True, initial_codec_chunk_frames=4, user="me").status_code == 200


# --- batches ------------------------------------------------------------------------------------------------


def batch(http: httpx.Client, items: list[dict[str, Any]], **defaults: Any) -> dict[str, Any]:
    response = http.post("/v1/audio/speech/batch", json={"items": items, **defaults})
    assert response.status_code == 200
    answer: dict[str, Any] = response.json()
    return answer


def test_each_of_a_batch_fares_on_its_own(http: httpx.Client) -> None:
    items: list[dict[str, Any]] = [
        {"input": "One."},
        {"input": ""},
        {"speed": 2.0},
        {"input": "Four.", "response_format": "wav"},
    ]
    answer = batch(http, items, voice="ryan", response_format="pcm")
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (4, 2, 2)
    assert answer["id"].startswith("speech-batch-")
    one, two, three, four = answer["results"]
    assert [result["index"] for result in answer["results"]] == [0, 1, 2, 3]
    assert (one["status"], one["media_type"]) == ("success", "audio/pcm")
    assert one["usage"] == {"input_tokens": 4, "output_tokens": 3, "total_tokens": 7}
    assert len(base64.b64decode(one["audio_data"])) == 3 * 1920 * 2
    assert four["media_type"] == "audio/wav"
    assert len(samples_in(base64.b64decode(four["audio_data"]))) == 3 * 1920
    assert two["error"] == "input is empty; there is nothing to say"
    assert three["error"] == "input: Field required"
    for result in answer["results"]:
        assert result.keys() == {"index", "status", "audio_data", "media_type", "error", "usage"}
    for failed in (two, three):
        assert (failed["status"], failed["audio_data"], failed["media_type"], failed["usage"]) == (
            *("error", None, None, None),
        )
    assert one["error"] is four["error"] is None


def test_what_the_engine_refuses_fails_one_of_a_batch(http: httpx.Client, fake_triton: FakeTriton) -> None:
    def script(call: Call) -> Iterator[Any]:
        if call.text == "Two.":
            raise RefusalError(grpc.StatusCode.RESOURCE_EXHAUSTED, "the room is full")
        yield final(chunk(0, finish_reason="stop"))

    fake_triton.script = script
    answer = batch(http, [{"input": "One."}, {"input": "Two."}, {"input": "Three."}], voice="ryan")
    assert [result["status"] for result in answer["results"]] == ["success", "error", "success"]
    assert answer["results"][1]["error"] == "the room is full"


@pytest.mark.parametrize(
    ("defaults", "item", "model", "speaker"),
    [
        ({"voice": "ryan"}, {}, CUSTOM_VOICE, "ryan"),
        ({"voice": "ryan"}, {"voice": "vivian"}, CUSTOM_VOICE, "vivian"),
        ({"voice": "ryan"}, {"speaker": "vivian"}, CUSTOM_VOICE, "vivian"),
        ({"speaker": "ryan"}, {"voice": "vivian"}, CUSTOM_VOICE, "vivian"),
        (RECORDED, {"voice": "vivian"}, CUSTOM_VOICE, "vivian"),
        ({"voice": "ryan"}, RECORDED, BASE, None),
        ({"voice": "ryan", "ref_text": TRANSCRIPT}, {"ref_audio": ENCODED}, BASE, None),
        ({"voice": "ryan"}, {"references": [{"audio": ENCODED, "text": TRANSCRIPT}]}, BASE, None),
        ({"voice": "ryan"}, {"voice": None, "speaker": None, "ref_audio": None}, CUSTOM_VOICE, "ryan"),
        ({"voice": "ryan", "input": "Hello."}, {"input": None}, CUSTOM_VOICE, "ryan"),
        ({"voice": None, "seed": None}, {"speaker": "vivian"}, CUSTOM_VOICE, "vivian"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else None,
)
def test_an_item_goes_before_the_defaults(
    http: httpx.Client,
    fake_triton: FakeTriton,
    defaults: dict[str, Any],
    item: dict[str, Any],
    model: str,
    speaker: str | None,
) -> None:
    answer = batch(http, [{"input": "Hello.", **item}], **defaults)
    assert answer["succeeded"] == 1
    [call] = fake_triton.calls
    assert call.request.model_name == model
    assert speaker is None or call.string("speaker") == speaker


@pytest.mark.parametrize(
    ("body", "param"),
    [({}, "items"), ({"items": []}, "items"), ({"items": [{"input": "Hello."}] * 33}, "items")],
    ids=["none", "empty", "33"],
)
def test_a_batch_has_1_to_32_items(http: httpx.Client, body: dict[str, Any], param: str) -> None:
    status, field, _ = refusal(http.post("/v1/audio/speech/batch", json=body))
    assert (status, field) == (400, param)


@pytest.mark.parametrize(
    ("items", "defaults"),
    [([{"input": "a" * 4000}] * 5, {}), ([{}] * 5, {"input": "a" * 4000})],
    ids=["in its items", "in its defaults"],
)
def test_a_batch_has_no_more_text_than_there_is_memory_for(
    http: httpx.Client, fake_triton: FakeTriton, items: list[dict[str, Any]], defaults: dict[str, str]
) -> None:
    status, field, told = refusal(http.post("/v1/audio/speech/batch", json={"items": items, **defaults}))
    assert (status, field) == (400, "items")
    assert told.startswith("items has 20000 characters of text; at most 16384 are spoken in one batch")
    assert fake_triton.calls == []


# --- lists that applications ask for ------------------------------------------------------------------------


def test_voices_are_listed_as_objects_with_id_and_name(http: httpx.Client) -> None:
    save(http, "grandpa")
    listed = http.get(VOICES).json()
    by_kind: dict[str, list[str]] = {}
    for voice in listed["voices"]:
        assert voice["id"] == voice["name"]
        by_kind.setdefault(voice["kind"], []).append(voice["id"])
    assert by_kind["built_in"] == ["Ryan", "Vivian"]
    assert by_kind["alias"] == ["ash", "coral", "nova", "verse"]  # those that mean one of the two
    assert by_kind["saved"] == ["grandpa"]
    ryan = listed["voices"][0]
    assert (ryan["description"], ryan["languages"]) == ("a man in a hurry", ["English"])
    assert [voice["name"] for voice in listed["uploaded_voices"]] == ["grandpa"]


def test_aliases_of_saved_voices_are_listed_for_those_who_have_the_voices(fake_triton: FakeTriton) -> None:
    aliases = {"onyx": "grandpa", "echo": "grandpa(2)+grandma", "nova": "somebody", "ash": "Ryan"}
    ours = settings(triton_grpc_port=fake_triton.port, openai_voices=aliases, api_keys=("mine", "yours"))

    def listed(http: httpx.Client) -> list[str]:
        return [voice["id"] for voice in http.get(VOICES).json()["voices"] if voice["kind"] == "alias"]

    with running_gateway(ours) as gateway, httpx.Client(base_url=gateway.url) as http:
        http.headers["X-API-Key"] = "mine"
        save(http, "grandpa")
        assert listed(http) == ["onyx", "ash"]
        save(http, "grandma")
        assert listed(http) == ["onyx", "echo", "ash"]
        http.headers["X-API-Key"] = "yours"
        assert listed(http) == ["ash"]


def test_voices_are_listed_as_names_for_those_who_expect_names(http: httpx.Client) -> None:
    save(http, "grandpa")
    names = ["Ryan", "Vivian", "ash", "coral", "nova", "verse", "grandpa"]
    assert http.get(VOICES, params={"legacy": True}).json() == {"voices": names}


def test_everything_that_is_listed_speaks(http: httpx.Client) -> None:
    save(http, "grandpa")
    for name in http.get(VOICES, params={"legacy": True}).json()["voices"]:
        assert speak(http, voice=name).status_code == 200


def test_models_are_listed_as_open_webui_asks_for_them(http: httpx.Client) -> None:
    ids = [model["id"] for model in http.get("/v1/models").json()["data"]]
    assert http.get("/v1/audio/models").json() == {"models": [{"id": name} for name in ids]}


def test_wyoming_finds_a_server_it_knows_and_its_voices(http: httpx.Client) -> None:
    assert http.get("/v1/test").json() == {"status": "ok"}
    assert http.get("/v1/readyz").status_code == 404, "it would take us for LocalAI, which names no voices"
    model = http.get("/v1/models/qwen3-tts").json()
    assert (model["id"], model["task"]) == ("qwen3-tts", "text-to-speech")
    assert model["voices"] == http.get(VOICES).json()["voices"]
    assert {"Ryan", "ash"} <= {voice["name"] for voice in model["voices"]}


def test_a_model_that_is_not_here_is_not_found(http: httpx.Client) -> None:
    assert refusal(http.get("/v1/models/whisper-1"))[:2] == (404, "model")


# --- voices to keep -----------------------------------------------------------------------------------------


def test_a_recorded_voice_is_kept_with_everything_said_about_it(http: httpx.Client, shelf: Shelf) -> None:
    answer = save(
        http,
        "grandpa",
        consent="yes, he said",
        ref_text=TRANSCRIPT,
        speaker_description="an old man",
    ).json()
    created_at = int(datetime(2025, 1, 31, 12, tzinfo=timezone.utc).timestamp())
    assert {**answer, "voice": None} == {
        "object": "audio.voice",
        "id": "grandpa",
        "name": "grandpa",
        "created_at": created_at,
        "success": True,
        "voice": None,
    }
    assert answer["voice"] == {
        "name": "grandpa",
        "consent": "yes, he said",
        "created_at": created_at,
        "file_size": len(RECORDING),
        "mime_type": "audio/wav",
        "embedding_source": "audio",
        "embedding_dim": None,
        "ref_text": TRANSCRIPT,
        "speaker_description": "an old man",
        "model": "tiny",
        "x_vector_only": False,
    }
    assert http.get(f"{VOICES}/grandpa").json() == answer["voice"]
    assert http.get(VOICES).json()["uploaded_voices"] == [answer["voice"]]
    assert [*shelf.voices] == ["grandpa"]


def test_a_recording_without_a_transcript_is_kept_by_its_timbre(http: httpx.Client) -> None:
    voice = save(http, "grandpa").json()["voice"]
    assert voice["x_vector_only"] is True
    assert voice["ref_text"] == ""


def test_an_embedding_is_kept(http: httpx.Client, fake_triton: FakeTriton) -> None:
    voice = save(http, "grandpa", speaker_embedding=json.dumps(EMBEDDING)).json()["voice"]
    assert (voice["embedding_source"], voice["embedding_dim"]) == ("direct", 4)
    saved = next(question for question in fake_triton.questions if "speaker_embedding" in question.inputs)
    assert saved.array("speaker_embedding").tolist() == [EMBEDDING]


def test_of_every_voice_the_same_is_told(http: httpx.Client, shelf: Shelf) -> None:
    save(http, "grandpa", consent="yes", ref_text=TRANSCRIPT)
    save(http, "grandma", speaker_embedding=json.dumps(EMBEDDING))
    shelf.voices["past the gateway"] = {**shelf.voices["grandpa"], "name": "past the gateway", "metadata": {}}
    told = [set(voice) for voice in http.get(VOICES).json()["uploaded_voices"]]
    assert len(told) == 3
    assert told == [told[0]] * 3
    assert {
        "name",
        "consent",
        "created_at",
        "file_size",
        "mime_type",
        "embedding_source",
        "embedding_dim",
    } < told[0]


def test_a_voice_saved_again_is_replaced(http: httpx.Client) -> None:
    save(http, "grandpa", consent="yes")
    save(http, "grandpa", consent="yes, again")
    [voice] = http.get(VOICES).json()["uploaded_voices"]
    assert voice["consent"] == "yes, again"


def test_a_voice_that_is_deleted_is_gone(http: httpx.Client) -> None:
    save(http, "grandpa")
    answer = http.delete(f"{VOICES}/grandpa").json()
    assert (answer["success"], answer["id"], answer["deleted"]) == (True, "grandpa", True)
    assert http.get(VOICES).json()["uploaded_voices"] == []
    assert refusal(http.delete(f"{VOICES}/grandpa"))[0] == 404
    assert refusal(http.get(f"{VOICES}/grandpa"))[0] == 404


@pytest.mark.parametrize("name", ["alloy", "Alloy", "prompt-abc", f"key-{owner_of('me')}.grandpa"])
def test_a_name_that_means_something_else_is_refused(http: httpx.Client, shelf: Shelf, name: str) -> None:
    assert refusal(save(http, name))[:2] == (400, "name")
    assert shelf.voices == {}


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a+b", "a(2)", "grand\u200bpa", "x" * 65, "Ryan", "ryan", "VIVIAN"]
)
@pytest.mark.parametrize("keys", [(), ("mine",)], ids=["open", "with keys"])
def test_a_name_that_no_voice_may_have_is_refused(
    fake_triton: FakeTriton, shelf: Shelf, keys: tuple[str, ...], name: str
) -> None:
    ours = settings(triton_grpc_port=fake_triton.port, api_keys=keys)
    with (
        running_gateway(ours) as gateway,
        httpx.Client(base_url=gateway.url, headers={"X-API-Key": "mine"}) as http,
    ):
        assert refusal(save(http, name))[:2] == (400, "name")
    assert shelf.voices == {}


def test_a_name_is_kept_as_unicode_composes_it(http: httpx.Client, shelf: Shelf) -> None:
    assert save(http, "Jose\u0301").json()["id"] == "Jos\u00e9"
    assert [*shelf.voices] == ["Jos\u00e9"]


@pytest.mark.parametrize(
    ("embedding", "told"),
    [
        ("", "JSON"),
        ("hello", "JSON"),
        ("[]", "at least 1"),
        ("[[1]]", "number"),
        ('{"a": 1}', "array"),
        ("[NaN]", "finite"),
        ("[1e999]", "finite"),
        ("[1e300]", "less than"),
        ("[null]", "number"),
        ("[1" + "0" * 400 + "]", "number"),
        ("[" * 100_000, "recursion"),
    ],
    ids=lambda value: value[:10],
)
def test_what_is_no_embedding_is_refused(http: httpx.Client, embedding: str, told: str) -> None:
    status, param, message = refusal(save(http, "grandpa", speaker_embedding=embedding))
    assert (status, param) == (400, "speaker_embedding" if embedding else "audio_sample")
    assert not embedding or told in message


def test_a_voice_wants_a_recording_or_an_embedding(http: httpx.Client) -> None:
    assert refusal(http.post(VOICES, data={"name": "grandpa"}))[:2] == (400, "audio_sample")
    both = http.post(
        VOICES,
        data={"name": "grandpa", "speaker_embedding": "[1]"},
        files={"audio_sample": ("me.wav", RECORDING)},
    )
    assert refusal(both)[:2] == (400, "audio_sample")
    empty = http.post(VOICES, data={"name": "grandpa"}, files={"audio_sample": ("me.wav", b"")})
    assert refusal(empty)[:2] == (400, "audio_sample")
    nameless = http.post(VOICES, files={"audio_sample": ("me.wav", RECORDING)})
    assert refusal(nameless)[:2] == (400, "name")


def test_ten_mebibytes_of_a_recording_are_taken(http: httpx.Client) -> None:
    def save_bytes(number: int) -> httpx.Response:
        return http.post(VOICES, data={"name": "a"}, files={"audio_sample": ("me.wav", bytes(number))})

    assert save_bytes(10 << 20).status_code == 200
    assert refusal(save_bytes((10 << 20) + 1))[:2] == (413, "audio_sample")


def test_what_was_saved_past_the_gateway_is_listed_too(http: httpx.Client, shelf: Shelf) -> None:
    save(http, "grandpa")
    shelf.voices["grandpa"]["metadata"] = {"name": "somebody else", "created_at": "long ago"}
    [voice] = http.get(VOICES).json()["uploaded_voices"]
    assert voice["name"] == "grandpa"
    assert isinstance(voice["created_at"], int)


def test_prompts_of_the_original_api_are_no_voices(http: httpx.Client, shelf: Shelf) -> None:
    body = {"ref_audio_base64": ENCODED, "ref_text": TRANSCRIPT}
    prompt_id = http.post("/api/v1/base/create-prompt", json=body).json()["prompt_id"]
    assert [*shelf.voices] == [f"prompt-{prompt_id}"]
    assert http.get(VOICES).json()["uploaded_voices"] == []
    assert refusal(http.get(f"{VOICES}/prompt-{prompt_id}"))[0] == 404


def test_a_prompt_is_deleted_by_its_own_key_and_no_other(
    mine: httpx.Client, yours: httpx.Client, shelf: Shelf
) -> None:
    body = {"ref_audio_base64": ENCODED, "ref_text": TRANSCRIPT}
    prompt_id = mine.post("/api/v1/base/create-prompt", json=body).json()["prompt_id"]
    assert refusal(yours.delete(f"{VOICES}/prompt-{prompt_id}"))[0] == 404
    assert mine.delete(f"{VOICES}/prompt-{prompt_id}").status_code == 200
    assert shelf.voices == {}


# --- several keys -------------------------------------------------------------------------------------------


@pytest.fixture
def locked(fake_triton: FakeTriton) -> Iterator[GatewayServer]:
    """Two keys may call: `mine` and `yours`."""
    with running_gateway(settings(triton_grpc_port=fake_triton.port, api_keys=("mine", "yours"))) as gateway:
        yield gateway


@pytest.fixture
def mine(locked: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.url, headers={"X-API-Key": "mine"}) as client:
        yield client


@pytest.fixture
def yours(locked: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.url, headers={"Authorization": "Api-Key yours"}) as client:
        yield client


@pytest.fixture
def nobody(locked: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=locked.url) as client:
        yield client


def names(http: httpx.Client) -> set[str]:
    return {voice["name"] for voice in http.get(VOICES).json()["uploaded_voices"]}


def test_every_key_has_voices_of_its_own(
    mine: httpx.Client, yours: httpx.Client, shelf: Shelf, fake_triton: FakeTriton
) -> None:
    save(mine, "grandpa", consent="mine")
    assert (names(mine), names(yours)) == ({"grandpa"}, set())
    assert refusal(yours.get(f"{VOICES}/grandpa"))[0] == 404
    assert refusal(yours.delete(f"{VOICES}/grandpa"))[0] == 404
    save(yours, "grandpa", consent="yours")
    assert mine.get(f"{VOICES}/grandpa").json()["consent"] == "mine"
    assert yours.get(f"{VOICES}/grandpa").json()["consent"] == "yours"
    spoken_with = set()
    for http in (mine, yours):
        assert speak(http, voice="grandpa").status_code == 200
        spoken_with.add(fake_triton.calls[-1].string("voice"))
    assert spoken_with == {*shelf.voices}
    assert len(spoken_with) == 2
    assert yours.delete(f"{VOICES}/grandpa").status_code == 200
    assert names(mine) == {"grandpa"}


def test_a_key_never_hears_what_the_store_calls_its_voices(
    mine: httpx.Client, fake_triton: FakeTriton
) -> None:
    assert refusal(mine.delete(f"{VOICES}/grandpa"))[2] == "no voice is saved as 'grandpa'"
    save(mine, "grandpa")

    def is_of_another_size(call: Call) -> Iterator[Any]:
        raise RefusalError(grpc.StatusCode.INVALID_ARGUMENT, f"voice {call.string('voice')!r} does not fit")
        yield

    fake_triton.script = is_of_another_size
    assert refusal(speak(mine, voice="grandpa")) == (400, None, "voice 'grandpa' does not fit")


@pytest.mark.triton
def test_a_key_may_use_all_of_a_names_64_characters(server: Server) -> None:
    locked = settings(triton_grpc_port=server.grpc_port, api_keys=("mine",))
    with (
        running_gateway(locked) as gateway,
        httpx.Client(base_url=gateway.url, headers={"X-API-Key": "mine"}, timeout=60) as http,
    ):
        name = "x" * 64
        assert save(http, name).status_code == 200
        assert http.post("/v1/audio/speech", json={**SPOKEN, "voice": name}).status_code == 200
        assert http.delete(f"{VOICES}/{name}").status_code == 200


def test_a_keys_own_voice_goes_before_one_that_is_nobodys(
    mine: httpx.Client, yours: httpx.Client, shelf: Shelf
) -> None:
    save(mine, "grandpa", consent="mine")
    [stored] = shelf.voices.values()
    shelf.voices = {"grandpa": {**stored, "name": "grandpa", "metadata": {}}, **shelf.voices}
    for order in (dict(shelf.voices), dict(reversed(shelf.voices.items()))):
        shelf.voices = order
        [voice] = mine.get(VOICES).json()["uploaded_voices"]
        assert (voice["name"], voice["consent"]) == ("grandpa", "mine")
    [voice] = yours.get(VOICES).json()["uploaded_voices"]
    assert voice["consent"] == ""


@pytest.mark.parametrize("path", ["{name}", "key-{owner}.{name}"])
def test_nobody_speaks_of_voices_as_the_store_does(
    mine: httpx.Client, yours: httpx.Client, shelf: Shelf, fake_triton: FakeTriton, path: str
) -> None:
    save(mine, "grandpa")
    [stored] = shelf.voices
    owner = stored.removeprefix("key-").split(".")[0]
    name = path.format(owner=owner, name="grandpa")
    fake_triton.script = says(1)
    for http in (yours,) if path == "{name}" else (mine, yours):
        assert refusal(http.get(f"{VOICES}/{name}"))[0] == 404
        assert refusal(http.delete(f"{VOICES}/{name}"))[0] == 404
    if path != "{name}":
        assert refusal(speak(yours, voice=name))[0] == 404
        assert fake_triton.calls == []
    assert [*shelf.voices] == [stored]


def test_who_has_no_key_sees_what_is_built_in_and_nothing_else(
    mine: httpx.Client, nobody: httpx.Client
) -> None:
    save(mine, "grandpa")
    listed = nobody.get(VOICES).json()
    assert {voice["kind"] for voice in listed["voices"]} == {"built_in", "alias"}
    assert listed["uploaded_voices"] == []
    assert nobody.get("/v1/models/tts-1").json()["voices"] == listed["voices"]
    assert nobody.get("/v1/audio/models").status_code == nobody.get("/v1/test").status_code == 200
    for response in (
        nobody.get(f"{VOICES}/grandpa"),
        nobody.delete(f"{VOICES}/grandpa"),
        save(nobody, "grandma"),
        speak(nobody),
        nobody.post("/v1/audio/speech/batch", json={"items": [HELLO]}),
    ):
        assert refusal(response)[0] == 401


def test_a_wrong_key_sees_nothing(locked: GatewayServer) -> None:
    response = httpx.get(f"{locked.url}{VOICES}", headers={"Authorization": "Bearer guessed"})
    assert refusal(response)[0] == 401


# --- through the real server --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_http(real_gateway: GatewayServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real_gateway.url, timeout=60) as client:
        yield client


SPOKEN = {"input": "Good morning.", "response_format": "wav", "seed": 5, "max_new_tokens": 9}


@pytest.mark.triton
def test_a_kept_voice_speaks_as_it_does_without_a_gateway(real_http: httpx.Client, server: Server) -> None:
    saved = save(real_http, "gateway grandpa", ref_text=TRANSCRIPT, consent="yes")
    assert saved.status_code == 200
    created_at = datetime.fromtimestamp(saved.json()["created_at"], timezone.utc)
    assert abs((datetime.now(timezone.utc) - created_at).total_seconds()) < 600
    spoken = real_http.post("/v1/audio/speech", json={**SPOKEN, "voice": "gateway grandpa"})
    with client_of(server) as tts:
        voice = ClonedVoice(RECORDING, TRANSCRIPT)
        direct = tts.synthesize("Good morning.", voice, seed=5, max_frames=8)
        np.testing.assert_array_equal(samples_in(spoken.content), samples_in(direct.to_wav()))
        assert tts.voices.describe("gateway grandpa").metadata["consent"] == "yes"
    assert real_http.delete(f"{VOICES}/gateway grandpa").status_code == 200
    assert refusal(real_http.post("/v1/audio/speech", json={**SPOKEN, "voice": "gateway grandpa"}))[0] == 404


@pytest.mark.triton
def test_an_embedding_that_does_not_fit_the_checkpoint_is_refused(real_http: httpx.Client) -> None:
    body = {**SPOKEN, "speaker_embedding": [0.5] * 7}
    status, _, message = refusal(real_http.post("/v1/audio/speech", json=body))
    assert status == 400
    assert "speaker_embedding" in message


@pytest.mark.triton
@pytest.mark.parametrize("name", ["a/b", "a+b", "..", "x" * 65, "ryan", "Vivian"])
def test_a_name_that_cannot_be_a_voices_is_refused(real_http: httpx.Client, name: str) -> None:
    assert refusal(save(real_http, name))[0] == 400
    assert names(real_http) == set()


def test_every_option_of_the_engine_reaches_it(http: httpx.Client, fake_triton: FakeTriton) -> None:
    options = {
        "seed": 7,
        "non_streaming_mode": True,
        "do_sample": True,
        "temperature": 0.5,
        "top_k": 5,
        "top_p": 0.5,
        "repetition_penalty": 1.5,
        "subtalker_do_sample": False,
        "subtalker_temperature": 0.25,
        "subtalker_top_k": 3,
        "subtalker_top_p": 0.75,
    }
    http.post("/v1/audio/speech", json={"input": "Hi.", "voice": "ryan", **options}).raise_for_status()
    (call,) = fake_triton.calls
    assert {name: call.array(name).item() for name in options} == options
