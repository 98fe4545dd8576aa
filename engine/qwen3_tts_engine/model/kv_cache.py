"""Keys and values of every slot, in memory that grows by blocks of positions with the longest utterance."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qwen3_tts_engine.model.config import DecoderConfig

BLOCK = 256  # positions


class KeysAndValues(Protocol):
    """Of every layer [slots, K, capacity, E] each."""

    keys: list[Tensor]
    values: list[Tensor]


class CacheLost(RuntimeError):
    """What everybody in flight had in the cache is gone."""


class KVCache:
    """Per layer one tensor of keys and one of values, [slots, K, capacity, E].

    A slot's rows stay where they are from its first position to its last; `capacity` is what the longest
    utterance in flight needs, rounded up to blocks; it shrinks when that one ends and the rest need little.

    Args:
        resident: positions whose memory is kept while a longer utterance has the cache elsewhere, and to
            which the cache returns as soon as everyone fits again: what a captured graph reads must not move.
            0: nothing is kept.
    """

    def __init__(
        self,
        config: DecoderConfig,
        slots: int,
        dtype: torch.dtype,
        device: torch.device,
        resident: int = 0,
    ) -> None:
        self._shape = (slots, config.num_key_value_heads, config.head_dim)
        self._dtype, self._device = dtype, device
        self._num_layers = config.num_hidden_layers
        self._least = _blocks(max(resident, 1))
        self.capacity = self._least
        self.keys = [self._empty(self._least) for _ in range(config.num_hidden_layers)]
        self.values = [self._empty(self._least) for _ in range(config.num_hidden_layers)]
        self._resident = (list(self.keys), list(self.values)) if resident else None

    def fit(self, positions: int) -> None:
        """Make room for that many positions in every slot."""
        if positions > self.capacity:
            self._resize(_blocks(positions))

    def shrink(self, positions: int) -> None:
        """Give back what a longer utterance took: nobody in flight has more than so many positions.

        What they have must be copied, so it is done for half the memory, or to be where the cache began.
        """
        needed = max(_blocks(positions), self._least)
        if needed < self.capacity and (needed == self._least or 2 * needed <= self.capacity):
            self._resize(needed)

    def move(self, source: int, target: int, positions: int) -> None:
        """Copy the first `positions` of one slot over another."""
        for cache in (*self.keys, *self.values):
            cache[target, :, :positions] = cache[source, :, :positions]

    def _resize(self, capacity: int) -> None:
        """All layers or, without the memory for it, none.

        Raises:
            CacheLost: when there is not even memory to go back; then the cache is empty, at its smallest.
        """
        try:
            self._copy_into(capacity)
        except Exception:
            self._go_back()
            raise
        self.capacity = capacity

    def _copy_into(self, capacity: int) -> None:
        for side, caches in enumerate((self.keys, self.values)):
            for layer, old in enumerate(caches):  # one layer at a time: the peak is one layer's copy
                if old.shape[2] != capacity:
                    kept = min(capacity, old.shape[2])
                    caches[layer] = self._memory(side, layer, capacity)
                    caches[layer][:, :, :kept] = old[:, :, :kept]

    def _go_back(self) -> None:
        try:
            self._copy_into(self.capacity)
        except Exception as error:
            self.capacity = self._least
            for caches in (self.keys, self.values):
                caches.clear()
            for side, caches in enumerate((self.keys, self.values)):
                caches.extend(self._memory(side, layer, self._least) for layer in range(self._num_layers))
            raise CacheLost("there was no memory for a longer utterance, nor to keep the others'") from error

    def _memory(self, side: int, layer: int, capacity: int) -> Tensor:
        if self._resident and capacity == self._least:
            return self._resident[side][layer]
        return self._empty(capacity)

    def _empty(self, capacity: int) -> Tensor:
        slots, kv_heads, head_dim = self._shape
        # Zeros, not garbage: masked positions still meet a weight of 0, and 0 · NaN is NaN.
        return torch.zeros(slots, kv_heads, capacity, head_dim, dtype=self._dtype, device=self._device)


class FrameCache:
    """Keys and values of the positions of a frame, [slots, K, positions, E] of every layer."""

    def __init__(
        self, config: DecoderConfig, slots: int, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (slots, config.num_key_value_heads, positions, config.head_dim)
        blank = torch.zeros(2, config.num_hidden_layers, *shape, dtype=dtype, device=device)
        self.keys, self.values = (list(side) for side in blank)


def _blocks(positions: int) -> int:
    return -(-positions // BLOCK) * BLOCK
