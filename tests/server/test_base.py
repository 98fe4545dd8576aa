"""Recorded voices through the real server: as a file, under a name, mixed; each speaks as upstream has it."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException

from callers import (
    ENDLESS,
    FLOAT32_NOISE,
    ONE_PCM16_STEP,
    assert_same_audio,
    client_of,
    decode_pcm16,
    events,
    infer,
    posted,
    sound_alike,
)
from metrics_page import ACTIVE, read_metrics
from qwen3_tts_client import ClonedVoice, InvalidRequest, SpeechClient
from qwen3_tts_engine.launch.server import Server
from qwen3_tts_engine.request import SpeechRequest, VoicePrompt
from recordings import humming, written
from upstream_oracle import Upstream

pytestmark = pytest.mark.triton

TEXT = "She said she would be here by noon."
SPOKEN = {"seed": 5, "max_frames": 24}

GRANDPA = ClonedVoice(written(humming(3.3, seed=1)), "Once upon a time there was a king.")
GRANDMA = ClonedVoice(written(humming(1.2, 16_000, seed=2), 16_000), "用特别愤怒的语气说。")
GRANDPAS_TIMBRE = ClonedVoice(GRANDPA.recording, x_vector_only=True)
GRANDMAS_TIMBRE = ClonedVoice(GRANDMA.recording, x_vector_only=True)
RECORDINGS = {"in context": GRANDPA, "in context, briefly": GRANDMA, "x-vector only": GRANDPAS_TIMBRE}


@pytest.fixture(scope="module")
def tts(server: Server) -> Iterator[SpeechClient]:
    with client_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def saved(tts: SpeechClient) -> Iterator[None]:
    """`grandpa` and `grandma` are saved."""
    tts.voices.save("grandpa", GRANDPA)
    tts.voices.save("grandma", GRANDMA)
    yield
    for name in ("grandpa", "grandma"):
        tts.voices.delete(name)


@pytest.fixture(scope="module")
def upstream(tiny_checkpoints: Path) -> Upstream:
    return Upstream(tiny_checkpoints / "base")


@pytest.fixture(scope="module")
def heard_upstream(
    upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[ClonedVoice], VoicePrompt]:
    """What upstream hears in a recording."""
    file = tmp_path_factory.mktemp("upstream") / "recording.wav"

    def hear(voice: ClonedVoice) -> VoicePrompt:
        file.write_bytes(voice.read())
        return upstream.voice_in(file, voice.transcript or "", voice.x_vector_only)

    return hear


@pytest.fixture(scope="module")
def upstream_says(upstream: Upstream) -> Callable[[VoicePrompt], NDArray[np.float32]]:
    """The same words with the same seed, all of it upstream's work."""
    return lambda prompt: upstream.speech(SpeechRequest(TEXT, voice=prompt, **SPOKEN))


# --- the same voice as upstream's -------------------------------------------------------------------------


@pytest.mark.parametrize("voice", RECORDINGS.values(), ids=RECORDINGS.keys())
def test_a_recording_speaks_what_upstream_makes_of_the_same_file(tts, heard_upstream, upstream_says, voice):
    spoken = tts.synthesize(TEXT, voice, **SPOKEN)
    assert_same_audio(spoken.samples, upstream_says(heard_upstream(voice)), FLOAT32_NOISE)


@pytest.mark.usefixtures("saved")
def test_a_saved_voice_speaks_by_its_name_what_upstream_makes_of_the_recording(
    tts, heard_upstream, upstream_says
):
    spoken = tts.synthesize(TEXT, "grandpa", **SPOKEN)
    assert_same_audio(spoken.samples, upstream_says(heard_upstream(GRANDPA)), FLOAT32_NOISE)


@pytest.mark.usefixtures("saved")
def test_a_mix_speaks_what_upstream_says_with_the_mean_of_the_embeddings(tts, heard_upstream, upstream_says):
    two_parts, one_part = (
        heard_upstream(voice).speaker_embedding for voice in (GRANDPAS_TIMBRE, GRANDMAS_TIMBRE)
    )
    mix = upstream_says(VoicePrompt((2 * two_parts + one_part) / 3))
    assert_same_audio(tts.synthesize(TEXT, "grandpa(2)+grandma(1)", **SPOKEN).samples, mix, FLOAT32_NOISE)
    assert not sound_alike(tts.synthesize(TEXT, "grandpa(1)+grandma(2)", **SPOKEN).samples, mix)


# --- in company -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("saved")
def test_voices_with_prompts_of_every_length_speak_in_one_batch_as_they_do_alone(
    server: Server, tts: SpeechClient
) -> None:
    voices = [GRANDPA, GRANDMA, GRANDPAS_TIMBRE, "grandma", "grandpa(2)+grandma"] * 2
    texts = [TEXT if i % 2 else "L'été." for i in range(len(voices))]
    alone = [tts.synthesize(text, voice, **SPOKEN) for text, voice in zip(texts, voices, strict=True)]
    # Whoever speaks without an end shares every step of the others.
    with tts.stream(TEXT, GRANDPA, seed=1, **ENDLESS) as company:
        next(company)
        together = tts.synthesize_batch(texts, voices, **SPOKEN)
        assert read_metrics(server, "qwen3_tts_base")[ACTIVE] >= 1
    for one, other in zip(together, alone, strict=True):
        assert_same_audio(one.samples, other.samples)


# --- in one request ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("voice", RECORDINGS.values(), ids=RECORDINGS.keys())
def test_one_post_with_a_recording_streams_what_the_clients_two_calls_say(
    server: Server, tts: SpeechClient, voice: ClonedVoice
) -> None:
    body = {
        "text": TEXT,
        "ref_audio": base64.b64encode(voice.read()).decode(),
        "ref_text": voice.transcript or "",
        "x_vector_only": voice.x_vector_only,
        "audio_encoding": "pcm16_base64",
        **SPOKEN,
    }
    with posted(server, "generate_stream", body, "qwen3_tts_voice_clone") as response:
        chunks = [decode_pcm16(event["encoded_audio"]) for event in events(response)]
    assert len(chunks) > 1
    expected = tts.synthesize(TEXT, voice, **SPOKEN).samples
    assert_same_audio(np.concatenate(chunks), expected, ONE_PCM16_STEP)


# --- nobody's voice ---------------------------------------------------------------------------------------


@pytest.mark.usefixtures("saved")
@pytest.mark.parametrize("voice", ["nobody", "grandpa(2)+nobody"])
def test_a_voice_that_nobody_saved_is_refused_by_its_name(tts: SpeechClient, voice: str) -> None:
    with pytest.raises(InvalidRequest, match="there is no voice named 'nobody'"):
        tts.synthesize(TEXT, voice)


EMBEDDING = {"speaker_embedding": np.ones((1, 64), np.float32)}
CODES = {"ref_codes": np.zeros((1, 12, 16), np.int32), "ref_text": "Once upon a time."}


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "there is no voice to speak with"),
        (
            {"voice": "grandpa", **EMBEDDING},
            "voice and speaker_embedding are both given; they name two voices",
        ),
        ({"voice": "grandpa", **CODES}, "voice and ref_codes are both given; they name two voices"),
        (CODES, "ref_codes is given without speaker_embedding; a voice has both"),
    ],
    ids=["none", "a name and an embedding", "a name and codes", "half of one"],
)
def test_a_request_has_exactly_one_voice(server: Server, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InferenceServerException, match=f"INVALID_ARGUMENT: {message}"):
        list(infer(server, model="qwen3_tts_base", text=TEXT, **inputs))
