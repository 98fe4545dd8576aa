"""Who speaks when, and in which slot: sequences without a model behind them."""

from dataclasses import replace
from itertools import chain, count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwen3_tts_engine.model.prompt import Prompt
from qwen3_tts_engine.profile import PROFILES
from qwen3_tts_engine.request import FRAME_SAMPLES, SpeechRequest
from qwen3_tts_engine.scheduler import Due, Move, Scheduler
from qwen3_tts_engine.sequence import FrameCap, Sequence

EOS = 2150
BALANCED = PROFILES["balanced"]


class Sink:
    cancelled = False

    def __init__(self, is_live=True):
        self.is_live = is_live

    def write(self, chunk): ...


def sequence(prompt_tokens=10, max_frames=10_000, arrived_s=0.0, is_live=True):
    prompt = Prompt([0] * prompt_tokens, [0] * prompt_tokens, num_text_tokens=1)
    cap = FrameCap(max_frames, "length")
    return Sequence(SpeechRequest("Hi."), prompt, Sink(is_live), cap, seed=0, arrived_s=arrived_s)


def scheduler(*waiting, slots=4, prefill_tokens=1000, codec_frames=32):
    profile = replace(BALANCED, prefill_tokens=prefill_tokens, codec_frames=codec_frames)
    made = Scheduler(slots, profile, EOS)
    for newcomer in waiting:
        made.add(newcomer)
    return made


def frames(plan, ending=()):
    """Codes of a step: every row's first code is its slot, but for those that end."""
    return np.array([[EOS if row in ending else slot] * 16 for slot, row in enumerate(plan.rows)])


def voice(groups, now_s=0.0):
    """Hand every due chunk out; returns those for whom it was the last."""
    due = list(chain.from_iterable(groups))
    for chunk in due:
        taken = chunk.sequence.take_pending(chunk.num_frames)
        chunk.sequence.write(np.zeros(len(taken) * FRAME_SAMPLES, np.float32), now_s)
    return [chunk.sequence for chunk in due if chunk.sequence.finish_reason]


def step(scheduler, ending=(), now_s=0.0):
    """One frame of everyone, as the engine takes it; returns the newcomers and who was released."""
    plan = scheduler.schedule()
    scheduler.commit(plan, frames(plan, ending))
    over = voice(scheduler.due(now_s), now_s)
    for s in over:
        scheduler.release(s)
    return plan.newcomers, over


def speaking(pending_frames, dry_s=60.0, chunks_sent=5, **kind):
    """Somebody in the middle of an utterance, who has so many frames to be voiced and that much to play."""
    middle = sequence(**kind)
    middle.pending, middle.num_frames = [None] * pending_frames, 50
    middle.chunks_sent = chunks_sent
    middle.playback.started_s, middle.playback.dry_s = 0.0, dry_s
    return middle


def due_now(talking, now_s=0.0):
    """Who gets how many frames when nothing more has been spoken."""
    talking.schedule()
    return [(chunk.sequence, chunk.num_frames) for chunk in chain.from_iterable(talking.due(now_s))]


def test_a_scheduler_without_sequences_is_idle_and_plans_nothing():
    idle = scheduler()
    assert idle.is_idle
    assert idle.schedule().rows == []


def test_newcomers_take_the_slots_after_those_who_speak():
    first, second, third = sequence(), sequence(), sequence()
    talking = scheduler(first)
    step(talking)
    talking.add(second)
    talking.add(third)
    plan = talking.schedule()
    assert (plan.running, plan.newcomers) == ([first], [second, third])
    assert [row.slot for row in plan.rows] == [0, 1, 2]


def test_a_sequence_may_join_at_any_step():
    talking = scheduler()
    joined = [sequence() for _ in range(4)]
    for newcomer in joined:
        talking.add(newcomer)
        assert step(talking)[0] == [newcomer]
    assert talking.running == joined


def test_who_finds_no_slot_waits_and_starts_in_the_step_after_one_is_free():
    one, two, third = sequence(), sequence(), sequence()
    talking = scheduler(one, two, third, slots=2)
    assert step(talking) == ([one, two], [])
    assert step(talking, ending=[one]) == ([], [one])
    assert step(talking) == ([third], [])
    assert talking.running == [two, third]


