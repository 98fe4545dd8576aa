"""The frame loop as three functions of fixed shapes over buffers their caller owns.

    talker_step      what everyone hears  -> what everyone means by their next frame
    predictor_frame  that                 -> a frame of 16 codes each, and what everyone hears next
    codec_step       a few frames         -> their samples

A step returns nothing, keeps nothing and asks no tensor for its value: all it reads and writes are rows of
those buffers, and everything the host decides is in its Python arguments. The same arguments are therefore
the same operations on the same memory, whatever the buffers hold. A CPU calls the steps as they are; a GPU
may record one as a CUDA graph and replay it.

The slots in use are a prefix. A step may compute more rows than that: the others are slots that nobody has,
and whoever takes one overwrites what it finds there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.code_embedding import CodeEmbedding
from qwen3_tts_engine.model.codec_decoder import CodecDecoder
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.frame import load_frame
from qwen3_tts_engine.model.kv_cache import BLOCK
from qwen3_tts_engine.model.layers import AttentionKernels
from qwen3_tts_engine.model.slot_state import FrameKind, SlotState
from qwen3_tts_engine.model.talker import Talker
from qwen3_tts_engine.request import CODES_PER_FRAME, FRAME_SAMPLES

SPAN = 64  # positions; must divide BLOCK
RECORDED_SPANS = (256, 512, 1024, 2048)  # 2048 positions are 160 s of speech


class Buckets:
    """The sizes steps come in; a step takes the least that is large enough.

    Exact ones compute next to nothing for nobody. A few large ones can all be recorded.

    Attributes:
        sizes: ascending.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = sizes

    @classmethod
    def of_rows(cls, slots: int, few: bool) -> Buckets:
        """Powers of two, and the number of slots."""
        powers = [2**i for i in range(slots.bit_length()) if 2**i < slots]
        return cls([*powers, slots] if few else range(1, slots + 1))

    @classmethod
    def of_positions(cls, longest: int, few: bool) -> Buckets:
        """How many cached positions are attended to; few up to where the cache stays in one place."""
        if few:
            return cls([*RECORDED_SPANS, *range(RECORDED_SPANS[-1] + BLOCK, longest + BLOCK, BLOCK)])
        return cls(range(SPAN, longest + SPAN, SPAN))

    def fit(self, size: int) -> int:
        return self.sizes[bisect_left(self.sizes, size)]


class LanguageModels:
    """The talker, what makes frames of its states, and the tables of codes and text that they share."""

    def __init__(
        self,
        weights: Weights,
        config: TalkerConfig,
        slots: int,
        attention: AttentionKernels,
        resident: int = 0,
    ) -> None:
        self.embedding = CodeEmbedding(weights, config)
        self.talker = Talker(weights, config, slots, attention, resident)
        self.frame = load_frame(weights, config, self.embedding, self.talker.text, slots)


def talker_step(models: LanguageModels, state: SlotState, batch: int, span: int) -> None:
    """Slots 0 to B-1 hear their next input, none at a position beyond `span`."""
    x, position = state.next_input[:batch], state.position[:batch]
    state.hidden[:batch] = models.talker.step(x, position, span)


def predictor_frame(models: LanguageModels, state: SlotState, batch: int, kind: FrameKind) -> None:
    """Slots 0 to B-1 speak a whole frame and hear it, together with the next text token."""
    models.frame.speak(state, batch, kind)


class CodecState:
    """What the codec remembers of every slot, and of one more that nobody has, for rows without a chunk.

    Attributes:
        num_frames: int64 [S + 1], frames each slot has had.
        past: what `CodecDecoder.decode` returned for them, [S + 1, …] each.
    """

    def __init__(self, decoder: CodecDecoder, slots: int, device: torch.device) -> None:
        self.scratch = slots
        self.num_frames = torch.zeros(slots + 1, dtype=torch.int64, device=device)
        self.past = decoder.blank_past(slots + 1)

    def reset(self, slot: int) -> None:
        for state in (self.num_frames, *self.past):
            state[slot] = 0

    def move(self, source: int, target: int) -> None:
        for state in (self.num_frames, *self.past):
            state[target] = state[source]

    def chunks(self, batch: int, frames: int) -> ChunkBuffers:
        """Buffers for so many chunks of so many frames."""
        past = self.past[0]
        return ChunkBuffers(
            slots=torch.full((batch,), self.scratch, device=past.device),
            codes=torch.zeros(batch, frames, CODES_PER_FRAME, dtype=torch.int64, device=past.device),
            samples=past.new_zeros(
                (batch, frames * FRAME_SAMPLES), dtype=torch.promote_types(past.dtype, torch.float32)
            ),
        )


@dataclass(frozen=True)
class ChunkBuffers:
    """B chunks of N frames: whose they are, their codes and their samples."""

    slots: Tensor  # int64 [B]
    codes: Tensor  # int64 [B, N, 16]
    samples: Tensor  # [B, N · 1920]


def codec_step(decoder: CodecDecoder, state: CodecState, chunks: ChunkBuffers) -> None:
    """Voice one chunk of each of those slots."""
    slots = chunks.slots
    past = [tensor[slots] for tensor in state.past]
    samples, updated = decoder.decode(chunks.codes, state.num_frames[slots], past)
    chunks.samples.copy_(samples)
    state.num_frames[slots] += chunks.codes.shape[1]
    for tensor, new in zip(state.past, updated, strict=True):
        tensor[slots] = new
