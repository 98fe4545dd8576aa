"""Random weights that behave: activations of order one, no layer near zero, every tensor accounted for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Upstream starts these at 0, 0.01, 1e-6 or 0: fine for training, but a codec of that is a no-op or silence.
BY_NAME = {  # (mean, std)
    "gamma": (0.5, 0.0),  # ConvNeXt
    "scale": (0.5, 0.0),  # LayerScale
    # SnakeBeta, as logarithms. Slow sines: at an alpha of 1 random ones amplify rounding a hundredfold, and
    # in float32 the codec would differ from itself by more than a parity test can allow.
    "alpha": (-1.0, 0.3),
    "beta": (0.0, 0.3),
    "embedding_sum": (0.0, 1.0),  # a codebook is embedding_sum / cluster_usage
    "embed_sum": (0.0, 1.0),  # Mimi's name for it
    "cluster_usage": (1.0, 0.0),
}


@torch.no_grad()
def draw_weights(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        for name, tensor in own_tensors(module):
            mean, std = spread(module, name, tensor)
            tensor.normal_(mean, std, generator=generator)


def own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    codebooks = [(name, buffer) for name, buffer in module.named_buffers(recurse=False) if name in BY_NAME]
    return list(module.named_parameters(recurse=False)) + codebooks


def spread(module: nn.Module, name: str, tensor: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of a tensor, by what it is for."""
    if name in BY_NAME:
        return BY_NAME[name]
    if name == "bias":
        return 0.0, 0.02
    if isinstance(module, nn.Embedding):
        return 0.0, 1.0
    if tensor.dim() == 1:  # a norm: not exactly one, or a weight that was never loaded would go unnoticed
        return 1.0, 0.1
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.ConvTranspose1d)):
        return 0.0, 1 / math.sqrt(fan_in(module))
    raise TypeError(f"no recipe for {name!r} of {type(module).__name__}")


def fan_in(layer: nn.Linear | nn.Conv1d | nn.ConvTranspose1d) -> float:
    """How many products make one output."""
    if isinstance(layer, nn.ConvTranspose1d):
        return layer.in_channels * layer.kernel_size[0] / layer.stride[0]
    return layer.weight[0].numel()
