"""The language model: a talker for the first code of a frame, a code predictor for the other fifteen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwen3_tts_engine.tiny.files import save_weights, write_json
from qwen3_tts_engine.tiny.shape import CODEBOOKS, CODES, Shape, Transformer
from qwen3_tts_engine.tiny.weights import draw_weights
from qwen3_tts_engine.upstream import import_qwen_tts

# Of the talker's 3072 ids the first CODES are codes; above them are languages, speakers and these.
CODEC_PAD = 2148
EOS = 2150

LANGUAGES = {
    "chinese": 2055,
    "english": 2050,
    "german": 2053,
    "italian": 2070,
    "portuguese": 2071,
    "spanish": 2054,
    "japanese": 2058,
    "korean": 2064,
    "french": 2061,
    "russian": 2069,
}
DIALECTS = {"beijing_dialect": 2074, "sichuan_dialect": 2062}
SPEAKERS = {
    "serena": 3066,
    "vivian": 3065,
    "uncle_fu": 3010,
    "ryan": 3061,
    "aiden": 2861,
    "ono_anna": 2873,
    "sohee": 2864,
    "eric": 2875,
    "dylan": 2878,
}
SPEAKER_DIALECTS = dict.fromkeys(SPEAKERS, False) | {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}

GENERATION_CONFIG = {
    "do_sample": True,
    "repetition_penalty": 1.05,
    "temperature": 0.9,
    "top_p": 1.0,
    "top_k": 50,
    "subtalker_dosample": True,
    "subtalker_temperature": 0.9,
    "subtalker_top_p": 1.0,
    "subtalker_top_k": 50,
    "max_new_tokens": 8192,
}

# At this spread of the logits the greedy code wins by far more than rounding, and yet a wrong position, mask
# or cache row changes it. Upstream's initial weights give next to none, and hide such mistakes.
LOGIT_STD = 2.5

# Channel 0 of the residual stream is a lane: a constant that every text row brings along, that no layer
# writes to, and that only EOS listens to. It makes the chance of EOS a number we can set.
LANE = 0
LANE_VALUE = 2.0


def write_talker(
    out: Path, model_type: str, control_ids: dict[str, int], shape: Shape, generator: torch.Generator
) -> None:
    config = tts_config(model_type, control_ids, shape)
    model = empty_model(config, shape.dtype)
    draw_weights(model, generator)
    with torch.no_grad():
        balance(model.talker)
        reserve_lane(model)
        set_eos(model, shape.mean_frames, generator)
    save_weights(model, out / "model.safetensors", torch.bfloat16)
    write_json(out / "config.json", config)
    write_json(out / "generation_config.json", GENERATION_CONFIG)


def empty_model(config: dict[str, Any], dtype: str) -> Any:
    import_qwen_tts()
    from qwen_tts.core.models import Qwen3TTSConfig, Qwen3TTSForConditionalGeneration
    from transformers.modeling_utils import no_init_weights

    with no_init_weights():
        return Qwen3TTSForConditionalGeneration._from_config(Qwen3TTSConfig(**config), dtype=dtype).eval()


def balance(talker: Any) -> None:
    """Bring the logits to LOGIT_STD and the sum of a frame's sixteen embeddings to order one."""
    predictor = talker.code_predictor
    for head in [talker.codec_head, *predictor.lm_head]:
        head.weight.mul_(LOGIT_STD)
    talker.model.codec_embedding.weight.mul_(0.5)
    for embedding in predictor.model.codec_embedding:
        embedding.weight.mul_(0.25)


def reserve_lane(model: Any) -> None:
    talker = model.talker
    talker.text_projection.linear_fc2.weight[LANE] = 0
    talker.text_projection.linear_fc2.bias[LANE] = LANE_VALUE
    for embedding in [talker.model.codec_embedding, *talker.code_predictor.model.codec_embedding]:
        embedding.weight[:, LANE] = 0
    for layer in talker.model.layers:
        layer.self_attn.o_proj.weight[LANE] = 0
        layer.mlp.down_proj.weight[LANE] = 0
    if model.speaker_encoder is not None:
        model.speaker_encoder.fc.weight[LANE] = 0
        model.speaker_encoder.fc.bias[LANE] = 0
    talker.codec_head.weight[:, LANE] = 0
    talker.codec_head.weight[EOS] = 0


def set_eos(model: Any, mean_frames: float | None, generator: torch.Generator) -> None:
    """Let EOS hear the lane as loudly as utterances of `mean_frames` need; for None, never."""
    head = model.talker.codec_head
    if mean_frames is None:
        head.weight[EOS, LANE] = -1000.0
    else:
        head.weight[EOS, LANE] = eos_gain(head, speech_hidden(model, generator), 1 / mean_frames)


def speech_hidden(model: Any, generator: torch.Generator) -> Tensor:
    """What the codec head sees, [num_sequences * num_frames, hidden], as random speech follows random text.

    One forward pass over codes drawn at random, where upstream would sample them one by one: with random
    weights, which codes they are has no bearing on how loud EOS is.
    """
    num_sequences, num_tokens, num_frames = 32, 16, 48
    talker = model.talker.model
    code_embeddings = [talker.codec_embedding, *model.talker.code_predictor.model.codec_embedding]

    def embed_text(ids: Tensor) -> Tensor:
        return model.talker.text_projection(talker.text_embedding(ids))

    def draw(end: int, length: int) -> Tensor:
        return torch.randint(end, (num_sequences, length), generator=generator)

    text = embed_text(draw(talker.text_embedding.num_embeddings, num_tokens))
    text = text + talker.codec_embedding.weight[CODEC_PAD]
    speech = sum(embedding(draw(CODES, num_frames)) for embedding in code_embeddings)
    speech = speech + embed_text(torch.tensor(model.config.tts_pad_token_id))
    hidden = talker(inputs_embeds=torch.cat([text, speech], dim=1), use_cache=False).last_hidden_state
    return hidden[:, num_tokens:].flatten(0, 1).float()


