"""Until somebody asks for the end: what is to run is looked after."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Protocol

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_LOOK_S = 60.0


def handle_stop_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Have each of them call this; but where nohup had SIGHUP ignored, it stays so."""
    for name in STOP_SIGNALS:
        if name is not signal.SIGHUP or signal.getsignal(name) is not signal.SIG_IGN:
            signal.signal(name, handler)


class StopRequest:
    """From its making on, the first signal asks for a drain and any further one interrupts."""

    def __init__(self) -> None:
        self.made = False
        handle_stop_signals(self._take)

    def _take(self, *_: object) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True


class Watched(Protocol):
    """What is kept running until a stop is asked for."""

    def look(self) -> None:
        """See that it is well, and do something where it is not; raises LaunchError when nothing helps."""


class Pulse:
    """Of whoever looks after things. The start before and the drain after have time limits of their own."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last_s: float | None = None

    def beat(self) -> None:
        self._last_s = self._clock()

    def rest(self) -> None:
        """Nothing is to be looked after any more."""
        self._last_s = None

    def is_live(self) -> bool:
        last_s = self._last_s  # the looking thread may take it back
        return last_s is None or self._clock() - last_s <= LONGEST_LOOK_S


def watch_until(stop: StopRequest, pulse: Pulse, *watched: Watched) -> None:
    while not stop.made:
        for one in watched:
            pulse.beat()
            one.look()
        time.sleep(0.1)
    pulse.rest()
