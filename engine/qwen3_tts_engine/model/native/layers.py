"""Stacks of decoder layers, each pass one call of the native library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_void_p

import torch
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import DecoderConfig
from qwen3_tts_engine.model.kv_cache import KeysAndValues
from qwen3_tts_engine.model.layers import load_head_norm, rotary_angles
from qwen3_tts_engine.model.native.library import NUMBERS, Cache, Decoder, Layer, Rows, library, native
from qwen3_tts_engine.model.native.weights import Kept

PROMPT_ROWS = 256  # positions that pass through the layers together
LAYER_PRODUCTS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


def can_load_layers(weights: Weights, config: DecoderConfig, prefix: str = "") -> bool:
    """Whether weights below that prefix have a type and sizes that fit, and there is a library for this
    processor."""
    compiled = library()
    if compiled is None or weights.device.type != "cpu" or weights.dtype not in NUMBERS:
        return False
    lanes = compiled.lanes()
    heads = config.num_attention_heads + 2 * config.num_key_value_heads
    outputs = (config.hidden_size, heads * config.head_dim)
    inputs = (config.intermediate_size, config.num_attention_heads * config.head_dim, config.head_dim)
    return (
        all(size % (2 * lanes) == 0 for size in outputs)
        and all(size % lanes == 0 for size in inputs)
        and not any(weights.has(f"{prefix}layers.0.{name}.bias") for name in LAYER_PRODUCTS)
    )


def load_decoder(weights: Weights, config: DecoderConfig, positions: int, kept: Kept) -> Decoder:
    """The stack below these weights, for that many positions at most."""
    layers = [
        _load_layer(weights.below(f"layers.{i}."), config, kept) for i in range(config.num_hidden_layers)
    ]
    return Decoder(
        layers=(Layer * len(layers))(*layers),
        norm=kept.address(weights.take("norm.weight").float()),
        rope_table=kept.address(_rope_table(config, positions)),
        num_layers=len(layers),
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        feed_forward=config.intermediate_size,
        eps=config.rms_norm_eps,
    )


class NativeStack:
    """A `stack.Stack` whose passes are one call each.

    A pass is over rows, each at a position of a slot: a step has one row of every slot, a prompt a row for
    every position. What a row computes does not depend on the others, so that nothing is ever padded, and a
    slot says the same in any company.
    """

    def __init__(self, weights: Weights, config: DecoderConfig, slots: int, positions: int) -> None:
        self._kept = Kept()
        self._decoder = load_decoder(weights, config, positions, self._kept)
        self._number = NUMBERS[weights.dtype]
        self._slots = torch.arange(slots)
        self._scratch = Scratch()

    def prefill(self, prompts: list[Tensor], first_slot: int, cache: KeysAndValues) -> Tensor:
        """See `stack.Stack`."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        slots = torch.arange(first_slot, first_slot + len(prompts)).repeat_interleave(lengths)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
        rows = (torch.cat(prompts), slots, positions)
        parts = zip(*(column.split(PROMPT_ROWS) for column in rows), strict=True)
        scratch = Scratch()  # hundreds of rows, which is not worth keeping
        hidden = torch.cat([self._run(x, where, when, cache, scratch) for x, where, when in parts])
        return hidden[lengths.cumsum(0) - 1]

    def step(self, x: Tensor, positions: Tensor, span: int, cache: KeysAndValues) -> Tensor:
        """See `stack.Stack`."""
        return self._run(x, self._slots[: len(x)], positions, cache, self._scratch)

    def _run(
        self, x: Tensor, slots: Tensor, positions: Tensor, cache: KeysAndValues, scratch: Scratch
    ) -> Tensor:
        """x [R, D], slots and positions int64 [R], those of a slot in order -> hidden states [R, D]."""
        x, hidden, threads = x.contiguous(), torch.empty_like(x), torch.get_num_threads()
        rows, where = Rows(len(x), slots.data_ptr(), positions.data_ptr()), cache_of(cache)
        most = max(len(x), len(self._slots))
        num_bytes = native().layers_scratch_bytes(byref(self._decoder), most, where.capacity, threads)
        native().run_layers(
            byref(self._decoder),
            self._number,
            byref(rows),
            x.data_ptr(),
            hidden.data_ptr(),
            byref(where),
            scratch.of(num_bytes),
            threads,
        )
        return hidden


class Scratch:
    """Memory for one call after the other, as large as the largest has needed."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.uint8)

    def of(self, num_bytes: int) -> int:
        if num_bytes > len(self._memory):
            self._memory = torch.empty(num_bytes, dtype=torch.uint8)
        return self._memory.data_ptr()


def cache_of(cache: KeysAndValues) -> Cache:
    """The addresses of keys and values, all of them of one capacity."""
    return Cache(_addresses(cache.keys), _addresses(cache.values), cache.keys[0].shape[2])


def _addresses(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _load_layer(weights: Weights, config: DecoderConfig, kept: Kept) -> Layer:
    lanes, in_int8 = native().lanes(), weights.int8_layers
    attention, feed_forward = weights.below("self_attn."), weights.below("mlp.")
    qkv = torch.cat([attention.take(f"{name}_proj.weight") for name in "qkv"])
    gate, up = (feed_forward.take(f"{name}_proj.weight") for name in ("gate", "up"))
    gate_up = torch.stack([part.unflatten(0, (-1, lanes)) for part in (gate, up)], 1).flatten(0, 2)
    return Layer(
        attention_norm=kept.address(weights.take("input_layernorm.weight").float()),
        head_norm=kept.address(load_head_norm(attention, config).float()),
        feed_forward_norm=kept.address(weights.take("post_attention_layernorm.weight").float()),
        qkv=kept.product(qkv, lanes, in_int8),
        out=kept.product(attention.take("o_proj.weight"), lanes, in_int8),
        gate_up=kept.product(gate_up, lanes, in_int8),
        down=kept.product(feed_forward.take("down_proj.weight"), lanes, in_int8),
    )


def _rope_table(config: DecoderConfig, positions: int) -> Tensor:
    """Cosines, then sines, of every position's angles: float32 [positions, E]."""
    angles = rotary_angles(config, positions)
    return torch.cat([angles.cos(), angles.sin()], -1)
