"""Streaming equals one-shot: whatever the chunks, they join to upstream's decode of all frames at once."""

from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3_tts_engine import engine as engine_module
from qwen3_tts_engine.codec_stream import CodecStream
from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.model.checkpoint import Checkpoint
from qwen3_tts_engine.model.codec_decoder import CodecDecoder
from qwen3_tts_engine.profile import PROFILES, Profile
from upstream_oracle import Upstream

CPU = torch.device("cpu")
SLOTS = 3
TOLERANCE = 1e-5  # the float32 noise floor of these checkpoints is 2e-6

Codes = NDArray[np.int64]
Shape = tuple[int, int]  # rows, frames


@pytest.fixture(scope="module")
def decoder(tiny_checkpoints: Path) -> CodecDecoder:
    checkpoint = Checkpoint(tiny_checkpoints / "custom_voice")
    return CodecDecoder(checkpoint.codec_weights(torch.float32, CPU), checkpoint.codec_config)


@pytest.fixture
def stream(decoder: CodecDecoder) -> CodecStream:
    return CodecStream(decoder, SLOTS, CPU)


@pytest.fixture
def oracle(upstream: Callable[[str], Upstream]) -> Upstream:
    return upstream("custom_voice")


def frames(count: int, seed: int = 0) -> Codes:
    return np.random.default_rng(seed).integers(0, 2048, (count, 16))


def decode(stream: CodecStream, slot: int, codes: Codes, sizes: Iterable[int]) -> NDArray[np.float32]:
    ends = np.cumsum([0, *sizes])
    assert ends[-1] == len(codes)
    pieces = [stream.decode({slot: list(codes[a:b])})[slot] for a, b in zip(ends, ends[1:])]  # noqa: B905, RUF007
    return np.concatenate(pieces)


SCHEDULES = {
    "all at once": [100],
    "frame by frame": [1] * 100,
    "growing": [1, 2, 4, 8, 12, 12, 12, 12, 12, 12, 12, 1],
    "uneven": [3, 1, 50, 7, 39],
}


@pytest.mark.parametrize("sizes", SCHEDULES.values(), ids=SCHEDULES)
def test_any_chunk_schedule_equals_upstreams_full_decode(
    stream: CodecStream, oracle: Upstream, sizes: list[int]
) -> None:
    codes = frames(100)  # longer than the attention window of 72
    assert np.abs(decode(stream, 0, codes, sizes) - oracle.decode(codes)).max() <= TOLERANCE


def test_in_float64_the_two_are_the_same_function(
    tiny_checkpoints: Path, upstream: Callable[[str], Upstream]
) -> None:
    checkpoint = Checkpoint(tiny_checkpoints / "base")
    ours = CodecDecoder(checkpoint.codec_weights(torch.float64, CPU), checkpoint.codec_config)
    theirs = Upstream(tiny_checkpoints / "base")
    theirs.model.model.speech_tokenizer.model.decoder.double()
    codes = frames(90)
    streamed = decode(CodecStream(ours, 1, CPU), 0, codes, [1, 2, 4, 8, 12, 63])
    assert np.abs(streamed - theirs.decode(codes)).max() < 1e-9


def test_slots_at_different_places_decode_together_as_if_alone(stream: CodecStream, oracle: Upstream) -> None:
    early, late = frames(20, seed=1), frames(10, seed=2)
    samples = {0: [stream.decode({0: list(early[:10])})[0]], 1: []}
    for i in range(0, 10, 5):
        decoded = stream.decode({0: list(early[10 + i : 15 + i]), 1: list(late[i : i + 5])})
        for slot, piece in decoded.items():
            samples[slot].append(piece)
    for slot, codes in ((0, early), (1, late)):
        assert np.abs(np.concatenate(samples[slot]) - oracle.decode(codes)).max() <= TOLERANCE


@pytest.fixture
def shapes(monkeypatch: pytest.MonkeyPatch) -> list[Shape]:
    """Rows and frames of every decoding since the test began."""
    seen: list[Shape] = []
    whole = CodecDecoder.decode

    def noted(self: CodecDecoder, codes: torch.Tensor, *past: torch.Tensor) -> object:
        seen.append((codes.shape[0], codes.shape[1]))
        return whole(self, codes, *past)

    monkeypatch.setattr(CodecDecoder, "decode", noted)
    return seen


