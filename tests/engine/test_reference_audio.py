"""Reference recordings: every format comes out as it went in, and whatever is wrong with one is said."""

import base64
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostile_audio import bombs, hostile_inputs
from qwen3_tts_engine.errors import ConfigError, InvalidRequest
from qwen3_tts_engine.reference_audio import SAMPLE_RATE, Decoder, Limits
from qwen3_tts_engine.upstream import import_qwen_tts
from recordings import KINDS, LEVEL, TONE_HZ, as_kind, recording, silence, sine, written

GOOD = recording("WAV, 16 bit", 1.5)
MEBIBYTE = 1 << 20

LOSSLESS_RATES = (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)
RATES = {
    "Vorbis": LOSSLESS_RATES,
    "Opus": (8_000, 12_000, 16_000, 24_000, 48_000),
    "Opus by ffmpeg": (8_000, 12_000, 16_000, 24_000, 48_000),
    "MP3": (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "MP3 by ffmpeg": (16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    "AAC": (8_000, 16_000, 22_050, 24_000, 44_100, 48_000),
    "M4A": (8_000, 16_000, 22_050, 24_000, 44_100, 48_000),
}
# Root mean square of what is no sine, and how far the level may be off: LAME lowers it by 5 %.
TOLERANCE = {
    **dict.fromkeys(KINDS, (1e-4, 1e-3)),
    **dict.fromkeys(("WAV, 8 bit", "WAV, A-law", "WAV, u-law"), (0.01, 0.01)),
    **dict.fromkeys(("Vorbis", "Opus", "Opus by ffmpeg", "MP3", "MP3 by ffmpeg", "AAC", "M4A"), (0.05, 0.06)),
}
PADDED = ("MP3", "MP3 by ffmpeg", "AAC", "M4A")


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(Limits()) as decoder:
        yield decoder


def refusal(decoder: Decoder, file: bytes) -> str:
    with pytest.raises(InvalidRequest) as refused:
        decoder.decode(file)
    assert str(refused.value).startswith("ref_audio ")
    return str(refused.value)


def memory_peak(decoder: Decoder) -> int:
    """The most the decoding process ever held, in bytes."""
    status = Path(f"/proc/{decoder.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def cpu_s(decoder: Decoder) -> float:
    """What the decoding process has used of the processor; 0 of one that just took another's place."""
    spent = psutil.Process(decoder.pid).cpu_times()
    return spent.user + spent.system


# --- formats ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("kind", "rate"), [(kind, r) for kind in KINDS for r in RATES.get(kind, LOSSLESS_RATES)]
)
def test_a_sine_comes_out_of_every_format_as_it_went_in(decoder, kind, rate, channels):
    heard = decoder.decode(recording(kind, 1.5, rate, channels))
    max_noise, max_deviation = TOLERANCE[kind]
    level, noise = fitted(heard.pcm)
    assert heard.pcm.dtype == np.float32
    assert noise < max_noise
    assert level == pytest.approx(LEVEL, abs=LEVEL * max_deviation)
    assert heard.duration_s == pytest.approx(1.5, abs=0.26 if kind in PADDED else 1e-3)
    assert len(heard.pcm) == pytest.approx(heard.duration_s * SAMPLE_RATE, abs=1)


def fitted(pcm: np.ndarray) -> tuple[float, float]:
    """The level of the sine that fits best, and the root mean square of the rest, its ends left out."""
    samples = pcm[6000:-9000].astype(float)
    phase = 2 * np.pi * TONE_HZ * np.arange(len(samples)) / SAMPLE_RATE
    basis = np.stack([np.sin(phase), np.cos(phase)], axis=1)
    weights = np.linalg.lstsq(basis, samples, rcond=None)[0]
    return float(np.hypot(*weights)), float(np.sqrt(np.mean((samples - basis @ weights) ** 2)))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([k for k in KINDS if k.startswith("WAV")]),
    rate=st.integers(1_000, 200_000),
    channels=st.integers(1, 7),
    seconds=st.floats(1, 2),  # or the largest would have more bytes than are allowed
)
def test_a_wav_of_any_rate_and_channel_count_is_read(decoder, kind, rate, channels, seconds):
    file = as_kind(kind, sine(seconds, rate, channels), rate)
    num_frames = round(seconds * rate)
    if num_frames < rate:
        assert "are allowed" in refusal(decoder, file)
    else:
        assert len(decoder.decode(file).pcm) == int(np.ceil(num_frames * (SAMPLE_RATE / rate)))


@pytest.mark.parametrize("kind", ["FLAC, 16 bit", "WAV, 24 bit"])
@pytest.mark.parametrize("channels", [3, 6, 8])
def test_more_than_two_channels_are_averaged(decoder, kind, channels):
    levels = np.linspace(0.1, 1, channels, dtype=np.float32)
    heard = decoder.decode(as_kind(kind, sine(1.5, 24_000, channels) * levels, 24_000))
    np.testing.assert_allclose(heard.pcm, sine(1.5)[:, 0] * levels.mean(), atol=1e-4)


@pytest.mark.parametrize(
    "wrap",
    [
        base64.b64encode,
        base64.encodebytes,
        lambda file: b"data:audio/wav;base64," + base64.b64encode(file),
        lambda file: b"DATA:audio/ogg;codecs=opus;BASE64," + base64.b64encode(file),
        lambda file: b"data:;base64," + base64.b64encode(file),
    ],
    ids=["base64", "base64 in lines", "data: URL", "data: URL of another type", "data: URL without a type"],
)
@pytest.mark.parametrize("kind", ["WAV, 16 bit", "FLAC, 16 bit", "Opus", "MP3", "M4A"])
def test_base64_and_data_urls_are_the_file_itself(decoder, kind, wrap):
    file = recording(kind, 1.5)
    np.testing.assert_array_equal(decoder.decode(wrap(file)).pcm, decoder.decode(file).pcm)


@pytest.mark.parametrize("kind", ["MP3", "FLAC, 16 bit", "AAC"])
def test_a_tag_in_front_changes_nothing(decoder, kind):
    file = recording(kind, 1.5)
    tag = b"ID3\x04\0\0\0\0\x02\0" + bytes(256)
    np.testing.assert_array_equal(decoder.decode(tag + file).pcm, decoder.decode(file).pcm)


def test_a_tag_behind_an_mp3_changes_nothing(decoder):
    file = recording("MP3", 1.5)
    tag = b"TAG" + b"title".ljust(125, b"\0")
    np.testing.assert_array_equal(decoder.decode(file + tag).pcm, decoder.decode(file).pcm)


@pytest.mark.parametrize("length", [0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_wav_that_was_written_to_a_pipe_is_read_to_its_end(decoder, length):
    piped = GOOD[:40] + length.to_bytes(4, "little") + GOOD[44:]
    np.testing.assert_array_equal(decoder.decode(piped).pcm, decoder.decode(GOOD).pcm)


def test_a_flac_that_was_written_to_a_pipe_is_read_to_its_end(decoder):
    file = recording("FLAC, 16 bit", 1.5)
    piped = file[:21] + bytes([file[21] & 0xF0]) + bytes(4) + file[26:]
    np.testing.assert_array_equal(decoder.decode(piped).pcm, decoder.decode(file).pcm)


def test_an_mp3_whose_bit_rate_jumps_is_read_to_its_end(decoder):
    """Without a tag, libsndfile would take the first frame's bit rate for all and stop too early."""
    joined = as_kind("MP3 by ffmpeg", sine(1.5), 24_000) + as_kind("MP3", silence(3), 24_000)
    assert decoder.decode(joined).duration_s == pytest.approx(4.5, abs=0.25)


# --- parity -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upstream_reads(tmp_path_factory):
    """What upstream's speaker encoder and codec get to hear of a file."""
    import librosa

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import audioread.rawread  # noqa: F401 - librosa.load will; it needs what Python 3.13 no longer has
    import_qwen_tts()
    from qwen_tts.inference.qwen3_tts_model import Qwen3TTSModel
    from qwen_tts.inference.qwen3_tts_tokenizer import Qwen3TTSTokenizer

    class FeatureExtractor:
        sampling_rate = SAMPLE_RATE

    tokenizer = Qwen3TTSTokenizer()
    tokenizer.feature_extractor = FeatureExtractor()
    model = Qwen3TTSModel.__new__(Qwen3TTSModel)
    path = tmp_path_factory.mktemp("upstream") / "recording"

    def read(file: bytes) -> tuple[np.ndarray, np.ndarray]:
        path.write_bytes(file)
        ((samples, rate),) = model._normalize_audio_inputs(str(path))
        (for_codec,) = tokenizer._normalize_audio_inputs([samples], rate)
        for_speaker = samples
        if rate != SAMPLE_RATE:
            for_speaker = librosa.resample(y=samples, orig_sr=rate, target_sr=SAMPLE_RATE)
        return for_codec, for_speaker

    return read


def voice(rate: int, channels: int) -> np.ndarray:
    """Noise that rises and falls, something else in each channel; its length divides by nothing."""
    random = np.random.default_rng(rate + channels)
    num_frames = int(1.7 * rate) + 13
    envelope = 0.4 * np.sin(np.linspace(0, 20, num_frames))[:, None] ** 2
    return (envelope * random.uniform(-1, 1, (num_frames, channels))).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("kind", ["WAV, 16 bit", "WAV, 24 bit", "WAV, float", "FLAC, 16 bit"])
def test_both_of_upstreams_readers_get_the_same_samples_to_the_bit(
    decoder, upstream_reads, kind, rate, channels
):
    file = as_kind(kind, voice(rate, channels), rate)
    for_codec, for_speaker = upstream_reads(file)
    heard = decoder.decode(file).pcm
    np.testing.assert_array_equal(heard, for_codec)
    np.testing.assert_array_equal(heard, for_speaker)


@pytest.mark.parametrize(("kind", "tolerance"), [("Vorbis", 0), ("Opus", 0), ("MP3", 1e-5)])
@pytest.mark.parametrize("channels", [1, 2])
def test_lossy_files_sound_as_they_do_to_upstream(decoder, upstream_reads, kind, channels, tolerance):
    """MP3 goes through another decoder than upstream's."""
    file = as_kind(kind, voice(48_000, channels), 48_000)
    for_codec, _ = upstream_reads(file)
    np.testing.assert_allclose(decoder.decode(file).pcm, for_codec, rtol=0, atol=tolerance)


def test_samples_a_little_beyond_full_scale_stay_as_they_are(decoder):
    loud = sine(1.5)[:, 0] * 3
    np.testing.assert_array_equal(decoder.decode(written(loud[:, None], subtype="FLOAT")).pcm, loud)


# --- limits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["WAV, 16 bit", "FLAC, 16 bit", "Vorbis", "Opus", "MP3", "AAC", "M4A"])
def test_half_a_minute_is_not_too_long_in_any_format_and_more_is(decoder, kind):
    assert decoder.decode(as_kind(kind, sine(30), 24_000)).duration_s == pytest.approx(30, abs=0.25)
    assert "1 to 30 s are allowed" in refusal(decoder, as_kind(kind, sine(30.6), 24_000))


def test_a_second_is_not_too_short_and_less_is(decoder):
    assert decoder.decode(written(sine(1))).duration_s == 1
    assert refusal(decoder, written(sine(0.999))) == "ref_audio lasts 0.999 s; 1 to 30 s are allowed"


def test_an_operator_sets_the_limits():
    parameters = {"max_bytes": "200000", "min_seconds": "0.1", "max_seconds": " 2.5 "}
    with Decoder(Limits.from_parameters(parameters)) as decoder:
        assert decoder.decode(written(sine(0.1))).duration_s == pytest.approx(0.1)
        assert "0.1 to 2.5 s are allowed" in refusal(decoder, written(sine(2.6)))
        assert "200000 are allowed" in refusal(decoder, written(sine(2), subtype="DOUBLE"))
        assert "200000 are allowed" in refusal(decoder, base64.b64encode(written(sine(2), subtype="DOUBLE")))


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"max_second": "4"}, "unknown parameter 'max_second'; did you mean 'max_seconds'?"),
        ({"volume": "4"}, "unknown parameter 'volume'; known are max_bytes,"),
        ({"max_bytes": "10 MB"}, "max_bytes is '10 MB'; it must be a whole number"),
        ({"max_bytes": "0"}, "max_bytes is 0; it must be at least 1"),
        ({"min_seconds": "31"}, "min_seconds is 31 and max_seconds 30"),
        ({"max_seconds": "nan"}, "max_seconds nan"),
        ({"timeout_seconds": "0"}, "timeout_seconds is 0; it must be more than 0"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(parameters, complaint):
    with pytest.raises(ConfigError) as refused:
        Limits.from_parameters(parameters)
    assert complaint in str(refused.value)


@pytest.mark.parametrize(
    ("file", "complaint"),
    [
        (b"", "ref_audio is empty; it must be the bytes of a WAV, FLAC, MP3,"),
        (written(silence(2)), "is silent"),
        (written(sine(2)[:0]), "is a WAV file without a single sample"),
        (written(sine(1.5) * 65_536, subtype="FLOAT"), "has samples up to 32768; full scale is 1"),
        (written(sine(1.5) * np.float32("nan"), subtype="FLOAT"), "not finite"),
        (written(sine(1.5), form="AIFF"), "is an AIFF file; it must be"),
        (b"https://example.com/voice.wav", "is a URL, and URLs are not fetched here"),
        (base64.b64encode(b"%PDF-1.7"), "is a PDF; it must be"),
        (b"voice.wav", "is nothing known, beginning with b'voice.wa' and no base64 either"),
        (written(sine(1.5), form="WAV", subtype="IMA_ADPCM"), "is a WAV file of IMA ADPCM"),
    ],
    ids=["empty", "silent", "no samples", "integers", "NaN", "AIFF", "URL", "PDF", "a name", "ADPCM"],
)
def test_the_answer_says_what_it_is_and_what_it_should_be(decoder, file, complaint):
    assert complaint in refusal(decoder, file)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"WAV, extensible"}))
