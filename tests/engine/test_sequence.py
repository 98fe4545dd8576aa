"""One utterance in flight: its cap, its place in the text, its chunks."""

import numpy as np
import pytest

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.model.prompt import Prompt
from qwen3_tts_engine.request import SpeechRequest
from qwen3_tts_engine.sequence import FrameCap, Sequence, frame_cap

FRAME = np.zeros(16, np.int64)
LIMIT = 8191


class Sink:
    cancelled = False
    is_live = True

    def __init__(self):
        self.chunks = []

    def write(self, chunk):
        self.chunks.append(chunk)


def sequence(prompt_tokens=5, trailing=(), cap=LIMIT, reason="length"):
    prompt = Prompt([0] * prompt_tokens, [0] * prompt_tokens, num_text_tokens=1, trailing=list(trailing))
    return Sequence(SpeechRequest("Hi."), prompt, Sink(), FrameCap(cap, reason), seed=0, arrived_s=0.0)


@pytest.mark.parametrize("asked", [1, 7, LIMIT])
def test_a_cap_the_caller_gave_is_the_only_one(asked):
    assert frame_cap(asked, num_text_tokens=1, limit=LIMIT) == FrameCap(asked, "length")


@pytest.mark.parametrize("asked", [0, -1, LIMIT + 1])
def test_a_cap_outside_what_the_model_allows_is_refused(asked):
    with pytest.raises(InvalidRequest, match=f"max_frames is {asked}; this model allows 1 to {LIMIT}"):
        frame_cap(asked, num_text_tokens=1, limit=LIMIT)


def test_without_a_cap_a_voice_that_lost_its_way_is_ended_by_the_length_of_its_text():
    assert frame_cap(None, num_text_tokens=0, limit=LIMIT) == FrameCap(250, "runaway")
    assert frame_cap(None, num_text_tokens=10, limit=LIMIT) == FrameCap(550, "runaway")


@pytest.mark.parametrize(("limit", "reason"), [(549, "length"), (550, "length"), (551, "runaway")])
def test_the_models_limit_holds_where_the_text_would_allow_more(limit, reason):
    assert frame_cap(None, num_text_tokens=10, limit=limit) == FrameCap(min(limit, 550), reason)


@pytest.mark.parametrize("asked", [None, 1])
def test_a_prompt_that_leaves_no_room_to_speak_is_refused(asked):
    with pytest.raises(
        InvalidRequest, match="text has 10 tokens; with the rest of the prompt that is too long"
    ):
        frame_cap(asked, num_text_tokens=10, limit=0)


@pytest.mark.parametrize("reason", ["length", "runaway"])
def test_the_frame_that_reaches_the_cap_ends_the_utterance_and_says_why(reason):
    speaking = sequence(cap=2, reason=reason)
    speaking.add_frame(FRAME)
    assert speaking.finish_reason is None
    speaking.add_frame(FRAME)
    assert speaking.finish_reason == reason


def test_every_frame_moves_the_talker_on_by_one_position():
    speaking = sequence(prompt_tokens=5)
    positions = [speaking.position]
    for _ in range(3):
        speaking.add_frame(FRAME)
        positions.append(speaking.position)
    assert positions == [5, 6, 7, 8]


def test_each_frame_is_joined_by_the_next_text_token_until_the_text_is_through():
    speaking = sequence(trailing=[11, 12])
    joined = []
    for _ in range(4):
        joined.append(speaking.next_text_token)
        speaking.add_frame(FRAME)
    assert joined == [11, 12, None, None]


def test_frames_wait_in_order_and_are_taken_once():
    speaking = sequence()
    for code in range(3):
        speaking.add_frame(np.full(16, code))
    assert [frame[0] for frame in speaking.take_pending(2)] == [0, 1]
    assert [frame[0] for frame in speaking.take_pending(2)] == [2]
    assert speaking.take_pending(2) == []


def test_chunks_are_counted_and_only_the_last_says_why_it_is_the_last():
    speaking = sequence(cap=3)
    for samples in (1920, 3840):
        for _ in range(samples // 1920):
            speaking.add_frame(FRAME)
        speaking.take_pending(2)
        speaking.write(np.zeros(samples, np.float32), now_s=0.0)
    described = [(len(c.samples), c.index, c.num_frames, c.finish_reason) for c in speaking.sink.chunks]
    assert described == [(1920, 0, 1, None), (3840, 1, 3, "length")]


def test_a_chunk_counts_the_frames_that_have_been_voiced_and_not_those_that_wait():
    speaking = sequence()
    for _ in range(5):
        speaking.add_frame(FRAME)
    speaking.take_pending(2)
    speaking.write(np.zeros(3840, np.float32), now_s=0.0)
    assert speaking.sink.chunks[0].num_frames == 2


def test_a_listener_waits_from_their_arrival_on_and_then_plays_what_they_get():
    speaking = sequence()
    assert speaking.playback.dry_s == speaking.arrived_s
    speaking.write(np.zeros(3840, np.float32), now_s=5.0)
    assert speaking.playback.dry_s == pytest.approx(5.16)


def test_pace_is_how_long_a_frame_has_taken_since_the_first_was_heard():
    speaking = sequence()
    assert speaking.pace_s(now_s=4.0) == 0
    speaking.add_frame(FRAME)
    speaking.write(np.zeros(1920, np.float32), now_s=5.0)
    for _ in range(4):
        speaking.add_frame(FRAME)
    assert speaking.pace_s(now_s=5.5) == 0.125


def test_two_utterances_with_the_same_words_are_two():
    assert sequence() != sequence()
