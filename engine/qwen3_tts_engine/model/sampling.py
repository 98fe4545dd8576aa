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

EVERY_LOGIT = 1 << 31  # more than any vocabulary has
RESERVED_CODES = 1024  # the talker's last ids are control codes; of them only the end may be drawn
COLDEST = 1e-30  # colder, logits overflow; long before that only the likeliest code is drawn


@dataclass(frozen=True)
class DrawKind:
    """What a batch of draws has to do, known before its logits are: the rest is skipped.

    Args:
        any_sampled: False: every row takes the likeliest code.
        all_sampled: False: some row takes the likeliest code.
        any_top_p: some row cuts off a tail.
        num_top: the most logits any row keeps, if some row cuts any; 0: none does.
    """

    any_sampled: bool
    all_sampled: bool
    any_top_p: bool
    num_top: int

    @classmethod
    def of(cls, rows: Sequence[Sampling], vocab_size: int) -> DrawKind:
        kept = [_kept(row, vocab_size) for row in rows if row.do_sample]
        return cls(
            any_sampled=bool(kept),
            all_sampled=len(kept) == len(rows),
            any_top_p=any(row.do_sample and row.top_p < 1 for row in rows),
            num_top=max(kept) if kept and min(kept) < vocab_size else 0,
        )

    def covers(self, other: DrawKind) -> bool:
        """Whether rows drawn this way, which knows greedy rows from others, are drawn right as well."""
        keeps_enough = not other.any_sampled or (other.num_top or EVERY_LOGIT) <= self.num_top
        return keeps_enough and self.any_top_p >= other.any_top_p


USUAL = DrawKind(any_sampled=True, all_sampled=False, any_top_p=False, num_top=64)
ANY = DrawKind(any_sampled=True, all_sampled=False, any_top_p=True, num_top=EVERY_LOGIT)


@dataclass(frozen=True)
class RowSampling:
    """The settings of B rows as tensors, and what kind of draws they make together."""

    sampled: Tensor  # bool [B]; False: the likeliest code
    temperature: Tensor  # [B, 1]
    kth: Tensor  # int64 [B, 1]: index of the last logit top-k keeps, in descending order
    tail: Tensor  # [B, 1]: the probability mass top-p may cut off, 1 - p; 0: none
    kind: DrawKind

    @classmethod
    def of(cls, rows: Sequence[Sampling], vocab_size: int, device: torch.device) -> RowSampling:
        return cls(
            sampled=torch.tensor([row.do_sample for row in rows], device=device),
            temperature=torch.tensor([[max(row.temperature, COLDEST)] for row in rows], device=device),
            kth=torch.tensor([[_kept(row, vocab_size) - 1] for row in rows], device=device),
            tail=torch.tensor([[1 - row.top_p if row.do_sample else 0.0] for row in rows], device=device),
            kind=DrawKind.of(rows, vocab_size),
        )

    def become(self, other: RowSampling) -> None:
        """Take over as many rows' settings in place; the kind stays."""
        for own, new in zip(self._tensors, other._tensors, strict=True):
            own.copy_(new)

    def first(self, batch: int, kind: DrawKind) -> RowSampling:
        """The first rows, drawn that way."""
        sampled, temperature, kth, tail = (tensor[:batch] for tensor in self._tensors)
        return RowSampling(sampled, temperature, kth, tail, kind)

    @property
    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.sampled, self.temperature, self.kth, self.tail


def draw(logits: Tensor, rows: RowSampling, noise: Tensor) -> Tensor:
    """logits float32 [B, V], noise unit exponential [B, V] -> codes int64 [B]."""
    if not rows.kind.any_sampled:
        return logits.argmax(-1)
    drawn = (_probabilities(logits, rows) / noise).argmax(-1)
    return drawn if rows.kind.all_sampled else torch.where(rows.sampled, drawn, logits.argmax(-1))


def suppressed_codes(vocab_size: int, eos: int) -> Tensor:
    """Which first codes are never drawn: bool [V]."""
    suppressed = torch.zeros(vocab_size, dtype=torch.bool)
    suppressed[-RESERVED_CODES:] = True
    suppressed[eos] = False
    return suppressed


def penalise(logits: Tensor, spoken: Tensor, penalty: Tensor) -> Tensor:
    """Make codes already spoken less likely: logits [B, V], spoken bool [B, V], penalty [B, 1]."""
    weakened = torch.where(logits < 0, logits * penalty, logits / penalty)
    return torch.where(spoken, weakened, logits)


def _kept(row: Sampling, vocab_size: int) -> int:
    """How many of the likeliest codes a row may draw."""
    if not row.do_sample:
        return 1
    return min(row.top_k, vocab_size) if row.top_k else vocab_size


def _probabilities(logits: Tensor, rows: RowSampling) -> Tensor:
    scores = logits / rows.temperature
    if rows.kind.num_top:
        num_top = min(rows.kind.num_top, scores.shape[-1])
        smallest_kept = scores.topk(num_top).values.gather(-1, rows.kth)
        scores = scores.masked_fill(scores < smallest_kept, -torch.inf)
    if rows.kind.any_top_p:
        scores = _cut_tail(scores, rows.tail)
    return scores.softmax(-1)


def _cut_tail(scores: Tensor, mass: Tensor) -> Tensor:
    """Drop the least likely codes up to that mass, never the likeliest; a mass of 0 cuts nothing."""
    ascending, order = scores.sort(-1)
    cut = ascending.softmax(-1).cumsum(-1) <= mass
    cut[:, -1] = False
    return scores.masked_fill(cut.scatter(-1, order, cut), -torch.inf)
