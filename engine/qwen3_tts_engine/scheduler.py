"""Who prefills, who decodes, whose chunk is due: bookkeeping over sequences, without tensors or a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_engine.chunking import due_frames, longest_chunk, within
from qwen3_tts_engine.profile import Profile
from qwen3_tts_engine.sequence import Sequence


@dataclass(frozen=True)
class Plan:
    """One step's work: slots 0 … n-1 speak on, the newcomers take the slots after them and speak first."""

    running: list[Sequence]
    newcomers: list[Sequence]

    @property
    def rows(self) -> list[Sequence]:
        """Everyone who speaks a frame in this step; a sequence's index is its slot."""
        return [*self.running, *self.newcomers]


@dataclass(frozen=True)
class Move:
    """The last slot's sequence fills the hole another one left, so that the batch has no gaps to compute."""

    source: int
    target: int
    sequence: Sequence


@dataclass(frozen=True)
class Due:
    """A chunk to voice in this step: a sequence's oldest frames; none for an end on a chunk's border."""

    sequence: Sequence
    num_frames: int


class Scheduler:
    """Slots are claimed in `schedule` and released in `release`; nobody else touches them.

    Args:
        slots: sequences that speak at once.
        profile: how a step is divided. A prompt longer than its `prefill_tokens` is read alone: a step holds
            at most one prefill, and one whenever a slot is free.
        eos: the first code that ends an utterance.
    """

    def __init__(self, slots: int, profile: Profile, eos: int) -> None:
        self._slots = slots
        self._profile = profile
        self.eos = eos
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def schedule(self) -> Plan:
        """Everyone running, and as many of those who wait as there are slots and prefill budget for."""
        running = list(self.running)
        newcomers = list(self._claim_slots())
        return Plan(running, newcomers)

    def commit(self, plan: Plan, codes: NDArray[np.int64]) -> None:
        """Give every row its frame, codes [rows, 16]."""
        for sequence, frame in zip(plan.rows, codes, strict=True):
            if frame[0] == self.eos:
                sequence.finish_reason = "stop"
            else:
                sequence.add_frame(frame)

    def due(self, now_s: float) -> list[list[Due]]:
        """The chunks to voice in this step, those of one length together, the most wanted first.

        A listener's first one and everybody's last one always are: somebody waits for the one, a slot for the
        other. What they leave of the step's budget goes to the listeners who run dry first. The budget is
        never less than what a step speaks, or what waits to be voiced would grow without end.
        """
        first = [s for s in self.running if s.sink.is_live and not s.chunks_sent]
        last = [s for s in self.running if s.finish_reason and s not in first]
        others = [s for s in self.running if not s.finish_reason and s not in first]
        at_once = [Due(s, len(s.pending)) for s in (*first, *last)]
        budget = max(self._profile.codec_frames, len(self.running))
        left = budget - sum(chunk.num_frames for chunk in at_once)
        return _by_length([*at_once, *self._share(left, others, now_s)])

    def cancelled(self) -> list[Sequence]:
        """Those nobody listens to any more."""
        return [s for s in (*self.running, *self.waiting) if s.sink.cancelled]

    def release(self, sequence: Sequence) -> Move | None:
        """Take a sequence out; say which one must move into its slot."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return None
        last = self.running.pop()
        hole, sequence.slot = sequence.slot, -1
        if last is sequence:
            return None
        move = Move(source=last.slot, target=hole, sequence=last)
        self.running[hole] = last
        last.slot = hole
        return move

    def _share(self, budget: int, sequences: list[Sequence], now_s: float) -> list[Due]:
        """Who gets how much of a budget of frames; those who run dry first come first."""
        in_need = sorted(sequences, key=lambda s: s.playback.dry_s)
        granted = within(budget, self._profile.ramp, [self._due_frames(s, now_s) for s in in_need])
        return [Due(s, frames) for s, frames in zip(in_need, granted, strict=True) if frames]

    def _due_frames(self, sequence: Sequence, now_s: float) -> int:
        pending, ramp = len(sequence.pending), self._profile.ramp
        if not sequence.sink.is_live:  # nobody plays a part of it: the longest chunks cost least
            return longest_chunk(ramp[-1:], pending)
        slack_s, pace_s = sequence.playback.slack_s(now_s), sequence.pace_s(now_s)
        return due_frames(pending, sequence.chunks_sent, slack_s, pace_s, self._profile)

    def _claim_slots(self) -> Iterable[Sequence]:
        """In order of arrival; prompts that are read together are padded to the longest of them."""
        longest = 0
        for count in range(1, self._slots - len(self.running) + 1):
            if not self.waiting:
                return
            longest = max(longest, len(self.waiting[0].prompt))
            if count > 1 and count * longest > self._profile.prefill_tokens:
                return
            yield self._claim(self.waiting.popleft())

    def _claim(self, sequence: Sequence) -> Sequence:
        sequence.slot = len(self.running)
        self.running.append(sequence)
        return sequence


def _by_length(chunks: Iterable[Due]) -> list[list[Due]]:
    groups: dict[int, list[Due]] = {}
    for chunk in chunks:
        groups.setdefault(chunk.num_frames, []).append(chunk)
    return list(groups.values())
