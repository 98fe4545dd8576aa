"""Matrix products with weights that never change, laid out once for the processor that reads them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights

MIN_PACKED_ELEMENTS = (
    1 << 18
)  # below this a product is mostly call overhead, of which packed weights have more
TYPICAL_ROWS = 16  # what oneDNN's layout is chosen for; other numbers of rows use it as well


class Linear:
    """x [..., in] -> x Wᵀ + b [..., out].

    On a CPU, large weights are reordered into oneDNN's blocked layout at load: reading them is what a small
    batch waits for. A row's result then does not depend on how many other rows there are, either, which
    cannot be said of the library behind `F.linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._product = _packed(weight, bias) if _is_worth_packing(weight) else _plain(weight, bias)

    @classmethod
    def load(cls, weights: Weights, *names: str) -> Linear:
        """One product for the modules of these names, their outputs one after the other."""
        weight = torch.cat([weights.take(f"{name}.weight") for name in names])
        biases = [weights.take(f"{name}.bias") for name in names if weights.has(f"{name}.bias")]
        return cls(weight, torch.cat(biases) if biases else None)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)


def _is_worth_packing(weight: Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype in (torch.float32, torch.bfloat16)
        and weight.numel() >= MIN_PACKED_ELEMENTS
        and torch.backends.mkldnn.is_available()
        and hasattr(
            torch.ops.mkldnn, "_reorder_linear_weight"
        )  # inductor's own: not public, so never relied on
    )


def _packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, packed, bias, "none", [], "")


def _plain(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, weight, bias)