@pytest.mark.parametrize("part", [0.3, 0.5, 0.8])
def test_a_file_that_was_cut_short_is_refused(decoder, kind, part):
    file = recording(kind, 4)
    complaint = refusal(decoder, file[: int(len(file) * part)])
    assert "was cut short" in complaint or "damaged" in complaint


def test_an_mp3_that_ends_within_its_tag_was_cut_short(decoder):
    file = recording("MP3 by ffmpeg", 1.5)
    tag = max(file.find(b"Xing"), file.find(b"Info"))
    for end in range(tag + 4, tag + 8):
        assert "was cut short" in refusal(decoder, file[:end])


# --- hostility --------------------------------------------------------------------------------------------


def test_the_decoder_outlives_whatever_it_is_sent(decoder):
    inputs = hostile_inputs()
    assert len(inputs) >= 200
    expected = decoder.decode(GOOD).pcm
    for name, content in inputs.items():
        spent_s = cpu_s(decoder)
        assert_error_or_sound(decoder, content, name)
        assert cpu_s(decoder) - spent_s < 3, name
        assert memory_peak(decoder) < 300 * MEBIBYTE, name
        np.testing.assert_array_equal(decoder.decode(GOOD).pcm, expected, err_msg=name)


def assert_error_or_sound(decoder: Decoder, content: bytes, name: str) -> None:
    with suppress(InvalidRequest):
        heard = decoder.decode(content)
        assert 1 <= heard.duration_s <= 30.25, name
        assert len(heard.pcm) == pytest.approx(heard.duration_s * SAMPLE_RATE, abs=1), name
        assert np.isfinite(heard.pcm).all(), name


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "AAC"])
def test_hours_of_silence_cost_neither_time_nor_memory(kind):
    bomb = dict(bombs())[f"{kind}: hours of silence"]
    with Decoder(Limits()) as decoder:
        decoder.decode(GOOD)
        before = memory_peak(decoder)
        spent_s = cpu_s(decoder)
        assert "1 to 30 s are allowed" in refusal(decoder, bomb)
        assert cpu_s(decoder) - spent_s < 1
        assert memory_peak(decoder) - before < 2 * len(bomb) + 20 * MEBIBYTE


