"""What an operator reads on /metrics."""

import math
import re
from contextlib import ExitStack

import pytest

from callers import ENDLESS, MODEL, RESTLESS, client_of, infer
from metrics_page import (
    ACTIVE,
    WAITING,
    MetricsWatch,
    metrics_at_rest,
    metrics_text,
    read_metrics,
    wait_for_metrics,
)
from qwen3_tts_engine.launch.server import Server

pytestmark = pytest.mark.triton

TEXT = "Good morning."
FAMILIES = {
    "qwen3_tts_requests_total": "counter",
    "qwen3_tts_engine_failures_total": "counter",
    "qwen3_tts_finish_total": "counter",
    "qwen3_tts_frames_total": "counter",
    "qwen3_tts_audio_seconds_total": "counter",
    "qwen3_tts_underruns_total": "counter",
    "qwen3_tts_active_slots": "gauge",
    "qwen3_tts_slots": "gauge",
    "qwen3_tts_waiting_requests": "gauge",
    "qwen3_tts_time_to_first_audio_seconds": "histogram",
    "qwen3_tts_real_time_factor": "histogram",
    "qwen3_tts_step_seconds": "histogram",
}
HISTOGRAMS = [family for family, kind in FAMILIES.items() if kind == "histogram"]


@pytest.mark.parametrize(("family", "kind"), FAMILIES.items())
def test_every_family_says_what_it_is_and_of_which_model_and_version(
    server: Server, family: str, kind: str
) -> None:
    page = metrics_text(server)
    assert re.search(rf"^# HELP {family} \w+", page, flags=re.MULTILINE)
    assert f"# TYPE {family} {kind}\n" in page
    series = re.findall(rf"^{family}(?:_count|_sum|_bucket)?{{(.*)}} ", page, flags=re.MULTILINE)
    ours = [labels for labels in series if f'model="{MODEL}"' in labels]
    assert ours
    assert all('version="1"' in labels for labels in ours)


@pytest.mark.parametrize(
    ("family", "label", "values"),
    [
        ("qwen3_tts_requests_total", "outcome", ["ok", "invalid", "overloaded", "cancelled", "failed"]),
        ("qwen3_tts_finish_total", "reason", ["stop", "length", "runaway"]),
    ],
)
def test_every_outcome_and_reason_is_there_before_its_first_time(
    server: Server, family: str, label: str, values: list[str]
) -> None:
    page = read_metrics(server)
    assert {f'{family}{{{label}="{value}"}}' for value in values} == {s for s in page if s.startswith(family)}
    assert page['qwen3_tts_requests_total{outcome="failed"}'] == 0


@pytest.mark.parametrize("family", HISTOGRAMS)
def test_a_histogram_has_buckets_that_add_up(server: Server, family: str) -> None:
    list(infer(server, text=TEXT))
    page = metrics_at_rest(server)
    buckets = {
        float(bound): page[f'{family}_bucket{{le="{bound}"}}']
        for bound in re.findall(rf'^{family}_bucket{{le="(.*)"}}$', "\n".join(page), flags=re.MULTILINE)
    }
    counts = [buckets[bound] for bound in sorted(buckets)]
    assert len(buckets) >= 10
    assert counts == sorted(counts)
    assert counts[-1] == buckets[math.inf] == page[f"{family}_count"] > 0
    assert page[f"{family}_sum"] > 0


def test_slots_are_as_many_as_the_model_is_configured_for(server: Server) -> None:
    config = (server.config.model_repository / MODEL / "config.pbtxt").read_text()
    [slots] = re.findall(r'"slots" value { string_value: "(\d+)"', config)
    assert read_metrics(server)["qwen3_tts_slots"] == int(slots)


def test_an_utterance_is_counted_with_its_frames_its_audio_and_its_pace(server: Server) -> None:
    watch = MetricsWatch(server)
    list(infer(server, text=TEXT, **RESTLESS, max_frames=5))
    moved = watch.moved()
    assert {
        'qwen3_tts_requests_total{outcome="ok"}': 1,
        'qwen3_tts_finish_total{reason="length"}': 1,
        "qwen3_tts_frames_total": 5,
        "qwen3_tts_audio_seconds_total": pytest.approx(0.4),
        "qwen3_tts_time_to_first_audio_seconds_count": 1,
        "qwen3_tts_real_time_factor_count": 1,
        "qwen3_tts_step_seconds_count": 5,
    }.items() <= moved.items()
    first_s, step_s, pace = (
        moved[f"qwen3_tts_{name}_sum"]
        for name in ("time_to_first_audio_seconds", "step_seconds", "real_time_factor")
    )
    assert 0 < first_s < pace * 0.4, "the first chunk comes before the last"
    assert step_s > 0


def test_three_rows_are_one_request_and_three_utterances(server: Server) -> None:
    watch = MetricsWatch(server)
    list(infer(server, text=["One.", "Two.", "Three."], **RESTLESS, max_frames=[2, 3, 4]))
    assert {
        'qwen3_tts_requests_total{outcome="ok"}': 1,
        'qwen3_tts_finish_total{reason="length"}': 3,
        "qwen3_tts_frames_total": 9,
        "qwen3_tts_audio_seconds_total": pytest.approx(9 * 0.08),
        "qwen3_tts_time_to_first_audio_seconds_count": 3,
        "qwen3_tts_real_time_factor_count": 3,
    }.items() <= watch.moved().items()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_frames": 8191}, "stop"),
        ({**RESTLESS, "max_frames": 2}, "length"),
        (RESTLESS, "runaway"),
    ],
    ids=["stop", "length", "runaway"],
)
def test_an_end_is_told_and_counted_by_its_reason(
    server: Server, options: dict[str, float], reason: str
) -> None:
    watch = MetricsWatch(server)
    *_, last = infer(server, text=TEXT, **options)
    moved = watch.moved()
    assert last.finish_reason == reason
    assert {s: by for s, by in moved.items() if "finish" in s} == {
        f'qwen3_tts_finish_total{{reason="{reason}"}}': 1
    }
    assert moved["qwen3_tts_frames_total"] == last.num_frames


def test_slots_are_active_for_as_long_as_somebody_is_spoken_to(server: Server) -> None:
    metrics_at_rest(server)
    with client_of(server) as tts, ExitStack() as streams:
        for num_speaking in range(1, 5):
            next(streams.enter_context(tts.stream(TEXT, **ENDLESS)))
            wait_for_metrics(server, {ACTIVE: num_speaking, WAITING: 0})
    wait_for_metrics(server, {ACTIVE: 0, WAITING: 0})
