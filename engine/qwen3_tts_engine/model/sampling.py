"""Drawing one code per row, each row by its own rules, in the order upstream's logits processors run.

Upstream (HF generate, transformers 4.57): repetition penalty, minimum length, suppressed tokens, then
temperature, top-k, top-p, softmax, multinomial. `torch.multinomial` for one sample is `argmax(p / q)` with
`q` unit exponential; taking `q` as an input makes a draw a pure function, and drawing `q` with a
request's own generator in upstream's order makes it upstream's draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_tts_engine.request import Sampling

COLDEST = 1e-30  # colder, logits overflow; long before that only the likeliest code is drawn


@dataclass(frozen=True)
class RowSampling:
    """The settings of B rows as tensors; what the host knows of them decides which work is skipped."""

    sampled: Tensor  # bool [B]; False: the likeliest code
    temperature: Tensor  # [B, 1]
    kth: Tensor  # int64 [B, 1]: index of the last logit top-k keeps, in descending order
    tail: Tensor  # [B, 1]: the probability mass top-p may cut off, 1 - p; 0: none
    any_sampled: bool
    all_sampled: bool
    any_top_p: bool
    num_top: int  # the most logits any row keeps; 0: no row cuts any

    @classmethod
    def of(cls, rows: Sequence[Sampling], vocab_size: int, device: torch.device) -> RowSampling:
        kept = [min(row.top_k, vocab_size) if row.do_sample and row.top_k else vocab_size for row in rows]
        cutting = any(k < vocab_size for k in kept)
        return cls(
            sampled=torch.tensor([row.do_sample for row in rows], device=device),
            temperature=torch.tensor([[max(row.temperature, COLDEST)] for row in rows], device=device),
            kth=torch.tensor([[k - 1] for k in kept], device=device),
            tail=torch.tensor([[1 - row.top_p if row.do_sample else 0.0] for row in rows], device=device),
            any_sampled=any(row.do_sample for row in rows),
            all_sampled=all(row.do_sample for row in rows),
            any_top_p=any(row.do_sample and row.top_p < 1 for row in rows),
            num_top=max(kept) if cutting else 0,
        )


def draw(logits: Tensor, rows: RowSampling, noise: Tensor) -> Tensor:
    """logits float32 [B, V], noise unit exponential [B, V] -> codes int64 [B]."""
    if not rows.any_sampled:
        return logits.argmax(-1)
    drawn = (_probabilities(logits, rows) / noise).argmax(-1)
    return drawn if rows.all_sampled else torch.where(rows.sampled, drawn, logits.argmax(-1))


def penalise(logits: Tensor, spoken: Tensor, penalty: Tensor) -> Tensor:
    """Make codes already spoken less likely: logits [B, V], spoken bool [B, V], penalty [B, 1]."""
    weakened = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(spoken, weakened, logits)


def _probabilities(logits: Tensor, rows: RowSampling) -> Tensor:
    scores = logits / rows.temperature
    if rows.num_top:
        smallest_kept = scores.topk(rows.num_top).values.gather(-1, rows.kth)
        scores = scores.masked_fill(scores < smallest_kept, -torch.inf)
    if rows.any_top_p:
        scores = _cut_tail(scores, rows.tail)
    return scores.softmax(-1)


def _cut_tail(scores: Tensor, mass: Tensor) -> Tensor:
    """Drop the least likely codes up to that mass, never the likeliest; a mass of 0 cuts nothing."""
    ascending, order = scores.sort(-1)
    cut = ascending.softmax(-1).cumsum(-1) <= mass
    cut[:, -1] = False
    return scores.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