def test_a_file_that_crashes_the_decoder_is_its_senders_problem_only(monkeypatch):
    with Decoder(Limits()) as decoder:
        ask = decoder._ask
        monkeypatch.setattr(
            decoder, "_ask", lambda *file: (interrupt(decoder, signal.SIGSEGV), ask(*file))[1]
        )
        assert "is a WAV file that breaks the decoder" in refusal(decoder, GOOD)
        monkeypatch.undo()
        assert decoder.decode(GOOD).duration_s == 1.5


def test_a_file_is_not_blamed_for_one_death(decoder):
    interrupt(decoder, signal.SIGSEGV)
    assert decoder.decode(GOOD).duration_s == 1.5


def test_a_decoder_that_died_in_its_sleep_is_replaced(decoder):
    os.kill(decoder.pid, signal.SIGKILL)
    psutil.Process(decoder.pid).wait()
    assert decoder.decode(GOOD).duration_s == 1.5


def test_a_file_that_takes_too_long_is_given_up():
    with Decoder(Limits(timeout_seconds=0.5)) as decoder:
        hanging = decoder.pid
        os.kill(hanging, signal.SIGSTOP)
        assert "takes more than 0.5 s to decode" in refusal(decoder, GOOD)
        assert not psutil.pid_exists(hanging)
        assert decoder.decode(GOOD).duration_s == 1.5


def test_the_decoding_process_can_open_nothing_and_knows_no_secrets(monkeypatch):
    monkeypatch.setenv("API_KEYS", "secret")
    with Decoder(Limits()) as decoder:
        process = psutil.Process(decoder.pid)
        assert "API_KEYS" not in process.environ()
        assert process.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_FSIZE) == (0, 0)
        assert process.rlimit(psutil.RLIMIT_DATA)[1] < 1024 * MEBIBYTE


def test_the_decoding_process_ends_with_its_owner():
    decoder = Decoder(Limits())
    process = psutil.Process(decoder.pid)
    decoder.close()
    assert not process.is_running()


def interrupt(decoder: Decoder, by: signal.Signals) -> None:
    """Stop the process now, and let the signal reach it while it is being waited for."""
    pid = decoder.pid

    def wake() -> None:
        os.kill(pid, by)
        os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    threading.Timer(0.2, wake).start()
