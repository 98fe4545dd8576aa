"""Who is well, asked or repaired, and how soon again: decided without a clock of its own."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

PROBE_EVERY_S = 5.0
PROBE_PATIENCE_S = 10.0
STALL_PATIENCE_S = 60.0  # the longest prompt is read on a CPU in less
MISSING_LOOKS = 2  # in a row: a model that is just being loaded or unloaded passes through states
FAILING_LOOKS = 3  # in a row, without a frame between them
MANY_FAILURES = 5  # looks at which something had failed, frames or not
LONGEST_PAUSE_S = 60.0
CALM_S = 600.0  # without a failure, after which earlier ones are forgotten


class Reason(str, Enum):
    """Why something had to be repaired."""

    DIED = "died"
    SILENT = "silent"  # a canary was not answered
    STUCK = "stuck"  # somebody is being spoken to, and no frame comes
    FAILING = "failing"  # the engine fails, and no frame is spoken


class Look(Enum):
    """What a look at a model that seems well may still ask for."""

    WELL = "well"
    PROBE = "probe"


@dataclass(frozen=True)
class Signs:
    """What there is to see of a model. Without slots it does not speak, and only its processes are known.

    Args:
        num_missing: processes that should be there and are not.
        slots: how many utterances it can speak at once.
        active: those being spoken.
        waiting: those in the model without a slot.
        frames: spoken since it was loaded.
        failed: how often its engine has failed.
    """

    num_missing: int = 0
    slots: float = 0
    active: float = 0
    waiting: float = 0
    frames: float = 0
    failed: float = 0

    @property
    def is_busy(self) -> bool:
        return self.active + self.waiting > 0

    @property
    def is_full(self) -> bool:
        return self.active + self.waiting >= self.slots


class Watch:
    """Judges one model by what every look shows.

    A model that speaks is well while its frames advance. When they do not, it is asked: a canary that nobody
    answers is silence. A full model takes no canary, because `execute` blocks; it is stuck when it is still
    for long.
    """

    def __init__(self) -> None:
        self._missing_looks = 0
        self._failing_looks = 0
        self._failures_s: deque[float] = deque(maxlen=MANY_FAILURES)
        self._frames = -1.0
        self._failed = 0.0
        self._still_since_s = 0.0
        self._probed_s: float | None = None  # when the canary that is out was sent
        self._next_probe_s = 0.0

    def look(self, now_s: float, signs: Signs) -> Look | Reason:
        """A reason means that the model is to be repaired, and this watch over."""
        self._missing_looks = self._missing_looks + 1 if signs.num_missing else 0
        if self._missing_looks >= MISSING_LOOKS:
            return Reason.DIED
        if self._missing_looks or not signs.slots:  # no canary for the dead: its unload would never end
            return Look.WELL
        self._note_failures(now_s, signs)
        if self._has_moved(now_s, signs):
            return Look.WELL
        return self._fails(signs) or self._is_stuck(now_s, signs) or self._probe(now_s, signs)

    def answered(self) -> None:
        """The canary came back."""
        self._probed_s = None

    def _has_moved(self, now_s: float, signs: Signs) -> bool:
        if signs.frames == self._frames:
            return False
        self._frames = signs.frames
        self._failing_looks = 0
        self._still_since_s = now_s
        self._probed_s = None
        return True

    def _note_failures(self, now_s: float, signs: Signs) -> None:
        if signs.failed > self._failed:
            self._failing_looks += 1
            self._failures_s.append(now_s)
        self._failed = signs.failed

    def _fails(self, signs: Signs) -> Reason | None:
        """One step that raises fails everybody in it, once; a model that cannot speak fails on and on.

        One that fails only some, as after memory ran out, can wait until it speaks to nobody.
        """
        is_often = (
            len(self._failures_s) == MANY_FAILURES and self._failures_s[-1] - self._failures_s[0] < CALM_S
        )
        is_failing = self._failing_looks >= FAILING_LOOKS or (is_often and not signs.is_busy)
        return Reason.FAILING if is_failing else None

    def _is_stuck(self, now_s: float, signs: Signs) -> Reason | None:
        if not signs.is_busy:
            self._still_since_s = now_s
        return Reason.STUCK if now_s - self._still_since_s > STALL_PATIENCE_S else None

    def _probe(self, now_s: float, signs: Signs) -> Look | Reason:
        probed_s = self._probed_s  # the canary's own thread may take it back
        if signs.is_full:
            self._probed_s = None
        elif probed_s is not None:
            return Reason.SILENT if now_s - probed_s > PROBE_PATIENCE_S else Look.WELL
        elif now_s >= self._next_probe_s:
            self._probed_s = now_s
            self._next_probe_s = now_s + PROBE_EVERY_S
            return Look.PROBE
        return Look.WELL


class BackOff:
    """How long to wait before the next try: not at all, then 1, 2, 4 s and so on; a calm forgets."""

    def __init__(self) -> None:
        self._num_failures = 0
        self._last_s = 0.0

    def pause_s(self, now_s: float) -> float:
        """Something has failed now."""
        if now_s - self._last_s > CALM_S:
            self._num_failures = 0
        self._last_s = now_s
        self._num_failures += 1
        return min(LONGEST_PAUSE_S, 2.0 ** (self._num_failures - 2)) if self._num_failures > 1 else 0.0
