"""When audio leaves: the first frame at once, then in growing chunks that no listener has to wait for."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_tts_engine.chunking import FRAME_S, cannot_wait, chunk_frames, due_frames, longest_chunk, within
from qwen3_tts_engine.profile import PROFILES

BALANCED = PROFILES["balanced"]
RAMP = BALANCED.ramp
PLENTY_S, QUICK_S = 60.0, 0.01
profiles = st.sampled_from(list(PROFILES.values()))


def due(pending_frames, chunks_sent, slack_s=PLENTY_S, pace_s=QUICK_S, profile=BALANCED):
    return due_frames(pending_frames, chunks_sent, slack_s, pace_s, profile)


# --- the profiles -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_in_every_profile_the_first_chunk_is_one_frame_and_chunks_grow(profile):
    assert profile.ramp[0] == 1
    assert all(short < long for short, long in pairwise(profile.ramp))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_in_every_profile_a_chunk_of_any_length_fits_a_step(profile):
    assert profile.ramp[-1] <= profile.codec_frames


def test_from_latency_to_throughput_everything_but_the_lead_grows():
    for less, more in pairwise(PROFILES[name] for name in ("latency", "balanced", "throughput")):
        assert less.ramp[-1] < more.ramp[-1]
        assert less.codec_frames < more.codec_frames
        assert less.prefill_tokens < more.prefill_tokens
        assert less.lead_frames >= more.lead_frames


# --- one listener -----------------------------------------------------------------------------------------


def test_the_first_frame_is_heard_at_once():
    assert due(pending_frames=1, chunks_sent=0) == 1


def test_chunks_grow_up_to_a_second_or_so_and_stay_there():
    assert [chunk_frames(RAMP, sent) for sent in range(8)] == [1, 2, 4, 8, 12, 12, 12, 12]
    assert chunk_frames(RAMP, 10_000) == 12


@pytest.mark.parametrize("sent", range(7))
def test_for_a_listener_with_time_a_chunk_is_due_with_its_last_frame_and_not_before(sent):
    wanted = chunk_frames(RAMP, sent)
    assert due(wanted - 1, sent) == 0
    assert due(wanted, sent) == wanted
    assert due(wanted + 1, sent) == wanted


def test_a_listener_who_would_run_dry_before_the_next_frame_gets_what_there_is():
    lead_s = BALANCED.lead_frames * 0.04
    assert due(pending_frames=8, chunks_sent=5, slack_s=lead_s - 0.001, pace_s=0.04) == 8
    assert due(pending_frames=8, chunks_sent=5, slack_s=lead_s, pace_s=0.04) == 0


def test_what_there_is_leaves_in_a_length_that_others_have_too():
    assert due(pending_frames=7, chunks_sent=5, slack_s=0.0) == 4


def test_nobody_is_handed_nothing():
    assert due(pending_frames=0, chunks_sent=5, slack_s=0.0) == 0


def test_a_listener_who_sits_in_silence_while_the_voice_keeps_up_gets_what_there_is():
    assert due(pending_frames=1, chunks_sent=5, slack_s=-0.3) == 1


@pytest.mark.parametrize("slack_s", [-1.0, 0.0, 0.05])
def test_a_voice_slower_than_its_listener_does_not_try_to_keep_up_in_small_chunks(slack_s):
    assert due(pending_frames=11, chunks_sent=5, slack_s=slack_s, pace_s=FRAME_S) == 0
    assert due(pending_frames=12, chunks_sent=5, slack_s=slack_s, pace_s=FRAME_S) == 12


@given(profiles, st.integers(0, 50), st.integers(0, 9), st.floats(-1, 2), st.floats(0, 0.2))
def test_every_chunk_has_one_of_the_profiles_lengths(profile, pending, sent, slack_s, pace_s):
    frames = due(pending, sent, slack_s, pace_s, profile)
    assert frames in (0, *profile.ramp)
    assert frames <= min(pending, chunk_frames(profile.ramp, sent))


@given(profiles, st.floats(-1, 2), st.floats(0, 1), st.floats(0, 0.2))
def test_who_can_wait_can_wait_with_more_to_play(profile, slack_s, more_s, pace_s):
    if not cannot_wait(slack_s, pace_s, profile):
        assert not cannot_wait(slack_s + more_s, pace_s, profile)


def spoken(profile, pace_s, num_frames=400):
    """An utterance's chunks if frames come at that pace: lengths, when they left, when they were needed."""
    chunks, starts_s, dry_s, pending = [], None, None, 0
    for frame in range(num_frames):
        now_s, pending = frame * pace_s, pending + 1
        slack_s = 0.0 if dry_s is None else dry_s - now_s
        frames = due(pending, len(chunks), slack_s, pace_s, profile)
        if frames:
            starts_s = now_s if starts_s is None else starts_s
            chunks.append((frames, now_s, dry_s if dry_s is not None else now_s))
            dry_s = max(dry_s or now_s, now_s) + frames * FRAME_S
            pending -= frames
    return chunks


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize("times_real_time", [1.2, 1.5, 2, 4, 20])
def test_whoever_is_spoken_to_faster_than_they_listen_never_runs_dry(profile, times_real_time):
    chunks = spoken(profile, FRAME_S / times_real_time)
    assert all(left_s <= needed_s for _, left_s, needed_s in chunks)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_chunks_reach_their_full_length_as_the_listeners_buffer_grows(profile):
    lengths = [frames for frames, _, _ in spoken(profile, FRAME_S / 1.2)]
    assert lengths[:3] == [1, 1, 1]
    assert lengths[-1] == profile.ramp[-1]
    assert max(lengths[: len(lengths) // 4]) < profile.ramp[-1]


def test_for_a_quick_voice_chunks_follow_the_ramp():
    assert [frames for frames, _, _ in spoken(BALANCED, FRAME_S / 8)][:7] == [1, 2, 4, 8, 12, 12, 12]


# --- several listeners ------------------------------------------------------------------------------------


def test_the_budget_goes_to_those_in_front_and_the_one_who_meets_its_end_gets_a_shorter_chunk():
    assert list(within(32, RAMP, [12, 12, 12, 12])) == [12, 12, 8, 0]
    assert list(within(13, RAMP, [12, 8, 1])) == [12, 1, 0]


@given(st.integers(-20, 100), st.lists(st.sampled_from((0, *RAMP)), max_size=20))
def test_a_budget_is_kept_and_used(budget, wanted):
    granted = list(within(budget, RAMP, wanted))
    assert len(granted) == len(wanted)
    assert sum(granted) <= max(0, budget)
    assert all(got in (0, *RAMP) and got <= asked for got, asked in zip(granted, wanted, strict=True))
    if any(asked and not got for got, asked in zip(granted, wanted, strict=True)):
        assert sum(granted) == max(0, budget)


@given(st.integers(0, 60))
def test_the_longest_chunk_is_full(frames):
    length = longest_chunk(RAMP, frames)
    assert length <= frames
    assert not any(length < other <= frames for other in RAMP)
