"""Layers computed in one piece are the layers PyTorch computes, and a row's result is its own."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.model import avx512
from qwen3_tts_engine.model.avx512 import LAYER_PRODUCTS, Avx512Snake, Avx512Stack, library
from qwen3_tts_engine.model.checkpoint import Weights
from qwen3_tts_engine.model.config import DecoderConfig
from qwen3_tts_engine.model.kv_cache import KVCache
from qwen3_tts_engine.model.layers import TORCH_ATTENTION
from qwen3_tts_engine.model.stack import Stack, TorchStack, load_stack
from qwen3_tts_engine.request import SpeechRequest
from qwen3_tts_engine.tiny import TINY, build
from speaking import Speaker

CPU = torch.device("cpu")
CONFIG = DecoderConfig(
    hidden_size=192,
    intermediate_size=320,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    head_dim=32,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
)
SLOTS, POSITIONS = 9, 512
NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16")


def has_avx512() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return platform.machine() == "x86_64" and all(flag in flags for flag in NEEDED)


needs_avx512 = pytest.mark.skipif(not has_avx512(), reason="needs a processor with AVX-512 BF16 and VNNI")


def checkpoint(config: DecoderConfig = CONFIG, bias: bool = False) -> dict[str, Tensor]:
    """A stack's weights, as large as training leaves them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * shape[-1] ** -0.5).bfloat16()

    def near_one(size: int) -> Tensor:
        return (1 + 0.1 * torch.randn(size, generator=generator)).bfloat16()

    hidden, wide = config.hidden_size, config.intermediate_size
    query, key = (n * config.head_dim for n in (config.num_attention_heads, config.num_key_value_heads))
    shapes = [(query, hidden), (key, hidden), (key, hidden), (hidden, query)]
    shapes += [(wide, hidden), (wide, hidden), (hidden, wide)]
    tensors = {"norm.weight": near_one(hidden)}
    for i in range(config.num_hidden_layers):
        below = f"layers.{i}."
        tensors |= {f"{below}{p}.weight": normal(*s) for p, s in zip(LAYER_PRODUCTS, shapes, strict=True)}
        tensors |= {f"{below}{n}_layernorm.weight": near_one(hidden) for n in ("input", "post_attention")}
        tensors |= {f"{below}self_attn.{n}_norm.weight": near_one(config.head_dim) for n in "qk"}
    if bias:
        tensors["layers.0.self_attn.q_proj.bias"] = torch.zeros(query)
    return tensors


def weights_of(
    tensors: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16, int8: bool = False
) -> Weights:
    return Weights({name: lambda t=t: t for name, t in tensors.items()}, dtype, CPU, int8)  # type: ignore[misc]


class Reader:
    """A stack with a cache of its own, and what everybody in it hears."""

    def __init__(self, stack: Stack, dtype: torch.dtype = torch.bfloat16) -> None:
        self.stack = stack
        self.cache = KVCache(CONFIG, SLOTS, dtype, CPU)
        self.cache.fit(POSITIONS)
        self.dtype = dtype

    @torch.inference_mode()
    def read(self, lengths: list[int], num_steps: int, first_slot: int = 0, voices: int = 0) -> Tensor:
        """Prompts, then steps of every slot: hidden states [slots, 1 + steps, D]. Voice v hears the same in
        any slot."""
        heard = [
            torch.randn(length + num_steps, CONFIG.hidden_size, generator=torch.Generator().manual_seed(v))
            for v, length in enumerate(lengths, voices)
        ]
        heard = [x.bfloat16().to(self.dtype) for x in heard]
        told = [
            self.stack.prefill([x[:n] for x, n in zip(heard, lengths, strict=True)], first_slot, self.cache)
        ]
        for step in range(num_steps):
            x = torch.stack([x[n + step] for x, n in zip(heard, lengths, strict=True)])
            positions = torch.tensor([n + step for n in lengths])
            told.append(self.stack.step(x, positions, POSITIONS, self.cache))
        return torch.stack(told, 1)


def avx512_reader(int8: bool = False) -> Reader:
    return Reader(Avx512Stack(weights_of(checkpoint(), int8=int8), CONFIG, SLOTS, POSITIONS))


