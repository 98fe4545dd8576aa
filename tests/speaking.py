"""Speaking with an engine by hand, step by step, and keeping everything it said."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from qwen3_tts_engine.engine import Engine
from qwen3_tts_engine.errors import SpeechError
from qwen3_tts_engine.request import SpeechRequest
from qwen3_tts_engine.scheduler import Plan
from qwen3_tts_engine.sequence import Chunk


class Listener:
    """A sink that remembers. `leave()` is what a caller does who has heard enough."""

    is_live = True

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []
        self.frames: list[NDArray[np.int64]] = []
        self.error: SpeechError | None = None
        self.times_closed = 0
        self.cancelled = False

    def write(self, chunk: Chunk) -> None:
        assert not self.times_closed, "a chunk after the end"
        self.chunks.append(chunk)

    def close(self, error: SpeechError | None = None) -> None:
        self.error = error
        self.times_closed += 1

    def leave(self) -> None:
        self.cancelled = True

    @property
    def samples(self) -> NDArray[np.float32]:
        return np.concatenate([chunk.samples for chunk in self.chunks])

    @property
    def codes(self) -> NDArray[np.int64]:
        """[frames, 16]"""
        return np.stack(self.frames)

    @property
    def finish_reason(self) -> str | None:
        return self.chunks[-1].finish_reason


class Speaker:
    """An engine that nobody started: time passes one `step` at a time."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._overhear(engine)

    def say(self, request: SpeechRequest) -> Listener:
        return self.say_all([request])[0]

    def say_all(
        self, requests: Iterable[SpeechRequest], arrive: Callable[[int], int] | None = None
    ) -> list[Listener]:
        """Speak them all; request i comes at step `arrive(i)`, or as soon as there is room."""
        listeners: list[Listener] = []
        todo = list(enumerate(requests))
        step = 0
        while todo or not self.engine.is_idle:
            while todo and self.has_room and (arrive is None or arrive(todo[0][0]) <= step):
                listeners.append(self.submit(todo.pop(0)[1]))
            self.engine.step()
            step += 1
        return listeners

    def submit(self, request: SpeechRequest) -> Listener:
        listener = Listener()
        sequence = self.engine.prepare(request, listener)
        self.engine.expect(1)
        self.engine.submit(sequence)
        return listener

    def finish(self) -> None:
        while not self.engine.is_idle:
            self.engine.step()

    @property
    def has_room(self) -> bool:
        inside = self.engine.num_inside
        return inside < self.engine.slots + self.engine.config.waiting_room

    @staticmethod
    def _overhear(engine: Engine) -> None:
        """Note the frames, which a sink never sees."""
        commit = engine.scheduler.commit

        def noting_commit(plan: Plan, codes: NDArray[np.int64]) -> None:
            for sequence, frame in zip(plan.rows, codes, strict=True):
                if frame[0] != engine.scheduler.eos and isinstance(sequence.sink, Listener):
                    sequence.sink.frames.append(frame)
            commit(plan, codes)

        engine.scheduler.commit = noting_commit  # type: ignore[method-assign]
