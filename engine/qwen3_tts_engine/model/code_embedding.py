"""The embeddings of all sixteen codes of a frame, in one table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import TalkerConfig


class CodeEmbedding:
    """The talker's codebook, which also holds speakers and control codes, above the predictor's fifteen.

    Attributes:
        table: all of them, [V + 15·V', D].
        first: [V, D], for a frame's first code and everything else the prompt's codec track holds.
        rest: [15, V', D], for codes 2 to 16.
    """

    def __init__(self, talker_weights: Weights, config: TalkerConfig) -> None:
        first = talker_weights.take("model.codec_embedding.weight")
        steps = range(config.num_code_groups - 1)
        rest = [talker_weights.take(f"code_predictor.model.codec_embedding.{k}.weight") for k in steps]
        self.table = torch.cat([first, *rest])
        self.first = self.table[: len(first)]
        self.rest = self.table[len(first) :].unflatten(0, (len(rest), -1))
        starts = [0, *range(len(first), len(self.table), self.rest.shape[1])]
        self._starts = torch.tensor(starts).to(first.device)

    def sum(self, codes: Tensor) -> Tensor:
        """What the talker hears of a frame: codes [B, 16] -> [B, D]."""
        return F.embedding(codes + self._starts, self.table).sum(1)
