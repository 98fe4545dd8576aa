"""The same voice over plain HTTP: `generate` for a whole utterance, `generate_stream` for its chunks."""

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from callers import (
    ENDLESS,
    FRAME_SAMPLES,
    ONE_PCM16_STEP,
    assert_same_audio,
    client_of,
    decode_pcm16,
    decode_wav,
    events,
    posted,
)
from metrics_page import ACTIVE, MetricsWatch, read_metrics, wait_for_metrics
from qwen3_tts_engine.launch.server import Server

pytestmark = pytest.mark.triton

HELLO = {"text": "Good morning.", "speaker": "ryan", "seed": 5}


@pytest.fixture(scope="module")
def spoken(server: Server) -> NDArray[np.float32]:
    """What HELLO sounds like over gRPC."""
    with client_of(server) as tts:
        return tts.synthesize(HELLO["text"], voice=HELLO["speaker"], seed=HELLO["seed"]).samples


def test_one_post_gives_a_file_that_plays(server: Server, spoken: NDArray[np.float32]) -> None:
    body = {**HELLO, "stream": False, "audio_encoding": "wav_base64"}
    with posted(server, "generate", body) as response:
        assert response.status == 200
        answer = json.load(response)
    samples, sample_rate = soundfile.read(io.BytesIO(base64.b64decode(answer["encoded_audio"])))
    assert sample_rate == answer["sample_rate"] == 24000
    assert len(samples) == answer["num_frames"] * FRAME_SAMPLES
    assert answer["finish_reason"] == "stop"
    assert answer["audio"] == []
    assert_same_audio(samples, spoken, 2 * ONE_PCM16_STEP)  # libsndfile divides by 32768


@pytest.mark.parametrize(
    ("audio_encoding", "decode"),
    [
        ("pcm16_base64", lambda event: decode_pcm16(event["encoded_audio"])),
        ("wav_base64", lambda event: decode_wav(event["encoded_audio"])),
        ("float32", lambda event: np.array(event["audio"])),
    ],
    ids=["pcm16_base64", "wav_base64", "float32"],
)
def test_events_join_to_the_same_audio(
    server: Server,
    spoken: NDArray[np.float32],
    audio_encoding: str,
    decode: Callable[[Any], NDArray[np.float64]],
) -> None:
    with posted(server, "generate_stream", {**HELLO, "audio_encoding": audio_encoding}) as response:
        assert response.status == 200
        assert response.headers.get_content_type() == "text/event-stream"
        chunks = list(events(response))
    assert [chunk["chunk_index"] for chunk in chunks] == list(range(len(chunks)))
    assert [chunk["finish_reason"] for chunk in chunks] == [""] * (len(chunks) - 1) + ["stop"]
    assert_same_audio(np.concatenate([decode(chunk) for chunk in chunks]), spoken, ONE_PCM16_STEP)


def test_events_arrive_while_the_rest_is_being_spoken(server: Server) -> None:
    watch = MetricsWatch(server)
    body = {"text": "And so on.", "audio_encoding": "pcm16_base64", **ENDLESS}
    with posted(server, "generate_stream", body) as response:
        chunks = events(response)
        assert next(chunks)["num_frames"] == 1
        wait_for_metrics(server, {ACTIVE: 1})
        assert next(chunks)["num_frames"] == 3
        assert read_metrics(server)[ACTIVE] == 1
    assert watch.outcomes() == {"cancelled": 1}


BAD_BODIES = [
    ({"text": ""}, "text is empty; say at least one word"),
    ({"seed": 1}, "text is missing"),
    ({"text": "Hi.", "speaker": "nobody"}, "speaker is 'nobody'; this model has serena"),
    ({"text": "Hi.", "language": "Klingon"}, "language is 'Klingon'; this model has Auto"),
    ({"text": "Hi.", "temperature": -0.5}, "temperature is -0.5; it must be a number above 0"),
    ({"text": "Hi.", "max_frames": 8192}, "max_frames is 8192; this model allows 1 to 8191"),
    ({"text": "Hi.", "audio_encoding": "mp3"}, "audio_encoding is 'mp3'; it must be one of float32"),
    ({"text": "word " * 200_000}, "text has 999999 characters; at most 4096 tokens"),
    ({"text": "Hi.", "temprature": 0.5}, "temprature"),
    ({}, "missing required input"),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES, ids=[message[:30] for _, message in BAD_BODIES])
def test_a_bad_request_gets_400_and_says_why(server: Server, body: dict[str, Any], message: str) -> None:
    with posted(server, "generate", {**body, "stream": False} if body else body) as response:
        assert response.status == 400
        assert response.headers.get_content_type() == "application/json"
        assert message in json.load(response)["error"]


def test_a_bad_request_for_a_stream_gets_400_and_says_why(server: Server) -> None:
    with posted(server, "generate_stream", {"text": "Hi.", "top_p": 1.5}) as response:
        assert response.status == 400
        assert list(events(response)) == [
            {"error": "INVALID_ARGUMENT: top_p is 1.5; it must be above 0 and at most 1"}
        ]