def torch_reader(dtype: torch.dtype) -> Reader:
    return Reader(
        TorchStack(weights_of(checkpoint(), dtype), CONFIG, SLOTS, POSITIONS, TORCH_ATTENTION), dtype
    )


def error(of: Tensor, to: Tensor) -> float:
    return float((of.float() - to.float()).norm() / to.float().norm())


@needs_avx512
def test_the_layers_were_compiled_where_they_can_run() -> None:
    assert library() is not None


@needs_avx512
def test_hidden_states_are_nearer_to_float32s_than_pytorchs_in_bfloat16() -> None:
    lengths = [1, 7, 40, 300]
    exact = torch_reader(torch.float32).read(lengths, num_steps=5)
    ours = error(avx512_reader().read(lengths, num_steps=5), exact)
    assert 0 < ours < error(torch_reader(torch.bfloat16).read(lengths, num_steps=5), exact)


@needs_avx512
def test_a_frame_of_two_positions_and_more_is_pytorchs() -> None:
    def frame(reader: Reader) -> Tensor:
        x = torch.randn(5, 4, CONFIG.hidden_size, generator=torch.Generator().manual_seed(1)).bfloat16()
        x = x.to(reader.dtype)
        with torch.inference_mode():
            second = reader.stack.begin(x[:, :2], reader.cache)
            third, fourth = (reader.stack.advance(x[:, i], i, reader.cache) for i in (2, 3))
        return torch.stack([second, third, fourth])

    exact = frame(torch_reader(torch.float32))
    assert error(frame(avx512_reader()), exact) < error(frame(torch_reader(torch.bfloat16)), exact)


@needs_avx512
def test_int8_is_near_the_exact_layers() -> None:
    exact = torch_reader(torch.float32).read([7, 40], num_steps=5)
    ours = error(avx512_reader(int8=True).read([7, 40], num_steps=5), exact)
    assert 0.005 < ours < 0.03


@needs_avx512
@pytest.mark.parametrize("int8", [False, True], ids=["bfloat16", "int8"])
def test_a_row_does_not_depend_on_its_company_to_the_last_bit(int8: bool) -> None:
    lengths = [5, 1, 33, 12, 300, 2, 8, 19, 4]
    together = avx512_reader(int8).read(lengths, num_steps=4)
    for voice, length in enumerate(lengths):
        alone = avx512_reader(int8).read([length], num_steps=4, voices=voice)
        assert torch.equal(alone[0], together[voice])


@needs_avx512
def test_a_long_prompt_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = avx512_reader().read([40, 3, 20], num_steps=2)
    monkeypatch.setattr(avx512, "PROMPT_ROWS", 7)
    assert torch.equal(avx512_reader().read([40, 3, 20], num_steps=2), whole)


@needs_avx512
def test_the_number_of_threads_does_not_matter() -> None:
    results = []
    for num_threads in (1, 2, 5):  # the last leaves some without a key head or a block of their own
        torch.set_num_threads(num_threads)
        try:
            results.append(avx512_reader().read([5, 17, 3], num_steps=3))
        finally:
            torch.set_num_threads(1)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@needs_avx512
def test_a_prompt_leaves_other_slots_as_they_are() -> None:
    reader = avx512_reader()
    reader.read([40], num_steps=0)
    before = [cache[0].clone() for cache in (*reader.cache.keys, *reader.cache.values)]
    reader.read([12], num_steps=0, first_slot=1, voices=1)
    after = [cache[0] for cache in (*reader.cache.keys, *reader.cache.values)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@needs_avx512
@pytest.mark.parametrize(
    ("config", "bias", "dtype", "kind"),
    [
        (CONFIG, False, torch.bfloat16, Avx512Stack),
        (CONFIG, False, torch.float32, TorchStack),
        (CONFIG, True, torch.bfloat16, TorchStack),
        (replace(CONFIG, head_dim=16, num_attention_heads=12), False, torch.bfloat16, TorchStack),
    ],
    ids=["fits", "float32", "with a bias", "small heads"],
)
def test_what_does_not_fit_is_left_to_pytorch(
    config: DecoderConfig, bias: bool, dtype: torch.dtype, kind: type[Stack]
) -> None:
    weights = weights_of(checkpoint(config, bias), dtype)
    stack = load_stack(weights, config, SLOTS, POSITIONS, TORCH_ATTENTION)
    assert type(stack) is kind
    weights.expect_taken()


@pytest.fixture
def absent_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[bytes | None], None]:
    """`absent_library(None)`: it was never compiled; else what lies in its place."""

    def replace_by(content: bytes | None) -> None:
        place = tmp_path / "libavx512.so"
        if content is not None:
            place.write_bytes(content)
        monkeypatch.setattr(avx512, "LIBRARY", place)
        monkeypatch.setattr(avx512, "library", library.__wrapped__)

    return replace_by


