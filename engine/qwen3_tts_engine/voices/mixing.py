"""Voices out of voices: `a(2)+b(1)` is two parts of `a` and one of `b`.

A mix is the weighted mean of the speaker embeddings and nothing else, x-vector only: recordings have no mean.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.store import Voice, VoiceStore

MAX_PARTS = 16
PART = re.compile(r"(?P<name>[^()]+)(?:\((?P<weight>[^()]*)\))?")
WEIGHT = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?|\.[0-9]{1,9}")


def resolve_voice(store: VoiceStore, expression: str, num_values: int | None = None) -> VoicePrompt:
    """What a base model speaks with when it is asked for a saved voice, or a mix of them.

    Args:
        store: where the voices are.
        expression: a name, or `a(2)+b(1)`.
        num_values: how many the speaker embeddings of the model have that is to speak; None: any number.

    Raises:
        InvalidRequest: for an expression nobody can read, or a voice of a model of another size.
        NotFound: for a voice nobody saved.
        EngineFailed: for a store that does not answer, or a voice that is damaged.
    """
    parts = parse(expression)
    if parts is None:
        return _spoken_by(num_values, store.get(expression)).prompt
    return mix([(_spoken_by(num_values, store.get(name)).prompt, weight) for name, weight in parts])


def parse(expression: str) -> list[tuple[str, float]] | None:
    """The names and weights of a mix; None for a plain name, which has no parenthesis and no plus.

    A weight is a number above 0, and 1 where none is given: `a+b`.

    Raises:
        InvalidRequest: for a mix nobody can read.
    """
    if not set("()+") & set(expression):
        return None
    texts = expression.split("+")
    if len(texts) > MAX_PARTS:
        raise InvalidRequest(f"voice mixes {len(texts)} voices; it may mix {MAX_PARTS}")
    return [_part(text) for text in texts]


def mix(prompts: Sequence[tuple[VoicePrompt, float]]) -> VoicePrompt:
    """The weighted mean of the speaker embeddings, x-vector only.

    Args:
        prompts: at least one, each with a weight above 0.

    Raises:
        InvalidRequest: for embeddings of different sizes, which models of different sizes made.
    """
    sizes = {prompt.speaker_embedding.size for prompt, _ in prompts}
    if len(sizes) > 1:
        raise InvalidRequest(
            f"voice mixes speaker embeddings of {' and '.join(map(str, sorted(sizes)))} values;"
            " they were made by models of different sizes"
        )
    weights = np.array([weight for _, weight in prompts])
    embeddings = np.stack([prompt.speaker_embedding for prompt, _ in prompts])  # [voices, D]
    mean = np.average(embeddings.astype(np.float64), axis=0, weights=weights)
    return VoicePrompt(mean.astype(np.float32))


def _part(text: str) -> tuple[str, float]:
    part = PART.fullmatch(text.strip())
    name = part["name"].strip() if part else ""
    if part is None or not name:
        raise InvalidRequest(f"voice mixes {text[:80]!r}; write a name and its weight, as in a(2)+b(1)")
    return name, 1.0 if part["weight"] is None else _weight(name, part["weight"].strip())


def _weight(name: str, text: str) -> float:
    if not WEIGHT.fullmatch(text) or not (weight := float(text)) > 0:
        raise InvalidRequest(
            f"voice gives {name[:80]!r} the weight {text[:80]!r}; it must be above 0, such as 2 or 0.5"
        )
    return weight


def _spoken_by(num_values: int | None, voice: Voice) -> Voice:
    """Refuse a voice that a model of another size made."""
    size = voice.prompt.speaker_embedding.size
    if num_values is not None and size != num_values:
        raise InvalidRequest(
            f"voice {voice.name!r} has a speaker embedding of {size} values, made by {voice.model};"
            f" this model speaks with {num_values}: make it again with this model"
        )
    return voice