def eos_gain(head: Any, hidden: Tensor, probability: float) -> float:
    """The lane's weight in EOS's logit that makes EOS this probable, on average, at the default sampling."""
    temperature, top_k = float(GENERATION_CONFIG["temperature"]), int(GENERATION_CONFIG["top_k"])
    codes = (hidden @ head.weight[:CODES].float().T / temperature).topk(top_k).values
    low, high = -20.0, 40.0
    while high - low > 1e-4:
        gain = (low + high) / 2
        eos = hidden[:, LANE : LANE + 1] * gain / temperature
        kept = torch.cat([eos, codes], dim=1)
        kept = kept.masked_fill(kept < kept.topk(top_k).values[:, -1:], float("-inf"))
        low, high = (low, gain) if kept.softmax(1)[:, 0].mean() > probability else (gain, high)
    return gain


def tts_config(model_type: str, control_ids: dict[str, int], shape: Shape) -> dict[str, Any]:
    """`config.json`, in the published spelling.

    It names no `transformers_version`: given a local tokenizer of more than 100,000 tokens, transformers
    4.57.3 then cuts words Mistral's way ("Mc|Donald"). A `Shape` with that large a `tokenizer_vocab` shows
    whether another way to load the tokenizer agrees.
    """
    config = {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": shape.model_size,
        "tts_model_type": model_type,
        "dtype": "bfloat16",
        "assistant_token_id": 0,
        "im_start_token_id": control_ids["<|im_start|>"],
        "im_end_token_id": control_ids["<|im_end|>"],
        "tts_pad_token_id": control_ids["<tts_pad>"],
        "tts_bos_token_id": control_ids["<tts_text_bos>"],
        "tts_eos_token_id": control_ids["<tts_text_eod>"],
        "talker_config": talker_config(model_type, shape),
    }
    if model_type == "base":
        config["speaker_encoder_config"] = speaker_encoder_config(shape)
    return config


def talker_config(model_type: str, shape: Shape) -> dict[str, Any]:
    named_voices = model_type == "custom_voice"
    return {
        "model_type": "qwen3_tts_talker",
        "vocab_size": 3072,
        **transformer_config(shape.talker),
        "max_position_embeddings": 32768,
        "rope_scaling": {
            "interleaved": True,
            "mrope_section": mrope_section(shape.talker.head_dim),
            "rope_type": "default",
            "type": "default",
        },
        "num_code_groups": CODEBOOKS,
        "text_hidden_size": shape.text_hidden,
        "text_vocab_size": shape.text_vocab,
        "position_id_per_seconds": 13,
        "codec_eos_token_id": EOS,
        "codec_think_id": 2154,
        "codec_nothink_id": 2155,
        "codec_think_bos_id": 2156,
        "codec_think_eos_id": 2157,
        "codec_pad_id": CODEC_PAD,
        "codec_bos_id": 2149,
        "codec_language_id": LANGUAGES | DIALECTS if named_voices else LANGUAGES,
        "spk_id": SPEAKERS if named_voices else {},
        "spk_is_dialect": SPEAKER_DIALECTS if named_voices else {},
        "code_predictor_config": {
            "model_type": "qwen3_tts_talker_code_predictor",
            "vocab_size": CODES,
            **transformer_config(shape.predictor),
            "max_position_embeddings": 65536,
            "rope_scaling": None,
            "max_window_layers": 28,
            "num_code_groups": CODEBOOKS,
        },
    }


def transformer_config(transformer: Transformer) -> dict[str, Any]:
    return {
        "hidden_size": transformer.hidden,
        "intermediate_size": transformer.ffn,
        "num_hidden_layers": transformer.layers,
        "num_attention_heads": transformer.heads,
        "num_key_value_heads": transformer.kv_heads,
        "head_dim": transformer.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "attention_bias": False,
        "attention_dropout": 0,
        "initializer_range": 0.02,
        "use_cache": True,
        "use_sliding_window": False,
        "sliding_window": None,
    }


def mrope_section(head_dim: int) -> list[int]:
    """Frequencies per axis, as published: [24, 20, 20] of 64; upstream gives all three the same position."""
    half = head_dim // 2
    side = half * 20 // 64
    return [half - 2 * side, side, side]


def speaker_encoder_config(shape: Shape) -> dict[str, Any]:
    """Exactly these keys: upstream's class refuses any other, even the ones transformers writes by itself."""
    channels = shape.speaker_channels
    return {
        "mel_dim": 128,
        "enc_dim": shape.talker.hidden,
        "enc_channels": [channels] * 4 + [3 * channels],
        "enc_kernel_sizes": [5, 3, 3, 3, 1],
        "enc_dilations": [1, 2, 3, 4, 1],
        "enc_attention_channels": channels // 4,
        "enc_res2net_scale": 8,
        "enc_se_channels": channels // 4,
        "sample_rate": 24000,
    }
