"""On a CPU a sample is the same to the last bit, however its frames are cut and in whatever company."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen3_tts_engine.codec_stream import CodecStream
from qwen3_tts_engine.model.checkpoint import Checkpoint
from qwen3_tts_engine.model.codec_decoder import CodecDecoder

CPU = torch.device("cpu")
SLOTS = 8
FRAMES = 90  # longer than the attention window of 72
LONGEST = 12  # of a chunk
STEADY_THREADS = (1, 2, 4)

Codes = NDArray[np.int64]


@pytest.fixture(scope="module")
def decoder(tiny_checkpoints: Path) -> CodecDecoder:
    checkpoint = Checkpoint(tiny_checkpoints / "custom_voice")
    return CodecDecoder(checkpoint.codec_weights(torch.float32, CPU), checkpoint.codec_config)


@pytest.fixture(params=STEADY_THREADS)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    usual = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(usual)


@pytest.fixture(scope="module")
def codes() -> Codes:
    return np.random.default_rng(0).integers(0, 2048, (FRAMES, 16))


@pytest.fixture(scope="module")
def whole(decoder: CodecDecoder, codes: Codes) -> NDArray[np.float32]:
    return CodecStream(decoder, 1, CPU).decode({0: list(codes)})[0]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("seed", range(4))
def test_random_chunks_in_random_company_join_to_the_samples_of_the_whole(
    decoder: CodecDecoder, codes: Codes, whole: NDArray[np.float32], seed: int
) -> None:
    dice = np.random.default_rng(seed)
    stream, slot, pieces, spoken = CodecStream(decoder, SLOTS, CPU), int(dice.integers(SLOTS)), [], 0
    while spoken < FRAMES:
        length = min(int(dice.integers(1, LONGEST + 1)), FRAMES - spoken)
        chunks = {slot: list(codes[spoken : spoken + length])}
        for other in dice.permutation(SLOTS)[: dice.integers(SLOTS)]:
            if other != slot:
                chunks[int(other)] = list(dice.integers(0, 2048, (length, 16)))
        pieces.append(stream.decode(dict(sorted(chunks.items())))[slot])
        spoken += length
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


@pytest.mark.usefixtures("threads")
def test_frames_one_by_one_join_to_the_samples_of_the_whole(
    decoder: CodecDecoder, codes: Codes, whole: NDArray[np.float32]
) -> None:
    stream = CodecStream(decoder, SLOTS, CPU)
    pieces = [stream.decode({0: [frame]})[0] for frame in codes]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_remembered_reference_leaves_the_past_that_speaking_it_leaves(
    decoder: CodecDecoder, codes: Codes, whole: NDArray[np.float32]
) -> None:
    stream = CodecStream(decoder, SLOTS, CPU)
    stream.remember(0, codes[:40])
    np.testing.assert_array_equal(stream.decode({0: list(codes[40:])})[0], whole[40 * 1920 :])
