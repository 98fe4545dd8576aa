"""What the engine speaks is what upstream speaks: same weights, same request, same codes, every frame."""

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from qwen3_tts_engine.request import Sampling, SpeechRequest
from speaking import Speaker
from upstream_oracle import Upstream

GREEDY = Sampling(do_sample=False)
CHECKPOINTS = ("custom_voice", "custom_voice_0b6")

PLAIN = SpeechRequest("She said she would be here by noon.", language="English", speaker="Vivian")
AUTO = SpeechRequest("Hello world.", speaker="ryan")
DIALECT = SpeechRequest("其实我真的有发现，我是一个特别善于观察别人情绪的人。", speaker="Dylan")
DIALECT_NAMED = SpeechRequest("哥哥，你回来啦。", language="Chinese", speaker="eric")
DIALECT_ABROAD = SpeechRequest("Der schnelle braune Fuchs springt.", language="german", speaker="Eric")
INSTRUCTED = replace(PLAIN, instruct="Very angry, but whispering.")
DIALECT_INSTRUCTED = replace(DIALECT, instruct="用特别愤怒的语气说")
VOICES = (PLAIN, AUTO, DIALECT, DIALECT_NAMED, DIALECT_ABROAD, INSTRUCTED, DIALECT_INSTRUCTED)

# The tiny checkpoints speak until they are stopped about half the time; both ends should be seen.
EVERY_KIND = [
    replace(request, non_streaming_mode=mode, max_frames=30)
    for request, mode in product(VOICES, (True, False))
]


def greedy(request: SpeechRequest) -> SpeechRequest:
    return replace(request, talker=GREEDY, subtalker=GREEDY)


@pytest.fixture(params=CHECKPOINTS)
def checkpoint(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def oracle(upstream: Callable[[str], Upstream], checkpoint: str) -> Upstream:
    return upstream(checkpoint)


@pytest.fixture
def speaker(speaker_of: Callable[[str], Speaker], checkpoint: str) -> Speaker:
    return speaker_of(checkpoint)


def test_alone_every_kind_of_request_speaks_upstreams_codes(oracle: Upstream, speaker: Speaker) -> None:
    for request in map(greedy, EVERY_KIND):
        assert np.array_equal(speaker.say(request).codes, oracle.codes(request)), request


def test_in_a_full_batch_every_row_speaks_upstreams_codes(oracle: Upstream, speaker: Speaker) -> None:
    requests = [greedy(request) for request in EVERY_KIND]
    for request, listener in zip(requests, speaker.say_all(requests), strict=True):
        assert np.array_equal(listener.codes, oracle.codes(request)), request


@pytest.mark.parametrize("shuffle", range(3))
def test_when_requests_join_and_leave_at_random_steps_every_row_speaks_upstreams_codes(
    oracle: Upstream, speaker: Speaker, shuffle: int
) -> None:
    dice = random.Random(shuffle)
    whole = [greedy(request) for request in dice.sample(EVERY_KIND, len(EVERY_KIND))]
    cut = [replace(request, max_frames=dice.randint(1, 30)) for request in whole]
    arrivals = sorted(dice.randint(0, 60) for _ in cut)
    for request, listener in zip(whole, speaker.say_all(cut, arrive=arrivals.__getitem__), strict=True):
        spoken = listener.codes
        assert np.array_equal(spoken, oracle.codes(request)[: len(spoken)]), request


@pytest.mark.parametrize("seed", [0, 7, 2**62, -1])
def test_a_seed_draws_what_upstream_draws_after_manual_seed(
    oracle: Upstream, speaker: Speaker, seed: int
) -> None:
    for request in (PLAIN, DIALECT, INSTRUCTED):
        seeded = replace(request, seed=seed, max_frames=15)
        assert np.array_equal(speaker.say(seeded).codes, oracle.codes(seeded)), request


SETTINGS = {
    "hot": {"talker": Sampling(temperature=1.7), "subtalker": Sampling(temperature=1.3)},
    "cold": {"talker": Sampling(temperature=0.3, top_k=0), "subtalker": Sampling(temperature=0.5, top_k=5)},
    "top_p": {"talker": Sampling(top_p=0.8), "subtalker": Sampling(top_p=0.6, top_k=0)},
    "narrow": {"talker": Sampling(top_k=2, top_p=0.95), "subtalker": Sampling(top_k=1)},
    "penalised": {"repetition_penalty": 3.0},
    "encouraged": {"repetition_penalty": 0.7},
    "greedy talker": {"talker": GREEDY},
    "greedy subtalker": {"subtalker": GREEDY},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_sampling_setting_means_what_it_means_upstream(
    oracle: Upstream, speaker: Speaker, settings: dict[str, object]
) -> None:
    request = replace(PLAIN, seed=3, max_frames=30, **settings)  # type: ignore[arg-type]
    assert np.array_equal(speaker.say(request).codes, oracle.codes(request))


def test_a_seeded_request_speaks_the_same_alone_and_in_company(speaker: Speaker) -> None:
    request = replace(PLAIN, seed=11, max_frames=30)
    company = [
        replace(voice, seed=i, max_frames=20 + i, **settings)  # type: ignore[arg-type]
        for i, (voice, settings) in enumerate(zip(VOICES, SETTINGS.values(), strict=False))
    ]
    alone = speaker.say(request)
    together = speaker.say_all([*company[:3], request, *company[3:]])[3]
    assert np.array_equal(alone.codes, together.codes)


def test_different_seeds_speak_differently(speaker: Speaker) -> None:
    one, other = (speaker.say(replace(PLAIN, seed=seed, max_frames=10)) for seed in (1, 2))
    assert not np.array_equal(one.codes, other.codes)


def test_without_a_seed_no_two_utterances_are_alike(speaker: Speaker) -> None:
    one, other = (speaker.say(replace(PLAIN, max_frames=10)) for _ in range(2))
    assert not np.array_equal(one.codes, other.codes)


def test_the_audio_is_upstreams_decode_of_the_same_codes(oracle: Upstream, speaker: Speaker) -> None:
    requests = [replace(r, seed=i, max_frames=60) for i, r in enumerate(VOICES)]
    for listener in speaker.say_all(requests):
        expected = oracle.decode(listener.codes)
        assert len(listener.samples) == len(listener.codes) * 1920
        assert np.abs(listener.samples - expected).max() <= 1e-5
