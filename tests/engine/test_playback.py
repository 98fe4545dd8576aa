"""When a listener runs dry: a player that plays what has come, waits in silence, and plays on."""

import math

from qwen3_tts_engine.playback import Playback


def test_before_the_first_audio_a_listener_waits_since_they_came_and_has_not_run_dry():
    playback = Playback(dry_s=10.0)
    assert playback.slack_s(12.0) == -2.0
    assert not playback.has_run_dry(12.0)


def test_a_listener_runs_dry_when_everything_handed_out_has_been_played():
    playback = Playback(dry_s=10.0)
    playback.hear(0.5, now_s=12.0)
    playback.hear(1.0, now_s=12.25)
    assert playback.started_s == 12.0
    assert playback.slack_s(12.25) == 1.25
    assert not playback.has_run_dry(13.5)
    assert playback.has_run_dry(13.75)


def test_who_ran_dry_plays_on_from_the_moment_the_next_chunk_comes():
    playback = Playback(dry_s=10.0)
    playback.hear(0.5, now_s=12.0)
    playback.hear(0.5, now_s=15.0)
    assert playback.dry_s == 15.5


def test_who_wants_the_utterance_whole_never_runs_dry():
    playback = Playback(dry_s=math.inf)
    playback.hear(0.08, now_s=12.0)
    assert playback.slack_s(1e9) == math.inf
    assert not playback.has_run_dry(1e9)
