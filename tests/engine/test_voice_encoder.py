"""The voice encoder against upstream's create_voice_clone_prompt, and what it does not take."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3_tts_engine.config import CheckpointConfig
from qwen3_tts_engine.errors import ConfigError, InvalidRequest
from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.request import FRAME_SAMPLES, SAMPLE_RATE, VoicePrompt
from qwen3_tts_engine.voice_encoder import MAX_AMPLITUDE, Recording, VoiceEncoder
from upstream_oracle import Upstream

TRANSCRIPT = "This is what I sound like."

# Samples: the shortest there is, whole frames, one more and one less, any number, the longest there is.
LENGTHS = [24_000, 25 * FRAME_SAMPLES, 25 * FRAME_SAMPLES + 1, 30 * FRAME_SAMPLES - 1, 100_003, 720_000]


def voice(num_samples: int, seed: int = 0, peak: float = 0.9) -> NDArray[np.float32]:
    """A gliding tone with overtones and breath."""
    time_s = np.arange(num_samples) / SAMPLE_RATE
    phase = 2 * np.pi * (120 + 10 * seed) * (time_s + 0.05 * np.sin(3 * time_s))
    breath = np.random.default_rng(seed).standard_normal(num_samples)
    samples = sum(np.sin(n * phase) / n for n in range(1, 6)) + 0.1 * breath
    return (samples * peak / np.abs(samples).max()).astype(np.float32)


@pytest.fixture(scope="module")
def encoder(tiny_checkpoints: Path) -> VoiceEncoder:
    return VoiceEncoder.load(CheckpointConfig("base", device="cpu"), tiny_checkpoints)


@pytest.fixture(scope="module")
def upstream_prompt(upstream: Callable[[str], Upstream]) -> Callable[..., VoicePrompt]:
    """What upstream makes of a recording."""

    def make(recording: Recording) -> VoicePrompt:
        [item] = upstream("base").model.create_voice_clone_prompt(
            (recording.pcm.copy(), SAMPLE_RATE), recording.ref_text, recording.x_vector_only
        )
        codes = None if item.ref_code is None else item.ref_code.numpy()
        return VoicePrompt(item.ref_spk_embedding.numpy(), codes, item.ref_text or "")

    return make


# --- the same voice as upstream's -------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_a_recording_becomes_the_voice_upstream_makes_of_it(encoder, upstream_prompt, num_samples):
    recording = Recording(voice(num_samples), TRANSCRIPT)
    ours, theirs = encoder.encode(recording), upstream_prompt(recording)
    np.testing.assert_array_equal(ours.ref_codes, theirs.ref_codes)
    np.testing.assert_allclose(ours.speaker_embedding, theirs.speaker_embedding, rtol=0, atol=1e-5)
    assert ours.ref_text == TRANSCRIPT


def test_an_embedding_alone_is_the_one_upstream_makes(encoder, upstream_prompt):
    recording = Recording(voice(50_000), x_vector_only=True)
    ours, theirs = encoder.encode(recording), upstream_prompt(recording)
    assert ours.ref_codes is None
    assert theirs.ref_codes is None
    np.testing.assert_allclose(ours.speaker_embedding, theirs.speaker_embedding, rtol=0, atol=1e-5)


def test_a_recording_louder_than_full_scale_is_heard_as_upstream_hears_it(encoder, upstream_prompt, capsys):
    recording = Recording(voice(30_000, peak=MAX_AMPLITUDE), TRANSCRIPT)
    np.testing.assert_array_equal(encoder.encode(recording).ref_codes, upstream_prompt(recording).ref_codes)


@pytest.mark.parametrize("num_samples", LENGTHS)
def test_every_frame_begun_is_a_frame(encoder, num_samples):
    prompt = encoder.encode(Recording(voice(num_samples), TRANSCRIPT))
    assert prompt.ref_codes.shape == (-(-num_samples // FRAME_SAMPLES), 16)
    assert prompt.ref_codes.dtype == np.int64
    assert prompt.speaker_embedding.shape == (64,)
    assert prompt.speaker_embedding.dtype == np.float32


def test_different_people_have_different_voices(encoder):
    one, other = (encoder.encode(Recording(voice(48_000, seed), TRANSCRIPT)) for seed in (1, 2))
    assert (one.ref_codes != other.ref_codes).mean() > 0.5
    assert np.abs(one.speaker_embedding - other.speaker_embedding).max() > 1e-2


def test_the_same_recording_is_bit_for_bit_the_same_voice(encoder):
    recording = Recording(voice(77_777), TRANSCRIPT)
    one = encoder.encode(recording)
    encoder.encode(Recording(voice(60_000, seed=3), TRANSCRIPT))
    other = encoder.encode(recording)
    np.testing.assert_array_equal(one.ref_codes, other.ref_codes)
    np.testing.assert_array_equal(one.speaker_embedding, other.speaker_embedding)


def test_a_read_only_recording_is_taken_and_left_as_it_is(encoder):
    pcm = voice(24_000)
    before = pcm.copy()
    pcm.flags.writeable = False
    encoder.encode(Recording(pcm, TRANSCRIPT))
    np.testing.assert_array_equal(pcm, before)


def test_the_codec_encoder_rests_when_only_the_embedding_is_wanted(encoder, monkeypatch):
    def encode(*_: object, **__: object) -> None:
        raise AssertionError("the codec encoder was asked")

    monkeypatch.setattr(encoder._codec_encoder, "encode", encode)
    encoder.encode(Recording(voice(24_000), x_vector_only=True))


# --- what is not taken ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [0, 1, 23_999, 31 * SAMPLE_RATE])
def test_a_recording_lasts_one_to_thirty_seconds(num_samples):
    with pytest.raises(InvalidRequest, match=r"^pcm lasts .* s; a reference recording lasts 1 to 30 s$"):
        Recording(np.zeros(num_samples, np.float32), TRANSCRIPT)


def test_silence_around_thirty_seconds_of_sound_is_no_reason_to_refuse_them():
    Recording(np.pad(voice(30 * SAMPLE_RATE), (1105, 1297)), TRANSCRIPT)  # what MP3 adds


@pytest.mark.parametrize("sample", [np.nan, np.inf, -np.inf])
def test_samples_are_finite_numbers(sample):
    pcm = voice(24_000)
    pcm[12_345] = sample
    with pytest.raises(InvalidRequest, match=r"^pcm holds samples that are no finite numbers$"):
        Recording(pcm, TRANSCRIPT)


@pytest.mark.parametrize("sign", [1, -1])
def test_samples_that_nobody_scaled_are_refused(sign):
    pcm = (sign * 32_767 * np.abs(voice(24_000, peak=1))).astype(np.float32)
    with pytest.raises(InvalidRequest, match=r"^pcm reaches 32767; full scale is 1"):
        Recording(pcm, TRANSCRIPT)


@pytest.mark.parametrize("ref_text", ["", " \n"])
def test_codes_need_a_transcript(ref_text):
    with pytest.raises(InvalidRequest, match=r"^ref_text is missing; .* or set x_vector_only$"):
        Recording(voice(24_000), ref_text)


def test_a_transcript_without_codes_is_left_out(encoder):
    assert encoder.encode(Recording(voice(24_000), TRANSCRIPT, x_vector_only=True)).ref_text == ""


# --- loading ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["custom_voice", "voice_design"])
def test_a_checkpoint_of_another_task_is_refused_by_name(tiny_checkpoints, task):
    with pytest.raises(ConfigError, match=f"{task} is a {task} checkpoint; this model needs base"):
        VoiceEncoder.load(CheckpointConfig(task, device="cpu"), tiny_checkpoints)


def test_nothing_of_the_talker_is_read(tiny_checkpoints, monkeypatch):
    taken: list[str] = []
    take = Weights.take

    def noting_take(weights: Weights, name: str) -> torch.Tensor:
        taken.append(name)
        return take(weights, name)

    monkeypatch.setattr(Weights, "take", noting_take)
    encoder = VoiceEncoder.load(CheckpointConfig("base", device="cpu"), tiny_checkpoints)
    halves = encoder._speaker_encoder, encoder._codec_encoder
    assert len(taken) == sum(len(half.state_dict()) for half in halves)


def test_another_speech_tokenizer_takes_the_place_of_the_checkpoints_own(
    encoder, tiny_checkpoints, deaf_tokenizer
):
    config = replace(CheckpointConfig("base", device="cpu"), speech_tokenizer=str(deaf_tokenizer))
    recording = Recording(voice(24_000), TRANSCRIPT)
    ours, theirs = encoder.encode(recording), VoiceEncoder.load(config, tiny_checkpoints).encode(recording)
    assert (ours.ref_codes != theirs.ref_codes).any()
    np.testing.assert_array_equal(ours.speaker_embedding, theirs.speaker_embedding)


@pytest.fixture
def deaf_tokenizer(tiny_checkpoints: Path, tmp_path: Path) -> Path:
    """The tiny speech tokenizer, deaf in its first convolution."""
    from safetensors.torch import load_file, save_file

    own = tiny_checkpoints / "base" / "speech_tokenizer"
    tensors = load_file(own / "model.safetensors")
    tensors["encoder.encoder.layers.0.conv.weight"].zero_()
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((own / "config.json").read_bytes())
    return tmp_path


def test_a_speech_tokenizer_with_other_frames_is_refused(tiny_checkpoints, deaf_tokenizer):
    config = deaf_tokenizer / "config.json"
    config.write_text(
        config.read_text().replace('"encode_downsample_rate": 1920', '"encode_downsample_rate": 960')
    )
    settings = CheckpointConfig("base", speech_tokenizer=str(deaf_tokenizer), device="cpu")
    with pytest.raises(ConfigError, match=r"\(24000, 960, 16\); voices are encoded with \(24000, 1920, 16\)"):
        VoiceEncoder.load(settings, tiny_checkpoints)


def test_warming_up_asks_both_halves(encoder, monkeypatch):
    heard: list[Recording] = []
    monkeypatch.setattr(encoder, "encode", heard.append)
    encoder.warm_up()
    [recording] = heard
    assert not recording.x_vector_only


# --- configuration ----------------------------------------------------------------------------------------


def test_parameters_are_read_and_the_environment_wins():
    config = CheckpointConfig.from_parameters({"checkpoint": "tiny/base", "device": " cpu "})
    assert config == CheckpointConfig("tiny/base", device="cpu")
    environment = {
        "QWEN_TTS_BASE_MODEL": "Qwen/Qwen3-TTS-12Hz-1.7B-Base",
        "QWEN_TTS_TOKENIZER": "elsewhere",
        "CUDA_DEVICE": "",
        "MODEL_DTYPE": "bfloat16",
    }
    assert config.overridden_by(environment, "base") == CheckpointConfig(
        "Qwen/Qwen3-TTS-12Hz-1.7B-Base", "elsewhere", "cpu"
    )


def test_an_unknown_parameter_is_refused_with_the_closest_name():
    with pytest.raises(ConfigError, match="unknown parameter 'devise'; did you mean 'device'"):
        CheckpointConfig.from_parameters({"checkpoint": "base", "devise": "cpu"})
