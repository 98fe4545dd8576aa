import io

import numpy as np
import pytest
import soundfile

from qwen3_tts_client import Audio

SECOND = Audio(np.sin(np.arange(24000) * 0.1).astype(np.float32), 24000, "stop", 13)


@pytest.mark.parametrize(
    ("extension", "subtype", "tolerance"),
    [
        ("wav", "PCM_16", 1e-4),
        ("flac", "PCM_16", 1e-4),
        ("ogg", "VORBIS", 0.1),
        ("mp3", "MPEG_LAYER_III", 0.1),
    ],
)
def test_the_extension_chooses_the_format(tmp_path, extension, subtype, tolerance):
    if extension.upper() not in soundfile.available_formats():
        pytest.skip(f"this libsndfile has no {extension}")
    path = SECOND.save(tmp_path / f"second.{extension}")
    assert soundfile.info(path).subtype == subtype
    samples, sample_rate = soundfile.read(path)
    assert sample_rate == SECOND.sample_rate
    np.testing.assert_allclose(samples[1000:20000], SECOND.samples[1000:20000], atol=tolerance)


def test_to_wav_is_a_whole_file():
    samples, sample_rate = soundfile.read(io.BytesIO(SECOND.to_wav()))
    assert len(samples) / sample_rate == SECOND.duration_s == 1


def test_an_extension_nobody_knows_is_refused_by_name(tmp_path):
    with pytest.raises(
        ValueError, match=r"cannot write '.*second\.xyz': its extension must be one of .*flac.*wav"
    ):
        SECOND.save(tmp_path / "second.xyz")


@pytest.mark.parametrize("extension", ["raw", "sd2"])
def test_a_format_that_does_not_say_how_fast_it_is_played_is_refused(tmp_path, extension):
    with pytest.raises(ValueError, match="its extension must be one of"):
        SECOND.save(tmp_path / f"second.{extension}")


def test_a_file_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing/second\.wav"):
        SECOND.save(tmp_path / "missing" / "second.wav")
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(IsADirectoryError):
        SECOND.save(tmp_path / "folder.wav")


def test_audio_that_a_format_has_no_room_for_is_a_value_error(tmp_path):
    many_channels = Audio(np.zeros((10, 2000), np.float32), 24000, "stop", 1)
    with pytest.raises(ValueError, match="cannot be written as wav"):
        many_channels.save(tmp_path / "many.wav")
