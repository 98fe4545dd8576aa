"""The talker: a Qwen3 decoder that reads text and speech and writes the first code of the next frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.kv_cache import KVCache
from qwen3_tts_engine.model.layers import AttentionKernels
from qwen3_tts_engine.model.linear import Linear
from qwen3_tts_engine.model.stack import load_stack


class TextTable:
    """`text_projection(text_embedding(id))` of every token met so far, one row each.

    Computed when a token first appears in a prompt, so the frame loop only ever looks rows up. The table
    is as large as the vocabulary; on a CPU, memory is only touched where tokens are used.
    """

    def __init__(self, weights: Weights, hidden_size: int) -> None:
        self._embedding = weights.take("model.text_embedding.weight")  # [V, text hidden]
        self._widen = Linear.load(weights, "text_projection.linear_fc1")
        self._narrow = Linear.load(weights, "text_projection.linear_fc2")
        self.rows = self._embedding.new_empty(len(self._embedding), hidden_size)
        self._known: set[int] = set()

    def learn(self, ids: set[int]) -> None:
        """Project the tokens that have no row yet."""
        new = sorted(ids - self._known)
        if new:
            where = torch.tensor(new, device=self.rows.device)
            self.rows[where] = self._narrow(F.silu(self._widen(self._embedding[where])))
            self._known.update(new)

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [N], all learnt -> [N, D]."""
        return self.rows[ids]


class Talker:
    """The decoder stack with its cache: `prefill` starts rows, `step` moves the first B slots on a frame."""

    def __init__(
        self,
        weights: Weights,
        config: TalkerConfig,
        slots: int,
        attention: AttentionKernels,
        resident: int = 0,
    ) -> None:
        self.text = TextTable(weights, config.hidden_size)
        positions = config.max_position_embeddings
        self._stack = load_stack(weights.below("model."), config, slots, positions, attention)
        self.cache = KVCache(config, slots, weights.dtype, weights.device, resident)

    def prefill(self, prompts: list[Tensor], first_slot: int) -> Tensor:
        """N prompts of [L_i, D], for the slots from `first_slot` on -> their last hidden states [N, D]."""
        return self._stack.prefill(prompts, first_slot, self.cache)

    def step(self, x: Tensor, positions: Tensor, span: int) -> Tensor:
        """x [B, D] at positions [B] of slots 0 to B-1, all below `span` -> hidden states [B, D]."""
        return self._stack.step(x, positions, span, self.cache)
