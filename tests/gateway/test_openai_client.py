"""OpenAI's own Python client, as it is: what it asks the gateway for it gets, and it understands the rest."""

from __future__ import annotations

import base64
import struct
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import AsyncOpenAI, OpenAI

from callers import RESTLESS, client_of
from fakes.triton_server import PATIENCE_S, Call, FakeTriton, RefusalError, Script, chunk, final, says
from gateway_server import GatewayServer, running_gateway, settings
from listening import SAMPLE_RATE, decoded, events_in, samples_in
from metrics_page import ACTIVE, read_metrics, wait_for_metrics
from qwen3_tts_client import Audio, ClonedVoice, DesignedVoice, SpeechClient
from qwen3_tts_engine.launch.server import Server
from recordings import humming, written

FORMATS = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
LOSSLESS = ["flac", "wav", "pcm"]
LOSSY = ["mp3", "opus", "aac"]

# Four chunks' worth of silence, in samples, is more than any encoder's delay and padding.
SLACK = 4 * 1920


def client_at(gateway: GatewayServer, api_key: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{gateway.url}/v1", api_key=api_key, max_retries=0, timeout=60)


@pytest.fixture
def ai(gateway: GatewayServer) -> Iterator[OpenAI]:
    with client_at(gateway) as client:
        yield client


def say(ai: OpenAI, text: str = "Hello.", **fields: Any) -> bytes:
    return ai.audio.speech.create(**{"model": "tts-1", "voice": "ryan", "input": text, **fields}).content


# --- what reaches the engine --------------------------------------------------------------------------------


def test_what_the_client_says_is_what_the_engine_is_asked(ai: OpenAI, fake_triton: FakeTriton) -> None:
    extra = {"seed": -7, "language": "english", "max_new_tokens": 31, "top_k": 9, "temperature": 0.5}
    say(ai, "Guten Tag!", voice="Vivian", instructions="whisper", extra_body=extra)
    [call] = fake_triton.calls
    assert call.request.model_name == "qwen3_tts_custom_voice"
    texts = {name: call.string(name) for name in ("text", "speaker", "instruct", "language")}
    assert texts == {
        "text": "Guten Tag!",
        "speaker": "Vivian",
        "instruct": "whisper",
        "language": "english",
    }
    numbers = {name: call.array(name).item() for name in ("seed", "max_frames", "top_k", "temperature")}
    assert numbers == {"seed": -7, "max_frames": 30, "top_k": 9, "temperature": 0.5}


@pytest.mark.parametrize("voice", ["ash", "ASH", {"id": "ash"}], ids=str)
def test_openais_voices_are_built_in_speakers(ai: OpenAI, fake_triton: FakeTriton, voice: Any) -> None:
    say(ai, voice=voice)
    [call] = fake_triton.calls
    assert (call.request.model_name, call.string("speaker")) == ("qwen3_tts_custom_voice", "ryan")


def test_a_saved_voice_is_named_by_its_id(ai: OpenAI, fake_triton: FakeTriton) -> None:
    for voice in ("bob", {"id": "bob"}):
        say(ai, voice=voice)
        assert fake_triton.calls[-1].request.model_name == "qwen3_tts_base"
        assert fake_triton.calls[-1].string("voice") == "bob"


def test_mp3_is_what_comes_unless_another_format_is_asked_for(ai: OpenAI) -> None:
    response = ai.audio.speech.create(model="tts-1", voice="ryan", input="Hello.")
    assert response.response.headers["content-type"] == "audio/mpeg"
    assert len(decoded(response.content, "mp3")) >= 3 * 1920


def test_the_models_are_listed_and_looked_up(ai: OpenAI) -> None:
    names = [model.id for model in ai.models.list()]
    assert {"tts-1", "tts-1-hd", "gpt-4o-mini-tts", "qwen3-tts"} <= set(names)
    assert [ai.models.retrieve(name).id for name in names] == names
    with pytest.raises(openai.NotFoundError) as failure:
        ai.models.retrieve("whisper-1")
    assert (failure.value.param, failure.value.code) == ("model", "not_found")


# --- as it is being spoken ----------------------------------------------------------------------------------


def pausing_after(num_chunks: int, go_on: threading.Event) -> Script:
    """Says so many chunks and then nothing until somebody has heard them."""

    def script(call: Call) -> Iterator[Any]:
        for index in range(num_chunks):
            yield chunk(index)
        if not go_on.wait(PATIENCE_S):
            raise RefusalError(grpc.StatusCode.INTERNAL, "nobody heard a thing")
        yield chunk(num_chunks, finish_reason="stop")
        yield final()

    return script


# Most of them bring sound with the first chunk; a frame of AAC is complete with the second.
@pytest.mark.parametrize(
    ("how", "num_chunks"),
    [
        ({"response_format": "mp3"}, 1),
        ({"response_format": "opus"}, 1),
        ({"response_format": "aac"}, 2),
        ({"response_format": "flac"}, 1),
        ({"response_format": "pcm"}, 1),
        ({"response_format": "wav", "extra_body": {"stream": True}}, 1),
        ({"response_format": "wav", "stream_format": "sse"}, 1),
        ({"response_format": "mp3", "stream_format": "sse"}, 1),
        ({"response_format": "opus", "stream_format": "sse"}, 1),
    ],
    ids=str,
)
def test_the_first_sound_is_heard_before_the_rest_is_spoken(
    ai: OpenAI, fake_triton: FakeTriton, how: dict[str, Any], num_chunks: int
) -> None:
    go_on = threading.Event()
    fake_triton.script = pausing_after(num_chunks, go_on)
    speaking = ai.audio.speech.with_streaming_response
    with speaking.create(model="tts-1", voice="ryan", input="Hello.", **how) as response:
        pieces = response.iter_bytes()
        assert next(pieces)
        go_on.set()
        assert any(pieces)


@pytest.mark.parametrize("extra", [{}, {"stream": False}])
def test_a_wav_that_is_not_streamed_says_how_long_it_is(ai: OpenAI, extra: dict[str, Any]) -> None:
    response = ai.audio.speech.create(
        model="tts-1", voice="ryan", input="Hello.", response_format="wav", extra_body=extra
    )
    assert int(response.response.headers["content-length"]) == len(response.content)
    assert len(samples_in(response.content)) == 3 * 1920


def test_a_streamed_wav_begins_with_its_whole_header(ai: OpenAI) -> None:
    speaking = ai.audio.speech.with_streaming_response
    asked: dict[str, Any] = {"response_format": "wav", "extra_body": {"stream": True}}
    with speaking.create(model="tts-1", voice="ryan", input="Hello.", **asked) as response:
        first, *rest = response.iter_bytes()
    assert len(first) > 44
    assert (first[:4], first[8:16], first[36:40]) == (b"RIFF", b"WAVEfmt ", b"data")
    assert struct.unpack_from("<HHI", first, 20) == (1, 1, SAMPLE_RATE)  # PCM, mono
    sizes = {struct.unpack_from("<I", first, at) for at in (4, 40)}
    assert sizes == {(0xFFFFFFFF,)}, "as long as it lasts"
    assert len(first) + sum(map(len, rest)) == 44 + 3 * 1920 * 2


@pytest.mark.parametrize("form", FORMATS)
def test_events_carry_the_same_audio_in_any_format(ai: OpenAI, form: str) -> None:
    speech = ai.audio.speech.create(
        model="gpt-4o-mini-tts", voice="ryan", input="Hello.", response_format=form, stream_format="sse"
    )
    assert speech.response.headers["content-type"].startswith("text/event-stream")
    *deltas, done = events_in(speech.content.decode())
    assert (
        {event.name for event in deltas} == {event.json["type"] for event in deltas} == {"speech.audio.delta"}
    )
    assert {event.json["response_format"] for event in deltas} == {form}
    whole = say(ai, response_format=form, extra_body={"stream": True})
    heard = b"".join(event.audio for event in deltas)
    np.testing.assert_array_equal(decoded(heard, form), decoded(whole, form))
    assert done.name == done.json["type"] == "speech.audio.done"
    assert done.json["usage"] == {"input_tokens": 6, "output_tokens": 3, "total_tokens": 9}


@pytest.mark.parametrize("speed", [0.25, 0.5, 2.0, 4.0])
def test_speed_makes_it_shorter_or_longer(ai: OpenAI, fake_triton: FakeTriton, speed: float) -> None:
    fake_triton.script = says(25)
    num_samples = len(say(ai, response_format="pcm", speed=speed)) / 2
    assert num_samples == pytest.approx(2 * SAMPLE_RATE / speed, rel=0.02)


async def test_the_client_that_awaits_hears_the_same(gateway: GatewayServer, ai: OpenAI) -> None:
    whole = say(ai, response_format="pcm")
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        speaking = client.audio.speech.with_streaming_response
        asked = {"model": "tts-1", "voice": "ryan", "input": "Hello.", "response_format": "pcm"}
        async with speaking.create(**asked) as response:
            assert b"".join([piece async for piece in response.iter_bytes()]) == whole


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"input": ""}, "input", "nothing to say"),
        ({"input": "  \n "}, "input", "nothing to say"),
        ({"input": "a" * 4097}, "input", "4097 characters; at most 4096"),
        ({"response_format": "midi"}, "response_format", "'midi'; it must be one of mp3, opus, aac"),
        ({"speed": 4.1}, "speed", "0.25 to 4.0"),
        ({"speed": 0.2}, "speed", "0.25 to 4.0"),
        ({"stream_format": "morse"}, "stream_format", "'audio' or 'sse'"),
        ({"instructions": "a" * 4097}, "instructions", "4096"),
        ({"voice": {"id": 5}}, "voice", "string"),
        ({"extra_body": {"sample_rate": 12345}}, "sample_rate", "8000, 16000, 24000, 48000"),
        ({"extra_body": {"seed": 2**63}}, "seed", "less than"),
        ({"extra_body": {"max_new_tokens": 1}}, "max_new_tokens", "2"),
        ({"extra_body": {"max_new_tokens": 2**31 + 1}}, "max_new_tokens", "2147483648"),
    ],
    ids=str,
)
def test_a_bad_request_says_which_field_and_what_is_allowed(
    ai: OpenAI, fake_triton: FakeTriton, fields: dict[str, Any], param: str, told: str
) -> None:
    with pytest.raises(openai.BadRequestError) as failure:
        say(ai, **fields)
    error = failure.value
    assert (error.param, error.code, error.type) == (param, "invalid_value", "invalid_request_error")
    assert isinstance(error.body, dict)
    assert told in error.body["message"]
    assert fake_triton.calls == fake_triton.questions == []


