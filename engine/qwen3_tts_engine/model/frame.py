"""A frame: from what the talker means to its sixteen codes, and to what the talker hears of them."""

from __future__ import annotations

from typing import Protocol

import torch

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.code_embedding import CodeEmbedding
from qwen3_tts_engine.model.code_predictor import CodePredictor
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.linear import Linear
from qwen3_tts_engine.model.native.frame import NativeFrame
from qwen3_tts_engine.model.sampling import draw, penalise, suppressed_codes
from qwen3_tts_engine.model.slot_state import MIN_FRAMES, FrameKind, SlotState
from qwen3_tts_engine.model.talker import TextTable


class Frame(Protocol):
    """Makes frames."""

    def speak(self, state: SlotState, batch: int, kind: FrameKind) -> None:
        """Slots 0 to B-1 speak a whole frame and hear it, together with the next text token."""


def load_frame(
    weights: Weights, config: TalkerConfig, embedding: CodeEmbedding, text: TextTable, slots: int
) -> Frame:
    """In one piece where the processor and the weights allow, else by PyTorch."""
    if NativeFrame.can_load(weights, config):
        return NativeFrame(weights, config, embedding, text, slots)
    return TorchFrame(weights, config, embedding, text, slots)


class TorchFrame:
    """Code by code with PyTorch's operators, on any device and in any type."""

    def __init__(
        self, weights: Weights, config: TalkerConfig, embedding: CodeEmbedding, text: TextTable, slots: int
    ) -> None:
        self._head = Linear.load(weights, "codec_head")  # D -> V
        self._predictor = CodePredictor(weights.below("code_predictor."), config, embedding, slots)
        self._embedding = embedding
        self._text = text
        self._eos = config.codec_eos_token_id
        self._suppressed = suppressed_codes(config.vocab_size, self._eos).to(weights.device)

    def speak(self, state: SlotState, batch: int, kind: FrameKind) -> None:
        hidden, spoken = state.hidden[:batch], state.spoken[:batch]
        logits = penalise(self._head(hidden).float(), spoken, state.penalty[:batch])
        logits.masked_fill_(self._suppressed, -torch.inf)
        logits[:, self._eos].masked_fill_(state.num_frames[:batch] < MIN_FRAMES, -torch.inf)
        first = draw(logits, state.first.first(batch, kind.first), state.first_noise[:batch])
        rest_sampling, rest_noise = state.rest.first(batch, kind.rest), state.rest_noise[:batch]
        codes = state.codes[:batch]
        codes[:, 0] = first
        codes[:, 1:] = self._predictor.frame(hidden, first, rest_sampling, rest_noise)
        spoken.scatter_(1, codes[:, :1], True)
        state.next_input[:batch] = self._embedding.sum(codes) + self._text(state.text[:batch])
