"""The GPU path without a GPU: steps that could be recorded, and an engine that does not notice that they are.

What stands in for a GPU: tensors that only claim to be on one (`FakeTensorMode`), the tracer behind
`torch.compile`, and a capture driver that does to memory what replayed graphs do to theirs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.device import Graphs, Rerun, Step
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.model.checkpoint import Checkpoint, Weights
from qwen3_tts_engine.model.codec_decoder import CodecDecoder
from qwen3_tts_engine.model.layers import TORCH_ATTENTION
from qwen3_tts_engine.model.native import library as compiled
from qwen3_tts_engine.model.sampling import ANY, USUAL
from qwen3_tts_engine.model.slot_state import FrameKind, SlotState
from qwen3_tts_engine.model.steps import (
    Buckets,
    CodecState,
    LanguageModels,
    codec_step,
    predictor_frame,
    talker_step,
)
from qwen3_tts_engine.request import Sampling, SpeechRequest
from speaking import Listener, Speaker

CPU = torch.device("cpu")
SLOTS = 4
BATCH, SPAN, FRAMES = 4, 256, 2
STEPS = ["talker_step", "predictor_frame, usual", "predictor_frame, any", "codec_step"]
HELLO = SpeechRequest("Hello world.", speaker="ryan", language="English", seed=1, max_frames=30)
REQUESTS = [
    replace(HELLO, max_frames=40),
    replace(HELLO, seed=2, speaker="vivian", talker=Sampling(top_p=0.8), max_frames=9),
    replace(HELLO, seed=3, talker=Sampling(do_sample=False), subtalker=Sampling(do_sample=False)),
    replace(HELLO, seed=4, talker=Sampling(top_k=0, temperature=1.3), max_frames=5),
    replace(HELLO, seed=5, subtalker=Sampling(top_k=0), repetition_penalty=1.5),
    replace(HELLO, seed=6, max_frames=21),
    replace(HELLO, seed=7, text="One two three four five six seven.", max_frames=12),
]


class HotPath:
    """The three steps over buffers of their own."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, fake: FakeTensorMode | None = None):
        talker = checkpoint.config.talker
        weights = checkpoint.talker_weights(torch.float32, CPU)
        codec_weights = checkpoint.codec_weights(torch.float32, CPU)
        if fake:
            weights, codec_weights = (faked(real, fake, device) for real in (weights, codec_weights))
        with fake or ExitStack():
            self.models = LanguageModels(weights, talker, SLOTS, TORCH_ATTENTION)
            if not fake:
                self.models.talker.text.learn({0})
            self.state = SlotState(talker, SLOTS, torch.float32, device)
            self.decoder = CodecDecoder(codec_weights, checkpoint.codec_config)
            self.codec = CodecState(self.decoder, SLOTS, device)
            self.chunks = self.codec.chunks(BATCH, FRAMES)

    def step(self, name: str) -> Step:
        models, state = self.models, self.state
        steps = {
            "talker_step": partial(talker_step, models, state, BATCH, SPAN),
            "predictor_frame, usual": partial(predictor_frame, models, state, BATCH, FrameKind(USUAL, USUAL)),
            "predictor_frame, any": partial(predictor_frame, models, state, BATCH, FrameKind(ANY, ANY)),
            "codec_step": partial(codec_step, self.decoder, self.codec, self.chunks),
        }
        return steps[name]

    def occupy(self, rows: int, position: int) -> None:
        """Some rows somewhere, the others vacant."""
        self.state.staged.zero_()
        self.state.position[:rows] = position
        self.state.num_frames[:rows] = position
        self.state.first.sampled[:rows] = True
        self.chunks.slots[rows:] = self.codec.scratch
        self.chunks.slots[:rows] = torch.arange(rows)
        self.codec.num_frames[:rows] = position


