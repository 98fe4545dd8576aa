"""What a span tells of an utterance; without a collector there is nothing of OpenTelemetry."""

import logging
import os
import subprocess
import sys
import threading

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from qwen3_tts_engine.collector import VARIABLE
from qwen3_tts_engine.triton import spans, tracing
from real_server import ROOT

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRITONS_SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{TRITONS_SPAN}-01"
COLLECTOR = {VARIABLE: "http://collector:4318"}
WORDS = "The password is swordfish."
SPOKEN = {"text": [WORDS], "seed": [1], "max_frames": [5]}
# Always the likeliest code, and the likelier for having been spoken.
ENDLESS = {
    "text": [WORDS],
    "do_sample": [False],
    "subtalker_do_sample": [False],
    "repetition_penalty": [0.05],
    "max_frames": [2000],
}


@pytest.fixture
def told(monkeypatch):
    """Where the spans go of a model that is loaded after this."""
    exporter = InMemorySpanExporter()
    monkeypatch.setenv(VARIABLE, COLLECTOR[VARIABLE])
    monkeypatch.setattr(spans, "OTLPSpanExporter", lambda endpoint: exporter)
    return exporter


def spans_of(model, told):
    """A model's spans of whole utterances, once it has let go."""
    model.finalize()
    return [span for span in told.get_finished_spans() if span.name == "speak"]


def stages_of(utterance, told):
    """The spans beneath an utterance's, by name, in the order in which they began."""
    beneath = [
        span
        for span in told.get_finished_spans()
        if span.parent and span.parent.span_id == utterance.context.span_id
    ]
    return {span.name: span for span in sorted(beneath, key=lambda span: span.start_time)}


def ask(model, **inputs):
    call = model.call(traceparent=TRACEPARENT, **inputs)
    model.execute(call)
    return call


def test_a_span_tells_how_an_utterance_went_beneath_tritons(told, load_model):
    model = load_model()
    chunks = ask(model, **SPOKEN).chunks
    [span] = spans_of(model, told)
    assert span.name == "speak"
    assert span.resource.attributes["service.name"] == "qwen3-tts-engine"
    assert (span.context.trace_id, span.parent.span_id) == (int(TRACE, 16), int(TRITONS_SPAN, 16))
    attributes = dict(span.attributes)
    assert attributes.pop("qwen3_tts.slot_wait_s") >= 0
    assert attributes == {
        "qwen3_tts.model": "qwen3_tts_custom_voice",
        "qwen3_tts.frames": 5,
        "qwen3_tts.chunks": len(chunks),
        "qwen3_tts.finish_reason": "length",
    }
    assert span.status.status_code is StatusCode.UNSET


def test_its_stages_follow_each_other_from_its_arrival_to_its_end(told, load_model):
    model = load_model()
    ask(model, **SPOKEN).sender.wait_until_final()
    [span] = spans_of(model, told)
    stages = stages_of(span, told)
    assert [*stages] == ["wait", "prefill", "decode"]
    wait, prefill, decode = stages.values()
    assert (wait.start_time, decode.end_time) == (span.start_time, span.end_time)
    assert (wait.end_time, prefill.end_time) == (prefill.start_time, decode.start_time)
    assert all(stage.start_time <= stage.end_time for stage in stages.values())


def test_who_waits_for_a_slot_is_seen_to_have_waited(told, load_model):
    model = load_model(slots="1")
    left = threading.Event()
    first = model.call(traceparent=TRACEPARENT, is_cancelled=left.is_set, **ENDLESS)
    model.execute(first)
    first.sender.wait_for(1)
    second = ask(model, **SPOKEN)
    left.set()
    second.sender.wait_until_final()
    speaking, waiting = spans_of(model, told)
    first_wait, second_wait = (stages_of(span, told)["wait"] for span in (speaking, waiting))
    assert second_wait.end_time > first_wait.end_time
    assert second_wait.end_time - second_wait.start_time == pytest.approx(
        waiting.attributes["qwen3_tts.slot_wait_s"] * 1e9, abs=1e5
    )


def test_every_row_is_an_utterance(told, load_model):
    model = load_model()
    rows = {name: values * 2 for name, values in ENDLESS.items()} | {"max_frames": [3, 4]}
    ask(model, **rows).sender.wait_until_final()
    sent = spans_of(model, told)
    assert sorted(span.attributes["qwen3_tts.frames"] for span in sent) == [3, 4]


def test_a_caller_who_leaves_is_no_fault(told, load_model):
    model = load_model()
    left = threading.Event()
    call = model.call(traceparent=TRACEPARENT, is_cancelled=left.is_set, **ENDLESS)
    model.execute(call)
    call.sender.wait_for(1)
    left.set()
    call.sender.wait_until_final()
    [span] = spans_of(model, told)
    assert span.attributes["error.type"] == "cancelled"
    assert "qwen3_tts.finish_reason" not in span.attributes
    assert span.status.status_code is StatusCode.UNSET


def test_a_step_that_fails_is(told, load_model, monkeypatch):
    model = load_model()

    def breaks(plan):
        raise RuntimeError("out of plankton")

    monkeypatch.setattr(model.model.engine.runner, "speak", breaks)
    ask(model, **SPOKEN).sender.wait_until_final()
    [span] = spans_of(model, told)
    assert span.attributes["error.type"] == "failed"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "the engine failed: out of plankton"
    assert [*stages_of(span, told)] == ["wait", "prefill"]


def test_who_never_got_in_is_told_of_too(told, load_model):
    model = load_model()
    model.model.engine.close()
    ask(model, **SPOKEN).sender.wait_until_final()
    [span] = spans_of(model, told)
    assert span.attributes["error.type"] == "overloaded"
    assert "qwen3_tts.slot_wait_s" not in span.attributes
    assert [*stages_of(span, told)] == ["wait"]


def test_no_span_holds_what_was_said(told, load_model):
    model = load_model()
    ask(model, **SPOKEN, speaker=["vivian"]).sender.wait_until_final()
    [span] = spans_of(model, told)
    assert "swordfish" not in span.to_json()
    assert "vivian" not in span.to_json()


def test_a_request_that_is_not_traced_has_no_span(told, load_model):
    model = load_model()
    model.ask(**SPOKEN).sender.wait_until_final()
    assert spans_of(model, told) == []


def test_without_the_packages_it_speaks_and_says_so_once(told, load_model, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "qwen3_tts_engine.triton.spans", None)  # its import fails
    model = load_model()
    for _ in range(2):
        assert ask(model, **SPOKEN).chunks
    said = [record for record in caplog.records if record.name == tracing.__name__]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert "install the extra `tracing`" in said[0].getMessage()
    assert spans_of(model, told) == []


@pytest.mark.parametrize("environment", [{}, COLLECTOR])
def test_opentelemetry_is_imported_for_a_collector_alone(environment):
    program = (
        "import os, sys, python_backend;"
        "import qwen3_tts_engine.triton.base;"  # the model with the most imports
        "from qwen3_tts_engine.triton.tracing import begin_tracing;"
        "begin_tracing('a model', os.environ).close();"
        "print(any(name.split('.')[0] == 'opentelemetry' for name in sys.modules))"
    )
    clean = {name: value for name, value in os.environ.items() if name != VARIABLE}
    path = {"PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**clean, **path, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(bool(environment))
