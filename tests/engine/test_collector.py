"""Where traces go, and what tritonserver is told of it."""

import pytest

from qwen3_tts_engine.collector import VARIABLE, trace_flags, traces_url


@pytest.mark.parametrize("endpoint", ["http://collector:4318", "http://collector:4318/"])
def test_spans_have_their_place_at_the_collector(endpoint: str) -> None:
    assert traces_url({VARIABLE: endpoint}) == "http://collector:4318/v1/traces"
    assert "--trace-config=opentelemetry,url=http://collector:4318/v1/traces" in trace_flags(
        {VARIABLE: endpoint}
    )


@pytest.mark.parametrize("environment", [{}, {VARIABLE: ""}])
def test_without_a_collector_tritonserver_is_told_nothing(environment: dict[str, str]) -> None:
    assert traces_url(environment) is None
    assert trace_flags(environment) == ()
