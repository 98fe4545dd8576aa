"""What the engine counts: the names a dashboard relies on, and what an utterance adds to each."""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest

from qwen3_tts_engine import metrics as families
from qwen3_tts_engine.config import EngineConfig
from qwen3_tts_engine.engine import Engine, choose_device
from qwen3_tts_engine.errors import Cancelled, Overloaded
from qwen3_tts_engine.metrics import FAMILIES, NoMetrics
from qwen3_tts_engine.model.checkpoint import Checkpoint
from qwen3_tts_engine.request import SpeechRequest
from speaking import Listener

PUBLISHED = {
    "qwen3_tts_requests_total": (
        "counter",
        "outcome",
        {"ok", "invalid", "overloaded", "cancelled", "failed"},
    ),
    "qwen3_tts_engine_failures_total": ("counter", "", set()),
    "qwen3_tts_finish_total": ("counter", "reason", {"stop", "length", "runaway"}),
    "qwen3_tts_active_slots": ("gauge", "", set()),
    "qwen3_tts_slots": ("gauge", "", set()),
    "qwen3_tts_waiting_requests": ("gauge", "", set()),
    "qwen3_tts_frames_total": ("counter", "", set()),
    "qwen3_tts_audio_seconds_total": ("counter", "", set()),
    "qwen3_tts_underruns_total": ("counter", "", set()),
    "qwen3_tts_time_to_first_audio_seconds": ("histogram", "", set()),
    "qwen3_tts_real_time_factor": ("histogram", "", set()),
    "qwen3_tts_step_seconds": ("histogram", "", set()),
}
HISTOGRAMS = [family for family in FAMILIES if family.kind == "histogram"]
HELLO = SpeechRequest("Hello.", seed=1, max_frames=20)


class Recorder:
    """Metrics that a test can read."""

    def __init__(self):
        self.totals = Counter()
        self.values = defaultdict(list)

    def add(self, family, amount=1, label=""):
        self.totals[family.name, label] += amount

    def observe(self, family, value):
        self.values[family.name].append(value)

    def total(self, family, label=""):
        return self.totals[family.name, label]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def clock():
    return Clock()


@pytest.fixture(scope="module")
def quiet_engine(tiny_checkpoints, clock):
    path = tiny_checkpoints / "custom_voice"
    config = EngineConfig(str(path), slots=2, waiting_room=1)
    return Engine(config, Checkpoint(path), choose_device("cpu"), clock)


@pytest.fixture
def counted(quiet_engine):
    quiet_engine.metrics = Recorder()
    yield quiet_engine.metrics
    quiet_engine.metrics = NoMetrics()


def submit(engine, request=HELLO, is_live=True):
    listener = Listener()
    listener.is_live = is_live
    engine.expect(1)
    engine.submit(engine.prepare(request, listener))
    return listener


def finish(engine):
    while not engine.is_idle:
        engine.step()


def test_every_published_family_is_there_and_no_other():
    assert {f.name: (f.kind, f.label, set(f.label_values)) for f in FAMILIES} == PUBLISHED


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_follow_the_prometheus_conventions(family):
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert family.description
    assert bool(family.buckets) == (family.kind == "histogram")


@pytest.mark.parametrize("family", HISTOGRAMS, ids=lambda family: family.name)
def test_buckets_rise(family):
    assert all(low < high for low, high in pairwise(family.buckets))


def test_nobody_has_to_count():
    nobody = NoMetrics()
    nobody.add(families.FRAMES, 3)
    nobody.observe(families.STEP, 0.1)


def test_an_utterance_is_counted_in_frames_seconds_and_by_how_it_ended(quiet_engine, counted):
    listener = submit(quiet_engine)
    finish(quiet_engine)
    [frames] = {chunk.num_frames for chunk in listener.chunks[-1:]}
    assert counted.total(families.FRAMES) == frames
    assert counted.total(families.AUDIO_SECONDS) == pytest.approx(frames * 0.08)
    assert counted.total(families.AUDIO_SECONDS) == pytest.approx(len(listener.samples) / 24_000)
    assert counted.total(families.FINISHES, listener.finish_reason) == 1


