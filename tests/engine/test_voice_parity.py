"""Designed and cloned voices speak upstream's codes, too, with prompts of every length in one batch."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import ConfigError, InvalidRequest
from qwen3_tts_engine.request import Sampling, SpeechRequest, VoicePrompt
from speaking import Listener, Speaker
from upstream_oracle import Upstream

GREEDY = Sampling(do_sample=False)
MODES = (None, True, False)
HIDDEN_SIZE = 64

TEXTS = {
    "English": "She said she would be here by noon.",
    "Auto": "其实我真的有发现，我是一个特别善于观察别人情绪的人。",
    "French": "L'été.",
    "Japanese": "こんにちは、元気ですか。",
}


def recording(num_frames: int, text: str, seed: int) -> VoicePrompt:
    dice = np.random.default_rng(seed)
    embedding = dice.standard_normal(HIDDEN_SIZE, np.float32)
    return VoicePrompt(embedding, dice.integers(0, 2048, (num_frames, 16)), text)


# Texts longer and shorter than the reference: upstream cuts the one and pads the other.
SHORT_REFERENCE = recording(3, "The quick brown fox jumps over the lazy dog.", seed=1)
LONG_REFERENCE = recording(40, "用特别愤怒的语气说。", seed=2)
X_VECTOR = VoicePrompt(np.random.default_rng(3).standard_normal(HIDDEN_SIZE, np.float32))

DESIGNED = [
    SpeechRequest(
        text, language=language, instruct=f"A warm old storyteller, {language}.", non_streaming_mode=mode
    )
    for (language, text), mode in product(TEXTS.items(), MODES)
]
CLONED = [
    SpeechRequest(text, language=language, voice=voice, non_streaming_mode=mode)
    for (language, text), voice, mode in product(
        list(TEXTS.items())[:2], (SHORT_REFERENCE, LONG_REFERENCE, X_VECTOR), MODES
    )
]
BY_TASK = {"voice_design": DESIGNED, "base": CLONED}


def capped(request: SpeechRequest) -> SpeechRequest:
    return replace(request, max_frames=20)


def greedy(request: SpeechRequest) -> SpeechRequest:
    return replace(capped(request), talker=GREEDY, subtalker=GREEDY)


@pytest.mark.parametrize("task", BY_TASK)
def test_alone_and_in_a_busy_batch_every_prompt_speaks_upstreams_codes(
    upstream: Callable[[str], Upstream], speaker_of: Callable[[str], Speaker], task: str
) -> None:
    requests = [greedy(request) for request in BY_TASK[task]]
    together = speaker_of(task).say_all(requests)
    for request, listener in zip(requests, together, strict=True):
        expected = upstream(task).codes(request)
        assert np.array_equal(listener.codes, expected), request
        assert np.array_equal(speaker_of(task).say(request).codes, expected), request


@pytest.mark.parametrize("task", BY_TASK)
def test_a_seed_draws_what_upstream_draws(
    upstream: Callable[[str], Upstream], speaker_of: Callable[[str], Speaker], task: str
) -> None:
    for request in BY_TASK[task][::4]:
        seeded = replace(capped(request), seed=5)
        assert np.array_equal(speaker_of(task).say(seeded).codes, upstream(task).codes(seeded)), request


@pytest.mark.parametrize("voice", [SHORT_REFERENCE, LONG_REFERENCE], ids=["short", "long"])
def test_a_clone_begins_right_after_its_reference_and_not_one_sample_earlier_or_later(
    upstream: Callable[[str], Upstream], speaker_of: Callable[[str], Speaker], voice: VoicePrompt
) -> None:
    listener = speaker_of("base").say(capped(replace(CLONED[0], voice=voice, seed=1)))
    assert voice.ref_codes is not None
    whole = upstream("base").decode(np.concatenate([voice.ref_codes, listener.codes]))
    expected = whole[len(voice.ref_codes) * 1920 :]
    assert len(listener.samples) == len(listener.codes) * 1920
    assert np.abs(listener.samples - expected).max() <= 1e-5


def test_a_voice_that_speaks_again_sounds_the_same_and_its_reference_is_not_decoded_again(
    load_engine: Callable[..., Engine],
) -> None:
    speaker = Speaker(load_engine("base", slots=2))
    decoder = speaker.engine.codec._decoder
    remember = decoder.remember
    remembered = []
    decoder.remember = lambda codes: remembered.append(codes) or remember(codes)  # type: ignore[method-assign]
    request = capped(replace(CLONED[0], voice=LONG_REFERENCE, seed=1))
    first, second = speaker.say(request), speaker.say(request)
    assert np.array_equal(first.samples, second.samples)
    assert len(remembered) == 1


def test_without_a_reference_nothing_of_an_earlier_clone_is_left(
    speaker_of: Callable[[str], Speaker],
) -> None:
    request = capped(replace(CLONED[0], voice=X_VECTOR, seed=1))
    speaker = speaker_of("base")
    before = speaker.say(request)
    speaker.say(replace(request, voice=LONG_REFERENCE))
    assert np.array_equal(speaker.say(request).samples, before.samples)


BAD_VOICES = {
    "none at all": (None, "there is no voice to speak with"),
    "another model's size": (
        VoicePrompt(np.zeros(32, np.float32)),
        "speaker_embedding has 32 values; this checkpoint's voices have 64",
    ),
    "not finite": (VoicePrompt(np.full(HIDDEN_SIZE, np.nan, np.float32)), "is no number from"),
    "no transcript": (replace(SHORT_REFERENCE, ref_text=" "), "ref_text is missing"),
    "codes beyond the codebook": (
        replace(SHORT_REFERENCE, ref_codes=np.full((3, 16), 2048)),
        "ref_codes holds 2048 to 2048; codes are 0 to 2047",
    ),
    "no frames": (
        replace(SHORT_REFERENCE, ref_codes=np.zeros((0, 16), np.int64)),
        r"ref_codes has shape \[0, 16\]",
    ),
    "a flood": (
        replace(SHORT_REFERENCE, ref_codes=np.zeros((751, 16), np.int64)),
        r"ref_codes has shape \[751, 16\]",
    ),
    "control token": (replace(SHORT_REFERENCE, ref_text="<|im_end|>"), "ref_text contains the control token"),
}


@pytest.mark.parametrize(("voice", "message"), BAD_VOICES.values(), ids=BAD_VOICES)
def test_a_voice_that_cannot_speak_is_refused_by_name(
    speaker_of: Callable[[str], Speaker], voice: VoicePrompt | None, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        speaker_of("base").engine.prepare(replace(CLONED[0], voice=voice), Listener())


def test_a_designed_voice_needs_its_description(speaker_of: Callable[[str], Speaker]) -> None:
    with pytest.raises(InvalidRequest, match="instruct is missing"):
        speaker_of("voice_design").engine.prepare(SpeechRequest("Hello."), Listener())


def test_a_checkpoint_of_another_kind_is_refused_by_name(load_engine: Callable[..., Engine]) -> None:
    with pytest.raises(ConfigError, match="is a voice_design checkpoint; this model needs base"):
        load_engine("voice_design", task="base")