def faked(real: Weights, fake: FakeTensorMode, device: torch.device) -> Weights:
    """The same weights as tensors that have shapes, types and a device, and no values."""
    loaders = {name: partial(fake.from_tensor, load()) for name, load in real._tensors.items()}
    return Weights(loaders, torch.float32, device)


class Nothing(torch._C._acc.DeviceGuard):
    """What PyTorch needs to know of a device of ours: that there is one."""

    is_available = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    # Asked whenever anybody seeds anything, as long as this process lives.
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)

    def type_(self) -> Any:
        return torch._C._autograd.DeviceType.PrivateUse1


@pytest.fixture(scope="module", autouse=True)
def pytorch_computes() -> Iterator[None]:
    """As on a GPU: what a CPU computes in one piece, no graph can look into."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "LIBRARIES", {})
        compiled.library.cache_clear()
        yield
    compiled.library.cache_clear()


@pytest.fixture(scope="session")
def accelerator() -> torch.device:
    """A device that is not the CPU. A PyTorch without CUDA cannot even index what claims to be on `cuda`."""
    torch.utils.rename_privateuse1_backend("fakegpu")
    torch._register_device_module("fakegpu", Nothing)
    torch._C._acc.register_python_privateuseone_device_guard(Nothing())
    return torch.device("fakegpu:0")


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoints: Path) -> Checkpoint:
    return Checkpoint(tiny_checkpoints / "custom_voice")


@pytest.fixture(scope="module")
def hot_path(checkpoint: Checkpoint) -> HotPath:
    return HotPath(checkpoint, CPU)


# --- the steps -------------------------------------------------------------------------------------------


class OneDevice(TorchDispatchMode):
    """Refuses tensors from elsewhere, which fake ones let pass as an index."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            assert not is_tensor(leaf) or leaf.device == self._device, f"{func} is given a tensor of the host"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_neither_waits_for_the_device_nor_mixes_it_with_the_host(
    checkpoint: Checkpoint, accelerator: torch.device, name: str
) -> None:
    """A fake tensor has no value that could be waited for."""
    fake = FakeTensorMode(allow_non_fake_inputs=False)
    path = HotPath(checkpoint, accelerator, fake)
    with fake, OneDevice(accelerator):
        path.step(name)()


@pytest.mark.parametrize(
    "blunder",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x + torch.ones(3),
        lambda x: x[torch.tensor([1])],
    ],
    ids=["item", "branch", "mask", "host operand", "host index"],
)
def test_waiting_and_mixing_would_be_found(
    accelerator: torch.device, blunder: Callable[[Tensor], object]
) -> None:
    with FakeTensorMode():
        x = torch.zeros(3, device=accelerator)
        with pytest.raises((RuntimeError, AssertionError)), OneDevice(accelerator):
            blunder(x)


class Trace(TorchDispatchMode):
    """Every operation, and all it was given but values of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map(lambda x: described(x) if isinstance(x, Tensor) else x, (args, kwargs))
        self.operations.append(f"{func} {given}")
        return func(*args, **(kwargs or {}))


def described(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)}{tensor.stride()}"


@pytest.mark.parametrize("name", STEPS)
def test_a_step_does_the_same_whoever_is_where(hot_path: HotPath, name: str) -> None:
    traces = []
    for rows, position in ((1, 0), (3, 17), (4, SPAN - 1)):
        hot_path.occupy(rows, position)
        with Trace() as trace:
            hot_path.step(name)()
        traces.append(trace.operations)
    assert len(traces[0]) > 20
    assert traces[0] == traces[1] == traces[2]


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_one_graph_without_a_break(checkpoint: Checkpoint, name: str) -> None:
    traced, plain = HotPath(checkpoint, CPU), HotPath(checkpoint, CPU)
    torch._dynamo.reset()
    torch.compile(traced.step(name), fullgraph=True, backend="eager")()
    plain.step(name)()
    for ours, theirs in ((traced.state, plain.state), (traced.codec, plain.codec)):
        for one, other in zip(tensors_in(ours), tensors_in(theirs), strict=True):
            assert torch.equal(one, other)


def tensors_in(holder: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(vars(holder)) if isinstance(leaf, Tensor)]


# --- the engine over recorded steps ----------------------------------------------------------------------


class Forgetful(TorchDispatchMode):
    """Spoils everything a step has made for itself, as the next graph in the pool would."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in given:
                self._made[leaf.untyped_storage().data_ptr()] = leaf
        return result

    def spoil(self) -> None:
        for tensor in self._made.values():
            poison(tensor)


