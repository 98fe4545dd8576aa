"""Matrix products with weights that never change, laid out once for the processor that reads them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model.checkpoint import Weights

MIN_PACKED_ELEMENTS = (
    1 << 18
)  # below this a product is mostly call overhead, of which packed weights have more
TYPICAL_ROWS = 16  # what oneDNN's layout is chosen for; other numbers of rows use it as well
INT8_MAX = 127


class Linear:
    """x [..., in] -> x Wᵀ + b [..., out].

    On a CPU, large weights are reordered into oneDNN's blocked layout at load: reading them is what a small
    batch waits for. A row's result then does not depend on how many other rows there are, either, which
    cannot be said of the library behind `F.linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._product = packed(weight, bias) if _is_worth_packing(weight) else plain(weight, bias)

    @classmethod
    def load(cls, weights: Weights, *names: str) -> Linear:
        """One product for the modules of these names, their outputs one after the other."""
        weight = torch.cat([weights.take(f"{name}.weight") for name in names])
        biases = [weights.take(f"{name}.bias") for name in names if weights.has(f"{name}.bias")]
        return cls(weight, torch.cat(biases) if biases else None)

    @classmethod
    def load_layer(cls, weights: Weights, *names: str) -> Linear:
        """The same for a decoder layer, whose products are in int8 where the operator chose that."""
        return Int8Linear.load(weights, *names) if weights.int8_layers else Linear.load(weights, *names)

    def __call__(self, x: Tensor) -> Tensor:
        return self._product(x)


class Int8Linear(Linear):
    """The same on a CPU with weights in int8, one scale per output, and inputs in int8, one scale per row.

    Half the bytes of bfloat16, and the processor's 8-bit products. What it computes is no longer upstream's,
    and rounding to 8 bits makes much of the last bit in which other sums differ with the batch: an utterance
    is only reproducible among the same company.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Raises ConfigError with a PyTorch that has no such operator any more."""
        if not has_int8():
            raise ConfigError(
                f"weights is 'int8', and PyTorch {torch.__version__} has no product for it; use 'full'"
            )
        rounded, scales = round_to_int8(weight)
        self._packed = torch.ops.quantized.linear_prepack(_quantized(rounded, scales), None)
        self._bias = bias
        # A row that spans exactly [-1, 1]: see __call__.
        self._ruler = torch.zeros(1, weight.shape[1])
        self._ruler[0, 0], self._ruler[0, -1] = -1.0, 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """PyTorch's kernel takes one scale from all rows, so every row is first stretched to [-1, 1], and a
        row that spans it is added: a loud request must not drown a quiet one."""
        rows = x.reshape(-1, x.shape[-1]).float()
        spans = rows.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        product = torch.ops.quantized.linear_dynamic(torch.cat([self._ruler, rows / spans]), self._packed)
        y = (product[1:] * spans).to(x.dtype).view(*x.shape[:-1], -1)
        return y if self._bias is None else y + self._bias


def round_to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [outputs, inputs] -> the nearest int8 [outputs, inputs], and each output's scale [outputs]."""
    scales = weight.float().abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny) / INT8_MAX
    return (weight.float() / scales[:, None]).round_().to(torch.int8), scales


def has_int8() -> bool:
    """Whether this PyTorch can multiply in int8: its operator is announced to go one day."""
    return (
        hasattr(torch.ops.quantized, "linear_dynamic") and "x86" in torch.backends.quantized.supported_engines
    )


def _quantized(rounded: Tensor, scales: Tensor) -> Tensor:
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():  # the operator is deprecated and has no successor for eager mode yet
        warnings.simplefilter("ignore", UserWarning)
        return torch._make_per_channel_quantized_tensor(rounded, scales.double(), zeros, 0)


def _is_worth_packing(weight: Tensor) -> bool:
    return weight.numel() >= MIN_PACKED_ELEMENTS and can_be_packed(weight)


def can_be_packed(weight: Tensor) -> bool:
    """Whether oneDNN has a layout of its own for such weights, and this PyTorch a way to it."""
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and (weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and onednn_has_bfloat16()))
        # Inductor's own: not public, so never relied on.
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    )


def onednn_has_bfloat16() -> bool:
    """oneDNN lays out no bfloat16 on an x86 processor without AVX-512."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A product by oneDNN, with weights in its layout."""
    laid_out = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
    product = torch.ops.mkldnn._linear_pointwise
    return lambda x: product(x, laid_out, bias, "none", [], "")


def plain(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """A product by whatever PyTorch takes for it, with weights as they are."""
    return lambda x: F.linear(x, weight, bias)
