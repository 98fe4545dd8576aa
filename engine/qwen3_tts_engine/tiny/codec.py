"""The 12 Hz speech tokenizer: from 24 kHz audio to sixteen codes per 80 ms, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qwen3_tts_engine.tiny.files import save_weights, write_json
from qwen3_tts_engine.tiny.shape import CODEBOOKS, CODES, Shape
from qwen3_tts_engine.tiny.weights import draw_weights
from qwen3_tts_engine.upstream import import_qwen_tts

LOUDNESS = 0.15  # rms of the audio: audible, and six standard deviations from the clamp at 1


def write_codec(out: Path, shape: Shape, generator: torch.Generator) -> None:
    out.mkdir()
    config = codec_config(shape)
    model = empty_codec(config)
    draw_weights(model, generator)
    set_loudness(model.decoder, generator)
    save_weights(model, out / "model.safetensors", torch.float32)
    write_json(out / "config.json", config)
    write_json(out / "preprocessor_config.json", FEATURE_EXTRACTOR_CONFIG)


def empty_codec(config: dict[str, Any]) -> Any:
    import_qwen_tts()
    from qwen_tts.core import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Model
    from transformers.modeling_utils import no_init_weights

    with no_init_weights():
        return Qwen3TTSTokenizerV2Model(Qwen3TTSTokenizerV2Config(**config)).eval()


@torch.no_grad()
def set_loudness(decoder: Any, generator: torch.Generator) -> None:
    """Scale the last convolution: only the clamp comes after it, so the audio follows."""
    last = decoder.decoder[-1].conv
    heard = []
    hook = last.register_forward_hook(lambda module, inputs, audio: heard.append(audio))
    decoder(torch.randint(CODES, (1, CODEBOOKS, 20), generator=generator))
    hook.remove()
    last.weight.mul_(LOUDNESS / heard[0].std())


def codec_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "model_type": "qwen3_tts_tokenizer_12hz",
        "dtype": "float32",
        "encoder_valid_num_quantizers": CODEBOOKS,
        "input_sample_rate": 24000,
        "output_sample_rate": 24000,
        "decode_upsample_rate": 1920,
        "encode_downsample_rate": 1920,
        "encoder_config": ENCODER_CONFIG,
        "decoder_config": decoder_config(shape),
    }


def decoder_config(shape: Shape) -> dict[str, Any]:
    codec = shape.codec
    return {
        "codebook_size": CODES,
        "codebook_dim": shape.codec_codebook,
        "num_quantizers": CODEBOOKS,
        "latent_dim": shape.codec_latent,
        "hidden_size": codec.hidden,
        "intermediate_size": codec.ffn,
        "num_hidden_layers": codec.layers,
        "num_attention_heads": codec.heads,
        "num_key_value_heads": codec.kv_heads,
        "head_dim": codec.head_dim,
        "hidden_act": "silu",
        "sliding_window": 72,
        "rope_theta": 10000,
        "rms_norm_eps": 1e-5,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_dim": shape.codec_channels,
        "upsampling_ratios": [2, 2],
        "upsample_rates": [8, 5, 4, 3],
        # In the published file, read by nobody.
        "semantic_codebook_size": 4096,
        "num_semantic_quantizers": 1,
        "vector_quantization_hidden_dimension": shape.codec_codebook,
    }


# Mimi, small in every shape: it hears a reference voice once, which no benchmark measures.
ENCODER_CONFIG = {
    "model_type": "mimi",
    "sampling_rate": 24000,
    "_frame_rate": 12.5,
    "audio_channels": 1,
    "hidden_size": 32,
    "num_filters": 4,
    "num_residual_layers": 1,
    "upsampling_ratios": [8, 6, 5, 4],
    "kernel_size": 7,
    "last_kernel_size": 3,
    "residual_kernel_size": 3,
    "dilation_growth_rate": 2,
    "use_causal_conv": True,
    "pad_mode": "constant",
    "compress": 2,
    "trim_right_ratio": 1.0,
    "codebook_size": CODES,
    "codebook_dim": 8,
    "vector_quantization_hidden_dimension": 8,
    "num_quantizers": 32,
    "num_semantic_quantizers": 1,
    "use_conv_shortcut": False,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "gelu",
    "max_position_embeddings": 8000,
    "initializer_range": 0.02,
    "norm_eps": 1e-5,
    "use_cache": False,
    "use_streaming": False,
    "rope_theta": 10000.0,
    "sliding_window": 250,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "layer_scale_initial_scale": 0.01,
}

FEATURE_EXTRACTOR_CONFIG = {
    "feature_extractor_type": "EncodecFeatureExtractor",
    "feature_size": 1,
    "sampling_rate": 24000,
    "padding_side": "right",
    "padding_value": 0.0,
    "return_attention_mask": True,
    "chunk_length_s": None,
    "overlap": None,
}
