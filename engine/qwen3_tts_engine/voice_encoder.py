"""The voice encoder: from a recording of somebody speaking to the prompt a base model speaks like them with.

Both halves are upstream's own modules with the base checkpoint's weights; the talker is never read.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_tts_engine.config import CheckpointConfig
from qwen3_tts_engine.engine import choose_device
from qwen3_tts_engine.errors import ConfigError, InvalidRequest
from qwen3_tts_engine.model.checkpoint import Checkpoint, Weights, resolve
from qwen3_tts_engine.request import CODES_PER_FRAME, FRAME_SAMPLES, SAMPLE_RATE, VoicePrompt
from qwen3_tts_engine.upstream import import_qwen_tts

logger = logging.getLogger(__name__)

MIN_SECONDS, MAX_SECONDS = 1, 30
SLACK_S = 0.2  # lossy codecs surround 30 s of sound with silence, which reference_audio hands on
# Far above what decoding and resampling make of full scale (1.0), far below integers that nobody scaled.
MAX_AMPLITUDE = 8.0

# Upstream's `Qwen3TTSForConditionalGeneration.extract_speaker_embedding`.
MEL = {
    "n_fft": 1024,
    "num_mels": 128,
    "sampling_rate": SAMPLE_RATE,
    "hop_size": 256,
    "win_size": 1024,
    "fmin": 0,
    "fmax": 12_000,
}


@dataclass(frozen=True, eq=False)
class Recording:
    """Somebody speaking, and what of their voice is wanted.

    Args:
        pcm: float32 [samples], mono, 24 kHz, 1 to 30 s.
        ref_text: what is said in it; required unless `x_vector_only`.
        x_vector_only: the speaker embedding alone, no codes.

    Raises:
        InvalidRequest: for a recording that cannot become a voice.
    """

    pcm: NDArray[np.float32]
    ref_text: str = ""
    x_vector_only: bool = False

    def __post_init__(self) -> None:
        seconds = self.pcm.size / SAMPLE_RATE
        if not MIN_SECONDS <= seconds <= MAX_SECONDS + SLACK_S:
            raise InvalidRequest(
                f"pcm lasts {seconds:.2f} s; a reference recording lasts {MIN_SECONDS} to {MAX_SECONDS} s"
            )
        if not np.isfinite(self.pcm).all():
            raise InvalidRequest("pcm holds samples that are no finite numbers")
        if (peak := np.abs(self.pcm).max()) > MAX_AMPLITUDE:
            raise InvalidRequest(
                f"pcm reaches {peak:g}; full scale is 1, and {MAX_AMPLITUDE:g} the most that is taken"
            )
        if not (self.x_vector_only or self.ref_text.strip()):
            raise InvalidRequest(
                "ref_text is missing; say what is spoken in the recording, or set x_vector_only"
            )


class VoiceEncoder:
    """Hears one recording at a time.

    Padding changes a shorter recording's last frame, and even at equal lengths a batch rounds differently;
    alone, the same recording is always the same voice.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        import_qwen_tts()
        self._speaker_encoder = _speaker_encoder(checkpoint, device)
        self._codec_encoder = _codec_encoder(checkpoint, device)
        self._device = device

    @classmethod
    def load(cls, config: CheckpointConfig, base: Path, triton_device: str = "cpu") -> VoiceEncoder:
        """A voice encoder for the checkpoint the configuration names.

        Args:
            config: what the operator set. There is no dtype: in bfloat16 a recording gets other codes.
            base: where relative checkpoint paths start.
            triton_device: what `device: auto` stands for.

        Raises:
            ConfigError: for a checkpoint that is missing, broken, or not a base one.
        """
        tokenizer = resolve(config.speech_tokenizer, base) if config.speech_tokenizer else None
        checkpoint = Checkpoint(resolve(config.checkpoint, base), tokenizer)
        checkpoint.expect_task("base")
        device = choose_device(triton_device if config.device == "auto" else config.device)
        logger.info("loading the voice encoder of %s on %s", checkpoint.path, device)
        return cls(checkpoint, device)

    @torch.inference_mode()
    def encode(self, recording: Recording) -> VoicePrompt:
        """The voice of a recording.

        Equals upstream's `Qwen3TTSModel.create_voice_clone_prompt` of that recording alone, in float32.
        """
        pcm = torch.tensor(recording.pcm)[None]  # [1, samples]
        with _full_float32():
            embedding = self._embed(pcm)
            codes = None if recording.x_vector_only else self._code(pcm)
        return VoicePrompt(embedding, codes, ref_text="" if codes is None else recording.ref_text)

    def warm_up(self) -> None:
        """Hear a second of silence, so that the first caller does not pay for first times."""
        self.encode(Recording(np.zeros(SAMPLE_RATE, np.float32), ref_text="…"))

    def _embed(self, pcm: torch.Tensor) -> NDArray[np.float32]:
        """[1, samples] -> [D]"""
        from qwen_tts.core.models.modeling_qwen3_tts import mel_spectrogram

        mel = mel_spectrogram(pcm, **MEL).transpose(1, 2)  # [1, mel frames, 128]
        embedding: NDArray[np.float32] = self._speaker_encoder(mel.to(self._device))[0].cpu().numpy()
        return embedding

    def _code(self, pcm: torch.Tensor) -> NDArray[np.int64]:
        """[1, samples] -> [frames, 16], the last frame filled up.

        The encoder has twice as many quantizers as a frame has codes; each one only refines those before it.
        """
        samples = pcm[:, None].to(self._device)
        codes = self._codec_encoder.encode(
            samples, num_quantizers=CODES_PER_FRAME
        ).audio_codes  # [1, 16, frames]
        frames: NDArray[np.int64] = codes[0].T.contiguous().cpu().numpy()
        return frames


