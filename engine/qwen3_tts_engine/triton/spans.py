"""OpenTelemetry: a span for every utterance, beneath Triton's for the request that asked for it.

Beneath it are one for its wait for a slot, one from there to its first audio, and one for the rest. They are
made when the utterance ends, of the times that were noted by then, so that frames cost nothing, and a thread
of the SDK's own sends them. They hold numbers and reasons, never what is said or by whose voice.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from qwen3_tts_engine.errors import Cancelled, SpeechError
from qwen3_tts_engine.sequence import AudioSink, Chunk, Sequence
from qwen3_tts_engine.triton.errors import outcome

Tell = Callable[[SpeechError | None], None]


class UtteranceSpans:
    """Spans on their way to a collector until this is closed.

    Args:
        model: whose utterances they are.
        url: the collector's.
    """

    def __init__(self, model: str, url: str) -> None:
        self._model = model
        self._provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "qwen3-tts-engine"}))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
        self._tracer = self._provider.get_tracer(__name__)

    def follow(self, sequence: Sequence, request: Any) -> None:
        context = request.trace().get_context()
        if context:
            parent = TraceContextTextMapPropagator().extract(json.loads(context))
            sequence.sink = FollowedSink(sequence.sink, lambda error: self._tell(sequence, parent, error))

    def close(self) -> None:
        self._provider.shutdown()

    def _tell(self, sequence: Sequence, parent: Context, error: SpeechError | None) -> None:
        ended_s, wall_ns = time.monotonic(), _wall_clock()
        span = self._tracer.start_span(
            "speak", parent, attributes=self._attributes(sequence), start_time=wall_ns(sequence.arrived_s)
        )
        for stage, (began_s, until_s) in _stages(sequence, ended_s).items():
            within = set_span_in_context(span)
            self._tracer.start_span(stage, within, start_time=wall_ns(began_s)).end(wall_ns(until_s))
        if error is not None:
            span.set_attribute("error.type", outcome(error))
        if error is not None and not isinstance(error, Cancelled):  # to leave is a caller's good right
            span.set_status(StatusCode.ERROR, str(error))
        span.end(wall_ns(ended_s))

    def _attributes(self, sequence: Sequence) -> dict[str, str | int | float]:
        known: dict[str, str | int | float | None] = {
            "qwen3_tts.model": self._model,
            "qwen3_tts.frames": sequence.num_frames,
            "qwen3_tts.chunks": sequence.chunks_sent,
            "qwen3_tts.finish_reason": sequence.finish_reason,
            "qwen3_tts.slot_wait_s": sequence.slot_wait_s,
        }
        return {name: value for name, value in known.items() if value is not None}


class FollowedSink:
    """A sink whose end is told, once."""

    def __init__(self, sink: AudioSink, tell: Tell) -> None:
        self._sink = sink
        self._tell = tell

    @property
    def cancelled(self) -> bool:
        return self._sink.cancelled

    @property
    def is_live(self) -> bool:
        return self._sink.is_live

    def write(self, chunk: Chunk) -> None:
        self._sink.write(chunk)

    def close(self, error: SpeechError | None = None) -> None:
        self._sink.close(error)
        self._tell(error)


def _stages(sequence: Sequence, ended_s: float) -> dict[str, tuple[float, float]]:
    """From when to when it was in each stage that it has come to."""
    begun = {"wait": sequence.arrived_s, "prefill": sequence.seated_s, "decode": sequence.playback.started_s}
    reached = [(stage, began_s) for stage, began_s in begun.items() if began_s is not None]
    ends_s = [*(began_s for _, began_s in reached[1:]), ended_s]
    return {stage: (began_s, until_s) for (stage, began_s), until_s in zip(reached, ends_s, strict=True)}


def _wall_clock() -> Callable[[float], int]:
    """From the engine's seconds to OpenTelemetry's nanoseconds."""
    offset_s = time.time() - time.monotonic()
    return lambda time_s: round((time_s + offset_s) * 1e9)