def refusing(code: grpc.StatusCode, message: str, after: int = 0) -> Script:
    def script(call: Call) -> Iterator[Any]:
        for index in range(after):
            yield chunk(index)
        raise RefusalError(code, message)

    return script


@pytest.mark.parametrize("how", [{}, {"stream_format": "sse"}, {"response_format": "wav"}], ids=str)
def test_a_voice_that_nobody_saved_is_not_found(
    ai: OpenAI, fake_triton: FakeTriton, how: dict[str, Any]
) -> None:
    fake_triton.script = refusing(grpc.StatusCode.NOT_FOUND, "no voice is saved as 'nobody'")
    with pytest.raises(openai.NotFoundError, match="no voice is saved as 'nobody'") as failure:
        say(ai, voice="nobody", **how)
    assert failure.value.code == "voice_not_found"


@pytest.mark.parametrize(
    ("code", "kind", "expected", "told"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, openai.BadRequestError, (400, "invalid_value", None), "so it is"),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            openai.InternalServerError,
            (503, "overloaded", "1"),
            "so it is",
        ),
        (grpc.StatusCode.UNAVAILABLE, openai.InternalServerError, (503, "unavailable", "5"), "try again"),
        (grpc.StatusCode.INTERNAL, openai.InternalServerError, (500, "engine_failed", None), "its log knows"),
    ],
    ids=str,
)
def test_what_the_engine_refuses_has_a_status_of_its_own(
    ai: OpenAI,
    fake_triton: FakeTriton,
    code: grpc.StatusCode,
    kind: type[openai.APIStatusError],
    expected: tuple[int, str, str | None],
    told: str,
) -> None:
    fake_triton.script = refusing(code, "so it is")
    with pytest.raises(kind, match=told) as failure:
        say(ai)
    error = failure.value
    assert (error.status_code, error.code, error.response.headers.get("Retry-After")) == expected


