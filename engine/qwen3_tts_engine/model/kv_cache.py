"""Keys and values of every slot, in memory that grows by blocks of positions with the longest utterance."""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3_tts_engine.model.config import DecoderConfig

BLOCK = 256  # positions


class KVCache:
    """Per layer one tensor of keys and one of values, [slots, K, capacity, E].

    A slot's rows stay where they are from its first position to its last; `capacity` is what the longest
    utterance in flight needs, rounded up to blocks, and shrinks to one block when nobody is left.
    """

    def __init__(self, config: DecoderConfig, slots: int, dtype: torch.dtype, device: torch.device) -> None:
        self._shape = (slots, config.num_key_value_heads, config.head_dim)
        self._dtype, self._device = dtype, device
        self.capacity = BLOCK
        self.keys = [self._empty(BLOCK) for _ in range(config.num_hidden_layers)]
        self.values = [self._empty(BLOCK) for _ in range(config.num_hidden_layers)]

    def fit(self, positions: int) -> None:
        """Make room for that many positions in every slot."""
        if positions > self.capacity:
            self._resize(-(-positions // BLOCK) * BLOCK)

    def shrink(self) -> None:
        """Give back what a long utterance took, once no slot is in use."""
        if self.capacity > BLOCK:
            self._resize(BLOCK)

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first `positions` of one slot over another."""
        for cache in (*self.keys, *self.values):
            cache[target, :, :positions] = cache[source, :, :positions]

    def _resize(self, capacity: int) -> None:
        kept = min(capacity, self.capacity)
        for caches in (self.keys, self.values):
            for layer, old in enumerate(caches):  # one layer at a time: the peak is one layer's copy
                caches[layer] = self._empty(capacity)
                caches[layer][:, :, :kept] = old[:, :, :kept]
        self.capacity = capacity

    def _empty(self, capacity: int) -> Tensor:
        slots, kv_heads, head_dim = self._shape
        # Zeros, not garbage: masked positions still meet a weight of 0, and 0 · NaN is NaN.
        return torch.zeros(slots, kv_heads, capacity, head_dim, dtype=self._dtype, device=self._device)
