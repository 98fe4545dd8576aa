"""What a slot takes: the formula of docs/memory.md against real tensors, budgets, and growth that ends."""

import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qwen3_tts_engine import memory
from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.device import Graphs, Rerun
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import ConfigError
from qwen3_tts_engine.memory import (
    MB,
    MOST_SLOTS,
    SHARE,
    SlotMemory,
    available_bytes,
    choose_slots,
    longest_utterance,
    slots_within,
)
from qwen3_tts_engine.model.config import PredictorConfig, TalkerConfig
from qwen3_tts_engine.model.kv_cache import BLOCK, CacheLost, KVCache
from qwen3_tts_engine.model.steps import RECORDED_SPANS
from qwen3_tts_engine.request import SpeechRequest
from qwen3_tts_engine.runner import resident_positions
from real_server import ROOT
from speaking import Speaker

HELLO = SpeechRequest("Hello world.", speaker="ryan", seed=1, max_frames=12)
CPU = torch.device("cpu")


def living_tensors() -> Iterator[torch.Tensor]:
    """Those that have memory: fakes and what is on `meta` have none, and oneDNN hides its own."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of modules that warn when they are looked at
        kinds = (torch.Tensor, torch.nn.Parameter)
        tensors = (it for it in gc.get_objects() if type(it) in kinds)
        yield from (it for it in tensors if it.layout == torch.strided and not it.is_meta)


def tensor_bytes() -> int:
    """Of every tensor there is; views of one storage count once."""
    return sum(
        {it.untyped_storage().data_ptr(): it.untyped_storage().nbytes() for it in living_tensors()}.values()
    )


def bytes_of(engine: Engine, resident: int = 0) -> SlotMemory:
    codec_past = engine.codec._decoder.blank_past(1)
    return SlotMemory.of(engine.speech_config.talker, torch.float32, codec_past, resident)


# --- the formula ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [1, 2 * BLOCK])
def test_a_slot_takes_what_the_formula_says(load_engine: Callable[..., Engine], positions: int) -> None:
    taken = {}
    for slots in (1, 5):
        before = tensor_bytes()
        engine = load_engine(slots=slots)
        engine.runner.cache.fit(positions)
        taken[slots] = tensor_bytes() - before
        formula = bytes_of(engine).at(positions)
        del engine
    assert (taken[5] - taken[1]) / 4 == pytest.approx(formula, rel=0.02)


def published(hidden_size: int) -> TalkerConfig:
    return TalkerConfig(
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=28,
        num_key_value_heads=8,
        head_dim=128,
        num_code_groups=16,
        code_predictor_config=PredictorConfig(),
    )


@pytest.mark.parametrize("positions", [1, 2 * BLOCK, RECORDED_SPANS[-1], RECORDED_SPANS[-1] + 1])
def test_a_slot_whose_steps_are_recorded_takes_what_the_formula_says(
    load_engine: Callable[..., Engine], positions: int
) -> None:
    taken = {}
    for slots in (1, 3):
        before = tensor_bytes()
        engine = load_engine(slots=slots, graphs=Graphs(Rerun()))
        engine.runner.cache.fit(positions)
        taken[slots] = tensor_bytes() - before
        formula = bytes_of(engine, resident_positions(Graphs(Rerun()))).at(positions)
        del engine
    assert (taken[3] - taken[1]) / 2 == pytest.approx(formula, rel=0.02)


WORKED = {"0.6B": published(1024), "1.7B": published(2048)}
CODEC_STATE = [torch.empty(5_193_984, dtype=torch.uint8, device="meta")]  # bytes, of the published decoder
LENGTHS = {"10 s": 145, "1 min": 770, "10 min": 7520}  # positions, 20 of them the prompt's


@pytest.mark.parametrize("model", WORKED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_docs_state_what_the_formula_gives(model: str, dtype: torch.dtype) -> None:
    slot = SlotMemory.of(WORKED[model], dtype, CODEC_STATE)
    sizes = [slot.at_once, slot.per_position * 1000, *(slot.at(n) for n in LENGTHS.values())]
    row = " | ".join([model, str(dtype).removeprefix("torch."), *(f"{size / MB:.1f}" for size in sizes)])
    assert f"| {row} |" in (ROOT / "docs" / "memory.md").read_text(encoding="utf-8")


# --- slots out of a budget --------------------------------------------------------------------------------

SLOT = SlotMemory(at_once=1 * MB, per_position=1000)
TALKER = WORKED["0.6B"]
AUTO = EngineConfig(slots=None, max_frames=100, max_text_tokens=8)


def most_bytes(config: EngineConfig) -> int:
    return SLOT.at(longest_utterance(config, TALKER))


@pytest.mark.parametrize(("budget_bytes", "slots"), [(100, 1), (199, 1), (200, 2), (10**9, MOST_SLOTS)])
def test_as_many_slots_as_fit_and_no_more_than_make_sense(budget_bytes: int, slots: int) -> None:
    assert slots_within(budget_bytes, slot_bytes=100) == slots


def test_a_budget_that_holds_no_slot_is_refused_with_what_would_help() -> None:
    with pytest.raises(
        ConfigError, match="not one fits: it may take 7 MB of a budget of 6 MB; raise memory_bud"
    ):
        slots_within(6 * MB, slot_bytes=6 * MB + 1)


def test_a_number_is_taken_as_it_is_whatever_the_budget() -> None:
    config = replace(AUTO, slots=16, memory_budget_mb=1)
    assert choose_slots(config, SLOT, TALKER, CPU, weight_bytes=0) == 16


def test_auto_is_what_the_budget_holds_of_the_longest_utterances_anyone_may_ask_for() -> None:
    config = replace(AUTO, memory_budget_mb=100)
    assert choose_slots(config, SLOT, TALKER, CPU, weight_bytes=0) == 100 * MB // most_bytes(config) > 1
    longer = replace(config, max_frames=1000)
    assert choose_slots(longer, SLOT, TALKER, CPU, 0) == 100 * MB // most_bytes(longer)
    assert most_bytes(longer) > most_bytes(config)


def test_without_a_budget_it_is_a_share_of_what_the_weights_leave_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 500 * MB)
    weight_bytes = 100 * MB
    assert choose_slots(AUTO, SLOT, TALKER, CPU, weight_bytes) == int(SHARE * 400 * MB) // most_bytes(AUTO)
    with pytest.raises(ConfigError, match="of a budget of 0 MB"):
        choose_slots(AUTO, SLOT, TALKER, CPU, weight_bytes=600 * MB)


def test_nobody_speaks_for_longer_than_the_model_can_remember() -> None:
    assert longest_utterance(replace(AUTO, max_frames=10**6), TALKER) == TALKER.max_position_embeddings


@pytest.mark.parametrize(
    ("limit", "available"),
    [(None, 2048 * 1024), ("max", 2048 * 1024), ("1500000", 1_470_000), ("90000", 60_000), ("20000", 0)],
)
def test_a_container_has_what_its_limit_leaves(tmp_path: Path, limit: str | None, available: int) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal:  4096 kB\nMemFree:  1024 kB\nMemAvailable:   2048 kB\n")
    if limit:
        (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        (tmp_path / "sys/fs/cgroup/memory.current").write_text("100000\n")
        stat = "anon 1\nfile 75000\ninactive_file 40000\nactive_file 30000\n"
        (tmp_path / "sys/fs/cgroup/memory.stat").write_text(stat)
    assert available_bytes(tmp_path) == available


def test_this_machine_has_memory() -> None:
    assert available_bytes() > 0


def test_an_engine_makes_as_many_slots_as_its_budget_holds_and_fills_them(
    load_engine: Callable[..., Engine],
) -> None:
    engine = load_engine(slots=None, memory_budget_mb=5, max_frames=100, max_text_tokens=64)
    speaker = Speaker(engine)
    config, talker = engine.config, engine.speech_config.talker
    assert engine.slots == 5 * MB // bytes_of(engine).at(longest_utterance(config, talker)) > 1
    for _ in range(engine.slots + 1):
        speaker.submit(HELLO)
    engine.step()
    assert len(engine.scheduler.running) == engine.slots
    speaker.finish()


# --- growth that ends -------------------------------------------------------------------------------------


def wordy(positions: int) -> SpeechRequest:
    return replace(HELLO, text="word " * positions, max_frames=2)


def test_the_memory_of_a_long_utterance_goes_with_it_while_short_ones_speak_on(
    load_engine: Callable[..., Engine],
) -> None:
    speaker = Speaker(load_engine(slots=2))
    cache = speaker.engine.runner.cache
    alone = speaker.say(replace(HELLO, max_frames=9)).codes
    long, short = speaker.submit(wordy(4 * BLOCK)), speaker.submit(replace(HELLO, max_frames=9))
    speaker.engine.step()
    assert cache.capacity > 4 * BLOCK
    while not long.finish_reason:
        speaker.engine.step()
    assert not speaker.engine.is_idle
    assert cache.capacity == BLOCK
    speaker.finish()
    assert (short.codes == alone).all()


def test_who_ends_early_takes_nothing_from_a_long_utterance(load_engine: Callable[..., Engine]) -> None:
    speaker = Speaker(load_engine(slots=2))
    request = replace(wordy(3 * BLOCK), max_frames=6)
    alone = speaker.say(request).codes
    long, _ = speaker.submit(request), speaker.submit(replace(HELLO, max_frames=2))
    speaker.finish()
    assert (long.codes == alone).all()


def test_a_little_more_than_is_needed_is_kept_as_it_would_have_to_be_copied(
    load_engine: Callable[..., Engine],
) -> None:
    cache = load_engine(slots=1).runner.cache
    cache.fit(6 * BLOCK)
    cache.shrink(4 * BLOCK)
    assert cache.capacity == 6 * BLOCK
    cache.shrink(3 * BLOCK)
    assert cache.capacity == 3 * BLOCK
    cache.shrink(0)
    assert cache.capacity == BLOCK


class Shortage:
    """Memory that runs out after so many layers, once or for good."""

    def __init__(self, cache: KVCache, layers: int, lasts: bool = False) -> None:
        self._layers, self._lasts, self._give = layers, lasts, cache._empty

    def __call__(self, capacity: int) -> torch.Tensor:
        self._layers -= 1
        if self._layers == -1 or (self._lasts and self._layers < 0 and capacity > BLOCK):
            raise RuntimeError("no memory")
        return self._give(capacity)


def filled_cache(load_engine: Callable[..., Engine]) -> KVCache:
    cache = load_engine(slots=2).runner.cache
    cache.fit(2 * BLOCK)
    for number, tensor in enumerate((*cache.keys, *cache.values)):
        tensor[:] = number
    return cache


def test_a_cache_that_cannot_grow_is_as_it_was_and_may_grow_later(
    load_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled_cache(load_engine)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_empty", Shortage(cache, layers=2))
        with pytest.raises(RuntimeError, match="no memory"):
            cache.fit(3 * BLOCK)
    assert cache.capacity == 2 * BLOCK
    for number, tensor in enumerate((*cache.keys, *cache.values)):
        assert tensor.shape[2] == cache.capacity
        assert (tensor == number).all()
    cache.fit(3 * BLOCK)
    assert {tensor.shape[2] for tensor in (*cache.keys, *cache.values)} == {3 * BLOCK}


def test_a_cache_that_cannot_even_go_back_says_that_it_is_lost_and_serves_the_next(
    load_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = filled_cache(load_engine)
    with monkeypatch.context() as patch:
        patch.setattr(cache, "_empty", Shortage(cache, layers=2, lasts=True))
        with pytest.raises(CacheLost):
            cache.fit(3 * BLOCK)
    assert {tensor.shape[2] for tensor in (*cache.keys, *cache.values)} == {cache.capacity} == {BLOCK}


def test_who_speaks_short_does_not_pay_for_those_who_spoke_long(load_engine: Callable[..., Engine]) -> None:
    speaker = Speaker(load_engine(slots=1))
    before = tensor_bytes()
    speaker.say(wordy(4 * BLOCK))
    assert tensor_bytes() == pytest.approx(before, abs=100_000)  # the embeddings of new words stay


def test_nothing_grows_with_the_number_of_requests(load_engine: Callable[..., Engine]) -> None:
    """The short form of perf/memory.py: after more requests no more tensors and objects are alive."""
    speaker = Speaker(load_engine(slots=4))

    def alive_after(requests: int) -> tuple[int, Counter[str]]:
        for i in range(requests):
            speaker.submit(replace(HELLO, seed=i, max_frames=1 + i % 7))
            if i % 4 == 2:
                speaker.engine.step()
                leaver = speaker.submit(HELLO)
                speaker.engine.step()
                leaver.leave()
            if i % 4 == 3:
                speaker.finish()
        speaker.say(HELLO)  # what the last step left behind is the same every time
        ours = (type(it).__qualname__ for it in gc.get_objects() if "qwen3_tts" in str(type(it).__module__))
        return tensor_bytes(), Counter(ours)

    first_bytes, first = alive_after(40)
    then_bytes, then = alive_after(80)
    assert then == first
    assert then_bytes <= first_bytes + 1000  # a kept row of codes for each request would be ten times that
