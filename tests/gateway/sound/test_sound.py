import dataclasses
import math

import pytest

from qwen3_tts_gateway.errors import InvalidInput
from qwen3_tts_gateway.sound import FORMATS, SAMPLE_RATES, Sound


def test_who_asks_for_nothing_hears_mp3_at_the_engines_rate_and_speed():
    sound = Sound()
    assert (sound.media_type, sound.extension, sound.heard_rate, sound.speed) == (
        "audio/mpeg",
        "mp3",
        24000,
        1,
    )


@pytest.mark.parametrize(
    ("format", "media_type", "extension", "heard_rate"),
    [
        ("mp3", "audio/mpeg", "mp3", 24000),
        ("opus", "audio/ogg", "opus", 24000),
        ("aac", "audio/aac", "aac", 24000),
        ("flac", "audio/flac", "flac", 24000),
        ("wav", "audio/wav", "wav", 24000),
        ("pcm", "audio/pcm", "pcm", 24000),
        ("ulaw", "audio/PCMU", "ulaw", 8000),
        ("alaw", "audio/PCMA", "alaw", 8000),
    ],
)
def test_a_format_has_its_names_and_its_rate(format, media_type, extension, heard_rate):
    sound = Sound(format)
    assert (sound.media_type, sound.extension, sound.heard_rate) == (media_type, extension, heard_rate)


def test_the_rate_asked_for_wins_over_the_formats_own():
    assert Sound("ulaw", sample_rate=16000).heard_rate == 16000


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("sample_rate", [None, *SAMPLE_RATES])
@pytest.mark.parametrize("speed", [0.25, 1, 4])
def test_every_format_takes_every_rate_and_speed(format, sample_rate, speed):
    Sound(format, sample_rate, speed)


@pytest.mark.parametrize(
    ("wish", "param", "message"),
    [
        (
            {"format": "ogg"},
            "response_format",
            "response_format is 'ogg'; it must be one of mp3, opus, aac, flac, wav, pcm, ulaw, alaw",
        ),
        (
            {"sample_rate": 44100},
            "sample_rate",
            "sample_rate is 44100; it must be one of 8000, 16000, 24000, 48000",
        ),
        ({"sample_rate": 0}, "sample_rate", "sample_rate is 0; it must be one of 8000, 16000, 24000, 48000"),
        ({"speed": 0.24}, "speed", "speed is 0.24; it must be from 0.25 to 4.0"),
        ({"speed": 4.1}, "speed", "speed is 4.1; it must be from 0.25 to 4.0"),
        ({"speed": -1.0}, "speed", "speed is -1.0; it must be from 0.25 to 4.0"),
        ({"speed": math.nan}, "speed", "speed is nan; it must be from 0.25 to 4.0"),
        ({"speed": math.inf}, "speed", "speed is inf; it must be from 0.25 to 4.0"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(wish, param, message):
    with pytest.raises(InvalidInput) as refusal:
        Sound(**wish)
    assert (str(refusal.value), refusal.value.param) == (message, param)


def test_a_sound_stays_as_it_was_checked():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Sound().speed = 100
