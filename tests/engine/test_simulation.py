"""The simulation of the scheduler keeps its books: what goes in comes out, once, and at the stated cost."""

import sys
from itertools import pairwise

import pytest

from qwen3_tts_engine.profile import PROFILES
from real_server import ROOT

sys.path.insert(0, str(ROOT / "perf"))

from simulation import (
    POLICIES,
    Arrival,
    Outcome,
    Simulation,
    StepCosts,
    poisson_arrivals,
    scheduler_of,
)

SLOTS = 4
COSTS = StepCosts(
    "a device of round numbers",
    prefill_s=0.010,
    prefill_token_s=0.001,
    frame_s=0.008,
    frame_row_s=0.002,
    codec_s=0.004,
    codec_frame_s=0.0005,
)
every_policy = pytest.mark.parametrize("policy", POLICIES)


def simulated(policy: str, arrivals: list[Arrival], costs: StepCosts = COSTS) -> Outcome:
    return Simulation(scheduler_of(policy, SLOTS), costs, arrivals).run()


def crowd(load: float = 0.8, seed: int = 1) -> list[Arrival]:
    return poisson_arrivals(60, load * COSTS.audio_s_per_s(SLOTS), seed)


def gaps(outcome: Outcome) -> int:
    return sum(len(listener.gaps_s) for listener in outcome.listeners)


@every_policy
@pytest.mark.parametrize("load", [0.2, 0.8, 3.0])
def test_every_frame_of_every_caller_is_voiced_once_and_in_order(policy: str, load: float) -> None:
    arrivals = crowd(load)
    outcome = simulated(policy, arrivals)
    assert [listener.voiced for listener in outcome.listeners] == [[*range(a.frames)] for a in arrivals]


@every_policy
def test_the_same_seed_is_the_same_simulation(policy: str) -> None:
    assert simulated(policy, crowd()) == simulated(policy, crowd())
    assert simulated(policy, crowd()) != simulated(policy, crowd(seed=2))


@pytest.mark.parametrize("policy", [*PROFILES, "ramp alone"])
def test_with_nobody_else_the_first_audio_costs_a_prefill_a_frame_and_a_frame_of_the_codec(
    policy: str,
) -> None:
    [listener] = simulated(policy, [Arrival(at_s=5.0, prompt_tokens=20, frames=30)]).listeners
    assert listener.first_s == pytest.approx(COSTS.prefill([20]) + COSTS.frame(1) + COSTS.codec(1, rows=1))
    assert listener.first_s == pytest.approx(0.030 + 0.010 + 0.0045)


@every_policy
def test_time_is_what_the_steps_took_and_no_more(policy: str) -> None:
    """One caller after another without a pause: prompts, frames and the codec's calls are all there is."""
    arrivals = [Arrival(at_s=0.0, prompt_tokens=20, frames=25) for _ in range(3)]
    one_slot = Simulation(scheduler_of(policy, slots=1), COSTS, arrivals).run()
    codec_s = one_slot.codec_calls * COSTS.codec_s + one_slot.frames * COSTS.codec_frame_s
    assert one_slot.took_s == pytest.approx(3 * COSTS.prefill([20]) + 75 * COSTS.frame(1) + codec_s)


def test_callers_are_served_in_the_order_they_come() -> None:
    outcome = simulated("balanced", crowd(load=3.0))
    starts = [listener.arrived_s + listener.first_s for listener in outcome.listeners]
    assert all(early <= late + 1e-9 for early, late in pairwise(starts))


def test_a_device_slower_than_speech_lets_everyone_run_dry() -> None:
    slow = StepCosts("slow", 0.01, 0.001, frame_s=0.2, frame_row_s=0.01, codec_s=0.05, codec_frame_s=0.02)
    outcome = simulated("balanced", [Arrival(0.0, 20, 60)], slow)
    assert gaps(outcome) > 0


def test_deadlines_keep_listeners_from_running_dry_where_a_fixed_ramp_does_not() -> None:
    busy = [crowd(load=0.95, seed=seed) for seed in range(4)]
    slowish = StepCosts(
        "slowish", 0.01, 0.0005, frame_s=0.008, frame_row_s=0.007, codec_s=0.006, codec_frame_s=0.0005
    )
    underruns = {
        policy: sum(gaps(simulated(policy, arrivals, slowish)) for arrivals in busy)
        for policy in ("balanced", "ramp alone")
    }
    assert underruns["balanced"] < underruns["ramp alone"] / 4


def test_waiting_for_a_whole_chunk_costs_the_first_audio_what_small_first_chunks_save() -> None:
    first_s = {
        policy: simulated(policy, [Arrival(0.0, 20, 60)]).listeners[0].first_s
        for policy in ("balanced", "12 frames")
    }
    assert first_s["12 frames"] == pytest.approx(
        first_s["balanced"] + 11 * (COSTS.frame(1) + COSTS.codec_frame_s)
    )
