"""Decoder layers, and the codec's Snake, in one piece on x86 processors with AVX-512: avx512.cpp, and what
it is handed.

It is compiled when the package is built; without it, or on another processor, PyTorch computes instead.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import DecoderConfig
from qwen3_tts_engine.model.kv_cache import KeysAndValues
from qwen3_tts_engine.model.layers import load_head_norm, rotary_angles
from qwen3_tts_engine.model.linear import INT8_MAX, round_to_int8

logger = logging.getLogger(__name__)

LIBRARY = Path(__file__).with_name("libavx512.so")
BLOCK = 32  # outputs whose weights lie side by side; every size is a multiple of it
LANES = 16
GROUP_BYTES = 4  # of an output's weights, that lie side by side
PROMPT_ROWS = 256  # positions that pass through the layers together
LARGE_PAGE = 1 << 21
LAYER_PRODUCTS = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)


class _Product(Structure):
    _fields_ = (
        ("weights", c_void_p),
        ("scales", c_void_p),
        ("offsets", c_void_p),
        ("outputs", c_int64),
        ("inputs", c_int64),
    )


class _Layer(Structure):
    _fields_ = (
        ("attention_norm", c_void_p),
        ("head_norm", c_void_p),
        ("feed_forward_norm", c_void_p),
        ("qkv", _Product),
        ("out", _Product),
        ("gate_up", _Product),
        ("down", _Product),
    )


class _Decoder(Structure):
    _fields_ = (
        ("layers", POINTER(_Layer)),
        ("norm", c_void_p),
        ("turns", c_void_p),
        ("num_layers", c_int64),
        ("hidden", c_int64),
        ("heads", c_int64),
        ("kv_heads", c_int64),
        ("head_size", c_int64),
        ("feed_forward", c_int64),
        ("eps", c_float),
    )


class _Rows(Structure):
    _fields_ = (
        ("count", c_int64),
        ("inputs", c_void_p),
        ("outputs", c_void_p),
        ("slots", c_void_p),
        ("positions", c_void_p),
    )


class _Cache(Structure):
    _fields_ = (("keys", c_void_p), ("values", c_void_p), ("capacity", c_int64))


class _Snake(Structure):
    _fields_ = (("alpha", c_void_p), ("inverse_beta", c_void_p), ("channels", c_int64))


@cache
def library() -> ctypes.CDLL | None:
    """The compiled layers, if this processor can run them.

    They are threaded with the OpenMP of the PyTorch in this process, whose symbols are global: with one of
    their own, two sets of threads would wait for each other's cores.
    """
    if not LIBRARY.exists():
        logger.info("%s was not compiled; PyTorch computes the layers", LIBRARY.name)
        return None
    try:
        compiled = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        logger.warning("%s cannot be loaded (%s); PyTorch computes the layers", LIBRARY.name, error)
        return None
    compiled.runs_here.restype = c_int
    compiled.scratch_bytes.restype = c_int64
    compiled.scratch_bytes.argtypes = (POINTER(_Decoder), c_int64, c_int64, c_int64)
    compiled.decode.restype = None
    compiled.decode.argtypes = (
        POINTER(_Decoder),
        POINTER(_Rows),
        POINTER(_Cache),
        c_void_p,
        c_int64,
    )
    for bend in (compiled.snake_float32, compiled.snake_bfloat16):
        bend.restype = None
        bend.argtypes = (POINTER(_Snake), c_void_p, c_void_p, c_int64, c_int64)
    return compiled if compiled.runs_here() else None


class Avx512Stack:
    """A `stack.Stack` whose passes are one call each; bfloat16 in and out.

    A pass is over rows, each at a position of a slot: a step has one row of every slot, a prompt a row for
    every position. What a row computes does not depend on the others, so that nothing is ever padded, and a
    slot says the same in any company.
    """

    def __init__(self, weights: Weights, config: DecoderConfig, slots: int, positions: int) -> None:
        self._kept: list[object] = []  # what the structures below point to
        self._layers = (_Layer * config.num_hidden_layers)(
            *(
                self._load_layer(weights.below(f"layers.{i}."), config)
                for i in range(config.num_hidden_layers)
            )
        )
        self._decoder = _Decoder(
            layers=self._layers,
            norm=self._keep(weights.take("norm.weight").float()),
            turns=self._keep(_turns(config, positions)),
            num_layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_size=config.head_dim,
            feed_forward=config.intermediate_size,
            eps=config.rms_norm_eps,
        )
        self._slots = torch.arange(slots)
        self._pairs = self._slots.repeat_interleave(2)
        self._both = torch.arange(2).repeat(slots)
        self._scratch = torch.empty(0, dtype=torch.uint8)

    @staticmethod
    def can_load(weights: Weights, config: DecoderConfig) -> bool:
        """Whether these weights have a type and sizes that fit, and there is a processor for them."""
        sizes = (config.hidden_size, config.intermediate_size, config.head_dim)
        return (
            weights.device.type == "cpu"
            and weights.dtype == torch.bfloat16
            and all(size % BLOCK == 0 for size in sizes)
            and not any(weights.has(f"layers.0.{name}.bias") for name in LAYER_PRODUCTS)
            and library() is not None
        )

    def prefill(self, prompts: list[Tensor], first_slot: int, cache: KeysAndValues) -> Tensor:
        """See `stack.Stack`."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        slots = torch.arange(first_slot, first_slot + len(prompts)).repeat_interleave(lengths)
        positions = torch.cat([torch.arange(len(prompt)) for prompt in prompts])
        rows = (torch.cat(prompts), slots, positions)
        parts = zip(*(column.split(PROMPT_ROWS) for column in rows), strict=True)
        hidden = torch.cat([self._decode(x, where, when, cache) for x, where, when in parts])
        return hidden[lengths.cumsum(0) - 1]

    def step(self, x: Tensor, positions: Tensor, span: int, cache: KeysAndValues) -> Tensor:
        """See `stack.Stack`."""
        return self._decode(x, self._slots[: len(x)], positions, cache)

    def begin(self, x: Tensor, cache: KeysAndValues) -> Tensor:
        """See `stack.Stack`."""
        rows = 2 * len(x)
        hidden = self._decode(x.flatten(0, 1), self._pairs[:rows], self._both[:rows], cache)
        return hidden[1::2]

    def advance(self, x: Tensor, position: int, cache: KeysAndValues) -> Tensor:
        """See `stack.Stack`."""
        return self._decode(x, self._slots[: len(x)], torch.full((len(x),), position), cache)

    def _decode(self, x: Tensor, slots: Tensor, positions: Tensor, cache: KeysAndValues) -> Tensor:
        """x [R, D], slots and positions int64 [R], those of a slot in order -> hidden states [R, D]."""
        compiled = library()
        assert compiled is not None  # or `can_load` had refused
        x = x.contiguous()
        hidden = torch.empty_like(x)
        rows = _Rows(len(x), *(t.data_ptr() for t in (x, hidden, slots, positions)))
        capacity, threads = cache.keys[0].shape[2], torch.get_num_threads()
        keys, values = _pointers(cache.keys), _pointers(cache.values)
        where = _Cache(ctypes.addressof(keys), ctypes.addressof(values), capacity)
        scratch_bytes = compiled.scratch_bytes(byref(self._decoder), len(x), capacity, threads)
        if scratch_bytes > len(self._scratch):
            self._scratch = torch.empty(scratch_bytes, dtype=torch.uint8)
        compiled.decode(byref(self._decoder), byref(rows), byref(where), self._scratch.data_ptr(), threads)
        return hidden

    def _load_layer(self, weights: Weights, config: DecoderConfig) -> _Layer:
        attention, feed_forward = weights.below("self_attn."), weights.below("mlp.")
        qkv = torch.cat([attention.take(f"{name}_proj.weight") for name in "qkv"])
        gate, up = (feed_forward.take(f"{name}_proj.weight") for name in ("gate", "up"))
        gate_up = torch.stack([part.unflatten(0, (-1, LANES)) for part in (gate, up)], 1).flatten(0, 2)
        return _Layer(
            attention_norm=self._keep(weights.take("input_layernorm.weight").float()),
            head_norm=self._keep(load_head_norm(attention, config).float()),
            feed_forward_norm=self._keep(weights.take("post_attention_layernorm.weight").float()),
            qkv=self._product(qkv, weights.int8_layers),
            out=self._product(attention.take("o_proj.weight"), weights.int8_layers),
            gate_up=self._product(gate_up, weights.int8_layers),
            down=self._product(feed_forward.take("down_proj.weight"), weights.int8_layers),
        )

    def _product(self, weight: Tensor, in_int8: bool) -> _Product:
        outputs, inputs = weight.shape
        if not in_int8:
            return _Product(self._keep(_in_reading_order(weight)), None, None, outputs, inputs)
        rounded, scales = round_to_int8(weight)
        offsets = (INT8_MAX + 1) * rounded.sum(1, dtype=torch.int32)
        packed = _in_reading_order(rounded)
        return _Product(self._keep(packed), self._keep(scales), self._keep(offsets), outputs, inputs)

    def _keep(self, tensor: Tensor) -> int:
        """The address of a tensor that stays."""
        tensor = _in_large_pages(tensor.contiguous())
        self._kept.append(tensor)
        return tensor.data_ptr()


