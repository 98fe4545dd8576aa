"""The pieces both language models are built of: Qwen3 decoder layers over keys and values kept by the caller.

Shapes: B rows, T new positions, L positions attended to, D hidden size, H heads, K key-value heads,
E head size. Source of the arithmetic: `modeling_qwen3_tts.py` of qwen-tts 0.1.1 (Qwen3TTSTalkerAttention,
Qwen3TTSAttention).
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import DecoderConfig
from qwen3_tts_engine.model.linear import Linear

logger = logging.getLogger(__name__)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square normalisation over the last axis, in float32, as upstream rounds it."""
    return F.rms_norm(x.float(), x.shape[-1:], eps=eps).to(x.dtype) * weight


def inverse_frequencies(head_dim: int, rope_theta: float, device: torch.device | None = None) -> Tensor:
    """By how much a position turns each pair of a head's halves: float32 [E/2]."""
    half = torch.arange(0, head_dim, 2, dtype=torch.int64, device=device).float()
    return 1.0 / (rope_theta ** (half / head_dim))


def rotary_angles(config: DecoderConfig, positions: int) -> Tensor:
    """By how much every position turns the pairs of a head's halves: float32 [positions, E/2]."""
    return torch.arange(positions).float()[:, None] * inverse_frequencies(config.head_dim, config.rope_theta)


class RotaryTable:
    """Cosines and signed sines of every position, so that a rotation is two products and a swap.

    The talker's multimodal sections all see the same position (upstream never gives it an image), which makes
    its rotary embedding the plain one-dimensional one.
    """

    def __init__(
        self, config: DecoderConfig, positions: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        angles = rotary_angles(config, positions)
        self.cos = torch.cat([angles.cos(), angles.cos()], -1).to(device, dtype)  # [positions, E]
        self.sin = torch.cat([-angles.sin(), angles.sin()], -1).to(device, dtype)

    def at(self, positions: Tensor | slice) -> tuple[Tensor, Tensor]:
        return self.cos[positions], self.sin[positions]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding; `sin` carries the sign of the swapped halves."""
    half = x.shape[-1] // 2
    swapped = torch.cat([x[..., half:], x[..., :half]], -1)
    return x * cos + swapped * sin


PromptAttention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Causal attention of T positions among themselves: q [B, T, H, E], k and v [B, T, K, E] -> [B, T, H, E]."""


class CachedAttention(Protocol):
    """Attention of one position per row to the cached ones up to its own."""

    def reach(self, positions: Tensor, span: Tensor, dtype: torch.dtype) -> Tensor:
        """How a call tells rows at `positions` [B] what they see of the positions 0, 1, 2 … in `span` [L]."""

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor) -> Tensor:
        """query [B, 1, H, E], keys and values [B, K, L, E] -> [B, 1, H, E]"""


@dataclass(frozen=True)
class AttentionKernels:
    """What reads prompts, and what reads the cache."""

    prompt: PromptAttention
    cached: CachedAttention


def sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """PyTorch's own, which picks a kernel by device and type."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # heads first
    mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return mixed.transpose(1, 2)


def sdpa_cached(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The same for one position per row: query [B, 1, H, E], keys and values [B, K, L, E] -> [B, 1, H, E].

    The query heads that share a key head stand where positions usually do, so that no key is repeated.
    """
    grouped = query.view(query.shape[0], keys.shape[1], -1, query.shape[-1])  # [B, K, H/K, E]
    return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(query.shape)


class MaskedSdpa:
    """PyTorch's own over the whole span, with a mask."""

    def reach(self, positions: Tensor, span: Tensor, dtype: torch.dtype) -> Tensor:
        """0 up to a row's own position, -inf beyond: [B, 1, 1, L]."""
        beyond = span > positions[:, None]
        mask = torch.zeros(beyond.shape, dtype=dtype, device=beyond.device)
        return mask.masked_fill_(beyond, -torch.inf)[:, None, None]

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor) -> Tensor:
        return sdpa_cached(query, keys, values, reach)


def flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """flash-attn's, which needs a GPU and half precision."""
    from flash_attn import flash_attn_func

    mixed: Tensor = flash_attn_func(query, key, value, causal=True)
    return mixed


