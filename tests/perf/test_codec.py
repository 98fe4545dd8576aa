"""A window is what upstream's own chunked decode does, and only state that is kept makes chunks exact."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from codec import Decoder, Stateful, Window, at_once, our_decoder, upstream_decoder

LENGTH, CHUNK = 40, 8


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoints: Path) -> Path:
    return tiny_checkpoints / "custom_voice"


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    return upstream_decoder(checkpoint)


@pytest.fixture(scope="module")
def codes() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, 2048, (LENGTH, 16))


def streamed(decoder: Decoder, codes: NDArray[np.int64]) -> NDArray[np.float32]:
    decoder.begin(codes[:0])
    return np.concatenate([decoder.decode(codes[i : i + CHUNK]) for i in range(0, len(codes), CHUNK)])


@pytest.mark.parametrize("window", [5, 25])
def test_a_window_keeps_the_samples_that_upstream_keeps(
    theirs: Any, codes: NDArray[np.int64], window: int
) -> None:
    with torch.inference_mode():
        expected = theirs.chunked_decode(torch.from_numpy(codes).T[None], CHUNK, window)[0, 0].numpy()
    np.testing.assert_array_equal(streamed(Window(theirs, window), codes), expected)


def test_a_window_over_everything_is_exact_and_a_shorter_one_is_not(
    theirs: Any, codes: NDArray[np.int64]
) -> None:
    whole = at_once(theirs, codes)
    assert np.abs(streamed(Window(theirs, LENGTH), codes) - whole).max() < 1e-5
    assert np.abs(streamed(Window(theirs, 5), codes) - whole).max() > 1e-3


def test_kept_state_is_exact(checkpoint: Path, theirs: Any, codes: NDArray[np.int64]) -> None:
    ours = streamed(Stateful(our_decoder(checkpoint)), codes)
    assert np.abs(ours - at_once(theirs, codes)).max() < 1e-5


def test_a_stream_that_begins_anew_remembers_nothing(
    checkpoint: Path, theirs: Any, codes: NDArray[np.int64]
) -> None:
    decoder = Stateful(our_decoder(checkpoint))
    streamed(decoder, codes[::-1])
    assert np.abs(streamed(decoder, codes) - at_once(theirs, codes)).max() < 1e-5
