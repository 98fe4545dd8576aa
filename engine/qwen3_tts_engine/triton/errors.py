"""One table from what went wrong to what Triton calls it, and to the outcome that is counted."""

from __future__ import annotations

import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.errors import Cancelled, EngineFailed, InvalidRequest, NotFound, Overloaded, SpeechError

# Codes by name: the backend adds its classes to pb_utils only after it has imported model.py.
TABLE = {
    InvalidRequest: ("INVALID_ARG", "invalid"),
    NotFound: ("NOT_FOUND", "invalid"),
    Overloaded: ("UNAVAILABLE", "overloaded"),
    Cancelled: ("CANCELLED", "cancelled"),
    EngineFailed: ("INTERNAL", "failed"),
}


def triton_error(error: SpeechError) -> pb_utils.TritonError:
    code, _ = TABLE[type(error)]
    return pb_utils.TritonError(str(error), getattr(pb_utils.TritonError, code))


def outcome(error: SpeechError | None) -> str:
    """The label of `qwen3_tts_requests_total`."""
    return "ok" if error is None else TABLE[type(error)][1]
