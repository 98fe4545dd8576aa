"""Callers come at random, and what they had to wait for is counted as a listener would."""

import itertools
import math

import numpy as np
import pytest

from arrivals import Heard, Load, percentiles, poisson
from crowd import silence_s
from promises import longest_gap, unexplained_growth


def test_who_has_something_to_play_hears_no_silence() -> None:
    assert silence_s([(1.0, 0.5), (1.4, 0.5), (1.95, 0.5)]) == 0


def test_waiting_for_the_first_chunk_is_no_underrun() -> None:
    assert silence_s([(60.0, 0.08)]) == 0


def test_every_gap_counts_from_when_the_player_ran_dry() -> None:
    # Dry at 1.5, at 2.2 + 0.5 = 2.7, and then not again: 0.7 s and 0.3 s of silence.
    assert silence_s([(1.0, 0.5), (2.2, 0.5), (3.0, 1.0), (3.5, 1.0)]) == pytest.approx(1.0)


def test_arrivals_are_the_same_in_every_run_and_as_many_as_asked_for() -> None:
    first, second = (poisson(50.0, 40.0, 20, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert abs(len(first) - 2000) < 4 * math.sqrt(2000)
    assert all(earlier.at_s < later.at_s for earlier, later in itertools.pairwise(first))
    assert np.mean([arrival.frames for arrival in first]) == pytest.approx(20, rel=0.05)


def test_gaps_between_callers_spread_as_a_poisson_process_does() -> None:
    arrivals = poisson(50.0, 100.0, 20, np.random.default_rng(5))
    gaps = np.diff([arrival.at_s for arrival in arrivals])
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_the_rejected_are_counted_and_have_no_part_in_the_times() -> None:
    served, rejected = Heard([(0.5, 0.4), (1.5, 0.4)]), Heard([], was_rejected=True)
    load = Load.of(0.5, 2.0, [served, rejected, served], took_s=4.0)
    assert (load.callers, load.rejected, load.underruns) == (3, 1, 2)
    assert load.first_audio_s == [0.5, 0.5, 0.5]
    assert load.audio_s_per_s == pytest.approx(0.4)


def test_where_all_were_rejected_there_are_no_times() -> None:
    assert all(math.isnan(value) for value in percentiles([]))


def test_gaps_count_from_the_chunk_after_which_a_newcomer_may_come() -> None:
    assert longest_gap([[0, 9, 10, 12], [0, 1, 2, 5]], after=2) == 3
    assert longest_gap([[0]], after=2) == 0


def test_growth_is_what_attention_does_not_explain() -> None:
    assert unexplained_growth(0.010, 0.013, 0.002) == pytest.approx(0.1)
