"""Whether utterances are traced. Without a collector nothing of OpenTelemetry is imported."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Protocol

from qwen3_tts_engine.collector import VARIABLE, traces_url
from qwen3_tts_engine.sequence import Sequence

logger = logging.getLogger(__name__)


class Tracing(Protocol):
    """Who tells what became of utterances."""

    def follow(self, sequence: Sequence, request: Any) -> None:
        """Have the utterance's end told, if the Triton request it is for is traced."""

    def close(self) -> None:
        """Send what is left."""


class NoTracing:
    """Tells nobody."""

    def follow(self, sequence: Sequence, request: Any) -> None: ...

    def close(self) -> None: ...


def begin_tracing(model: str, environment: Mapping[str, str]) -> Tracing:
    """To the collector that the environment names, if it does and the packages are there."""
    url = traces_url(environment)
    if url is None:
        return NoTracing()
    try:
        from qwen3_tts_engine.triton.spans import UtteranceSpans
    except ImportError as error:
        logger.warning(
            "%s is set, and utterances are not traced: %s; install the extra `tracing`", VARIABLE, error
        )
        return NoTracing()
    return UtteranceSpans(model, url)
