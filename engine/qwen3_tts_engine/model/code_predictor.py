"""The code predictor (upstream: sub-talker): from the talker's state and first code to the other fifteen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.code_embedding import CodeEmbedding
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.layers import DecoderLayer, DecoderStack, RotaryTable, sdpa, sdpa_cached
from qwen3_tts_engine.model.linear import Linear
from qwen3_tts_engine.model.sampling import RowSampling, draw


class CodePredictor:
    """A small decoder that starts afresh every frame: sixteen positions, fifteen codes."""

    def __init__(self, weights: Weights, config: TalkerConfig, embedding: CodeEmbedding, slots: int) -> None:
        own = config.code_predictor_config
        self._steps = config.num_code_groups - 1
        self.vocab_size = own.vocab_size
        self._embedding = embedding
        self._heads = [Linear.load(weights, f"lm_head.{k}") for k in range(self._steps)]
        self._project = _talker_projection(weights)
        self._stack = DecoderStack.load(weights.below("model."), own)
        self._rotary = RotaryTable(own, config.num_code_groups, weights.dtype, weights.device)
        shape = (slots, own.num_key_value_heads, config.num_code_groups, own.head_dim)
        layers = self._stack.layers
        self._keys = [torch.zeros(shape, dtype=weights.dtype, device=weights.device) for _ in layers]
        self._values = [torch.zeros_like(keys) for keys in self._keys]

    def frame(self, hidden: Tensor, first: Tensor, sampling: RowSampling, noise: Tensor) -> Tensor:
        """Draw codes 2 to 16 of B rows.

        Args:
            hidden: the talker's last state [B, D].
            first: the first codes, int64 [B].
            sampling: the rows' sub-talker settings.
            noise: unit exponential draws [B, 15, V].

        Returns:
            Codes, int64 [B, 15].
        """
        logits = self._start(torch.stack([hidden, self._embedding.first[first]], 1))
        codes = [draw(logits, sampling, noise[:, 0])]
        for k in range(1, self._steps):
            x = self._embedding.rest[k - 1][codes[-1]][:, None]
            codes.append(draw(self._next(x, k), sampling, noise[:, k]))
        return torch.stack(codes, 1)

    def _start(self, x: Tensor) -> Tensor:
        """The first two positions at once: [B, 2, D] -> logits [B, V]."""
        x = self._project(x)
        cos, sin = (table[None] for table in self._rotary.at(slice(0, 2)))
        for i, layer in enumerate(self._stack.layers):
            query, key, value = layer.project(x, cos, sin)
            self._keys[i][: len(x), :, :2] = key.transpose(1, 2)
            self._values[i][: len(x), :, :2] = value.transpose(1, 2)
            x = layer.finish(x, layer.attention.join(sdpa(query, key, value)))
        return self._logits(x[:, -1], 0)

    def _next(self, x: Tensor, k: int) -> Tensor:
        """Position k + 1: [B, 1, D] -> logits [B, V]."""
        x = self._project(x)
        position = k + 1
        cos, sin = (table[None] for table in self._rotary.at(slice(position, position + 1)))
        for i, layer in enumerate(self._stack.layers):
            x = layer.finish(x, self._attend(layer, i, x, cos, sin, position))
        return self._logits(x[:, 0], k)

    def _attend(
        self, layer: DecoderLayer, i: int, x: Tensor, cos: Tensor, sin: Tensor, position: int
    ) -> Tensor:
        query, key, value = layer.project(x, cos, sin)
        keys, values = self._keys[i][: len(x)], self._values[i][: len(x)]
        keys[:, :, position] = key[:, 0]
        values[:, :, position] = value[:, 0]
        seen = slice(0, position + 1)
        return layer.attention.join(sdpa_cached(query, keys[:, :, seen], values[:, :, seen], None))

    def _logits(self, x: Tensor, k: int) -> Tensor:
        return self._heads[k](self._stack.last_norm(x)).float()


def _talker_projection(weights: Weights) -> Callable[[Tensor], Tensor]:
    """Talker width to predictor width; the 0.6B checkpoints have both the same and no projection."""
    if not weights.has("small_to_mtp_projection.weight"):
        return lambda x: x
    return Linear.load(weights, "small_to_mtp_projection")
