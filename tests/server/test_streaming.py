"""Speech as it is made: chunk by chunk, row by row, the same for everyone who asks for the same."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from callers import (
    ENDLESS,
    FRAME_SAMPLES,
    ONE_PCM16_STEP,
    RESTLESS,
    TEN_SECONDS,
    Response,
    assert_same_audio,
    client_of,
    decode_pcm16,
    decode_wav,
    infer,
    sound_alike,
)
from metrics_page import ACTIVE, FRAMES, MetricsWatch, read_metrics, wait_for_metrics
from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.launch.server import Server
from real_server import wait_until

pytestmark = pytest.mark.triton

HELLO = "Good morning, dear listeners."
SPEAKERS = ["serena", "vivian", "uncle_fu", "ryan", "aiden", "ono_anna", "sohee", "eric", "dylan"]
LANGUAGES = [
    *("Auto", "Chinese", "English", "German", "Italian", "Portuguese"),
    *("Spanish", "Japanese", "Korean", "French", "Russian"),
]

LANGUAGE_MODELS = ("", "subtalker_")  # the prefixes of their settings


@pytest.fixture
def tts(server: Server) -> Iterator[SpeechClient]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def ten_seconds_seed(server: Server) -> int:
    """A seed with which the tiny voice reaches 125 frames."""
    with client_of(server) as tts:
        seeds = range(20)
        return next(
            seed for seed in seeds if tts.synthesize(HELLO, seed=seed, **TEN_SECONDS).num_frames == 125
        )


# --- one chunk after another ------------------------------------------------------------------------------


def test_the_first_frame_is_heard_while_the_rest_is_being_spoken(server: Server, tts: SpeechClient) -> None:
    watch = MetricsWatch(server)
    with tts.stream(HELLO, seed=1, **ENDLESS) as speech:
        first = next(speech)
        assert speech.num_frames == 1
        assert first.shape == (FRAME_SAMPLES,)
        wait_for_metrics(server, {ACTIVE: 1})
        so_far = read_metrics(server)[FRAMES]
        wait_until(lambda: read_metrics(server)[FRAMES] > so_far, "the voice speaks on")
        assert len(next(speech)) in (FRAME_SAMPLES, 2 * FRAME_SAMPLES)  # the rest, if a listener can wait
        assert read_metrics(server)[ACTIVE] == 1
    assert watch.outcomes() == {"cancelled": 1}


def test_chunks_are_numbered_grow_and_add_up(server: Server, ten_seconds_seed: int) -> None:
    chunks = list(infer(server, text=HELLO, seed=ten_seconds_seed, **TEN_SECONDS))
    assert [chunk.chunk_index for chunk in chunks] == list(range(len(chunks)))
    frames = [len(chunk.audio) // FRAME_SAMPLES for chunk in chunks]
    assert frames[0] == 1
    assert max(frames) == 12
    assert {*frames[:-1]} <= {1, 2, 4, 8, 12}
    assert [chunk.num_frames for chunk in chunks] == list(np.cumsum(frames))
    assert len(audio_of(chunks)) == 125 * FRAME_SAMPLES
    assert [chunk.finish_reason for chunk in chunks] == [""] * (len(chunks) - 1) + ["length"]
    assert {chunk.sample_rate for chunk in chunks} == {24000}
    assert {chunk.row for chunk in chunks} == {0}


def test_samples_are_sound_within_full_scale(server: Server) -> None:
    audio = audio_of(infer(server, text=HELLO, seed=1))
    assert audio.dtype == np.float32
    assert np.isfinite(audio).all()
    assert 0 < np.abs(audio).max() <= 1


def test_sound_comes_while_the_rest_is_still_being_spoken(server: Server, tts: SpeechClient) -> None:
    with tts.stream(HELLO, seed=1, **ENDLESS) as speech:
        next(iter(speech))
        assert read_metrics(server)[ACTIVE] == 1


def test_without_streaming_the_same_audio_comes_in_one_response(server: Server) -> None:
    streamed = audio_of(infer(server, text=HELLO, seed=5))
    [whole] = infer(server, text=HELLO, seed=5, stream=False)
    assert_same_audio(whole.audio, streamed)
    assert (whole.chunk_index, whole.num_frames) == (0, len(streamed) // FRAME_SAMPLES)
    assert whole.finish_reason
    assert whole.is_final


# --- the same for everyone who asks for the same ------------------------------------------------------------


def test_a_seeded_request_sounds_the_same_alone_and_among_eight_callers(tts: SpeechClient) -> None:
    def say(seed: int) -> NDArray[np.float32]:
        return tts.synthesize(HELLO, seed=seed).samples

    alone = [say(seed) for seed in range(8)]
    with ThreadPoolExecutor(8) as callers:
        together = list(callers.map(say, range(8)))
    for one, other in zip(alone, together, strict=True):
        assert_same_audio(one, other)


def test_without_a_seed_no_two_utterances_are_alike(tts: SpeechClient) -> None:
    one, other = (tts.synthesize(HELLO, **RESTLESS, max_frames=4).samples for _ in range(2))
    assert not sound_alike(one, other)


# --- several rows in one request ----------------------------------------------------------------------------


def test_rows_speak_at_once_and_each_ends_for_itself(server: Server) -> None:
    texts, max_frames = ["One.", "And two, my dear.", "Three."], [20, 30, 3]
    responses = list(infer(server, text=texts, seed=[1, 2, 3], **RESTLESS, max_frames=max_frames))
    for i in range(3):
        row = [response for response in responses if response.row == i]
        assert [chunk.chunk_index for chunk in row] == list(range(len(row)))
        assert [chunk.finish_reason for chunk in row] == [""] * (len(row) - 1) + ["length"]
        assert row[-1].num_frames == max_frames[i]
        alone = infer(server, text=texts[i], seed=i + 1, **RESTLESS, max_frames=max_frames[i])
        assert_same_audio(audio_of(row), audio_of(alone))
    first_ends = [response.row for response in responses if response.finish_reason]
    assert first_ends == [2, 0, 1]
    assert [response.is_final for response in responses] == [False] * (len(responses) - 1) + [True]


def test_each_row_is_sent_as_it_asks_to_be(server: Server) -> None:
    options = {"stream": [True, False, True], "audio_encoding": ["float32", "wav_base64", "pcm16_base64"]}
    rows = list(infer(server, text=[HELLO] * 3, seed=4, **options))
    floats = audio_of(response for response in rows if response.row == 0)
    [whole] = [response for response in rows if response.row == 1]
    pieces = [decode_pcm16(response.encoded_audio) for response in rows if response.row == 2]
    assert len(pieces) > 1
    assert_same_audio(decode_wav(whole.encoded_audio), floats, ONE_PCM16_STEP)
    assert_same_audio(np.concatenate(pieces), floats, ONE_PCM16_STEP)


def test_sixteen_rows_are_as_many_as_a_request_may_carry(server: Server) -> None:
    responses = infer(server, text=[HELLO] * 16, max_frames=1)
    assert sorted(response.row for response in responses) == list(range(16))


# --- what may be asked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("audio_encoding", "decode"), [("pcm16_base64", decode_pcm16), ("wav_base64", decode_wav)]
)
def test_every_chunk_can_be_had_as_text(
    server: Server, audio_encoding: str, decode: Callable[[bytes], NDArray[Any]]
) -> None:
    floats = list(infer(server, text=HELLO, seed=6))
    texts = list(infer(server, text=HELLO, seed=6, audio_encoding=audio_encoding))
    assert all(chunk.encoded_audio == b"" for chunk in floats)
    assert all(chunk.audio.size == 0 for chunk in texts)
    for one, other in zip(texts, floats, strict=True):
        assert_same_audio(decode(one.encoded_audio), other.audio, ONE_PCM16_STEP)


@pytest.mark.parametrize(
    ("name", "values"), [("speaker", SPEAKERS), ("language", LANGUAGES)], ids=["speaker", "language"]
)
def test_a_name_may_be_written_in_any_case(server: Server, name: str, values: list[str]) -> None:
    def say(names: list[str]) -> list[NDArray[np.float32]]:
        options = {"seed": 8, "max_frames": 24, name: names}
        rows = infer(server, text=[HELLO] * len(names), stream=False, **options)
        return [response.audio for response in sorted(rows, key=lambda response: response.row)]

    as_listed = say(values)
    for changed in (str.upper, str.lower):
        for one, other in zip(say([changed(value) for value in values]), as_listed, strict=True):
            assert_same_audio(one, other)
    for one, other in combinations(as_listed, 2):
        assert not sound_alike(one, other), "two names, one sound"


@pytest.mark.parametrize("name", ["language", "speaker", "instruct", "audio_encoding"])
def test_an_empty_text_means_the_same_as_none(server: Server, name: str) -> None:
    plain = audio_of(infer(server, text=HELLO, seed=9, max_frames=4))
    assert_same_audio(audio_of(infer(server, text=HELLO, seed=9, max_frames=4, **{name: ""})), plain)


def test_an_instruction_changes_how_it_is_said(server: Server) -> None:
    plain = audio_of(infer(server, text=HELLO, seed=10, max_frames=4))
    whispered = audio_of(infer(server, text=HELLO, seed=10, max_frames=4, instruct="Whisper, in a hurry."))
    assert not sound_alike(plain, whispered)


def test_text_in_any_script_is_spoken(tts: SpeechClient) -> None:
    for text in ("早上好，各位听众。", "Доброе утро", "おはよう", "좋은 아침", "¿Qué tal? 👋🏽", "a" * 2000):
        assert tts.synthesize(text, max_frames=2).num_frames == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seed", value) for value in (0, -1, 2**63 - 1, -(2**63))),
        *((f"{prefix}do_sample", value) for prefix in LANGUAGE_MODELS for value in (True, False)),
        *((f"{prefix}temperature", value) for prefix in LANGUAGE_MODELS for value in (1e-3, 0.9, 100.0)),
        *((f"{prefix}top_k", value) for prefix in LANGUAGE_MODELS for value in (0, 1, 2**31 - 1)),
        *((f"{prefix}top_p", value) for prefix in LANGUAGE_MODELS for value in (1e-6, 0.5, 1.0)),
        *(("repetition_penalty", value) for value in (0.5, 1.0, 10.0)),
        *(("non_streaming_mode", value) for value in (True, False)),
        *(("max_frames", value) for value in (2, 8191)),
    ],
)
def test_every_setting_is_accepted_to_its_limits(server: Server, name: str, value: Any) -> None:
    responses = list(infer(server, text=HELLO, **{"max_frames": 3, name: value}))
    assert responses[-1].finish_reason
    assert np.isfinite(audio_of(responses)).all()


@pytest.mark.parametrize("max_frames", [1, 2, 3, 4, 7, 8])
def test_a_given_cap_is_the_length_of_who_would_speak_on(server: Server, max_frames: int) -> None:
    responses = list(infer(server, text=HELLO, **RESTLESS, max_frames=max_frames))
    assert len(audio_of(responses)) == max_frames * FRAME_SAMPLES
    assert responses[-1].finish_reason == "length"
    assert responses[-1].audio.size > 0


def audio_of(responses: Iterable[Response]) -> NDArray[np.float32]:
    return np.concatenate([response.audio for response in responses])