def test_the_last_sequence_moves_into_the_slot_another_one_left():
    first, second, third = rows = [sequence() for _ in range(3)]
    talking = scheduler(*rows)
    step(talking)
    assert talking.release(first) == Move(source=2, target=0, sequence=third)
    assert talking.running == [third, second]
    assert (first.slot, third.slot) == (-1, 0)


def test_nobody_moves_when_the_last_slot_is_left_or_somebody_stops_waiting():
    first, second, third = rows = [sequence() for _ in range(3)]
    talking = scheduler(*rows, slots=2)
    step(talking)
    assert talking.release(second) is None
    assert talking.release(third) is None
    assert talking.running == [first]
    assert not talking.waiting


def test_everyone_may_end_in_one_step():
    rows = [sequence() for _ in range(4)]
    talking = scheduler(*rows)
    assert step(talking, ending=rows) == (rows, rows)
    assert talking.is_idle


def test_the_cancelled_are_found_wherever_they_are():
    speaking, waiting, listening = rows = [sequence() for _ in range(3)]
    talking = scheduler(*rows, slots=1)
    step(talking)
    speaking.sink.cancelled = waiting.sink.cancelled = True
    assert talking.cancelled() == [speaking, waiting]
    for gone in talking.cancelled():
        talking.release(gone)
    assert step(talking)[0] == [listening]


def test_the_prompts_read_in_one_step_fit_the_budget():
    rows = [sequence(prompt_tokens=40) for _ in range(4)]
    talking = scheduler(*rows, prefill_tokens=100)
    assert [step(talking)[0] for _ in range(2)] == [rows[:2], rows[2:]]


def test_prompts_that_fill_the_budget_exactly_are_read_together():
    rows = [sequence(prompt_tokens=50) for _ in range(2)]
    assert step(scheduler(*rows, prefill_tokens=100))[0] == rows


def test_a_prompt_longer_than_the_budget_is_read_alone():
    short, long, last = rows = [sequence(10), sequence(101), sequence(10)]
    talking = scheduler(*rows, prefill_tokens=100)
    assert [step(talking)[0] for _ in range(3)] == [[short], [long], [last]]


def test_a_long_prompt_is_not_overtaken_by_shorter_ones():
    long = sequence(prompt_tokens=90)
    talking = scheduler(sequence(20), long, sequence(20), prefill_tokens=100)
    step(talking)
    assert step(talking)[0] == [long]


def test_every_row_gets_its_own_frame_and_the_end_code_is_none():
    rows = [sequence() for _ in range(3)]
    talking = scheduler(*rows)
    plan = talking.schedule()
    talking.commit(plan, frames(plan, ending=[rows[1]]))
    assert [[frame[0] for frame in row.pending] for row in rows] == [[0], [], [2]]
    assert [row.num_frames for row in rows] == [1, 0, 1]
    assert [row.finish_reason for row in rows] == [None, "stop", None]


def test_a_step_that_lost_a_row_is_noticed():
    talking = scheduler(sequence(), sequence())
    plan = talking.schedule()
    with pytest.raises(ValueError, match="zip"):
        talking.commit(plan, frames(plan)[:1])


# --- whose chunk is due -----------------------------------------------------------------------------------


def test_a_chunk_is_due_when_it_is_full_or_nothing_follows():
    fills, full, ends = (
        speaking(pending, chunks_sent=2) for pending in (2, 3, 2)
    )  # the third waits for four
    talking = scheduler(fills, full, ends)
    plan = talking.schedule()
    talking.commit(plan, frames(plan, ending=[ends]))
    assert talking.due(0.0) == [[Due(ends, 2)], [Due(full, 4)]]
    assert fills.finish_reason is None


def test_an_end_on_a_chunks_border_is_still_told():
    ends = speaking(0)
    ends.finish_reason = "stop"
    assert due_now(scheduler(ends)) == [(ends, 0)]


def test_who_runs_dry_first_is_voiced_first():
    last, first, second = (speaking(12, dry_s) for dry_s in (9.0, 7.0, 8.0))
    assert due_now(scheduler(last, first, second, codec_frames=24)) == [(first, 12), (second, 12)]


def test_who_has_sat_in_silence_longest_comes_before_those_who_still_listen():
    listening, silent, silent_longer = (speaking(12, dry_s) for dry_s in (5.1, 4.0, 3.0))
    order = due_now(scheduler(listening, silent, silent_longer, codec_frames=36), now_s=5.0)
    assert [who for who, _ in order] == [silent_longer, silent, listening]