def _speaker_encoder(checkpoint: Checkpoint, device: torch.device) -> Any:
    from qwen_tts.core.models.configuration_qwen3_tts import Qwen3TTSConfig
    from qwen_tts.core.models.modeling_qwen3_tts import Qwen3TTSSpeakerEncoder

    config = Qwen3TTSConfig.from_pretrained(checkpoint.path).speaker_encoder_config
    weights = checkpoint.speaker_encoder_weights(torch.float32, device)
    return _filled(Qwen3TTSSpeakerEncoder(config), weights, device)


def _codec_encoder(checkpoint: Checkpoint, device: torch.device) -> Any:
    from qwen_tts.core.tokenizer_12hz.configuration_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config
    from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Encoder

    config = Qwen3TTSTokenizerV2Config.from_pretrained(checkpoint.speech_tokenizer)
    layout = config.input_sample_rate, config.encode_downsample_rate, config.encoder_valid_num_quantizers
    if layout != (SAMPLE_RATE, FRAME_SAMPLES, CODES_PER_FRAME):
        raise ConfigError(
            f"{checkpoint.speech_tokenizer} has sample rate, samples a frame and codes a frame {layout};"
            f" voices are encoded with {(SAMPLE_RATE, FRAME_SAMPLES, CODES_PER_FRAME)}"
        )
    weights = checkpoint.codec_encoder_weights(torch.float32, device)
    return _filled(Qwen3TTSTokenizerV2Encoder._from_config(config.encoder_config), weights, device)


def _filled(module: torch.nn.Module, weights: Weights, device: torch.device) -> torch.nn.Module:
    """The module with every tensor it names, ready to be asked."""
    module.load_state_dict({name: weights.take(name) for name in module.state_dict()})
    weights.expect_taken()
    return module.to(device).eval().requires_grad_(False)


@contextmanager
def _full_float32() -> Iterator[None]:
    """No TF32, which convolutions on a GPU use by default: its rounding changes codes."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield
