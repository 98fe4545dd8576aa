import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_tts_gateway.sound import MAX_SPEED, MIN_SPEED, SAMPLE_RATES, SPEECH_RATE
from qwen3_tts_gateway.sound.reshaper import Reshaper, tempo_steps
from recordings import TONE_HZ, humming, sine

SPEEDS = [0.25, 0.5, 0.8, 1, 1.25, 2, 4]
TONE = sine(3.0)[:, 0]
VOICE = humming(3.0)[:, 0]


def reshaped(samples, speed=1.0, sample_rate=SPEECH_RATE, chunk_size=1920):
    reshaper = Reshaper(speed, sample_rate)
    chunks = [
        reshaper.push(samples[start : start + chunk_size]) for start in range(0, len(samples), chunk_size)
    ]
    return np.concatenate([*chunks, reshaper.flush()])


def dominant_hz(samples, sample_rate):
    num_bins = 2**20
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), num_bins))
    return np.argmax(spectrum) * sample_rate / num_bins


@pytest.mark.parametrize("speed", SPEEDS)
def test_speed_changes_how_long_it_is(speed):
    expected_s = len(VOICE) / SPEECH_RATE / speed
    assert len(reshaped(VOICE, speed)) / SPEECH_RATE == pytest.approx(expected_s, rel=0.02, abs=0.1)


@pytest.mark.parametrize("speed", SPEEDS)
def test_speed_leaves_pitch_and_loudness_alone(speed):
    heard = reshaped(TONE, speed)
    assert dominant_hz(heard, SPEECH_RATE) == pytest.approx(TONE_HZ, abs=1)
    assert heard.std() == pytest.approx(TONE.std(), rel=0.02)


@pytest.mark.parametrize("sample_rate", SAMPLE_RATES)
def test_another_rate_changes_neither_duration_nor_pitch_nor_loudness(sample_rate):
    heard = reshaped(TONE, sample_rate=sample_rate)
    assert len(heard) == 3 * sample_rate
    assert dominant_hz(heard, sample_rate) == pytest.approx(TONE_HZ, abs=0.1)
    assert heard.std() == pytest.approx(TONE.std(), rel=0.001)


def test_another_rate_moves_nothing_in_time():
    expected = sine(3.0, rate=48000)[:, 0]
    np.testing.assert_allclose(
        reshaped(TONE, sample_rate=48000)[1000:-1000], expected[1000:-1000], atol=0.001
    )


def test_a_lower_rate_drops_what_it_cannot_carry_instead_of_folding_it_back():
    shrill = np.sin(2 * np.pi * 6000 * np.arange(24000) / 24000).astype(np.float32)
    assert np.abs(reshaped(shrill, sample_rate=8000)[100:-100]).max() < 0.001


@pytest.mark.parametrize("sample_rate", SAMPLE_RATES)
@settings(deadline=None, max_examples=5)
@given(chunk_size=st.integers(500, 20000))
def test_no_sample_of_another_rate_depends_on_where_chunks_end(sample_rate, chunk_size):
    at_once = reshaped(VOICE, sample_rate=sample_rate, chunk_size=len(VOICE))
    np.testing.assert_array_equal(reshaped(VOICE, sample_rate=sample_rate, chunk_size=chunk_size), at_once)


@pytest.mark.parametrize("chunk_size", [100, 1920, 20000, len(TONE)])
@pytest.mark.parametrize("speed", [0.3, 1.1, 3])
def test_another_speed_sounds_the_same_wherever_chunks_end(speed, chunk_size):
    heard = reshaped(TONE, speed, chunk_size=chunk_size)
    assert len(heard) / SPEECH_RATE == pytest.approx(3 / speed, abs=0.05)
    assert dominant_hz(heard, SPEECH_RATE) == pytest.approx(TONE_HZ, abs=1)
    assert heard.std() == pytest.approx(TONE.std(), rel=0.01)


@pytest.mark.parametrize(
    ("speed", "sample_rate", "num_chunks"),
    [
        (1, 8000, 1),
        (1, 48000, 1),
        (0.5, 24000, 2),
        (1.25, 24000, 2),
        (2, 24000, 2),
        (0.25, 24000, 3),
        (3, 24000, 4),
    ],
)
def test_sound_comes_out_after_a_few_chunks(speed, sample_rate, num_chunks):
    reshaper = Reshaper(speed, sample_rate)
    came = [len(reshaper.push(VOICE[start : start + 1920])) for start in range(0, num_chunks * 1920, 1920)]
    assert came[-1] > 0
    assert not any(came[:-1])


@pytest.mark.parametrize(("speed", "sample_rate"), [(0.25, 24000), (1, 48000), (4, 8000)])
def test_nothing_stays_nothing(speed, sample_rate):
    assert len(Reshaper(speed, sample_rate).flush()) == 0


@given(speed=st.floats(MIN_SPEED, MAX_SPEED))
def test_steps_multiply_to_the_speed_and_each_is_one_that_blends(speed):
    steps = tempo_steps(speed)
    assert math.prod(steps) == pytest.approx(speed)
    assert all(0.5 <= step <= 2 for step in steps)
    assert len(steps) <= 2


def test_the_engines_speed_takes_no_step():
    assert tempo_steps(1.0) == []
