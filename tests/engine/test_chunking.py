"""When audio leaves: the first frame at once, then in growing chunks that no listener has to wait for."""

from itertools import accumulate

import pytest

from qwen3_tts_engine.chunking import chunk_frames, is_due


def test_the_first_frame_is_heard_at_once():
    assert chunk_frames(0) == 1
    assert is_due(pending_frames=1, chunks_sent=0)


def test_chunks_grow_up_to_a_second_or_so_and_stay_there():
    assert [chunk_frames(sent) for sent in range(8)] == [1, 2, 4, 8, 12, 12, 12, 12]
    assert chunk_frames(10_000) == 12


@pytest.mark.parametrize("sent", range(7))
def test_a_chunk_is_due_with_its_last_frame_and_not_before(sent):
    wanted = chunk_frames(sent)
    assert not is_due(wanted - 1, sent)
    assert is_due(wanted, sent)
    assert is_due(wanted + 1, sent)


def test_at_twice_real_time_playback_never_runs_dry():
    chunks = [chunk_frames(sent) for sent in range(50)]
    spoken_by = [frames / 2 for frames in accumulate(chunks)]  # both in units of 80 ms
    starts = spoken_by[0]
    needed_by = [starts + heard for heard in accumulate(chunks[:-1])]
    assert all(ready <= needed for ready, needed in zip(spoken_by[1:], needed_by, strict=True))