def test_a_stream_of_events_that_breaks_off_says_why(ai: OpenAI, fake_triton: FakeTriton) -> None:
    fake_triton.script = refusing(grpc.StatusCode.INTERNAL, "out of breath", after=2)
    events = events_in(say(ai, response_format="pcm", stream_format="sse").decode())
    assert [event.name for event in events] == ["speech.audio.delta"] * 2 + ["speech.audio.error"]
    error = events[-1].json["error"]
    assert (error["code"], error["type"]) == ("engine_failed", "server_error")
    assert "its log knows why" in error["message"]


def test_a_stream_of_bytes_that_breaks_off_is_not_taken_for_the_whole(
    ai: OpenAI, fake_triton: FakeTriton
) -> None:
    fake_triton.script = refusing(grpc.StatusCode.INTERNAL, "out of breath", after=2)
    with pytest.raises(openai.APIConnectionError):
        say(ai, response_format="pcm")


def test_a_wrong_key_and_none_are_authentication_errors(fake_triton: FakeTriton) -> None:
    locked = settings(triton_grpc_port=fake_triton.port, api_keys=("secret",))
    with running_gateway(locked) as gateway:
        with client_at(gateway, "guessed") as client, pytest.raises(openai.AuthenticationError) as failure:
            say(client)
        with client_at(gateway, "secret") as client:
            assert say(client)
    assert failure.value.code == "invalid_api_key"
    assert failure.value.response.headers["WWW-Authenticate"] == "Bearer"


