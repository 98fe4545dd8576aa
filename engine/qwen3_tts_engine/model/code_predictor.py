"""The code predictor (upstream: sub-talker): from the talker's state and first code to the other fifteen."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.code_embedding import CodeEmbedding
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.kv_cache import FrameCache
from qwen3_tts_engine.model.layers import TORCH_ATTENTION
from qwen3_tts_engine.model.linear import Linear
from qwen3_tts_engine.model.sampling import RowSampling, draw
from qwen3_tts_engine.model.stack import TorchStack


class CodePredictor:
    """A small decoder that starts afresh every frame: sixteen positions, fifteen codes."""

    def __init__(self, weights: Weights, config: TalkerConfig, embedding: CodeEmbedding, slots: int) -> None:
        own, positions = config.code_predictor_config, config.num_code_groups
        self._steps = positions - 1
        self._embedding = embedding
        self._heads = [Linear.load(weights, f"lm_head.{k}") for k in range(self._steps)]
        self._project = _talker_projection(weights)
        self._stack = TorchStack(weights.below("model."), own, slots, positions, TORCH_ATTENTION)
        self._cache = FrameCache(own, slots, positions, weights.dtype, weights.device)

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
        start = torch.stack([hidden, self._embedding.first[first]], 1)
        logits = self._logits(self._stack.begin(self._project(start), self._cache), 0)
        codes = [draw(logits, sampling, noise[:, 0])]
        for k in range(1, self._steps):
            x = self._project(self._embedding.rest[k - 1][codes[-1]])
            logits = self._logits(self._stack.advance(x, k + 1, self._cache), k)
            codes.append(draw(logits, sampling, noise[:, k]))
        return torch.stack(codes, 1)

    def _logits(self, x: Tensor, k: int) -> Tensor:
        """Hidden states [B, D] -> scores of code k + 2, float32 [B, V]."""
        return self._heads[k](x).float()


def _talker_projection(weights: Weights) -> Callable[[Tensor], Tensor]:
    """Talker width to predictor width; the 0.6B checkpoints have both the same and no projection."""
    if not weights.has("small_to_mtp_projection.weight"):
        return lambda x: x
    return Linear.load(weights, "small_to_mtp_projection")
