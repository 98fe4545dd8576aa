"""The comparison with upstream is of the same work, and a factor is between neighbours in time."""

from collections.abc import Sequence

import numpy as np
import pytest

from bench import (
    ALONE,
    ENGINE,
    FINDINGS,
    GRID,
    ONE_BY_ONE,
    QUICK,
    RAGGED,
    STATIC_BATCH,
    Duel,
    Entry,
    OneByOne,
    Result,
    Setting,
    compare,
    insist_on_agreement,
    lengths_of,
    num_equal_frames,
    requests_of,
)
from claims import CLAIMS
from contestants import Cost, Spoken, Utterance
from qwen3_tts_engine.request import FRAME_SAMPLES, SpeechRequest


def utterance(frames: int, code: int = 0) -> Utterance:
    return Utterance(np.full((frames, 16), code), np.zeros(frames * FRAME_SAMPLES, np.float32), 0.1)


def spoken(wall_s: float, frames: int = 10, callers: int = 1, code: int = 0) -> Spoken:
    utterances = [utterance(frames, code) for _ in range(callers)]
    return Spoken(
        utterances, Cost(wall_s, wall_s), Cost(wall_s / 4, wall_s / 4), Cost(wall_s / 2, wall_s / 2)
    )


def result(*rounds: tuple[float, float], dtype: str = "float32", code: int = 0) -> Result:
    """Alone, of what the engine and upstream took in every round."""
    alone = Setting(1)
    played = [
        {Entry(alone, ENGINE): spoken(ours, code=code), Entry(alone, ALONE): spoken(theirs)}
        for ours, theirs in rounds
    ]
    workload = QUICK["tiny"]
    return Result("tiny", dtype, type(workload)((alone,), 10, len(rounds), 1), played)


def test_a_factor_is_taken_within_a_round_before_the_median_is() -> None:
    # The machine was ten times slower in the second round: neighbours still compare.
    factor = result((1, 3), (10, 30), (1, 5)).factor(Duel(Setting(1), ENGINE, ALONE))
    assert (factor.median, factor.low, factor.high) == (3, 3, 5)


@pytest.mark.parametrize("batch", [4, 8, 16])
@pytest.mark.parametrize("frames", [7, 27, 39, 63])
def test_ragged_lengths_have_the_mean_of_equal_ones(batch: int, frames: int) -> None:
    lengths = lengths_of(Setting(batch, RAGGED), frames)
    assert len(lengths) == batch
    assert abs(np.mean(lengths) - frames) < 0.5
    assert max(lengths) == round(7 * frames / 4)


def test_the_first_two_of_ragged_lengths_have_the_mean_too() -> None:
    lengths = lengths_of(Setting(8, RAGGED), 39)
    assert abs(np.mean(lengths[:2]) - np.mean(lengths)) <= 0.5


def test_everybody_has_a_seed_of_their_own_and_says_the_same() -> None:
    requests = requests_of(Setting(8, RAGGED), 7)
    assert [request.seed for request in requests] == list(range(8))
    assert len({request.text for request in requests}) == 1


def test_one_by_one_the_second_waits_for_the_first() -> None:
    class Contestant:
        def speak(self, requests: Sequence[SpeechRequest]) -> Spoken:
            return spoken(1.0, callers=len(requests))

    heard = OneByOne(Contestant(), at_most=3).speak(requests_of(Setting(8), 10))
    assert [u.first_audio_s for u in heard.utterances] == pytest.approx([0.1, 1.1, 2.1])
    assert heard.total.wall_s == 3


def test_frames_are_equal_up_to_the_first_difference() -> None:
    ours = np.zeros((5, 16), int)
    theirs = ours.copy()
    theirs[2, 15] = 1
    assert num_equal_frames(ours, theirs) == 2
    assert num_equal_frames(ours, ours[:4]) == 4


def test_of_a_batch_those_are_compared_that_upstream_spoke_alone() -> None:
    batch = Setting(8)
    played = {
        Entry(batch, ENGINE): spoken(1, callers=8),
        Entry(batch, ONE_BY_ONE): spoken(1, callers=2),
        Entry(batch, STATIC_BATCH): spoken(1, callers=8, code=1),
    }
    agreement = compare(batch, ENGINE, [played])
    assert (agreement.frames, agreement.is_complete) == (20, True)


def test_an_engine_that_says_something_else_gets_no_report() -> None:
    insist_on_agreement(result((1, 2)))
    with pytest.raises(SystemExit, match="does not say what upstream says"):
        insist_on_agreement(result((1, 2), code=7))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_grid_finds_is_claimed(dtype: str) -> None:
    workload = GRID["published-0.6b"]
    played = {
        Entry(setting, who): spoken(1, callers=setting.batch)
        for setting in workload.settings
        for who in (ENGINE, *setting.opponents)
    }
    found = FINDINGS["published-0.6b", dtype](Result("published-0.6b", dtype, workload, [played]))
    assert len(found) >= 3
    assert found.keys() <= CLAIMS.keys()