def test_the_end_of_an_utterance_is_no_frame(quiet_engine, counted):
    ended = [SpeechRequest("Hello.", seed=seed, max_frames=500) for seed in range(3)]
    listeners = [submit(quiet_engine, request) for request in ended]
    finish(quiet_engine)
    assert counted.total(families.FINISHES, "stop") == 3
    assert counted.total(families.FRAMES) == sum(listener.chunks[-1].num_frames for listener in listeners)


def test_gauges_follow_an_utterance_from_the_door_to_its_end(quiet_engine, counted):
    def gauges():
        return counted.total(families.WAITING), counted.total(families.ACTIVE_SLOTS)

    for _ in range(3):
        submit(quiet_engine)
    assert gauges() == (3, 0)
    quiet_engine.step()
    assert gauges() == (1, 2)
    finish(quiet_engine)
    assert gauges() == (0, 0)


@pytest.mark.parametrize("steps", [0, 3])
def test_gauges_forget_who_leaves_wherever_they_were(quiet_engine, counted, steps):
    listeners = [submit(quiet_engine) for _ in range(3)]
    for _ in range(steps):
        quiet_engine.step()
    for listener in listeners:
        listener.leave()
    finish(quiet_engine)
    assert [type(listener.error) for listener in listeners] == [Cancelled] * 3
    assert counted.total(families.WAITING) == counted.total(families.ACTIVE_SLOTS) == 0
    assert not any(counted.total(families.FINISHES, reason) for reason in families.FINISH_REASONS)


def test_who_is_turned_away_at_the_door_does_not_wait(tiny_checkpoints):
    path = tiny_checkpoints / "custom_voice"
    engine = Engine(EngineConfig(str(path)), Checkpoint(path), choose_device("cpu"))
    engine.metrics = Recorder()
    engine.close()
    with pytest.raises(Overloaded):
        submit(engine)
    assert engine.metrics.total(families.WAITING) == 0


def test_time_to_first_audio_starts_at_the_door_and_is_taken_once(quiet_engine, counted, clock):
    clock.now = 100.0
    submit(quiet_engine)
    clock.now = 100.25
    quiet_engine.step()
    clock.now = 107.0
    finish(quiet_engine)
    assert counted.values[families.FIRST_AUDIO.name] == [0.25]


def test_the_real_time_factor_is_the_wait_for_the_last_chunk_per_second_spoken(quiet_engine, counted, clock):
    clock.now = 100.0
    listener = submit(quiet_engine)
    quiet_engine.step()
    clock.now = 104.0
    finish(quiet_engine)
    spoken_s = len(listener.samples) / 24_000
    assert counted.values[families.REAL_TIME_FACTOR.name] == [pytest.approx(4.0 / spoken_s)]


def interrupted(engine, clock, **kind):
    """An utterance whose second chunk comes half a second after the first, and the others at once."""
    clock.now = 100.0
    submit(engine, **kind)
    engine.step()
    clock.now = 100.5
    finish(engine)


def test_a_chunk_handed_out_after_its_listener_ran_dry_is_an_underrun(quiet_engine, counted, clock):
    interrupted(quiet_engine, clock)
    assert counted.total(families.UNDERRUNS) == 1


def test_a_chunk_handed_out_in_time_is_none(quiet_engine, counted, clock):
    clock.now = 100.0
    submit(quiet_engine)
    quiet_engine.step()
    clock.now = 100.079
    finish(quiet_engine)
    assert counted.total(families.UNDERRUNS) == 0


def test_the_first_chunk_is_none_however_late_it_is(quiet_engine, counted, clock):
    clock.now = 100.0
    submit(quiet_engine)
    clock.now = 160.0
    finish(quiet_engine)
    assert counted.total(families.UNDERRUNS) == 0


def test_who_wants_the_utterance_whole_does_not_run_dry(quiet_engine, counted, clock):
    interrupted(quiet_engine, clock, is_live=False)
    assert counted.total(families.UNDERRUNS) == 0


def test_an_end_that_brings_no_audio_is_none(quiet_engine, counted, clock):
    sequence = quiet_engine.prepare(HELLO, Listener())
    sequence.chunks_sent, sequence.playback.started_s, sequence.playback.dry_s = 1, 0.0, clock.now - 1.0
    quiet_engine._write(sequence, np.zeros(0, np.float32))
    assert counted.total(families.UNDERRUNS) == 0