class FlashCached:
    """flash-attn's, which stops reading where a row ends.

    It takes positions before heads, as a view: only the last axis must be contiguous (`mha_fwd_kvcache` in
    flash-attn's csrc/flash_attn/flash_api.cpp).
    """

    def reach(self, positions: Tensor, span: Tensor, dtype: torch.dtype) -> Tensor:
        """How many positions each row sees: int32 [B]."""
        return (positions + 1).int()

    def __call__(self, query: Tensor, keys: Tensor, values: Tensor, reach: Tensor) -> Tensor:
        from flash_attn import flash_attn_with_kvcache

        mixed: Tensor = flash_attn_with_kvcache(
            query, keys.transpose(1, 2), values.transpose(1, 2), cache_seqlens=reach
        )
        return mixed


TORCH_ATTENTION = AttentionKernels(sdpa, MaskedSdpa())
FLASH_ATTENTION = AttentionKernels(flash, FlashCached())


def attention_kernels(want_flash: bool, device: torch.device, dtype: torch.dtype) -> AttentionKernels:
    """flash-attn's where they were asked for and can run, else PyTorch's."""
    if not want_flash:
        return TORCH_ATTENTION
    if device.type != "cuda" or dtype == torch.float32 or importlib.util.find_spec("flash_attn") is None:
        logger.warning("flash_attention needs flash-attn, a GPU and bfloat16; attending with PyTorch's own")
        return TORCH_ATTENTION
    return FLASH_ATTENTION


def load_head_norm(weights: Weights, config: DecoderConfig) -> Tensor:
    """[H + K, E]: the query norm for the first H heads, the key norm for the rest."""
    query_norm = weights.take("q_norm.weight").expand(config.num_attention_heads, -1)
    key_norm = weights.take("k_norm.weight").expand(config.num_key_value_heads, -1)
    return torch.cat([query_norm, key_norm])


@dataclass
class Attention:
    """Grouped-query attention with one fused projection and RMSNorm on every query and key head."""

    qkv: Linear  # D -> (H + 2K)·E
    out: Linear  # H·E -> D
    head_norm: Tensor  # see load_head_norm
    num_heads: int
    num_kv_heads: int
    eps: float

    @classmethod
    def load(cls, weights: Weights, config: DecoderConfig) -> Attention:
        return cls(
            qkv=Linear.load_layer(weights, "q_proj", "k_proj", "v_proj"),
            out=Linear.load_layer(weights, "o_proj"),
            head_norm=load_head_norm(weights, config),
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            eps=config.rms_norm_eps,
        )

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D], cos and sin [B or 1, T, E] -> rotated q [B, T, H, E], rotated k and v [B, T, K, E]."""
        heads = self.qkv(x).unflatten(-1, (self.num_heads + 2 * self.num_kv_heads, -1))
        turning, value = heads.split([self.num_heads + self.num_kv_heads, self.num_kv_heads], -2)
        turned = rotate(rms_norm(turning, self.head_norm, self.eps), cos.unsqueeze(-2), sin.unsqueeze(-2))
        query, key = turned.split([self.num_heads, self.num_kv_heads], -2)
        return query, key, value

    def join(self, mixed: Tensor) -> Tensor:
        """What every head found, [B, T, H, E] -> [B, T, D]."""
        return self.out(mixed.flatten(-2))


@dataclass
class FeedForward:
    """SwiGLU with the gate and the up projection fused."""

    gate_up: Linear  # D -> 2·F
    down: Linear  # F -> D

    @classmethod
    def load(cls, weights: Weights) -> FeedForward:
        return cls(
            Linear.load_layer(weights, "gate_proj", "up_proj"), Linear.load_layer(weights, "down_proj")
        )

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


@dataclass
class DecoderLayer:
    """Pre-norm attention and feed-forward, each with its residual."""

    attention: Attention
    feed_forward: FeedForward
    attention_norm: Tensor
    feed_forward_norm: Tensor
    eps: float

    @classmethod
    def load(cls, weights: Weights, config: DecoderConfig) -> DecoderLayer:
        return cls(
            attention=Attention.load(weights.below("self_attn."), config),
            feed_forward=FeedForward.load(weights.below("mlp.")),
            attention_norm=weights.take("input_layernorm.weight"),
            feed_forward_norm=weights.take("post_attention_layernorm.weight"),
            eps=config.rms_norm_eps,
        )

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.attention.project(rms_norm(x, self.attention_norm, self.eps), cos, sin)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what attention found, then the feed-forward of the sum."""
        x = x + attended
        return x + self.feed_forward(rms_norm(x, self.feed_forward_norm, self.eps))
