"""Whole utterances over the decoupled models, for callers that take one response: HTTP `infer`, unary gRPC.

Imports no torch: several of these run beside the engines, and each is a process.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.errors import EngineFailed, SpeechError
from qwen3_tts_engine.triton.answering import Row
from qwen3_tts_engine.triton.errors import CODED, coded, triton_error
from qwen3_tts_engine.triton.task import infer_task

logger = logging.getLogger(__name__)

FOR_CREATE_VOICE = ("ref_audio", "ref_text", "x_vector_only")
VOICE = ("speaker_embedding", "ref_codes")
OUTPUTS = ("audio", "encoded_audio", "sample_rate", "num_frames", "finish_reason")


# An error loses its code on its way out of a call (Triton 24.10). A model's words name it; these are Triton's
# own. Everything else that Triton says no to is the request's fault.
UNAVAILABLE = (
    "Exceeds maximum queue size",
    "Request timeout expired",
    "unknown model",
    "is not ready",
    "is not at ready state",
    "has stopped accepting new",
    "is not healthy",
)


class WholeUtterance:
    """A model that asks the others: create_voice for a recording, then the task's own for the speech.

    A call to another model blocks until it has answered, so an instance serves one request at a time. Triton
    24.10 cannot cancel a call that is under way: an utterance nobody waits for is spoken to its end.
    """

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            return pb_utils.InferenceResponse(self._speak(request))
        except Refused as refusal:
            return pb_utils.InferenceResponse(error=refusal.error)
        except SpeechError as error:
            return pb_utils.InferenceResponse(error=triton_error(error))
        except Exception as error:
            logger.exception("a request could not be answered")
            failure = EngineFailed(f"the request could not be answered: {error}")
            return pb_utils.InferenceResponse(error=triton_error(failure))

    def _speak(self, request: Any) -> list[Any]:
        row = Row(request)
        asked = row.text("task")
        names = (tensor.name() for tensor in request.inputs() if tensor.name() != "task")
        given = {name: pb_utils.get_input_tensor_by_name(request, name) for name in names if row.has(name)}
        task = infer_task(asked, given)
        if "ref_audio" in given:
            given = _with_voice(given, request.trace())
        return _whole_utterance(f"qwen3_tts_{task}", given, request.trace())


class Refused(Exception):
    """Another model's error, which becomes this one's."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message())
        self.error = coded(*_code_and_words(error.message()))


def _code_and_words(message: str) -> tuple[str, str]:
    if named := CODED.match(message):
        return named[1], message[named.end() :]
    is_unavailable = any(words in message for words in UNAVAILABLE)
    return "UNAVAILABLE" if is_unavailable else "INVALID_ARGUMENT", message


def _with_voice(given: dict[str, Any], trace: Any) -> dict[str, Any]:
    """The voice in the recording in place of the recording."""
    inputs = [given[name] for name in FOR_CREATE_VOICE if name in given]
    voice = _named(_call("create_voice", VOICE, inputs, trace).exec(), VOICE)
    kept = {name: tensor for name, tensor in given.items() if name not in ("ref_audio", "x_vector_only")}
    return kept | voice


def _whole_utterance(model: str, given: dict[str, Any], trace: Any) -> list[Any]:
    at_once = pb_utils.Tensor("stream", np.array([[False]]))
    outputs: dict[str, Any] = {}
    for response in _call(model, OUTPUTS, [*given.values(), at_once], trace).exec(decoupled=True):
        outputs |= _named(response, OUTPUTS)
    return list(outputs.values())


def _call(model: str, outputs: tuple[str, ...], inputs: list[Any], trace: Any) -> Any:
    return pb_utils.InferenceRequest(
        model_name=model, requested_output_names=list(outputs), inputs=inputs, trace=trace
    )


def _named(response: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The outputs of a response; the final one of a decoupled model may have none."""
    if response.has_error():
        raise Refused(response.error())
    tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
    return {name: tensors[name] for name in names if name in tensors}
