import gc
import hashlib
import io
import struct
import weakref
from functools import cache

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3_tts_client import Audio
from qwen3_tts_gateway.sound import FORMATS, SAMPLE_RATES, Sound, encode_whole, open_encoder
from recordings import humming

VOICE = humming(3.0)[:, 0]
CHUNK = 1920  # 80 ms

LOSSLESS = ["flac", "wav", "pcm"]
ALL_SAMPLES_AND_NO_MORE = ["opus", "flac", "wav", "pcm", "ulaw", "alaw"]
DEMUXERS = {"opus": "ogg", "aac": "aac", "pcm": "s16le", "ulaw": "mulaw", "alaw": "alaw"}

# Louder than full scale, on both sides of the 16-bit steps, and smaller than any of them.
HOSTILE = np.concatenate(
    [
        np.random.default_rng(0).uniform(-1.3, 1.3, 20000),
        np.random.default_rng(1).normal(0, 1e-4, 20000),
        np.arange(-40000, 40000) / 32768,
        np.nextafter(np.arange(-32768, 32769, dtype=np.float32) / 32768, np.float32(2)),
        np.nextafter(np.arange(-32768, 32769, dtype=np.float32) / 32768, np.float32(-2)),
        [1, -1, 0.0, -0.0, 1e-12, -1e-12, 1e-40, -1e-40, 100, -100],
    ]
).astype(np.float32)


def cut(samples, chunk_sizes):
    return np.split(samples, np.cumsum(chunk_sizes))


def streamed(sound, chunks):
    with open_encoder(sound) as encoder:
        return b"".join([*map(encoder.encode, chunks), encoder.finish()])


