"""Whoever looks after things is live while they look, and the page says so to probes; signals end it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from qwen3_tts_engine.launch.config import LaunchConfig
from qwen3_tts_engine.launch.launcher import main
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
def handlers() -> Iterator[None]:
    """Whatever a test does to those of the stop signals is undone after it."""
    before = {name: signal.getsignal(name) for name in STOP_SIGNALS}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def stop(handlers: None) -> StopRequest:
    return StopRequest()


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


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_every_stop_signal_asks_for_the_end(name: signal.Signals, stop: StopRequest) -> None:
    signal.raise_signal(name)
    assert stop.made


@pytest.mark.usefixtures("handlers")
def test_under_nohup_the_end_of_the_terminal_asks_for_nothing() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    stop = StopRequest()
    signal.raise_signal(signal.SIGHUP)
    assert not stop.made
    signal.raise_signal(signal.SIGTERM)
    assert stop.made


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("inherited", "status"), [(signal.SIG_DFL, 130), (signal.SIG_IGN, 0)])
def test_under_nohup_the_end_of_the_terminal_ends_no_start(
    inherited: signal.Handlers, status: int, tmp_path: Path
) -> None:
    def hang_up(config: LaunchConfig) -> int:
        signal.raise_signal(signal.SIGHUP)
        return 0

    signal.signal(signal.SIGHUP, inherited)
    assert main(["--server-dir", str(tmp_path)], serve=hang_up) == status
