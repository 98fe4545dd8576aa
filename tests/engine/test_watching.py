"""Whoever looks after things is live while they look, and the page says so to probes."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import httpx
import pytest

from qwen3_tts_engine.launch.ports import free_ports
from qwen3_tts_engine.launch.repairs import Repairs, page_of
from qwen3_tts_engine.launch.watching import LONGEST_LOOK_S, STOP_SIGNALS, Pulse, StopRequest, watch_until


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pulse(clock: Clock) -> Pulse:
    return Pulse(clock)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {name: signal.getsignal(name) for name in STOP_SIGNALS}
    yield StopRequest()
    for name, handler in before.items():
        signal.signal(name, handler)


class Sleeper:
    """Its looks take as long as they are told to; after the last it asks for the stop."""

    def __init__(self, clock: Clock, pulse: Pulse, stop: StopRequest, *looks_s: float) -> None:
        self._clock = clock
        self._pulse = pulse
        self._stop = stop
        self._looks_s = list(looks_s)
        self.was_live: list[bool] = []

    def look(self) -> None:
        self._clock.now_s += self._looks_s.pop(0)
        self.was_live.append(self._pulse.is_live())
        self._stop.made = not self._looks_s


def test_a_start_is_live_however_long_it_takes(clock: Clock, pulse: Pulse) -> None:
    clock.now_s += 1800
    assert pulse.is_live()


def test_one_who_has_not_looked_for_a_minute_is_live_no_more(clock: Clock, pulse: Pulse) -> None:
    pulse.beat()
    clock.now_s += LONGEST_LOOK_S
    assert pulse.is_live()
    clock.now_s += 1
    assert not pulse.is_live()


def test_a_look_from_which_nobody_comes_back_ends_the_life(
    clock: Clock, pulse: Pulse, stop: StopRequest
) -> None:
    sleeper = Sleeper(clock, pulse, stop, 1, LONGEST_LOOK_S, LONGEST_LOOK_S + 1, 1)
    watch_until(stop, pulse, sleeper)
    assert sleeper.was_live == [True, True, False, True]


def test_a_drain_is_live_however_long_it_takes(clock: Clock, pulse: Pulse, stop: StopRequest) -> None:
    watch_until(stop, pulse, Sleeper(clock, pulse, stop, 1))
    clock.now_s += 660
    assert pulse.is_live()


def test_probes_hear_of_life_and_of_repairs_each_for_itself(clock: Clock, pulse: Pulse) -> None:
    repairs, [port] = Repairs(), free_ports(1)

    def statuses() -> tuple[int, int]:
        live, health = (httpx.get(f"http://127.0.0.1:{port}/{page}") for page in ("live", "health"))
        return live.status_code, health.status_code

    with page_of(repairs, "127.0.0.1", port, pulse):
        assert statuses() == (200, 200)
        pulse.beat()
        repairs.begin("tritonserver", "died")
        assert statuses() == (200, 503)
        repairs.end("tritonserver")
        clock.now_s += LONGEST_LOOK_S + 1
        assert statuses() == (503, 200)
