"""The dimensions of a checkpoint, read from its JSON files.

Every default is the one upstream's configuration classes have (qwen-tts 0.1.1: `configuration_qwen3_tts.py`,
`configuration_qwen3_tts_tokenizer_v2.py`), since `save_pretrained` leaves a value out when it equals them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, TypeVar

from qwen3_tts_engine.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class DecoderConfig:
    """One stack of Qwen3 decoder layers: grouped-query attention with per-head RMSNorm, SwiGLU."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float


@dataclass(frozen=True)
class PredictorConfig(DecoderConfig):
    """The code predictor, which upstream also calls the sub-talker: codes 2 to 16 of every frame."""

    vocab_size: int = 2048
    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 5
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    num_code_groups: int = 32


@dataclass(frozen=True)
class TalkerConfig(DecoderConfig):
    """The talker: from text and everything spoken so far to the first code of the next frame."""

    code_predictor_config: PredictorConfig = PredictorConfig()
    vocab_size: int = 3072
    text_vocab_size: int = 0  # set by the checkpoint
    hidden_size: int = 1024
    intermediate_size: int = 2048
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 2
    head_dim: int = 0  # set by the checkpoint; 0: hidden_size / num_attention_heads
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 32768
    num_code_groups: int = 32
    codec_eos_token_id: int = 4198
    codec_think_id: int = 4202
    codec_nothink_id: int = 4203
    codec_think_bos_id: int = 4204
    codec_think_eos_id: int = 4205
    codec_pad_id: int = 4196
    codec_bos_id: int = 4197


@dataclass(frozen=True)
class CodecConfig:
    """The decoder half of the 12 Hz speech tokenizer."""

    codebook_dim: int
    codebook_size: int = 2048
    hidden_size: int = 1024
    latent_dim: int = 1024
    intermediate_size: int = 3072
    num_hidden_layers: int = 8
    num_attention_heads: int = 16
    num_key_value_heads: int = 16
    head_dim: int = 0  # as in TalkerConfig
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    sliding_window: int = 72
    num_quantizers: int = 16
    upsample_rates: tuple[int, ...] = (8, 5, 4, 3)
    upsampling_ratios: tuple[int, ...] = (2, 2)


@dataclass(frozen=True)
class SpeechConfig:
    """What config.json says beyond dimensions: the task, the speakers, the languages, the special tokens."""

    talker: TalkerConfig
    tts_model_type: str
    tts_model_size: str
    speaker_ids: Mapping[str, int]
    speaker_dialects: Mapping[str, str]
    language_ids: Mapping[str, int]
    im_start_token_id: int = 151644
    im_end_token_id: int = 151645
    tts_pad_token_id: int = 151671
    tts_bos_token_id: int = 151672
    tts_eos_token_id: int = 151673

    @property
    def speakers(self) -> tuple[str, ...]:
        """Built-in speakers in the checkpoint's order, lower case."""
        return tuple(self.speaker_ids)

    @property
    def languages(self) -> tuple[str, ...]:
        """What a caller may name; dialects come with a speaker, never by name."""
        named = (name for name in self.language_ids if "dialect" not in name)
        return ("Auto", *(name.capitalize() for name in named))


def read_speech_config(raw: Mapping[str, Any]) -> SpeechConfig:
    """The contents of config.json, typed.

    Raises:
        ConfigError: for another architecture, or one this engine has no code for.
    """
    if raw.get("model_type") != "qwen3_tts":
        raise ConfigError(
            f"model_type is {raw.get('model_type')!r}; this engine speaks 'qwen3_tts' checkpoints"
        )
    if raw.get("tokenizer_type") != "qwen3_tts_tokenizer_12hz":
        raise ConfigError(
            f"tokenizer_type is {raw.get('tokenizer_type')!r}; only 'qwen3_tts_tokenizer_12hz' is served"
        )
    talker = _part(raw, "talker_config")
    dialects = talker.get("spk_is_dialect") or {}
    known = {
        **_known(SpeechConfig, {key: value for key, value in raw.items() if isinstance(value, (int, str))}),
        "talker": _read_talker(talker),
        "speaker_ids": {name.lower(): i for name, i in (talker.get("spk_id") or {}).items()},
        "speaker_dialects": {name.lower(): dialect for name, dialect in dialects.items() if dialect},
        "language_ids": {name.lower(): i for name, i in (talker.get("codec_language_id") or {}).items()},
    }
    return _built(SpeechConfig, known)


def read_codec_config(raw: Mapping[str, Any]) -> CodecConfig:
    """The contents of speech_tokenizer/config.json, of which only the decoder is needed to speak."""
    known = _known(CodecConfig, _part(raw, "decoder_config"))
    return _built(CodecConfig, _with_head_dim(CodecConfig, known))


def _read_talker(raw: Mapping[str, Any]) -> TalkerConfig:
    predictor = _part(raw, "code_predictor_config")
    for part in (raw, predictor):
        _refuse_other_architectures(part)
    known = _known(TalkerConfig, raw) | {
        "code_predictor_config": PredictorConfig(**_known(PredictorConfig, predictor))
    }
    return TalkerConfig(**_with_head_dim(TalkerConfig, known))


def _refuse_other_architectures(raw: Mapping[str, Any]) -> None:
    if raw.get("attention_bias") or raw.get("use_sliding_window"):
        raise ConfigError(
            "attention_bias and use_sliding_window are not implemented; no published checkpoint has them"
        )


def _known(cls: type, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an upstream JSON object that `cls` names; it holds many that only training reads."""
    names = {f.name for f in fields(cls)}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in raw.items() if key in names}


def _part(raw: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    if key not in raw:
        raise ConfigError(f"the checkpoint's configuration has no {key!r}")
    part: Mapping[str, Any] = raw[key]
    return part


def _built(cls: type[T], known: dict[str, Any]) -> T:
    missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in known]  # type: ignore[arg-type]
    if missing:
        raise ConfigError(f"the checkpoint's configuration has no {', '.join(missing)}")
    return cls(**known)


def _with_head_dim(cls: type[T], known: dict[str, Any]) -> dict[str, Any]:
    default = {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]
    hidden, heads = (known.get(n, default[n]) for n in ("hidden_size", "num_attention_heads"))
    return {"head_dim": hidden // heads} | known