def is_tensor(leaf: object) -> bool:
    """One with memory that can be spoiled; weights that oneDNN laid out only oneDNN can read."""
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


def poison(tensor: Tensor) -> None:
    tensor.fill_(torch.nan if tensor.is_floating_point() else (tensor.dtype == torch.bool) or 1 << 40)


class PoisoningCapture:
    """Replays by running the step with what it read and wrote at its capture, then spoils what it made.

    Raises AssertionError when a buffer has moved since the capture: a graph would go on with the old one.
    """

    def __init__(self) -> None:
        self.captured: list[tuple[str, tuple[Any, ...]]] = []
        self.replays = 0
        self.results: list[Tensor] = []  # poisoned before every replay: it has to write what is read

    def capture(self, step: partial[None]) -> Step:  # type: ignore[override]
        step()  # a warm-up; the capture itself computes nothing
        self.captured.append((step.func.__name__, step.args[2:]))
        before = addresses(step)

        def replay() -> None:
            assert addresses(step) == before, "the buffers have moved"
            self.replays += 1
            for result in results_of(step):
                poison(result)
            with Forgetful() as forgetful:
                step()
            forgetful.spoil()

        return replay


def results_of(step: partial[None]) -> list[Tensor]:
    """What the host, or the next step, reads of a step."""
    if step.func is codec_step:
        return [step.args[2].samples]
    state, batch = step.args[1], step.args[2]
    return [state.hidden[:batch]] if step.func is talker_step else [state.codes, state.next_input[:batch]]


def addresses(step: partial[None]) -> list[int]:
    """Of every buffer a step is given, the cache's included."""
    holders: list[object] = list(step.args[:2])
    if step.func is talker_step:
        holders.append(step.args[0].talker.cache)
    return [tensor.data_ptr() for holder in holders for tensor in tensors_in(holder)]


class BrokenCapture:
    """A device that records the language models' steps and fails at the codec's."""

    def capture(self, step: partial[None]) -> Step:  # type: ignore[override]
        if step.func is codec_step:
            raise RuntimeError("operation not permitted when stream is capturing")
        return lambda: pytest.fail("replayed a step of a device that cannot record")


@pytest.fixture
def engine_with(tiny_checkpoints: Path) -> Callable[..., Engine]:
    """An engine on the CPU that believes its steps can be recorded."""

    def load(driver: Any, slots: int = SLOTS) -> Engine:
        config = EngineConfig(checkpoint="custom_voice", device="cpu", dtype="float32", slots=slots)
        checkpoint = Checkpoint(tiny_checkpoints / "custom_voice")
        engine = Engine(config, checkpoint, CPU, clock=lambda: 0.0, graphs=Graphs(driver))
        engine.runner.record()
        engine.codec.warm_up((1, 2, 4, 8))
        return engine

    return load


