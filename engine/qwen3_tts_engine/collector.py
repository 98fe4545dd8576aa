"""Where traces go: the OpenTelemetry collector, for tritonserver and for the models in it."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def traces_url(environment: Mapping[str, str]) -> str | None:
    """The collector's OTLP/HTTP address for spans; None where nobody collects any."""
    endpoint = environment.get(VARIABLE)
    return f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None


def trace_flags(environment: Mapping[str, str]) -> tuple[str, ...]:
    """tritonserver's, for spans of its own in the traces that callers begin.

    `rate` is about requests without a `traceparent`: the supervisor's canaries and the like would fill the
    collector.
    """
    url = traces_url(environment)
    if url is None:
        return ()
    return (
        "--trace-config=mode=opentelemetry",
        "--trace-config=level=TIMESTAMPS",
        "--trace-config=rate=0",
        f"--trace-config=opentelemetry,url={url}",
        "--trace-config=opentelemetry,resource=service.name=qwen3-tts-triton",
    )
