"""The attention kernels: flash-attn's are asked for the same thing as PyTorch's."""

import logging
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.layers import FLASH_ATTENTION, TORCH_ATTENTION, attention_kernels

CPU = torch.device("cpu")


def plain(query: Tensor, key: Tensor, value: Tensor, seen: Tensor) -> Tensor:
    """One row: query [T, H, E], key and value [L, K, E], which keys each query sees [T, L]."""
    repeats = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(repeats, 1) for x in (key, value))
    scores = torch.einsum("the,lhe->htl", query, key) / query.shape[-1] ** 0.5
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("htl,lhe->the", weights, value)


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    """What flash-attn 2 documents of the two functions that are used, computed plainly."""

    def flash_attn_func(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        assert causal
        seen = torch.ones(q.shape[1], k.shape[1]).tril().bool()
        return torch.stack([plain(*row, seen) for row in zip(q, k, v, strict=True)])

    def flash_attn_with_kvcache(q: Tensor, k_cache: Tensor, v_cache: Tensor, cache_seqlens: Tensor) -> Tensor:
        assert cache_seqlens.dtype == torch.int32
        assert k_cache.stride(-1) == v_cache.stride(-1) == 1
        positions = torch.arange(k_cache.shape[1])
        rows = zip(q, k_cache, v_cache, cache_seqlens, strict=True)
        return torch.stack([plain(q, k, v, (positions < length)[None]) for q, k, v, length in rows])

    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    module.flash_attn_with_kvcache = flash_attn_with_kvcache  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


def test_both_read_a_prompt_alike(flash_attn: None) -> None:
    query, key, value = torch.randn(3, 9, 4, 8), torch.randn(3, 9, 2, 8), torch.randn(3, 9, 2, 8)
    ours = [kernels.prompt(query, key, value) for kernels in (TORCH_ATTENTION, FLASH_ATTENTION)]
    assert torch.allclose(*ours, atol=1e-6)


def test_both_see_the_cache_up_to_a_rows_own_position(flash_attn: None) -> None:
    query, positions, span = torch.randn(3, 1, 4, 8), torch.tensor([0, 5, 63]), torch.arange(64)
    keys, values = F.pad(torch.randn(2, 5, 2, 64, 8), (0, 0, 0, 32)).unbind()  # [slots, K, capacity, E]
    ours = []
    for kernels in (TORCH_ATTENTION, FLASH_ATTENTION):
        reach = kernels.cached.reach(positions, span, query.dtype)
        ours.append(kernels.cached(query, keys[:3, :, :64], values[:3, :, :64], reach))
    assert torch.allclose(*ours, atol=1e-6)


def test_flash_attention_where_it_cannot_run_is_a_warning_and_not_an_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert attention_kernels(False, CPU, torch.float32) is TORCH_ATTENTION
        assert not caplog.records
        assert attention_kernels(True, CPU, torch.bfloat16) is TORCH_ATTENTION
    assert [record.levelname for record in caplog.records] == ["WARNING"]