def test_who_wants_the_utterance_whole_lets_everyone_who_listens_go_first():
    whole, live = sequence(is_live=False), speaking(12, dry_s=1e6)
    whole.pending, whole.chunks_sent = [None] * 12, 5
    assert due_now(scheduler(whole, live, codec_frames=12)) == [(live, 12)]


def test_who_wants_the_utterance_whole_is_voiced_in_the_longest_chunks_from_the_first_on():
    whole = sequence(max_frames=30, is_live=False)
    talking = scheduler(whole)
    heard = []
    while not talking.is_idle:
        before = whole.num_frames - len(whole.pending)
        step(talking)
        heard.append(whole.num_frames - len(whole.pending) - before)
    assert [frames for frames in heard if frames] == [12, 12, 6]


def test_a_first_frame_does_not_wait_for_the_chunks_of_others():
    others = [speaking(12, dry_s=-1.0) for _ in range(3)]
    newcomer = sequence()
    newcomer.pending = [None]
    assert due_now(scheduler(*others, newcomer, codec_frames=12))[0] == (newcomer, 1)


def test_chunks_of_one_length_are_voiced_together_the_most_wanted_first():
    first, soon, later = sequence(), speaking(12, dry_s=2.0, chunks_sent=2), speaking(12, dry_s=3.0)
    first.pending = [None]
    also_soon = speaking(4, dry_s=4.0, chunks_sent=2)
    talking = scheduler(later, also_soon, soon, first)
    talking.schedule()
    assert talking.due(0.0) == [[Due(first, 1)], [Due(soon, 4), Due(also_soon, 4)], [Due(later, 12)]]


def test_a_first_frame_is_voiced_before_the_last_ones_of_those_who_are_done():
    done, newcomer = speaking(7), sequence()
    done.finish_reason, newcomer.pending = "length", [None]
    assert due_now(scheduler(done, newcomer)) == [(newcomer, 1), (done, 7)]


def test_whoever_is_done_is_voiced_to_the_end_in_the_same_step():
    others = [speaking(12, dry_s=-1.0) for _ in range(3)]
    done = speaking(19)
    done.finish_reason = "length"
    assert due_now(scheduler(*others, done, codec_frames=12)) == [(done, 19)]


def test_a_step_voices_no_more_than_its_budget_and_the_rest_follows_in_the_order_of_need():
    rows = [speaking(12, dry_s=60.0 + i) for i in range(8)]
    talking = scheduler(*rows, slots=8, codec_frames=32)
    talking.schedule()
    voiced = []
    for _ in range(3):
        due = talking.due(0.0)
        granted = [(chunk.sequence, chunk.num_frames) for chunk in chain.from_iterable(due)]
        assert sum(num_frames for _, num_frames in granted) <= 32
        voiced += granted
        voice(due)
    assert [(row, 12) for row in rows[:2]] == voiced[:2]
    assert {row for row, _ in voiced} == set(rows)


def test_however_many_speak_the_voiced_keep_up_with_the_spoken():
    rows = [sequence() for _ in range(40)]
    talking = scheduler(*rows, slots=40, prefill_tokens=10_000, codec_frames=16)
    for _ in range(300):
        step(talking)
    waiting = sum(len(row.pending) for row in rows)
    for _ in range(300):
        step(talking)
    assert sum(len(row.pending) for row in rows) <= waiting + 40 * BALANCED.ramp[-1]
    assert max(len(row.pending) for row in rows) <= 3 * BALANCED.ramp[-1]


def test_alone_nobody_is_held_back():
    """With a budget of less than a chunk, too: an idle engine has no use for what it saves."""
    alone = sequence(max_frames=60)
    talking = scheduler(alone)
    heard = []
    while not talking.is_idle:
        before = alone.num_frames - len(alone.pending)
        step(talking)
        heard.append(alone.num_frames - len(alone.pending) - before)
    assert [frames for frames in heard if frames] == [1, 2, 4, 8, 12, 12, 12, 9]


