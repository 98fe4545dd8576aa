"""One table from what went wrong to what Triton calls it, and to the outcome that is counted."""

from __future__ import annotations

import re

import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.errors import Cancelled, EngineFailed, InvalidRequest, NotFound, Overloaded, SpeechError

# Codes by gRPC's names.
TABLE = {
    InvalidRequest: ("INVALID_ARGUMENT", "invalid"),
    NotFound: ("NOT_FOUND", "invalid"),
    Overloaded: ("UNAVAILABLE", "overloaded"),
    Cancelled: ("CANCELLED", "cancelled"),
    EngineFailed: ("INTERNAL", "failed"),
}
OF_CODE = {code: error for error, (code, _) in TABLE.items()}
# What `coded` writes; an ensemble says before it which ensemble it is.
CODED = re.compile(rf"(?:in ensemble '[^']*', )?({'|'.join(code for code, _ in TABLE.values())}): ")


def triton_error(error: SpeechError) -> pb_utils.TritonError:
    code, _ = TABLE[type(error)]
    return coded(code, str(error))


def coded(code: str, message: str) -> pb_utils.TritonError:
    """An error whose words name its code, which a stream, and a call from model to model, would lose."""
    # By name: the backend adds its classes to pb_utils only after it has imported model.py.
    of_triton = getattr(pb_utils.TritonError, code.replace("ARGUMENT", "ARG"))
    return pb_utils.TritonError(f"{code}: {message}", of_triton)


def outcome(error: SpeechError | None) -> str:
    """The label of `qwen3_tts_requests_total`."""
    return "ok" if error is None else TABLE[type(error)][1]
