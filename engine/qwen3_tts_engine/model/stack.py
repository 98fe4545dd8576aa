"""A stack of decoder layers with everybody's cached keys and values, and who computes it.

Shapes as in `layers`: B rows, T new positions, D hidden size, K key-value heads, E head size.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import DecoderConfig
from qwen3_tts_engine.model.kv_cache import BLOCK, KeysAndValues
from qwen3_tts_engine.model.layers import (
    AttentionKernels,
    DecoderLayer,
    RotaryTable,
    rms_norm,
    sdpa,
    sdpa_cached,
)
from qwen3_tts_engine.model.native.layers import NativeStack, can_load_layers


class Stack(Protocol):
    """All layers of the talker and its last norm."""

    def prefill(self, prompts: list[Tensor], first_slot: int, cache: KeysAndValues) -> Tensor:
        """N prompts of [L_i, D], for the slots from `first_slot` on -> their last hidden states [N, D]."""

    def step(self, x: Tensor, positions: Tensor, span: int, cache: KeysAndValues) -> Tensor:
        """x [B, D] at positions [B] of slots 0 to B-1, all below `span` -> hidden states [B, D]."""


def load_stack(
    weights: Weights, config: DecoderConfig, slots: int, positions: int, attention: AttentionKernels
) -> Stack:
    """The stack below these weights: in one piece where the processor and the weights allow, else by PyTorch.

    Args:
        slots, positions: the most there will be.
        attention: what PyTorch attends with.
    """
    if can_load_layers(weights, config):
        return NativeStack(weights, config, slots, positions)
    return TorchStack(weights, config, slots, positions, attention)


class TorchStack:
    """Layer by layer with PyTorch's operators, on any device and in any type."""

    def __init__(
        self, weights: Weights, config: DecoderConfig, slots: int, positions: int, attention: AttentionKernels
    ) -> None:
        self._layers = [
            DecoderLayer.load(weights.below(f"layers.{i}."), config) for i in range(config.num_hidden_layers)
        ]
        self._norm = weights.take("norm.weight")
        self._eps = config.rms_norm_eps
        self._rotary = RotaryTable(config, positions, weights.dtype, weights.device)
        self._attention = attention
        self._slots = torch.arange(slots).to(weights.device)
        self._positions = torch.arange(positions + BLOCK).to(weights.device)  # a span may end beyond

    def prefill(self, prompts: list[Tensor], first_slot: int, cache: KeysAndValues) -> Tensor:
        """Shorter prompts are padded on the right, where causal attention never looks; the positions the
        padding leaves in the cache lie beyond the row's own and are overwritten before they are attended to.
        """
        lengths = torch.tensor([len(p) for p in prompts], device=self._slots.device)
        x = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True)  # [N, T, D]
        rows, positions = slice(first_slot, first_slot + len(prompts)), slice(0, x.shape[1])
        cos, sin = (table[None] for table in self._rotary.at(positions))
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            query, key, value = layer.project(x, cos, sin)
            keys[rows, :, positions] = key.transpose(1, 2)
            values[rows, :, positions] = value.transpose(1, 2)
            x = layer.finish(x, layer.attention.join(self._attention.prompt(query, key, value)))
        return self._last_norm(x[torch.arange(len(prompts), device=x.device), lengths - 1])

    def step(self, x: Tensor, positions: Tensor, span: int, cache: KeysAndValues) -> Tensor:
        batch, attend = len(x), self._attention.cached
        x = x[:, None]
        cos, sin = (table[:, None] for table in self._rotary.at(positions))
        reach = attend.reach(positions, self._positions[:span], x.dtype)
        slots = self._slots[:batch]
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            query, key, value = layer.project(x, cos, sin)
            keys[slots, :, positions] = key[:, 0]
            values[slots, :, positions] = value[:, 0]
            mixed = attend(query, keys[:batch, :, :span], values[:batch, :, :span], reach)
            x = layer.finish(x, layer.attention.join(mixed))
        return self._last_norm(x[:, 0])

    def begin(self, x: Tensor, cache: KeysAndValues) -> Tensor:
        """x [B, 2, D] at the first two positions of slots 0 to B-1 -> hidden states of the second [B, D]."""
        cos, sin = (table[None] for table in self._rotary.at(slice(0, 2)))
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            query, key, value = layer.project(x, cos, sin)
            keys[: len(x), :, :2] = key.transpose(1, 2)
            values[: len(x), :, :2] = value.transpose(1, 2)
            x = layer.finish(x, layer.attention.join(sdpa(query, key, value)))
        return self._last_norm(x[:, -1])

    def advance(self, x: Tensor, position: int, cache: KeysAndValues) -> Tensor:
        """x [B, D], all at the same position of slots 0 to B-1 -> hidden states [B, D]."""
        x, seen = x[:, None], slice(0, position + 1)
        cos, sin = (table[None] for table in self._rotary.at(slice(position, position + 1)))
        for layer, all_keys, all_values in zip(self._layers, cache.keys, cache.values, strict=True):
            query, key, value = layer.project(x, cos, sin)
            keys, values = all_keys[: len(x)], all_values[: len(x)]
            keys[:, :, position] = key[:, 0]
            values[:, :, position] = value[:, 0]
            mixed = sdpa_cached(query, keys[:, :, seen], values[:, :, seen], None)
            x = layer.finish(x, layer.attention.join(mixed))
        return self._last_norm(x[:, 0])

    def _last_norm(self, x: Tensor) -> Tensor:
        return rms_norm(x, self._norm, self._eps)
