"""The codec's activation in one pass over memory."""

from __future__ import annotations

from ctypes import byref

import torch
from torch import Tensor

from qwen3_tts_engine.model.native.library import NUMBERS, Snake, library, native


class NativeSnake:
    """x + sin²(αx) / β: float32 or bfloat16 [..., C] -> the same; computed in float32.

    Args:
        alpha, inverse_beta: [C].
    """

    def __init__(self, alpha: Tensor, inverse_beta: Tensor) -> None:
        self._kept = tuple(it.float().contiguous() for it in (alpha, inverse_beta))
        self._snake = Snake(*(it.data_ptr() for it in self._kept), len(alpha))
        self._activate = native().snake_float32 if alpha.dtype == torch.float32 else native().snake_bfloat16

    @staticmethod
    def can_load(alpha: Tensor) -> bool:
        """Whether this type and number of channels fit, and there is a library for this processor."""
        compiled = library()
        return (
            compiled is not None
            and alpha.device.type == "cpu"
            and alpha.dtype in NUMBERS
            and len(alpha) % compiled.lanes() == 0
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        activated = torch.empty_like(x)
        positions = x.shape[:-1].numel()
        self._activate(
            byref(self._snake), x.data_ptr(), activated.data_ptr(), positions, torch.get_num_threads()
        )
        return activated
