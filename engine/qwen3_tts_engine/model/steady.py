"""Products and convolutions over time that compute every position as if it were alone.

What PyTorch calls by default adds up a position's inputs in an order that depends on how many positions and
rows there are. oneDNN's kernels for weights in a layout of its own do not, but for the cases below, and so
what they compute is the same to the last bit wherever a stream is cut, and whoever is computed beside it.
Where there is no oneDNN (a GPU, float64) PyTorch's defaults compute, which promise nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.linear import Linear, can_be_packed, packed, plain

TYPICAL_LENGTH = 1024  # positions that a convolution's layout is chosen for; other numbers use it as well

LANES = 16  # float32 in a vector, to which memory is aligned
STATISTICS = 2  # of a query, that PyTorch keeps: its largest score and their sum

Convolution = Callable[[Tensor], Tensor]
"""[B, reach + T, C] -> [B, T, C']"""


class SteadyLinear(Linear):
    """x [B, T, in] -> x Wᵀ + b [B, T, out]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._product = _several_rows(packed(weight, bias)) if can_be_packed(weight) else plain(weight, bias)


def steady_convolution(weight: Tensor, bias: Tensor, dilation: int, groups: int) -> Convolution:
    """weight [C', C / groups, kernel], of more than one tap: oneDNN is not steady with a single one."""
    if not can_be_packed(weight):
        return lambda x: F.conv1d(x.transpose(1, 2), weight, bias, 1, 0, dilation, groups).transpose(1, 2)
    size = [1, weight.shape[1] * groups, 1, TYPICAL_LENGTH]
    placement = ([0, 0], [1, 1], [1, dilation], groups)  # padding, stride
    laid_out = torch.ops.mkldnn._reorder_convolution_weight(weight.unsqueeze(2), *placement, size)
    convolve = torch.ops.mkldnn._convolution_pointwise

    def steady(x: Tensor) -> Tensor:
        image = x.transpose(1, 2).unsqueeze(2)  # [B, C, 1, reach + T]
        return convolve(image, laid_out, bias, *placement, "none", [], "").squeeze(2).transpose(1, 2)

    return steady


def steady_attention(query: Tensor, keys: Tensor, values: Tensor, sees: Tensor) -> Tensor:
    """Each of N positions attends to the W keys that end with its own, those of them that it sees.

    They are one batch of N, so that no position is added up beside keys that it does not see.

    Args:
        query: [B, H, N, E].
        keys: [B, K, W - 1 + N, E], and values the same.
        sees: bool [N, B·H, 1, W], where W is a `steady_span`.

    Returns:
        [B, N, H·E].
    """
    span = sees.shape[-1]
    each = query.flatten(0, 1).transpose(0, 1).unsqueeze(2)  # [N, B·H, 1, E]
    past, content = (
        x.flatten(0, 1).unfold(1, span, 1).permute(1, 0, 3, 2) for x in (keys, values)
    )  # [N, B·K, W, E], all of them views of one memory
    mixed = F.scaled_dot_product_attention(each, past, content, attn_mask=sees, enable_gqa=True)
    return mixed.reshape(len(each), query.shape[0], -1).transpose(0, 1)


def steady_span(window: int, head_size: int) -> int:
    """How many keys to hand to attention for this many that are seen.

    PyTorch gives each thread scores, statistics and a result of one query in one piece of memory, all threads
    one after the other, and MKL's products add up in another order where memory is not aligned: all threads
    have theirs aligned when such a piece is a whole number of vectors.
    """
    return window + -(window + STATISTICS + head_size) % LANES


def _several_rows(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A single row of more than 1024 inputs is added up otherwise than one of several."""
    return lambda x: product(x) if x.shape[:2].numel() > 1 else product(x.expand(2, -1, -1))[:1]
