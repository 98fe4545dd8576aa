"""Text becomes the tokens upstream makes of it, whichever pre-tokenizer transformers picks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qwen3_tts_engine import tiny
from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.model.text import TextTokenizer
from qwen3_tts_engine.request import Sampling, SpeechRequest
from speaking import Speaker
from upstream_oracle import Upstream

TEXTS = (
    "Hello world.",
    "McDonald's iPhone costs 1,299.00 € — or DON'T it?",
    "其实我真的有发现，我是一个特别善于观察别人情绪的人。",
    "L'été, ñandú, Straße, Лиса, こんにちは、元気ですか。 안녕하세요",
    "tabs\tand\n\nnew lines, e\u0301 decomposed",
    "🎉 emoji 👩‍👩‍👧 and ﬁ ligatures",
)


@pytest.fixture
def tokenizer(tiny_checkpoints: Path) -> TextTokenizer:
    return TextTokenizer(tiny_checkpoints / "custom_voice")


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_tokenised_as_upstream_does(
    tokenizer: TextTokenizer, upstream: Callable[[str], Upstream], text: str
) -> None:
    assert tokenizer.encode(text) == upstream("custom_voice").tokenize(text)


def test_every_control_token_is_refused_by_name(tokenizer: TextTokenizer) -> None:
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tts_pad>", "<tts_text_bos>"):
        with pytest.raises(InvalidRequest, match="instruct contains the control token") as refusal:
            tokenizer.refuse_control_tokens("instruct", f"before {token} after")
        assert token in str(refusal.value)


def test_angle_brackets_that_are_no_token_are_plain_text(tokenizer: TextTokenizer) -> None:
    tokenizer.refuse_control_tokens("text", "1 < 2, <b>bold</b>, <|nothing|>")


@pytest.fixture(scope="module")
def large_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Above 100,000 tokens transformers takes a directory for a Mistral's and replaces its pre-tokenizer."""
    shape = replace(tiny.TINY, text_vocab=100_352, tokenizer_vocab=100_352)
    return tiny.build(tmp_path_factory.mktemp("large"), "custom_voice", shape=shape)


def test_a_large_vocabulary_is_cut_as_upstream_cuts_it(
    tokenizer: TextTokenizer, large_vocabulary: Path
) -> None:
    large, oracle = TextTokenizer(large_vocabulary), Upstream(large_vocabulary)
    for text in TEXTS:
        assert large.encode(text) == oracle.tokenize(text)
    assert len(large.encode("McDonald")) > len(tokenizer.encode("McDonald"))


def test_with_a_large_vocabulary_the_engine_still_speaks_upstreams_codes(large_vocabulary: Path) -> None:
    greedy = Sampling(do_sample=False)
    request = SpeechRequest(
        TEXTS[1], language="English", speaker="ryan", talker=greedy, subtalker=greedy, max_frames=10
    )
    config = EngineConfig(checkpoint=str(large_vocabulary), slots=1, device="cpu")
    speaker = Speaker(Engine.load(config, "custom_voice", base=Path()))
    assert np.array_equal(speaker.say(request).codes, Upstream(large_vocabulary).codes(request))
