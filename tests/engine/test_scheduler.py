"""Who speaks when, and in which slot: sequences without a model behind them."""

from itertools import count

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qwen3_tts_engine.model.prompt import Prompt
from qwen3_tts_engine.request import SpeechRequest
from qwen3_tts_engine.scheduler import Move, Scheduler
from qwen3_tts_engine.sequence import FrameCap, Sequence

EOS = 2150


class Sink:
    cancelled = False


def sequence(prompt_tokens=10, max_frames=10_000):
    prompt = Prompt([0] * prompt_tokens, [0] * prompt_tokens, num_text_tokens=1)
    return Sequence(
        SpeechRequest("Hi."), prompt, Sink(), FrameCap(max_frames, "length"), seed=0, arrived_s=0.0
    )


def scheduler(*waiting, slots=4, prefill_tokens=1000):
    made = Scheduler(slots, prefill_tokens, EOS)
    for newcomer in waiting:
        made.add(newcomer)
    return made


def frames(plan, ending=()):
    """Codes of a step: every row's first code is its slot, but for those that end."""
    return np.array([[EOS if row in ending else slot] * 16 for slot, row in enumerate(plan.rows)])


def step(scheduler, ending=()):
    """One frame of everyone, as the engine takes it; returns the newcomers and who was released."""
    plan = scheduler.schedule()
    due = scheduler.commit(plan, frames(plan, ending))
    over = [s for s in due if s.finish_reason]
    for s in due:
        s.take_pending()
        s.chunks_sent += 1
    for s in over:
        scheduler.release(s)
    return plan.newcomers, over


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


def test_a_chunk_is_due_when_it_is_full_or_nothing_follows():
    ends, full, fills = rows = [sequence(max_frames=3), sequence(), sequence()]
    for row in rows:
        row.pending, row.num_frames, row.chunks_sent = [None] * 2, 2, 2  # the third chunk waits for four
    full.pending += [None]
    talking = scheduler(*rows)
    plan = talking.schedule()
    assert talking.commit(plan, frames(plan)) == [ends, full]
    assert fills.finish_reason is None


class AnyOrderOfEvents(RuleBasedStateMachine):
    """Whatever comes, ends or leaves, and when: the books stay straight.

    `memory` plays the device: whose state each slot holds. A prefill writes it, a move copies it.
    """

    @initialize(slots=st.integers(1, 5), prefill_tokens=st.integers(1, 60))
    def start(self, slots, prefill_tokens):
        self.slots, self.prefill_tokens = slots, prefill_tokens
        self.scheduler = scheduler(slots=slots, prefill_tokens=prefill_tokens)
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

    @rule(data=st.data())
    def everyone_speaks(self, data):
        for gone in self.scheduler.cancelled():
            self._let_go(gone)
        could_start = min(len(self.scheduler.waiting), self.slots - len(self.scheduler.running))
        plan = self.scheduler.schedule()
        self._start(plan.newcomers, could_start)
        assert self.memory[: len(plan.rows)] == plan.rows
        ending = [row for row in plan.rows if data.draw(st.booleans())]
        due = self.scheduler.commit(plan, frames(plan, ending))
        assert {id(row) for row in ending} <= {id(row) for row in due}
        for row in due:
            row.take_pending()
            row.chunks_sent += 1
            if row.finish_reason:
                self._let_go(row)

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
