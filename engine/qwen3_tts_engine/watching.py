"""Until somebody asks for the end: what is to run is looked after."""

from __future__ import annotations

import signal
import time
from typing import Protocol

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """From its making on, the first signal asks for a drain and any further one interrupts."""

    def __init__(self) -> None:
        self.made = False
        for name in STOP_SIGNALS:
            signal.signal(name, self._take)

    def _take(self, *_: object) -> None:
        if self.made:
            raise KeyboardInterrupt
        self.made = True


class Watched(Protocol):
    """What is kept running until a stop is asked for."""

    def look(self) -> None:
        """See that it is well, and do something where it is not; raises LaunchError when nothing helps."""


def watch_until(stop: StopRequest, *watched: Watched) -> None:
    while not stop.made:
        for one in watched:
            one.look()
        time.sleep(0.1)