@pytest.mark.parametrize(
    ("rows", "length", "expected"),
    [
        (3, 1, [(2, 1), (1, 1)]),
        (5, 8, [(2, 8), (2, 8), (1, 8)]),
        (2, 11, [(2, 8), (2, 2), (2, 1)]),
        (2, 24, [(1, 24), (1, 24)]),
        (1, 50, [(1, 24), (1, 24), (1, 2)]),
    ],
)
def test_a_cpu_decodes_in_few_shapes_and_no_more_frames_at_once_than_it_decodes_well(
    decoder: CodecDecoder,
    oracle: Upstream,
    shapes: list[Shape],
    rows: int,
    length: int,
    expected: list[Shape],
) -> None:
    spoken = {slot: frames(length, seed=slot) for slot in range(rows)}
    decoded = CodecStream(decoder, rows, CPU).decode({slot: list(codes) for slot, codes in spoken.items()})
    assert shapes == expected
    for slot, codes in spoken.items():
        assert np.abs(decoded[slot] - oracle.decode(codes)).max() <= TOLERANCE


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_whoever_speaks_meets_no_shape_that_the_warm_up_has_not_met(
    stream: CodecStream, shapes: list[Shape], profile: Profile
) -> None:
    stream.warm_up(profile.ramp)
    met = set(shapes)
    shapes.clear()
    for rows, length in product(range(1, SLOTS + 1), range(1, max(profile.ramp) + 1)):
        stream.decode({slot: list(frames(length)) for slot in range(rows)})
    assert set(shapes) == met


def test_a_model_that_loads_meets_its_shapes_with_the_threads_it_will_use(
    load_engine: Callable[..., Engine], shapes: list[Shape], monkeypatch: pytest.MonkeyPatch
) -> None:
    met_before: list[Shape] = []
    monkeypatch.setattr(engine_module, "choose_num_threads", lambda *_: met_before.extend(shapes))
    engine = load_engine(slots=SLOTS)
    shapes.clear()
    engine.warm_up()
    assert met_before == []
    assert {(1, 1), (2, 1), (1, 12), (2, 12)} <= set(shapes)


def test_a_warm_up_leaves_no_trace_in_any_slot(stream: CodecStream, oracle: Upstream) -> None:
    stream.warm_up([1, 2, 4])
    for slot in range(SLOTS):
        codes = frames(5, seed=slot)
        assert np.abs(decode(stream, slot, codes, [5]) - oracle.decode(codes)).max() <= TOLERANCE


def test_a_slot_left_out_of_a_call_does_not_notice_it(stream: CodecStream, oracle: Upstream) -> None:
    codes, other = frames(12, seed=3), frames(30, seed=4)
    first = stream.decode({2: list(codes[:6])})[2]
    decode(stream, 0, other, [30])
    second = stream.decode({2: list(codes[6:])})[2]
    assert np.abs(np.concatenate([first, second]) - oracle.decode(codes)).max() <= TOLERANCE


def test_a_remembered_reference_keeps_its_state_and_nothing_more(stream: CodecStream) -> None:
    stream.remember(0, frames(20))
    [past] = stream._references.values()
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in past)


def test_a_reset_slot_remembers_nothing(stream: CodecStream, oracle: Upstream) -> None:
    decode(stream, 1, frames(80, seed=5), [80])
    stream.reset(1)
    codes = frames(10, seed=6)
    assert np.abs(decode(stream, 1, codes, [10]) - oracle.decode(codes)).max() <= TOLERANCE


def test_a_moved_slot_speaks_on_where_it_was(stream: CodecStream, oracle: Upstream) -> None:
    codes = frames(40, seed=7)
    first = decode(stream, 2, codes[:25], [25])
    stream.move(2, 0)
    second = decode(stream, 0, codes[25:], [15])
    assert np.abs(np.concatenate([first, second]) - oracle.decode(codes)).max() <= TOLERANCE
