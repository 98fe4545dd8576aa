"""Recordings that met with an accident: a voice, or an error that says what is wrong; the decoder goes on."""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import psutil
import pytest
from hypothesis import strategies as st

from fuzzing import fuzz, mutated
from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.reference_audio import Decoder, Limits
from qwen3_tts_engine.reference_audio.complete import is_complete
from qwen3_tts_engine.reference_audio.kinds import Kind, unwrap
from recordings import KINDS, recording

MOST_BYTES = 300 << 20
SOUND = recording("WAV, 16 bit", 1.2)
FILES = st.sampled_from([*KINDS]).map(lambda kind: recording(kind, 1.2))


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with Decoder(Limits()) as decoder:
        yield decoder


@fuzz(500, file=mutated(FILES))
def test_a_damaged_recording_is_heard_or_refused_and_the_next_one_is_heard(
    decoder: Decoder, file: bytes
) -> None:
    with suppress(InvalidRequest):
        heard = decoder.decode(file)
        assert 1 <= heard.duration_s <= 30.25
        assert np.isfinite(heard.pcm).all()
    assert psutil.Process(decoder.pid).memory_info().rss < MOST_BYTES
    assert decoder.decode(SOUND).duration_s == 1.2


@fuzz(300, given=mutated(FILES) | st.binary(max_size=200))
def test_what_a_file_is_can_be_told_without_decoding_it(given: bytes) -> None:
    with suppress(InvalidRequest):
        kind, file = unwrap(given, Limits().max_bytes)
        is_complete(kind, file)


@fuzz(300, kind=st.sampled_from([*Kind]), file=mutated(FILES) | st.binary(max_size=200))
def test_whether_a_file_is_complete_can_be_asked_of_any_bytes(kind: Kind, file: bytes) -> None:
    assert is_complete(kind, file) in (True, False)
