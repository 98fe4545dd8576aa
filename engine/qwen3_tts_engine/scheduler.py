"""Who prefills, who decodes, whose chunk is due: bookkeeping over sequences, without tensors or a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_engine.chunking import is_due
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


class Scheduler:
    """Slots are claimed in `schedule` and released in `release`; nobody else touches them.

    Args:
        slots: sequences that speak at once.
        prefill_tokens: prompt tokens read between two frames while others are speaking. A single longer
            prompt is read alone: a step holds at most one prefill, and one whenever a slot is free.
        eos: the first code that ends an utterance.
    """

    def __init__(self, slots: int, prefill_tokens: int, eos: int) -> None:
        self._slots = slots
        self._prefill_tokens = prefill_tokens
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

    def commit(self, plan: Plan, codes: NDArray[np.int64]) -> list[Sequence]:
        """Give every row its frame, codes [rows, 16]; return those whose next chunk is due."""
        for sequence, frame in zip(plan.rows, codes, strict=True):
            if frame[0] == self.eos:
                sequence.finish_reason = "stop"
            else:
                sequence.add_frame(frame)
        return [s for s in plan.rows if s.finish_reason or is_due(len(s.pending), s.chunks_sent)]

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

    def _claim_slots(self) -> Iterable[Sequence]:
        """In order of arrival; prompts that are read together are padded to the longest of them."""
        longest = 0
        for count in range(1, self._slots - len(self.running) + 1):
            if not self.waiting:
                return
            longest = max(longest, len(self.waiting[0].prompt))
            if count > 1 and count * longest > self._prefill_tokens:
                return
            yield self._claim(self.waiting.popleft())

    def _claim(self, sequence: Sequence) -> Sequence:
        sequence.slot = len(self.running)
        self.running.append(sequence)
        return sequence