def test_a_share_that_is_used_up_is_a_rate_limit_error_with_a_time_to_wait(fake_triton: FakeTriton) -> None:
    stingy = settings(triton_grpc_port=fake_triton.port, requests_per_minute=1)
    with running_gateway(stingy) as gateway, client_at(gateway) as client:
        assert say(client)
        with pytest.raises(openai.RateLimitError, match="1 requests a minute") as failure:
            say(client)
    assert failure.value.code == "rate_limit_exceeded"
    assert 1 <= int(failure.value.response.headers["Retry-After"]) <= 60


def test_a_path_that_leads_nowhere_has_an_error_of_the_same_shape(ai: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as failure:
        ai.audio.transcriptions.create(model="whisper-1", file=b"abc")
    assert failure.value.code == "not_found"


# --- through the real server --------------------------------------------------------------------------------

HELLO = "Good morning, dear listeners."
ENOUGH_BYTES = 4096  # to hold sound, and not just a header
SPOKEN: dict[str, Any] = {"seed": 3, "max_new_tokens": 100, **RESTLESS}  # eight seconds of it
RECORDING = written(humming(3.0, seed=4))
TRANSCRIPT = "This is what I sound like."


@pytest.fixture(scope="module")
def real_ai(real_gateway: GatewayServer) -> Iterator[OpenAI]:
    with client_at(real_gateway) as client:
        yield client


@pytest.fixture(scope="module")
def tts(server: Server) -> Iterator[SpeechClient]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def direct(tts: SpeechClient) -> Audio:
    """What Triton says without a gateway."""
    options = {name: value for name, value in SPOKEN.items() if name != "max_new_tokens"}
    audio = tts.synthesize(HELLO, voice="ryan", max_frames=SPOKEN["max_new_tokens"] - 1, **options)
    assert audio.num_frames == 99
    return audio


@pytest.mark.triton
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("form", LOSSLESS)
def test_lossless_audio_is_tritons_sample_for_sample(
    real_ai: OpenAI, direct: Audio, form: str, stream: bool
) -> None:
    heard = say(real_ai, HELLO, response_format=form, extra_body={**SPOKEN, "stream": stream})
    np.testing.assert_array_equal(decoded(heard, form), samples_in(direct.to_wav()))


@pytest.mark.triton
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("form", LOSSY)
def test_lossy_audio_is_tritons_as_far_as_its_codec_goes(
    real_ai: OpenAI, direct: Audio, form: str, stream: bool
) -> None:
    heard = say(real_ai, HELLO, response_format=form, extra_body={**SPOKEN, "stream": stream})
    said, heard_samples = samples_in(direct.to_wav()), decoded(heard, form)
    assert 0 <= len(heard_samples) - len(said) <= SLACK
    assert worst_likeness(said, heard_samples) > LIKENESS


# The tiny voice hisses, and codecs for voices are at their worst with noise: Opus keeps 0.89 of it, AAC 0.94,
# MP3 0.96, and three quarters of any third of a second. The likeness of one noise to another is around 0.
LIKENESS = 0.7


def worst_likeness(said: NDArray[np.int16], heard: NDArray[np.int16]) -> float:
    """The lowest correlation of any third of a second, once the encoder's delay is taken off."""
    wanted = said.astype(float)
    spectrum = np.fft.rfft(heard.astype(float), 2 * len(heard)) * np.fft.rfft(wanted, 2 * len(heard)).conj()
    delay = int(np.argmax(np.fft.irfft(spectrum)[:SLACK]))
    aligned = heard[delay : delay + len(said)].astype(float)
    starts = range(0, len(aligned) - SAMPLE_RATE // 3, SAMPLE_RATE // 3)
    windows = [slice(start, start + SAMPLE_RATE // 3) for start in starts]
    return min(float(np.corrcoef(wanted[window], aligned[window])[0, 1]) for window in windows)


@pytest.mark.triton
@pytest.mark.parametrize(
    "how",
    [*({"response_format": form} for form in FORMATS), {"stream_format": "sse"}],
    ids=lambda how: next(iter(how.values())),
)
def test_sound_comes_while_the_rest_is_still_being_spoken(
    real_ai: OpenAI, server: Server, how: dict[str, str]
) -> None:
    asked: dict[str, Any] = {"model": "tts-1", "voice": "ryan", "input": HELLO, **how}
    endless = {"seed": 3, "stream": True, "max_new_tokens": 8192, **RESTLESS}
    with real_ai.audio.speech.with_streaming_response.create(**asked, extra_body=endless) as response:
        sound = response.iter_bytes()
        heard = next(sound)
        while len(heard) < ENOUGH_BYTES:
            heard += next(sound)
        assert read_metrics(server)[ACTIVE] == 1
    wait_for_metrics(server, {ACTIVE: 0})


@pytest.mark.triton
def test_events_carry_what_triton_says(real_ai: OpenAI, direct: Audio) -> None:
    body = say(real_ai, HELLO, response_format="pcm", stream_format="sse", extra_body=SPOKEN).decode()
    *deltas, done = events_in(body)
    assert len(deltas) > 5
    heard = b"".join(event.audio for event in deltas)
    np.testing.assert_array_equal(decoded(heard, "pcm"), samples_in(direct.to_wav()))
    assert done.json["usage"]["output_tokens"] == 99


@pytest.mark.triton
def test_a_recording_speaks_as_it_does_without_a_gateway(real_ai: OpenAI, tts: SpeechClient) -> None:
    data_url = f"data:audio/wav;base64,{base64.b64encode(RECORDING).decode()}"
    kinds: list[tuple[dict[str, Any], ClonedVoice]] = [
        ({"ref_text": TRANSCRIPT}, ClonedVoice(RECORDING, TRANSCRIPT)),
        ({"x_vector_only_mode": True}, ClonedVoice(RECORDING, x_vector_only=True)),
    ]
    for fields, voice in kinds:
        extra = {"task_type": "Base", "ref_audio": data_url, "seed": 5, "max_new_tokens": 9, **fields}
        heard = say(real_ai, HELLO, response_format="wav", extra_body=extra)
        without = tts.synthesize(HELLO, voice, seed=5, max_frames=8)
        np.testing.assert_array_equal(samples_in(heard), samples_in(without.to_wav()))


@pytest.mark.triton
def test_a_described_voice_speaks_as_it_does_without_a_gateway(real_ai: OpenAI, tts: SpeechClient) -> None:
    extra = {"task_type": "VoiceDesign", "seed": 5, "max_new_tokens": 9}
    asked: dict[str, Any] = {"voice": "", "instructions": "a warm old storyteller", "extra_body": extra}
    heard = say(real_ai, HELLO, response_format="wav", **asked)
    without = tts.synthesize(HELLO, DesignedVoice("a warm old storyteller"), seed=5, max_frames=8)
    np.testing.assert_array_equal(samples_in(heard), samples_in(without.to_wav()))


@pytest.mark.triton
@pytest.mark.parametrize(
    "change",
    [
        {"instructions": "Whisper, in a hurry."},
        {"voice": "vivian"},
        {"extra_body": {"seed": 6, "max_new_tokens": 9}},
        {"extra_body": {"seed": 5, "max_new_tokens": 9, "language": "German"}},
    ],
    ids=str,
)
def test_the_same_request_sounds_the_same_and_a_changed_one_does_not(
    real_ai: OpenAI, change: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"response_format": "pcm", "extra_body": {"seed": 5, "max_new_tokens": 9}}
    plain = say(real_ai, HELLO, **asked)
    assert say(real_ai, HELLO, **asked) == plain
    assert say(real_ai, HELLO, **{**asked, **change}) != plain


@pytest.mark.triton
@pytest.mark.parametrize(
    "voice",
    [
        *("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable"),
        *("marin", "nova", "onyx", "sage", "shimmer", "verse"),
    ],
)
def test_every_voice_of_openais_speaks(real_ai: OpenAI, voice: str) -> None:
    heard = say(real_ai, voice=voice, response_format="pcm", extra_body={"max_new_tokens": 2})
    assert len(heard) == 1920 * 2


@pytest.mark.triton
def test_the_engines_own_refusals_come_through(real_ai: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="'nobody'") as unknown:
        say(real_ai, voice="nobody")
    assert unknown.value.code == "voice_not_found"
    with pytest.raises(openai.BadRequestError, match="Klingon"):
        say(real_ai, extra_body={"language": "Klingon"})
