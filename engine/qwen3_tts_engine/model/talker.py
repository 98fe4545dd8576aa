"""The talker: a Qwen3 decoder that reads text and speech and writes the first code of the next frame."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.kv_cache import BLOCK, KVCache
from qwen3_tts_engine.model.layers import AttentionKernels, DecoderStack, RotaryTable
from qwen3_tts_engine.model.linear import Linear


class TextTable:
    """`text_projection(text_embedding(id))` of every token met so far, one row each.

    Computed when a token first appears in a prompt, so the frame loop only ever looks rows up. The table
    is as large as the vocabulary, but memory is only touched where tokens are used.
    """

    def __init__(self, weights: Weights, hidden_size: int) -> None:
        self._embedding = weights.take("model.text_embedding.weight")  # [V, text hidden]
        self._widen = Linear.load(weights, "text_projection.linear_fc1")
        self._narrow = Linear.load(weights, "text_projection.linear_fc2")
        self._rows = self._embedding.new_empty(len(self._embedding), hidden_size)
        self._known: set[int] = set()

    def learn(self, ids: set[int]) -> None:
        """Project the tokens that have no row yet."""
        new = sorted(ids - self._known)
        if new:
            where = torch.tensor(new, device=self._rows.device)
            self._rows[where] = self._narrow(F.silu(self._widen(self._embedding[where])))
            self._known.update(new)

    def __call__(self, ids: Tensor) -> Tensor:
        """ids [N], all learnt -> [N, D]."""
        return self._rows[ids]


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
        self._head = Linear.load(weights, "codec_head")  # D -> V
        self._stack = DecoderStack.load(weights.below("model."), config)
        self._attention = attention
        positions = config.max_position_embeddings
        self._rotary = RotaryTable(config, positions, weights.dtype, weights.device)
        self.cache = KVCache(config, slots, weights.dtype, weights.device, resident)
        self._slots = torch.arange(slots).to(weights.device)
        self._positions = torch.arange(positions + BLOCK).to(weights.device)  # a span may end beyond

    def prefill(self, prompts: list[Tensor], first_slot: int) -> Tensor:
        """N prompts of [L_i, D], for the slots from `first_slot` on -> their last hidden states [N, D].

        Shorter prompts are padded on the right, where causal attention never looks; the positions the padding
        leaves in the cache lie beyond the row's own and are overwritten before they are attended to.
        """
        lengths = torch.tensor([len(p) for p in prompts], device=self._slots.device)
        x = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # [N, T, D]
        rows, positions = slice(first_slot, first_slot + len(prompts)), slice(0, x.shape[1])
        cos, sin = (table[None] for table in self._rotary.at(positions))
        for layer, keys, values in zip(self._stack.layers, self.cache.keys, self.cache.values, strict=True):
            query, key, value = layer.project(x, cos, sin)
            keys[rows, :, positions] = key.transpose(1, 2)
            values[rows, :, positions] = value.transpose(1, 2)
            x = layer.finish(x, layer.attention.join(self._attention.prompt(query, key, value)))
        last = x[torch.arange(len(prompts), device=x.device), lengths - 1]
        return self._stack.last_norm(last)

    def step(self, x: Tensor, positions: Tensor, span: int) -> Tensor:
        """x [B, D] at positions [B] of slots 0 to B-1, all below `span` -> hidden states [B, D]."""
        batch, attend = len(x), self._attention.cached
        x = x[:, None]
        cos, sin = (table[:, None] for table in self._rotary.at(positions))
        reach = attend.reach(positions, self._positions[:span], x.dtype)
        slots = self._slots[:batch]
        for layer, keys, values in zip(self._stack.layers, self.cache.keys, self.cache.values, strict=True):
            query, key, value = layer.project(x, cos, sin)
            keys[slots, :, positions] = key[:, 0]
            values[slots, :, positions] = value[:, 0]
            mixed = attend(query, keys[:batch, :, :span], values[:batch, :, :span], reach)
            x = layer.finish(x, layer.attention.join(mixed))
        return self._stack.last_norm(x[:, 0])

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next frame's first code: hidden [B, D] -> float32 [B, V]."""
        return self._head(hidden).float()
