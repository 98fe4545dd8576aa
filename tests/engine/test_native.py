"""What is compiled computes what PyTorch computes, and a row's result is its own."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.model.checkpoint import Checkpoint, Weights
from qwen3_tts_engine.model.code_embedding import CodeEmbedding
from qwen3_tts_engine.model.config import DecoderConfig
from qwen3_tts_engine.model.frame import Frame, TorchFrame, load_frame
from qwen3_tts_engine.model.kv_cache import KVCache
from qwen3_tts_engine.model.layers import TORCH_ATTENTION
from qwen3_tts_engine.model.native import layers
from qwen3_tts_engine.model.native import library as compiled
from qwen3_tts_engine.model.native.frame import NativeFrame
from qwen3_tts_engine.model.native.layers import LAYER_PRODUCTS, NativeStack
from qwen3_tts_engine.model.native.snake import NativeSnake
from qwen3_tts_engine.model.sampling import DrawKind, RowSampling
from qwen3_tts_engine.model.slot_state import FrameKind, SlotState
from qwen3_tts_engine.model.stack import Stack, TorchStack, load_stack
from qwen3_tts_engine.model.talker import TextTable
from qwen3_tts_engine.request import Sampling, SpeechRequest
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
SLOTS, POSITIONS = 15, 512
FORMATS = ["float32", "bfloat16", "int8 in float32", "int8 in bfloat16"]


@pytest.fixture(scope="module", params=compiled.LIBRARIES)
def library(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each that this processor can run."""
    needed = compiled.LIBRARIES[request.param]
    if platform.machine() != "x86_64" or not needed <= compiled.processor_features():
        pytest.skip(f"needs a processor with {', '.join(sorted(needed))}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "LIBRARIES", {request.param: needed})
        compiled.library.cache_clear()
        yield request.param
    compiled.library.cache_clear()


def test_it_was_compiled(library: str) -> None:
    assert compiled.library() is not None


def dtype_of(form: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, form.split()[-1])
    return dtype


# --- layers -----------------------------------------------------------------------------------------------


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


def weights_of(tensors: dict[str, Tensor], dtype: torch.dtype, int8: bool = False) -> Weights:
    return Weights({name: lambda t=t: t for name, t in tensors.items()}, dtype, CPU, int8)  # type: ignore[misc]


class Reader:
    """A stack with a cache of its own, and what everybody in it hears."""

    def __init__(self, stack: Stack, dtype: torch.dtype, config: DecoderConfig) -> None:
        self.stack = stack
        self.cache = KVCache(config, SLOTS, dtype, CPU)
        self.cache.fit(POSITIONS)
        self.dtype = dtype
        self.hidden_size = config.hidden_size

    @torch.inference_mode()
    def read(self, lengths: list[int], num_steps: int, first_slot: int = 0, voices: int = 0) -> Tensor:
        """Prompts, then steps of every slot: hidden states [slots, 1 + steps, D]. Voice v hears the same in
        any slot."""
        heard = [
            torch.randn(length + num_steps, self.hidden_size, generator=torch.Generator().manual_seed(v))
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


def native_reader(form: str = "float32", config: DecoderConfig = CONFIG) -> Reader:
    dtype = dtype_of(form)
    weights = weights_of(checkpoint(config), dtype, int8="int8" in form)
    return Reader(NativeStack(weights, config, SLOTS, POSITIONS), dtype, config)


def torch_reader(dtype: torch.dtype, config: DecoderConfig = CONFIG) -> Reader:
    weights = weights_of(checkpoint(config), dtype)
    return Reader(TorchStack(weights, config, SLOTS, POSITIONS, TORCH_ATTENTION), dtype, config)


def error(of: Tensor, to: Tensor) -> float:
    return float((of.float() - to.float()).norm() / to.float().norm())


@pytest.mark.parametrize(
    "config", [CONFIG, replace(CONFIG, head_dim=16), replace(CONFIG, head_dim=128)], ids=["32", "16", "128"]
)
def test_in_float32_hidden_states_are_pytorchs_for_heads_of_any_size(
    config: DecoderConfig, library: str
) -> None:
    lengths = [1, 7, 40, 300]
    exact = torch_reader(torch.float32, config).read(lengths, num_steps=5)
    assert error(native_reader("float32", config).read(lengths, num_steps=5), exact) < 2e-6


def test_in_bfloat16_hidden_states_are_nearer_to_float32s_than_pytorchs(library: str) -> None:
    lengths = [1, 7, 40, 300]
    exact = torch_reader(torch.float32).read(lengths, num_steps=5)
    ours = error(native_reader("bfloat16").read(lengths, num_steps=5), exact)
    assert 0 < ours < error(torch_reader(torch.bfloat16).read(lengths, num_steps=5), exact)


@pytest.mark.parametrize("form", ["int8 in float32", "int8 in bfloat16"])
def test_int8_is_near_the_exact_layers(form: str, library: str) -> None:
    exact = torch_reader(torch.float32).read([7, 40], num_steps=5)
    ours = error(native_reader(form).read([7, 40], num_steps=5), exact)
    assert 0.005 < ours < 0.03


@pytest.mark.parametrize("form", FORMATS)
def test_a_row_does_not_depend_on_its_company_to_the_last_bit(form: str, library: str) -> None:
    lengths = [5, 1, 33, 12, 300, 2, 8, 19, 4, 3, 1, 6, 9, 2, 7]
    together = native_reader(form).read(lengths, num_steps=4)
    for voice, length in enumerate(lengths):
        alone = native_reader(form).read([length], num_steps=4, voices=voice)
        assert torch.equal(alone[0], together[voice])


def test_a_long_prompt_is_read_in_parts(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = native_reader().read([40, 3, 20], num_steps=2)
    monkeypatch.setattr(layers, "PROMPT_ROWS", 7)
    assert torch.equal(native_reader().read([40, 3, 20], num_steps=2), whole)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.mark.parametrize("num_threads", [2, 5])  # of 5, some have no key head or block of their own
def test_the_number_of_threads_does_not_matter(
    num_threads: int, library: str, threads: Callable[[int], None]
) -> None:
    alone = native_reader().read([5, 17, 3], num_steps=3)
    threads(num_threads)
    assert torch.equal(native_reader().read([5, 17, 3], num_steps=3), alone)


def test_a_prompt_leaves_other_slots_as_they_are(library: str) -> None:
    reader = native_reader()
    reader.read([40], num_steps=0)
    before = [cache[0].clone() for cache in (*reader.cache.keys, *reader.cache.values)]
    reader.read([12], num_steps=0, first_slot=1, voices=1)
    after = [cache[0] for cache in (*reader.cache.keys, *reader.cache.values)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("config", "bias", "dtype", "kind"),
    [
        (CONFIG, False, torch.bfloat16, NativeStack),
        (CONFIG, False, torch.float32, NativeStack),
        (CONFIG, False, torch.float64, TorchStack),
        (CONFIG, True, torch.bfloat16, TorchStack),
        (replace(CONFIG, head_dim=4), False, torch.bfloat16, TorchStack),
        (replace(CONFIG, hidden_size=200), False, torch.bfloat16, TorchStack),
    ],
    ids=["bfloat16", "float32", "float64", "with a bias", "small heads", "odd width"],
)
def test_layers_that_do_not_fit_are_left_to_pytorch(
    config: DecoderConfig, bias: bool, dtype: torch.dtype, kind: type[Stack], library: str
) -> None:
    weights = weights_of(checkpoint(config, bias), dtype)
    assert type(load_stack(weights, config, SLOTS, POSITIONS, TORCH_ATTENTION)) is kind
    weights.expect_taken()


# --- frames -----------------------------------------------------------------------------------------------

USUAL = Sampling()
DRAWS = {
    "as usual": (USUAL, USUAL, 1.05),
    "greedy": (Sampling(do_sample=False), Sampling(do_sample=False), 1.3),
    "from all codes": (Sampling(top_k=0), Sampling(top_k=0, temperature=1.5), 1.0),
    "from few codes": (Sampling(top_k=3), Sampling(top_k=1), 1.05),
    "from half the codes": (Sampling(top_k=1500), Sampling(top_k=1000), 1.05),
    "without a tail": (Sampling(top_p=0.3), Sampling(top_p=0.9, top_k=0), 1.05),
    "hot": (Sampling(temperature=3.0), Sampling(temperature=3.0, top_p=0.99), 2.0),
    "cold": (Sampling(temperature=1e-3), Sampling(temperature=1e-3), 1.05),
}


class FrameMaker:
    """Frames of a checkpoint with random states, by whoever makes them."""

    def __init__(
        self,
        path: Path,
        form: str,
        make: Callable[[Weights, CodeEmbedding, TextTable], Frame] | None = None,
    ) -> None:
        found = Checkpoint(path)
        self.config, dtype = found.config.talker, dtype_of(form)
        weights = found.talker_weights(dtype, CPU, int8_layers="int8" in form)
        self.state = SlotState(self.config, SLOTS, dtype, CPU)
        embedding, text = CodeEmbedding(weights, self.config), TextTable(weights, self.config.hidden_size)
        text.learn({0, 1, 2, 3})
        load = make or (lambda *its: load_frame(its[0], self.config, *its[1:], SLOTS))
        self.frame = load(weights, embedding, text)

    @torch.inference_mode()
    def speak(self, draws: list[str], num_frames: int, first: int = 0) -> tuple[Tensor, Tensor]:
        """Codes [frames, rows, 16] and what the talker hears of them; row `first + i` has its own states."""
        state, rows = self.state, len(draws)
        talker, subtalker, penalties = zip(*(DRAWS[name] for name in draws), strict=True)
        vocabs = self.config.vocab_size, self.config.code_predictor_config.vocab_size
        greedy = [Sampling(do_sample=False)] * (SLOTS - rows)
        state.first.become(RowSampling.of([*talker, *greedy], vocabs[0], CPU))
        state.rest.become(RowSampling.of([*subtalker, *greedy], vocabs[1], CPU))
        state.penalty[:rows, 0] = torch.tensor(penalties)
        kind = FrameKind(DrawKind.of(talker, vocabs[0]), DrawKind.of(subtalker, vocabs[1]))
        generators = [torch.Generator().manual_seed(first + row) for row in range(rows)]
        codes, heard = [], []
        state.spoken.zero_()
        for i in range(num_frames):
            state.num_frames[:], state.text[:] = i, i % 4
            for row, generator in enumerate(generators):
                state.hidden[row] = torch.randn(self.config.hidden_size, generator=generator)
                state.noise[row].exponential_(1, generator=generator)
            self.frame.speak(state, rows, kind)
            codes.append(state.codes[:rows].clone())
            heard.append(state.next_input[:rows].clone())
        return torch.stack(codes), torch.stack(heard)


def by_pytorch(path: Path, form: str = "float32") -> FrameMaker:
    config = Checkpoint(path).config.talker
    return FrameMaker(path, form, lambda weights, *its: TorchFrame(weights, config, *its, SLOTS))


@pytest.fixture(
    params=["custom_voice", "custom_voice_0b6"]
)  # with a projection between the models, and without
def path(request: pytest.FixtureRequest, tiny_checkpoints: Path) -> Path:
    found: Path = tiny_checkpoints / request.param
    return found


def test_in_float32_frames_are_pytorchs_however_rows_draw(path: Path, library: str) -> None:
    ours = FrameMaker(path, "float32")
    assert isinstance(ours.frame, NativeFrame)
    codes, heard = ours.speak([*DRAWS], num_frames=12)
    exact_codes, exact_heard = by_pytorch(path).speak([*DRAWS], num_frames=12)
    assert torch.equal(codes, exact_codes)
    torch.testing.assert_close(heard, exact_heard)


def test_in_bfloat16_most_codes_are_those_of_float32(path: Path, library: str) -> None:
    draws = ["greedy"] * SLOTS
    codes, _ = FrameMaker(path, "bfloat16").speak(draws, num_frames=8)
    exact, _ = by_pytorch(path).speak(draws, num_frames=8)
    assert (codes == exact)[..., 0].float().mean() > 0.95
    assert (codes == exact).float().mean() > 0.5  # a code that differs changes those after it


@pytest.mark.parametrize("form", FORMATS)
def test_a_frame_does_not_depend_on_its_company_to_the_last_bit(form: str, path: Path, library: str) -> None:
    maker = FrameMaker(path, form)
    together, all_heard = maker.speak([*DRAWS], num_frames=3)
    for row, name in enumerate(DRAWS):
        codes, heard = maker.speak([name], num_frames=3, first=row)
        assert torch.equal(codes[:, 0], together[:, row])
        assert torch.equal(heard[:, 0], all_heard[:, row])


@pytest.mark.parametrize("num_threads", [2, 5])
def test_the_number_of_threads_does_not_matter_to_frames(
    num_threads: int, path: Path, library: str, threads: Callable[[int], None]
) -> None:
    codes, _ = FrameMaker(path, "float32").speak([*DRAWS], num_frames=3)
    threads(num_threads)
    assert torch.equal(FrameMaker(path, "float32").speak([*DRAWS], num_frames=3)[0], codes)


@pytest.mark.parametrize("form", FORMATS)
def test_states_that_are_no_numbers_draw_codes_all_the_same(
    form: str, path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is drawn is an index into tables."""
    maker = FrameMaker(path, form)
    maker.speak([*DRAWS], num_frames=2)  # scratch memory is no longer empty
    monkeypatch.setattr(torch, "randn", lambda size, **_: torch.full((size,), torch.nan))
    codes, _ = maker.speak([*DRAWS], num_frames=3)
    assert (codes[..., 0] < maker.config.vocab_size).all()
    assert (codes[..., 1:] < maker.config.code_predictor_config.vocab_size).all()
    assert (codes >= 0).all()


def test_no_end_is_drawn_before_the_second_frame_and_no_control_code_ever(path: Path, library: str) -> None:
    maker = FrameMaker(path, "float32")
    codes, _ = maker.speak(["hot"] * SLOTS, num_frames=40)
    first, eos = codes[..., 0], maker.config.codec_eos_token_id
    assert (first[:2] != eos).all()
    assert ((first < maker.config.vocab_size - 1024) | (first == eos)).all()


# --- utterances -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bfloat16", "int8 in float32", "int8 in bfloat16"])
def test_an_utterance_is_the_same_alone_and_among_those_who_come_and_go(
    form: str, library: str, tiny_checkpoints: Path
) -> None:
    path, weights = tiny_checkpoints / "custom_voice", "int8" if "int8" in form else "full"
    config = EngineConfig(
        checkpoint=str(path), device="cpu", dtype=form.split()[-1], weights=weights, slots=4
    )
    speaker = Speaker(Engine.load(config, "custom_voice", path, clock=lambda: 0.0))
    requests = [
        SpeechRequest("The fox. " * n, language="English", speaker="ryan", seed=n, max_frames=frames)
        for n, frames in ((1, 20), (2, 5), (3, 12), (4, 30), (1, 8), (5, 17))
    ]
    together = speaker.say_all(requests)
    for request, said in zip(requests, together, strict=True):
        np.testing.assert_array_equal(speaker.say(request).codes, said.codes)


# --- where there is none ----------------------------------------------------------------------------------


@pytest.fixture
def in_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[bytes | None], None]]:
    """`in_its_place(None)`: it was never compiled; else what lies there."""

    def replace_by(content: bytes | None) -> None:
        if content is not None:
            (tmp_path / "libnative.so").write_bytes(content)
        monkeypatch.setattr(compiled, "LIBRARIES", {"libnative.so": set()})
        monkeypatch.setattr(compiled, "PLACE", tmp_path)
        compiled.library.cache_clear()

    yield replace_by
    monkeypatch.undo()
    compiled.library.cache_clear()


@pytest.mark.parametrize("content", [None, b"no library"], ids=["absent", "broken"])
def test_without_the_library_pytorch_computes(
    content: bytes | None, in_its_place: Callable[[bytes | None], None], tiny_checkpoints: Path
) -> None:
    in_its_place(content)
    stack = load_stack(weights_of(checkpoint(), torch.float32), CONFIG, SLOTS, POSITIONS, TORCH_ATTENTION)
    assert type(stack) is TorchStack
    assert type(FrameMaker(tiny_checkpoints / "custom_voice", "float32").frame) is TorchFrame
    assert not NativeSnake.can_load(torch.ones(32))


def test_a_processor_without_avx2_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "processor_features", lambda: {"sse4_2", "avx"})
    assert compiled.library.__wrapped__() is None


# --- the codec's Snake ------------------------------------------------------------------------------------


def snake(x: Tensor, alpha: Tensor, inverse_beta: Tensor) -> Tensor:
    x, alpha, inverse_beta = (it.double() for it in (x, alpha, inverse_beta))
    return x + (alpha * x).sin().square() * inverse_beta


@pytest.mark.parametrize("channels", [16, 48, 1536])
@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float32, 2**-20), (torch.bfloat16, 2**-8)], ids=["float32", "bfloat16"]
)
def test_the_snake_in_one_pass_is_the_formula_to_the_last_bits(
    channels: int, dtype: torch.dtype, relative: float, library: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(2, 50, channels, generator=generator) * 30).to(dtype)
    alpha, inverse_beta = ((3 * torch.rand(channels, generator=generator)).to(dtype) for _ in range(2))
    activated = NativeSnake(alpha, inverse_beta)(x)
    assert activated.dtype == dtype
    expected = snake(x, alpha, inverse_beta)
    assert ((activated.double() - expected).abs() <= relative * expected.abs().clamp(min=1)).all()


def test_the_snake_takes_memory_in_any_order(library: str) -> None:
    x, alpha, inverse_beta = torch.randn(2, 32, 7).transpose(1, 2), torch.rand(32), torch.rand(32)
    activated = NativeSnake(alpha, inverse_beta)(x)
    torch.testing.assert_close(activated, snake(x, alpha, inverse_beta).float())


def test_a_snake_that_is_no_number_stays_none(library: str) -> None:
    x = torch.full((1, 1, 16), torch.nan, dtype=torch.bfloat16)
    assert NativeSnake(torch.ones(16).bfloat16(), torch.ones(16).bfloat16())(x).isnan().all()


@pytest.mark.parametrize("alpha", [torch.ones(36), torch.ones(32).double(), torch.ones(32, device="meta")])
def test_a_snake_that_does_not_fit_is_left_to_pytorch(alpha: Tensor, library: str) -> None:
    assert not NativeSnake.can_load(alpha)


def test_one_that_fits_is_not(library: str) -> None:
    assert NativeSnake.can_load(torch.ones(32))