def test_a_newcomer_delays_running_streams_by_at_most_one_prefill_and_one_frame():
    """Between two frames of a running stream lies one prefill: of one prompt, or of a budget's worth."""
    running = [sequence() for _ in range(2)]
    crowd = [sequence(prompt_tokens) for prompt_tokens in (40, 40, 40, 900, 40, 90)]
    talking = scheduler(*running, slots=8, prefill_tokens=100)
    step(talking)
    for newcomer in crowd:
        talking.add(newcomer)
    while talking.waiting:
        spoken = [row.num_frames for row in running]
        newcomers, _ = step(talking)
        assert [row.num_frames for row in running] == [count + 1 for count in spoken]
        padded = len(newcomers) * max(len(newcomer.prompt) for newcomer in newcomers)
        assert padded <= 100 or len(newcomers) == 1
        assert all(newcomer.num_frames == 1 for newcomer in newcomers)


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Whatever comes, ends or leaves, and when: the books stay straight.

    `memory` plays the device: whose state each slot holds. A prefill writes it, a move copies it.
    """

    @initialize(slots=st.integers(1, 5), prefill_tokens=st.integers(1, 60), codec_frames=st.integers(12, 30))
    def start(self, slots, prefill_tokens, codec_frames):
        self.slots, self.prefill_tokens, self.codec_frames = slots, prefill_tokens, codec_frames
        self.scheduler = scheduler(slots=slots, prefill_tokens=prefill_tokens, codec_frames=codec_frames)
        self.now_s = 0.0
        self.memory = [None] * slots
        self.alive = []
        self.started = []
        self.tickets = count()

    @rule(prompt_tokens=st.integers(1, 90), max_frames=st.integers(1, 6))
    def somebody_comes(self, prompt_tokens, max_frames):
        newcomer = sequence(prompt_tokens, max_frames)
        newcomer.ticket = next(self.tickets)
        self.alive.append(newcomer)
        self.scheduler.add(newcomer)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def somebody_leaves(self, data):
        leaving = data.draw(st.sampled_from(self.alive))
        leaving.sink.cancelled = True

    @rule(data=st.data(), step_s=st.floats(0, 0.3))
    def everyone_speaks(self, data, step_s):
        self.now_s += step_s
        for gone in self.scheduler.cancelled():
            self._let_go(gone)
        could_start = min(len(self.scheduler.waiting), self.slots - len(self.scheduler.running))
        plan = self.scheduler.schedule()
        self._start(plan.newcomers, could_start)
        assert self.memory[: len(plan.rows)] == plan.rows
        ending = [row for row in plan.rows if data.draw(st.booleans())]
        self.scheduler.commit(plan, frames(plan, ending))
        due = self.scheduler.due(self.now_s)
        self._check(due, plan.rows)
        for row in voice(due, self.now_s):
            assert not row.pending
            self._let_go(row)

    def _check(self, groups, rows):
        """Nobody twice; newcomers and those who are done at once; no more than the budget for the others."""
        assert all(len({chunk.num_frames for chunk in group}) == 1 for group in groups)
        due = list(chain.from_iterable(groups))
        granted = {chunk.sequence.ticket: chunk.num_frames for chunk in due}
        assert len(granted) == len(due)
        for row in rows:
            if row.finish_reason or not row.chunks_sent:
                assert granted.pop(row.ticket) == len(row.pending)
        assert sum(granted.values()) <= self.codec_frames

    def _start(self, newcomers, could_start):
        lengths = [len(newcomer.prompt) for newcomer in newcomers]
        assert sum(lengths) <= self.prefill_tokens or len(lengths) == 1
        assert bool(newcomers) == bool(could_start)
        for newcomer in newcomers:
            self.memory[newcomer.slot] = newcomer
            self.started.append(newcomer.ticket)

    def _let_go(self, sequence):
        move = self.scheduler.release(sequence)
        if move:
            self.memory[move.target] = self.memory[move.source]
            assert self.memory[move.target] is move.sequence
        self.alive.remove(sequence)

    @invariant()
    def slots_from_0_on_are_the_running_ones(self):
        running = self.scheduler.running
        assert [row.slot for row in running] == list(range(len(running)))
        assert len(running) <= self.slots
        assert all(row.slot == -1 for row in self.scheduler.waiting)

    @invariant()
    def nobody_is_lost_or_doubled(self):
        inside = [*self.scheduler.running, *self.scheduler.waiting]
        assert sorted(row.ticket for row in inside) == sorted(row.ticket for row in self.alive)
        assert self.scheduler.is_idle == (not self.alive)

    @invariant()
    def they_start_in_the_order_they_came(self):
        assert self.started == sorted(self.started)


AnyOrderOfEvents.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
test_in_any_order_of_events_the_books_stay_straight = AnyOrderOfEvents.TestCase
