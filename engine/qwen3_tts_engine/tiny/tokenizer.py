"""A byte-level BPE that cuts text like the published tokenizer, learned from a page of text."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen3_tts_engine.tiny.files import write_json

# Qwen2's pre-tokenizer.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The published control tokens, in their published order: always the highest ids.
CHAT_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
SPEECH_TOKENS = [
    "<|audio_start|>",
    "<|audio_end|>",
    "<tts_pad>",
    "<tts_text_bos>",
    "<tts_text_eod>",
    "<tts_text_bos_single>",
    "<|audio_pad|>",
]
CONTROL_TOKENS = CHAT_TOKENS + SPEECH_TOKENS

CORPUS = [
    # The prompt is cut at fixed positions, so a role and a line break have to be one token each. A double
    # line break is one token too, as published: a text that starts with one shifts the cut.
    "assistant\nuser\nsystem\n" * 400,
    "\n\nHello\n\n\nworld" * 200,
    "She said she would be here by noon. The quick brown fox jumps over the lazy dog. " * 40,
    "Speak in an incredulous tone, but with a hint of panic beginning to creep into your voice. " * 20,
    "McDonald bought an iPhone. "
    * 20,  # one token each here, two after the Mistral patch (see talker.tts_config)
    "Hello world, this is a test of streaming speech synthesis with continuous batching. " * 40,
    "其实我真的有发现，我是一个特别善于观察别人情绪的人。" * 20,
    "用特别愤怒的语气说。哥哥，你回来啦，人家等了你好久好久了，要抱抱！" * 10,
    "Der schnelle braune Fuchs springt. El zorro marrón salta. Le renard brun saute. Лиса прыгает. " * 10,
    "こんにちは、元気ですか。 안녕하세요 반갑습니다. 0123456789 !?.,:;-()[]\"' " * 10,
]


def write_tokenizer(out: Path, vocab_size: int) -> dict[str, int]:
    """Write a tokenizer of exactly `vocab_size` tokens and return the ids of its control tokens."""
    vocab, merges = learn(vocab_size - len(CONTROL_TOKENS))
    fill(vocab, vocab_size - len(CONTROL_TOKENS))
    control_ids = {token: len(vocab) + i for i, token in enumerate(CONTROL_TOKENS)}
    write_json(out / "vocab.json", vocab)
    (out / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    write_json(out / "tokenizer_config.json", tokenizer_config(control_ids))
    write_json(out / "preprocessor_config.json", PROCESSOR_CONFIG)
    return control_ids


def learn(max_tokens: int) -> tuple[dict[str, int], list[str]]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=max_tokens,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [" ".join(pair) for pair in model["merges"]]


def fill(vocab: dict[str, int], size: int) -> None:
    """Add tokens up to `size`. No merge leads to them, so no text ever becomes one."""
    if len(vocab) > size:
        raise ValueError(f"a vocabulary of {size} tokens cannot hold the {len(vocab)} the corpus yields")
    vocab.update({f"<filler_{i}>": i for i in range(len(vocab), size)})


def tokenizer_config(control_ids: dict[str, int]) -> dict[str, object]:
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "processor_class": "Qwen3TTSProcessor",
        "added_tokens_decoder": {str(i): {"content": token, **flags} for token, i in control_ids.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>", *SPEECH_TOKENS],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "errors": "replace",
        "model_max_length": 131072,
        "split_special_tokens": False,
    }


PROCESSOR_CONFIG = {
    "processor_class": "Qwen3TTSProcessor",
    "padding_side": "left",
    "padding_value": 0.0,
    "return_attention_mask": True,
}
