"""Which numbers the models compute in: what was asked for, or what a trial finds faster."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model import linear, precision
from qwen3_tts_engine.model.checkpoint import Checkpoint
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.precision import choose_dtype, expect_int8
from qwen3_tts_engine.request import SpeechRequest
from speaking import Speaker

SIGNAL_TO_NOISE_DB = 25  # bfloat16 has 8 bits of precision
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def tiny(tiny_checkpoints: Path) -> TalkerConfig:
    return Checkpoint(tiny_checkpoints / "custom_voice").config.talker


@pytest.fixture
def large(tiny: TalkerConfig, monkeypatch: pytest.MonkeyPatch) -> TalkerConfig:
    """Small enough for a test, and taken for one whose weights no cache holds."""
    monkeypatch.setattr(precision, "LARGE_ELEMENTS", 0)
    return tiny


def clock_of(durations_s: dict[torch.dtype, float]) -> Callable[[], float]:
    """Reads as if every pass through the trial's products took that long; float32 is tried first."""
    passes = [durations_s[dtype] for dtype in (torch.float32, torch.bfloat16)]
    readings = _readings(passes)
    return lambda: next(readings)


def _readings(passes: list[float]) -> Iterator[float]:
    now = 0.0
    for duration in passes:
        for _ in range(precision.TRIALS + 1):
            yield now
            now += duration
            yield now


def no_trial() -> float:
    pytest.fail("nothing is to be timed")


@pytest.mark.parametrize("name", ["float32", "bfloat16"])
def test_what_the_operator_asks_for_is_taken_without_a_trial(name: str, large: TalkerConfig) -> None:
    assert choose_dtype(name, CPU, large, no_trial) == getattr(torch, name)


def test_a_gpu_computes_in_bfloat16(tiny: TalkerConfig) -> None:
    assert choose_dtype("auto", GPU, tiny, no_trial) == torch.bfloat16


def test_weights_that_a_cache_holds_stay_in_float32_without_a_trial(tiny: TalkerConfig) -> None:
    assert choose_dtype("auto", CPU, tiny, no_trial) == torch.float32


@pytest.mark.parametrize(("half_s", "chosen"), [(0.5, torch.bfloat16), (0.9, torch.float32)])
def test_bfloat16_is_chosen_only_where_it_pays(
    half_s: float, chosen: torch.dtype, large: TalkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "library", lambda: None)
    clock = clock_of({torch.float32: 1.0, torch.bfloat16: half_s})
    assert choose_dtype("auto", CPU, large, clock) == chosen


def test_the_native_library_reads_bfloat16_in_half_the_time_without_a_trial(
    large: TalkerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "library", object)
    assert choose_dtype("auto", CPU, large, no_trial) == torch.bfloat16


def test_int8_weights_are_refused_on_a_gpu() -> None:
    with pytest.raises(ConfigError, match="weights is 'int8', which only the CPU has; the device is cuda"):
        expect_int8(GPU)


def test_int8_weights_are_refused_by_a_pytorch_that_cannot_multiply_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "has_int8", lambda: False)
    with pytest.raises(ConfigError, match="has no product for it; use 'full'"):
        linear.Int8Linear(torch.ones(16, 16))


def test_float16_is_spoken_where_the_operator_asks_for_it(
    load_engine: Callable[..., Engine], speaker: Speaker
) -> None:
    request = SpeechRequest("The fox.", language="English", speaker="ryan", seed=7, max_frames=5)
    said = Speaker(load_engine(dtype="float16", slots=1)).say(request)
    assert (said.codes[0] == speaker.say(request).codes[0]).mean() > 0.5  # 11 bits of precision


def test_int8_weights_say_something_else_than_upstream(
    load_engine: Callable[..., Engine], speaker: Speaker
) -> None:
    request = SpeechRequest("The fox.", language="English", speaker="ryan", seed=7, max_frames=25)
    rounded = Speaker(load_engine(weights="int8", slots=1)).say(request)
    assert not np.array_equal(rounded.codes, speaker.say(request).codes[: len(rounded.codes)])


def test_a_codec_in_bfloat16_speaks_the_same_frames_with_a_little_noise(
    load_engine: Callable[..., Engine], speaker: Speaker
) -> None:
    request = SpeechRequest("The fox.", language="English", speaker="ryan", seed=7, max_frames=25)
    exact = speaker.say(request)
    rounded = Speaker(load_engine(codec_dtype="bfloat16", slots=1)).say(request)
    np.testing.assert_array_equal(rounded.codes, exact.codes)
    noise = rounded.samples - exact.samples
    assert rounded.samples.dtype == np.float32
    assert 20 * np.log10(np.std(exact.samples) / np.std(noise)) > SIGNAL_TO_NOISE_DB
    assert np.abs(noise).max() > 0