def in_chunks(sound, samples):
    return streamed(sound, cut(samples, [CHUNK] * (len(samples) // CHUNK)))


def whole(sound, samples):
    return encode_whole(sound, samples)


def decoded(data, sound, sample_format="flt"):
    """By FFmpeg, and at the rate it should be heard at."""
    is_raw = sound.format in ("pcm", "ulaw", "alaw")
    options = {"sample_rate": str(sound.heard_rate)} if is_raw else {}
    resampler = av.AudioResampler(sample_format, "mono", sound.heard_rate)
    with av.open(io.BytesIO(data), format=DEMUXERS.get(sound.format, sound.format), options=options) as file:
        frames = [piece for frame in file.decode(audio=0) for piece in resampler.resample(frame)]
    return np.concatenate(
        [np.empty(0), *(frame.to_ndarray()[0] for frame in frames + resampler.resample(None))]
    )


@cache
def expected(sample_rate):
    """The voice as 16-bit samples at another rate have it."""
    return decoded(in_chunks(Sound("pcm", sample_rate), VOICE), Sound("pcm", sample_rate))


def num_playable(data, sound):
    try:
        return len(decoded(data, sound))
    except av.FFmpegError:
        return 0


def delay_of(heard, source, max_delay):
    """Samples by which `heard` lags behind."""
    lags = np.correlate(heard[: len(source) // 2 + max_delay], source[: len(source) // 2], "valid")
    return int(np.argmax(lags))


def likeness(heard, source):
    return float(np.corrcoef(heard, source)[0, 1])


@pytest.mark.parametrize("encode", [in_chunks, whole])
@pytest.mark.parametrize("format", LOSSLESS)
def test_a_lossless_format_is_the_clients_wav_sample_for_sample(format, encode):
    wav, _ = soundfile.read(io.BytesIO(Audio(HOSTILE, 24000, "stop", 0).to_wav()), dtype="int16")
    sound = Sound(format)
    np.testing.assert_array_equal(decoded(encode(sound, HOSTILE), sound, "s16"), wav)


@pytest.mark.parametrize("format", FORMATS)
@settings(deadline=None, max_examples=10)
@given(chunk_sizes=st.lists(st.integers(0, 5000), max_size=30))
def test_where_chunks_end_cannot_be_heard(format, chunk_sizes):
    sound = Sound(format)
    chunks = cut(VOICE, chunk_sizes)
    np.testing.assert_array_equal(
        decoded(streamed(sound, chunks), sound), decoded(streamed(sound, [VOICE]), sound)
    )


@pytest.mark.parametrize("sample_rate", SAMPLE_RATES)
@pytest.mark.parametrize("format", ALL_SAMPLES_AND_NO_MORE)
def test_a_stream_has_all_samples_and_no_more(format, sample_rate):
    sound = Sound(format, sample_rate)
    assert len(decoded(in_chunks(sound, VOICE), sound)) == 3 * sample_rate


@pytest.mark.parametrize("encode", [in_chunks, whole])
@pytest.mark.parametrize("sample_rate", SAMPLE_RATES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_decoder_hears_the_voice_to_its_last_sample(format, sample_rate, encode):
    sound = Sound(format, sample_rate)
    source = expected(sample_rate)
    heard = decoded(encode(sound, VOICE), sound)
    max_delay = len(heard) - len(source)
    assert 0 <= max_delay <= 3 * 1152  # frames of MP3: two of delay, one that is filled up
    delay = delay_of(heard, source, max_delay)
    assert likeness(heard[delay : delay + len(source)], source) > 0.95
    end_s = sample_rate // 20
    assert likeness(heard[delay : delay + len(source)][-end_s:], source[-end_s:]) > 0.9


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_too_short_for_a_frame_is_a_sound_all_the_same(format):
    sound = Sound(format, 24000)
    assert len(decoded(in_chunks(sound, VOICE[:100]), sound)) >= 100
    assert len(decoded(whole(sound, VOICE[:100]), sound)) >= 100


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("speed", [0.25, 1.25, 4.0])
def test_every_format_is_heard_at_another_speed(format, speed):
    sound = Sound(format, speed=speed)
    duration_s = len(decoded(in_chunks(sound, VOICE), sound)) / sound.heard_rate
    assert duration_s == pytest.approx(3 / speed, rel=0.02, abs=0.25)


@pytest.mark.parametrize(
    ("format", "max_delay_ms"),
    [("mp3", 40), ("opus", 28), ("flac", 0), ("wav", 0), ("pcm", 0), ("ulaw", 2), ("alaw", 2)],
)
def test_each_chunk_can_be_played_at_once(format, max_delay_ms):
    sound = Sound(format)
    data = b""
    with open_encoder(sound) as encoder:
        for num_chunks, chunk in enumerate(cut(VOICE, [CHUNK] * 10)[:10], start=1):
            data += encoder.encode(chunk)
            played_ms = 1000 * num_playable(data, sound) / sound.heard_rate
            assert played_ms >= 80 * num_chunks - max_delay_ms


def test_aac_wants_a_second_chunk_because_two_of_its_frames_are_longer_than_one():
    sound = Sound("aac")
    with open_encoder(sound) as encoder:
        assert encoder.encode(VOICE[:CHUNK]) == b""
        data = encoder.encode(VOICE[CHUNK : 2 * CHUNK])
    assert num_playable(data, sound) >= 1024


def test_a_wav_streams_header_and_first_samples_leave_together():
    with open_encoder(Sound("wav")) as encoder:
        first = encoder.encode(VOICE[:CHUNK])
    assert len(first) == 44 + 2 * CHUNK


def test_an_mp3_stream_begins_with_a_frame_and_not_with_tags():
    with open_encoder(Sound("mp3")) as encoder:
        assert encoder.encode(VOICE[:CHUNK]).startswith(b"\xff\xf3")


def test_a_flac_streams_first_sound_waits_behind_no_padding():
    with open_encoder(Sound("flac")) as encoder:
        first = encoder.encode(np.zeros(CHUNK, np.float32))
    assert len(first) < 200


@pytest.mark.parametrize("format", ["pcm", "wav"])
def test_no_sample_is_torn_between_two_pieces(format):
    with open_encoder(Sound(format, speed=1.25)) as encoder:
        pieces = [encoder.encode(chunk) for chunk in cut(VOICE, [1, 2, 3, 999, 4097])]
        pieces.append(encoder.finish())
    assert all(len(piece) % 2 == 0 for piece in pieces)


def test_a_whole_file_leaves_nothing_before_its_end():
    with open_encoder(Sound("wav"), is_streamed=False) as encoder:
        assert encoder.encode(VOICE) == b""
        assert len(encoder.finish()) == 44 + 2 * len(VOICE)


def wav_header(data):
    return struct.unpack("<4sI4s4sIHHIIHH4sI", data[:44])


@pytest.mark.parametrize("sample_rate", SAMPLE_RATES)
def test_a_wav_stream_lasts_as_long_as_it_lasts(sample_rate):
    unknown = 0xFFFFFFFF
    assert wav_header(in_chunks(Sound("wav", sample_rate), VOICE)) == (
        *(b"RIFF", unknown, b"WAVE"),
        *(b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16),
        *(b"data", unknown),
    )


def test_a_whole_wav_tells_its_true_lengths():
    data = whole(Sound("wav"), VOICE)
    assert wav_header(data) == (
        *(b"RIFF", len(data) - 8, b"WAVE"),
        *(b"fmt ", 16, 1, 1, 24000, 48000, 2, 16),
        *(b"data", 2 * len(VOICE)),
    )


def test_a_whole_flac_tells_its_length_and_its_digest():
    data = whole(Sound("flac"), VOICE)
    assert soundfile.info(io.BytesIO(data)).frames == len(VOICE)
    samples, _ = soundfile.read(io.BytesIO(data), dtype="int16")
    assert data[26:42] == hashlib.md5(samples.tobytes()).digest()


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("mp3", "MPEG_LAYER_III"), ("opus", "OPUS"), ("flac", "PCM_16"), ("wav", "PCM_16")],
)
def test_libsndfile_reads_a_whole_file_to_exactly_its_last_sample(format, subtype):
    data = whole(Sound(format), VOICE)
    assert soundfile.info(io.BytesIO(data)).subtype == subtype
    samples, sample_rate = soundfile.read(io.BytesIO(data))
    assert (len(samples), sample_rate) == (len(VOICE), 24000)
    assert likeness(samples, VOICE) > 0.95


@pytest.mark.parametrize(("format", "num_extra"), [("mp3", 1152), ("opus", 0), ("wav", 0)])
def test_libsndfile_reads_a_stream(format, num_extra):
    file = soundfile.SoundFile(io.BytesIO(in_chunks(Sound(format), VOICE)))
    assert len(file.read()) == len(VOICE) + num_extra


@pytest.mark.parametrize(("format", "subtype"), [("pcm", "PCM_16"), ("ulaw", "ULAW"), ("alaw", "ALAW")])
def test_libsndfile_reads_what_has_no_header(format, subtype):
    sound = Sound(format)
    samples, _ = soundfile.read(
        io.BytesIO(in_chunks(sound, VOICE)),
        format="RAW",
        subtype=subtype,
        samplerate=sound.heard_rate,
        channels=1,
    )
    assert likeness(samples, expected(sound.heard_rate)) > 0.99


@pytest.mark.parametrize("encode", [in_chunks, whole])
@pytest.mark.parametrize("format", FORMATS)
def test_nothing_said_is_a_header_or_nothing(format, encode):
    data = encode(Sound(format), VOICE[:0])
    if format not in ("wav", "flac"):
        assert data == b""
        return
    assert len(decoded(data, Sound(format))) == 0
    assert data.startswith({"wav": b"RIFF", "flac": b"fLaC"}[format])


@pytest.mark.parametrize("end", ["finish", "close"])
def test_an_encoder_that_ended_takes_no_more(end):
    encoder = open_encoder(Sound())
    getattr(encoder, end)()
    encoder.close()
    for more in (lambda: encoder.encode(VOICE), encoder.finish):
        with pytest.raises(ValueError, match="this encoder is spent; every utterance wants its own"):
            more()


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_caller_who_hangs_up_leaves_nothing_behind(format, is_streamed, is_closed, capfd, caplog):
    encoder = open_encoder(Sound(format, speed=1.25), is_streamed=is_streamed)
    encoder.encode(VOICE[:5000])
    if is_closed:
        encoder.close()
    trace = weakref.ref(encoder)
    del encoder
    assert trace() is None
    gc.collect()
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []


def test_an_error_while_speaking_closes_the_encoder():
    def speak_until_the_line_breaks():
        with encoder:
            encoder.encode(VOICE)
            raise ConnectionError

    encoder = open_encoder(Sound())
    with pytest.raises(ConnectionError):
        speak_until_the_line_breaks()
    with pytest.raises(ValueError, match="spent"):
        encoder.finish()