def speak(engine: Engine) -> list[Listener]:
    """Requests of every kind that come by threes, stay for a while and go; one leaves in the middle."""
    speaker = Speaker(engine)
    leaver = speaker.submit(replace(HELLO, seed=99, max_frames=200))
    for _ in range(3):
        engine.step()
    leaver.leave()
    return speaker.say_all(REQUESTS, arrive=lambda i: 4 * (i // 3))


def test_replayed_steps_speak_exactly_what_the_steps_speak(engine_with: Callable[..., Engine]) -> None:
    driver = PoisoningCapture()
    replayed, plain = speak(engine_with(driver)), speak(engine_with(Rerun()))
    assert driver.replays > 50
    for ours, theirs in zip(replayed, plain, strict=True):
        assert np.array_equal(ours.codes, theirs.codes)
        assert np.array_equal(ours.samples, theirs.samples)


def test_rows_that_only_fill_a_bucket_change_nobodys_codes(
    engine_with: Callable[..., Engine], load_engine: Callable[..., Engine]
) -> None:
    bucketed = speak(engine_with(Rerun()))
    exact = speak(load_engine(slots=SLOTS, dtype="float32"))
    for ours, theirs in zip(bucketed, exact, strict=True):
        assert np.array_equal(ours.codes, theirs.codes)
        assert np.abs(ours.samples - theirs.samples).max() < 1e-5


def test_an_utterance_too_long_for_the_recorded_steps_is_spoken_without_them(
    engine_with: Callable[..., Engine],
) -> None:
    """The cache leaves the memory that graphs know, and returns to it."""
    driver = PoisoningCapture()
    engine = engine_with(driver)
    speaker, cache = Speaker(engine), engine.runner.cache
    home = [keys.data_ptr() for keys in cache.keys]
    short = [replace(HELLO, seed=seed, max_frames=12) for seed in (1, 2)]
    alone = [speaker.say(request).codes for request in short]
    long = speaker.submit(replace(HELLO, text="word " * 1000, max_frames=4))
    engine.step()
    assert cache.capacity > 2048
    company = speaker.submit(short[0])
    while not long.times_closed:
        engine.step()
    engine.step()
    assert [keys.data_ptr() for keys in cache.keys] == home
    late = speaker.submit(short[1])
    before = driver.replays
    speaker.finish()
    assert driver.replays > before
    assert [np.array_equal(one.codes, codes) for one, codes in zip((company, late), alone, strict=True)]


def test_every_step_is_recorded_the_largest_first(engine_with: Callable[..., Engine]) -> None:
    driver = PoisoningCapture()
    engine_with(driver, slots=6)
    sizes = {
        name: [args[:2] for func, args in driver.captured if func == name]
        for name in ("talker_step", "predictor_frame")
    }
    batches = [6, 4, 2, 1]
    assert sizes["talker_step"] == [(b, span) for span in (2048, 1024, 512, 256) for b in batches]
    assert [batch for batch, _ in sizes["predictor_frame"]] == [b for b in batches for _ in range(2)]
    chunks = [args[0].codes.shape[:2] for func, args in driver.captured if func == "codec_step"]
    assert chunks == [(batch, frames) for frames in (8, 4, 2, 1) for batch in batches]


def test_a_device_that_cannot_record_costs_one_warning_and_no_sample(
    engine_with: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        broken = speak(engine_with(BrokenCapture()))
    assert [record.message for record in caplog.records if "recorded" in record.message] == [
        "CUDA graphs cannot be recorded, frames will take longer:"
        " operation not permitted when stream is capturing"
    ]
    for ours, theirs in zip(broken, speak(engine_with(Rerun())), strict=True):
        assert np.array_equal(ours.codes, theirs.codes)
        assert np.array_equal(ours.samples, theirs.samples)


def test_sizes_that_are_few_cover_every_size() -> None:
    assert Buckets.of_rows(16, few=True).sizes == [1, 2, 4, 8, 16]
    assert Buckets.of_rows(1, few=True).sizes == [1]
    assert [Buckets.of_rows(6, few=True).fit(rows) for rows in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    positions = Buckets.of_positions(8192, few=True)
    assert [positions.fit(n) for n in (1, 256, 257, 2048, 2049, 8192)] == [256, 256, 512, 2048, 2304, 8192]
    assert [Buckets.of_positions(8192, few=False).fit(n) for n in (1, 64, 65, 8192)] == [64, 64, 128, 8192]
