"""What the supervisor makes of what it sees: who is well, asked or repaired, how soon; what comes back."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from qwen3_tts_engine.launch.judging import (
    CALM_S,
    FAILING_LOOKS,
    LONGEST_PAUSE_S,
    MANY_FAILURES,
    PROBE_EVERY_S,
    PROBE_PATIENCE_S,
    STALL_PATIENCE_S,
    BackOff,
    Look,
    Reason,
    Signs,
    Watch,
)
from qwen3_tts_engine.launch.repairs import Repairs
from qwen3_tts_engine.launch.supervisor import MOST_START_FAILURES, Supervisor
from qwen3_tts_engine.launch.triton_http import speech_series
from qwen3_tts_engine.launch.tritonserver import LaunchError
from qwen3_tts_engine.processes import num_instances

IDLE = Signs(slots=16)
BUSY = replace(IDLE, active=3)
FULL = replace(IDLE, active=16, waiting=2)


def looks(watch: Watch, signs: Signs, num_seconds: float, start_s: float = 0) -> list[Look | Reason]:
    """What looks at the same signs say, once a second, up to the first reason."""
    said: list[Look | Reason] = []
    for second in range(int(num_seconds)):
        said.append(watch.look(start_s + second, signs))
        if isinstance(said[-1], Reason):
            break
    return said


def test_a_model_whose_process_is_gone_has_died() -> None:
    watch = Watch()
    assert looks(watch, Signs(num_missing=1), 9) == [Look.WELL, Reason.DIED]


def test_a_model_whose_process_may_be_gone_is_not_asked() -> None:
    assert looks(Watch(), Signs(num_missing=1, slots=16), 9) == [Look.WELL, Reason.DIED]


def test_one_look_at_a_model_that_is_being_loaded_says_nothing() -> None:
    watch = Watch()
    for now in range(10):
        assert watch.look(2 * now, Signs(num_missing=1)) is Look.WELL
        assert watch.look(2 * now + 1, Signs()) is Look.WELL


def test_a_model_that_does_not_speak_is_never_asked() -> None:
    assert set(looks(Watch(), Signs(), 1000)) == {Look.WELL}


def test_a_model_whose_frames_advance_is_well_and_not_asked() -> None:
    watch = Watch()
    assert {watch.look(now, replace(BUSY, frames=now)) for now in range(1000)} == {Look.WELL}
    assert {watch.look(now, replace(FULL, frames=now)) for now in range(1000, 2000)} == {Look.WELL}


def test_an_idle_model_is_asked_now_and_then() -> None:
    watch = Watch()
    asked = []
    for now in range(61):
        if watch.look(now, IDLE) is Look.PROBE:
            asked.append(now)
            watch.answered()
    assert asked == list(range(1, 61, int(PROBE_EVERY_S)))


@pytest.mark.parametrize("signs", [IDLE, BUSY], ids=["idle", "busy"])
def test_a_canary_that_nobody_answers_is_silence(signs: Signs) -> None:
    said = looks(Watch(), signs, 100)
    assert said[-1] is Reason.SILENT
    assert said.count(Look.PROBE) == 1
    assert PROBE_PATIENCE_S < len(said) <= PROBE_PATIENCE_S + 4


def test_a_frame_answers_for_the_canary() -> None:
    watch = Watch()
    looks(watch, BUSY, PROBE_PATIENCE_S)
    assert watch.look(PROBE_PATIENCE_S, replace(BUSY, frames=1)) is Look.WELL
    assert watch.look(PROBE_PATIENCE_S + 1, replace(BUSY, frames=1)) is Look.PROBE


def test_a_full_model_takes_no_canary_and_is_stuck_only_when_it_is_still_for_long() -> None:
    said = looks(Watch(), FULL, 1000)
    assert said[-1] is Reason.STUCK
    assert set(said[:-1]) == {Look.WELL}
    assert len(said) > STALL_PATIENCE_S


def test_a_model_that_answers_and_yet_speaks_no_frame_to_those_it_speaks_to_is_stuck() -> None:
    watch = Watch()
    for now in range(int(STALL_PATIENCE_S) + 10):
        if (verdict := watch.look(now, BUSY)) is Look.PROBE:
            watch.answered()
    assert verdict is Reason.STUCK


def test_a_rest_is_no_stall() -> None:
    watch = Watch()
    for now in range(1000):
        if watch.look(now, IDLE) is Look.PROBE:
            watch.answered()
    assert not isinstance(watch.look(1001, BUSY), Reason)


def test_one_step_that_raises_is_no_reason_to_repair() -> None:
    watch = Watch()
    watch.look(0, BUSY)
    for now in range(1, 1000):
        if (verdict := watch.look(now, replace(IDLE, failed=16))) is Look.PROBE:
            watch.answered()
        assert not isinstance(verdict, Reason)


def test_a_model_that_fails_look_after_look_is_failing() -> None:
    watch = Watch()
    watch.look(0, IDLE)
    said = [watch.look(now, replace(IDLE, failed=now)) for now in range(1, FAILING_LOOKS + 1)]
    assert said[-1] is Reason.FAILING
    assert Reason.FAILING not in said[:-1]


def test_a_model_that_often_fails_somebody_is_failing_once_it_speaks_to_nobody() -> None:
    watch = Watch()
    for now in range(MANY_FAILURES):
        assert watch.look(now, replace(BUSY, failed=1 + now, frames=now)) is Look.WELL
    after = replace(IDLE, failed=MANY_FAILURES, frames=MANY_FAILURES)
    assert looks(watch, after, 3, start_s=MANY_FAILURES) == [Look.WELL, Reason.FAILING]


def test_rare_failures_are_forgotten() -> None:
    watch = Watch()
    for i in range(100):
        assert not isinstance(watch.look(i * CALM_S / 2, replace(IDLE, failed=i, frames=i)), Reason)
        assert not isinstance(watch.look(i * CALM_S / 2 + 1, replace(IDLE, failed=i, frames=i)), Reason)
        watch.answered()


def test_failures_between_frames_break_off_nobodys_speech() -> None:
    watch = Watch()
    for now in range(1000):
        verdict = watch.look(now, replace(BUSY, failed=now, frames=now // 2))
        assert not isinstance(verdict, Reason)


def test_the_first_try_comes_at_once_and_each_further_one_later() -> None:
    back_off = BackOff()
    assert [back_off.pause_s(now) for now in range(10)] == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert LONGEST_PAUSE_S == 60


def test_calm_forgets_what_failed_before() -> None:
    back_off = BackOff()
    for now in range(10):
        back_off.pause_s(now)
    assert back_off.pause_s(10 + CALM_S) == 0


def test_only_models_that_speak_are_read_from_the_page_and_failures_of_the_engine_alone() -> None:
    page = """\