class Avx512Snake:
    """x + sin²(αx) / β in one pass: float32 or bfloat16 [..., C] -> the same; computed in float32.

    Args:
        alpha, inverse_beta: [C].
    """

    def __init__(self, alpha: Tensor, inverse_beta: Tensor) -> None:
        compiled = library()
        assert compiled is not None  # or `can_load` had refused
        self._kept = tuple(it.float().contiguous() for it in (alpha, inverse_beta))
        self._snake = _Snake(*(it.data_ptr() for it in self._kept), len(alpha))
        self._bend = compiled.snake_float32 if alpha.dtype == torch.float32 else compiled.snake_bfloat16

    @staticmethod
    def can_load(alpha: Tensor) -> bool:
        """Whether this type and number of channels fit, and there is a processor for them."""
        return (
            alpha.device.type == "cpu"
            and alpha.dtype in (torch.float32, torch.bfloat16)
            and len(alpha) % LANES == 0
            and library() is not None
        )

    def __call__(self, x: Tensor) -> Tensor:
        x = x.contiguous()
        bent = torch.empty_like(x)
        positions = x.shape[:-1].numel()
        self._bend(byref(self._snake), x.data_ptr(), bent.data_ptr(), positions, torch.get_num_threads())
        return bent


def _in_reading_order(weight: Tensor) -> Tensor:
    """[outputs, inputs] -> [outputs / 32][groups of 4 bytes][32][what is in a group]."""
    return weight.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, GROUP_BYTES // weight.itemsize)).transpose(1, 2)


def _in_large_pages(tensor: Tensor) -> Tensor:
    """A copy of a large tensor in pages of 2 MB, of whose addresses fewer must be looked up."""
    if tensor.nbytes < LARGE_PAGE:
        return tensor
    memory = mmap.mmap(-1, tensor.nbytes + LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % LARGE_PAGE
    copy = whole[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)


def _turns(config: DecoderConfig, positions: int) -> Tensor:
    """Cosines, then sines, of every position's angles: float32 [positions, E]."""
    angles = rotary_angles(config, positions)
    return torch.cat([angles.cos(), angles.sin()], -1)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[c_void_p]:
    return (c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