@pytest.mark.parametrize("content", [None, b"no library"], ids=["absent", "broken"])
def test_without_the_library_pytorch_computes(
    content: bytes | None, absent_library: Callable[[bytes | None], None]
) -> None:
    absent_library(content)
    stack = load_stack(weights_of(checkpoint()), CONFIG, SLOTS, POSITIONS, TORCH_ATTENTION)
    assert type(stack) is TorchStack


@pytest.fixture(scope="module")
def wide_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with heads that fit."""
    talker, predictor = (replace(part, head_dim=32) for part in (TINY.talker, TINY.predictor))
    shape = replace(TINY, talker=talker, predictor=predictor)
    return build(tmp_path_factory.mktemp("wide"), "custom_voice", shape=shape)


@needs_avx512
@pytest.mark.parametrize("weights", ["full", "int8"])
def test_an_utterance_is_the_same_alone_and_among_those_who_come_and_go(
    weights: str, wide_heads: Path
) -> None:
    config = EngineConfig(
        checkpoint=str(wide_heads), device="cpu", dtype="bfloat16", weights=weights, slots=4
    )
    speaker = Speaker(Engine.load(config, "custom_voice", wide_heads, clock=lambda: 0.0))
    assert isinstance(speaker.engine.runner._models.talker._stack, Avx512Stack)
    requests = [
        SpeechRequest("The fox. " * n, language="English", speaker="ryan", seed=n, max_frames=frames)
        for n, frames in ((1, 20), (2, 5), (3, 12), (4, 30), (1, 8), (5, 17))
    ]
    together = speaker.say_all(requests)
    for request, said in zip(requests, together, strict=True):
        np.testing.assert_array_equal(speaker.say(request).codes, said.codes)


# --- the codec's Snake ------------------------------------------------------------------------------------


def snake(x: Tensor, alpha: Tensor, inverse_beta: Tensor) -> Tensor:
    x, alpha, inverse_beta = (it.double() for it in (x, alpha, inverse_beta))
    return x + (alpha * x).sin().square() * inverse_beta


@needs_avx512
@pytest.mark.parametrize("channels", [16, 48, 1536])
@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float32, 2**-20), (torch.bfloat16, 2**-8)], ids=["float32", "bfloat16"]
)
def test_the_snake_in_one_pass_is_the_formula_to_the_last_bits(
    channels: int, dtype: torch.dtype, relative: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 50, channels, generator=generator) * 30).to(dtype)
    alpha, inverse_beta = ((3 * torch.rand(channels, generator=generator)).to(dtype) for _ in range(2))
    bent = Avx512Snake(alpha, inverse_beta)(x)
    assert bent.dtype == dtype
    expected = snake(x, alpha, inverse_beta)
    assert ((bent.double() - expected).abs() <= relative * expected.abs().clamp(min=1)).all()


@needs_avx512
def test_the_snake_takes_memory_in_any_order() -> None:
    x, alpha, inverse_beta = torch.randn(2, 32, 7).transpose(1, 2), torch.rand(32), torch.rand(32)
    bent = Avx512Snake(alpha, inverse_beta)(x)
    torch.testing.assert_close(bent, snake(x, alpha, inverse_beta).float())


@pytest.mark.parametrize("alpha", [torch.ones(24), torch.ones(32).double(), torch.ones(32, device="meta")])
def test_a_snake_that_does_not_fit_is_left_to_pytorch(alpha: Tensor) -> None:
    assert not Avx512Snake.can_load(alpha)


@needs_avx512
def test_one_that_fits_is_not() -> None:
    assert Avx512Snake.can_load(torch.ones(32))
