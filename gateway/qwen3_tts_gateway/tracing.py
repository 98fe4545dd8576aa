"""OpenTelemetry: a trace from the caller's `traceparent` through the gateway to Triton's."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import FastAPI
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


@dataclass(frozen=True)
class Tracing:
    """A span for every request of an application, on its way to a collector until this is closed."""

    app: FastAPI
    provider: TracerProvider

    @classmethod
    def begin(cls, app: FastAPI, endpoint: str) -> Tracing:
        provider = TracerProvider(resource=Resource.create({SERVICE_NAME: "qwen3-tts-gateway"}))
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        provider.add_span_processor(BatchSpanProcessor(exporter))
        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=provider,
            excluded_urls="/health,/metrics",
            exclude_spans=["receive", "send"],  # a span for each chunk would drown the rest
        )
        return cls(app, provider)

    def close(self) -> None:
        """Send what is left, which takes as long as the collector does."""
        FastAPIInstrumentor.uninstrument_app(self.app)
        self.provider.shutdown()


def trace_headers() -> dict[str, str]:
    """The `traceparent` of the request that is being answered, if it is traced.

    Triton goes on from there, even where the caller has said that nobody is to record it: so it is not told.
    """
    headers: dict[str, str] = {}
    if trace.get_current_span().get_span_context().trace_flags.sampled:
        propagate.inject(headers)
    return headers