# TYPE qwen3_tts_slots gauge
qwen3_tts_slots{model="a",version="1"} 16.000000
qwen3_tts_engine_failures_total{model="a",version="1"} 2
qwen3_tts_requests_total{model="a",outcome="failed",version="1"} 9
qwen3_tts_active_slots{model="b",version="1"} 1
nv_inference_count{model="c",version="1"} 5
"""
    assert speech_series(page) == {"a": {"slots": 16, "failed": 2}, "b": {"active": 1}}


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([{"count": 1, "gpus": []}], 1),
        ([{"count": 2, "gpus": [0, 1, 3]}], 6),
        ([{"count": 1}, {"count": 3}], 4),
    ],
)
def test_every_instance_is_a_process(groups: list[dict[str, object]], expected: int) -> None:
    assert num_instances({"backend": "python", "instance_group": groups}) == expected
    assert num_instances({"backend": "onnxruntime", "instance_group": groups}) == 0
    assert num_instances({"platform": "ensemble"}) == 0


class Tritonserver:
    """One by hand, with the models a and b loaded; a start leaves it empty. It is its own Triton, too.

    Args:
        killing: how many more times loading this model kills the server.
        refused: models that cannot be loaded.
    """

    pid = -1  # nobody's

    def __init__(self, *refused: str, **killing: int) -> None:
        self.refused = refused
        self.killing = Counter(killing)
        self.loaded: dict[str, Any] = {"a": {"parameters": "of its own"}, "b": {}}
        self.exit_status: int | None = None
        self.num_starts = 0

    def die(self) -> None:
        self.exit_status = -9

    stop_at_once = die

    def start_again(self) -> None:
        self.exit_status, self.loaded = None, {}
        self.num_starts += 1

    def status(self) -> int | None:
        return self.exit_status

    def is_ready(self) -> bool:
        return self.exit_status is None

    def has_started(self) -> None: ...

    def bound_log(self) -> None: ...

    def failure(self, what: str) -> Exception:
        return LaunchError(what)

    def ready_models(self) -> list[str]:
        return list(self.loaded)

    def config(self, model: str) -> dict[str, Any]:
        return self.loaded[model]

    def load(self, model: str, config: dict[str, Any]) -> None:
        if model in self.refused:
            raise OSError(f"{model}: 400 no plankton left")
        if self.killing[model]:
            self.killing[model] -= 1
            self.die()
            raise ConnectionResetError("connection reset by peer")
        self.loaded[model] = config


class Supervised:
    """A server with somebody who looks after it, on a clock that goes on by a second whenever it is read."""

    def __init__(self, server: Tritonserver) -> None:
        self.server = server
        self.said: list[str] = []
        self._supervisor = Supervisor(
            server, server, 60, Repairs(), False, self.said.append, clock=itertools.count().__next__
        )

    def look(self, num_looks: int = 10) -> None:
        for _ in range(num_looks):
            self._supervisor.look()

    def look_until_it_serves_again(self) -> None:
        self.said.clear()
        for _ in range(1000):
            self.look(1)
            if any("serves again" in line for line in self.said):
                return
            time.sleep(0.001)  # models are loaded on a thread of their own
        raise AssertionError(self.said)


def test_what_was_loaded_is_loaded_as_it_was_after_the_server_has_died() -> None:
    supervised, server = seen(Tritonserver())
    before = server.loaded
    server.die()
    supervised.look_until_it_serves_again()
    assert server.loaded == before


def test_a_server_that_dies_of_loading_what_it_had_is_started_again_and_loads_all_of_it() -> None:
    supervised, server = seen(Tritonserver(a=2))
    before = server.loaded
    server.die()
    supervised.look_until_it_serves_again()
    assert server.loaded == before
    assert server.num_starts == 3
    assert "tritonserver ended with status -9 while a was loaded again" in supervised.said


def test_a_server_that_always_dies_of_loading_what_it_had_is_given_up() -> None:
    supervised, server = seen(Tritonserver(b=1000))
    server.die()
    with pytest.raises(LaunchError, match=f"could not be started {MOST_START_FAILURES} times in a row"):
        supervised.look_until_it_serves_again()
    assert server.num_starts == MOST_START_FAILURES


def test_a_model_that_cannot_be_loaded_again_is_named_and_keeps_no_other_from_it() -> None:
    supervised, server = seen(Tritonserver("a"))
    server.die()
    supervised.look_until_it_serves_again()
    assert list(server.loaded) == ["b"]
    assert supervised.said[-3:-1] == ["error: a: 400 no plankton left", "a could not be loaded again"]


def test_a_server_that_dies_again_before_anybody_has_looked_still_gets_back_what_it_had() -> None:
    supervised, server = seen(Tritonserver())
    before = server.loaded
    for _ in range(2):
        server.die()
        supervised.look_until_it_serves_again()
    assert server.loaded == before


def test_a_model_that_was_unloaded_before_the_server_died_stays_so() -> None:
    supervised, server = seen(Tritonserver())
    del server.loaded["a"]
    supervised.look()
    server.die()
    supervised.look_until_it_serves_again()
    assert list(server.loaded) == ["b"]


def seen(server: Tritonserver) -> tuple[Supervised, Tritonserver]:
    """With somebody who looks after it, and knows what it has."""
    supervised = Supervised(server)
    supervised.look()
    return supervised, server
