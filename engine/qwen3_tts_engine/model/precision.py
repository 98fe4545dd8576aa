"""In which numbers a checkpoint's models compute, on this device."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.model.config import TalkerConfig
from qwen3_tts_engine.model.linear import Linear
from qwen3_tts_engine.model.native.library import library

logger = logging.getLogger(__name__)

LARGE_ELEMENTS = 1 << 26  # weights that no cache holds; smaller ones gain nothing from being half as large
WORTHWHILE_GAIN = 1.2  # bfloat16 has 8 bits of precision: it must pay
TRIAL_MATRICES = 8  # read in turn, so that each comes from memory
TRIALS = 3


def choose_dtype(
    name: str, device: torch.device, talker: TalkerConfig, clock: Callable[[], float]
) -> torch.dtype:
    """The type of the language models.

    `auto` is bfloat16, what the published weights are stored in, on a GPU, with the native library, which
    reads it in half the time, and on a processor that turns out to be faster with it, by a trial of under a
    second; else float32.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    if device.type == "cuda":
        return torch.bfloat16
    if talker.num_hidden_layers * 3 * talker.hidden_size * talker.intermediate_size < LARGE_ELEMENTS:
        return torch.float32
    if library() is not None:
        return torch.bfloat16
    wide, half = (_trial_s(dtype, talker, clock) for dtype in (torch.float32, torch.bfloat16))
    logger.info("reading weights in bfloat16 is %.1f times as fast as in float32", wide / half)
    return torch.bfloat16 if wide >= WORTHWHILE_GAIN * half else torch.float32


def expect_int8(device: torch.device) -> None:
    """Refuse int8 weights where they cannot be multiplied.

    Raises:
        ConfigError: on a GPU.
    """
    if device.type != "cpu":
        raise ConfigError(f"weights is 'int8', which only the CPU has; the device is {device}")


@torch.inference_mode()
def _trial_s(dtype: torch.dtype, talker: TalkerConfig, clock: Callable[[], float]) -> float:
    """How long one row takes through a few of the largest products, at best."""
    shape = (2 * talker.intermediate_size, talker.hidden_size)
    products = [Linear(torch.zeros(shape, dtype=dtype)) for _ in range(TRIAL_MATRICES)]
    row = torch.zeros(1, talker.hidden_size, dtype=dtype)
    times_s = []
    for _ in range(TRIALS + 1):  # the first one is a warm-up
        started = clock()
        for product in products:
            product(row)
        times_s.append(clock() - started)
    return min(times_s[1:])
