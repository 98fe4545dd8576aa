"""Weights in the order that the native library reads them in."""

from __future__ import annotations

import mmap
from contextlib import suppress

import torch
from torch import Tensor

from qwen3_tts_engine.model.linear import INT8_MAX, round_to_int8
from qwen3_tts_engine.model.native.library import Product

GROUP_BYTES = 4  # of an output's weights, that lie side by side
LARGE_PAGE = 1 << 21


class Kept:
    """Holds on to the tensors whose addresses structures have."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []

    def address(self, tensor: Tensor) -> int:
        tensor = tensor.contiguous()
        self._tensors.append(tensor)
        return tensor.data_ptr()

    def product(self, weight: Tensor, lanes: int, in_int8: bool = False) -> Product:
        """weight [outputs, inputs]: outputs a multiple of two registers of so many lanes, inputs of one."""
        outputs, inputs = weight.shape
        if not in_int8:
            return Product(self._packed(weight, lanes), None, None, outputs, inputs)
        rounded, scales = round_to_int8(weight)
        offsets = (INT8_MAX + 1) * rounded.sum(1, dtype=torch.int32)
        return Product(
            self._packed(rounded, lanes), self.address(scales), self.address(offsets), outputs, inputs
        )

    def _packed(self, weight: Tensor, lanes: int) -> int:
        """[outputs / block][groups of 4 bytes][block][what is in a group]"""
        groups = weight.unflatten(0, (-1, 2 * lanes)).unflatten(2, (-1, GROUP_BYTES // weight.itemsize))
        return self.address(in_large_pages(groups.transpose(1, 2)))


def in_large_pages(tensor: Tensor) -> Tensor:
    """A contiguous copy of a large tensor in pages of 2 MB, of whose addresses fewer must be looked up."""
    if tensor.nbytes < LARGE_PAGE:
        return tensor
    memory = mmap.mmap(-1, tensor.nbytes + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(AttributeError, OSError):  # a kernel without them has small ones
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % LARGE_PAGE
    copy = whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)
