"""Whole utterances over the decoupled models, for callers that take one response: HTTP `infer`, unary gRPC.

Imports no torch: several of these run beside the engines, and each is a process.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.errors import EngineFailed, InvalidRequest, Overloaded, SpeechError
from qwen3_tts_engine.triton.answering import AnsweringModel, Outputs, Row
from qwen3_tts_engine.triton.errors import CODED, OF_CODE
from qwen3_tts_engine.triton.reading import INPUTS
from qwen3_tts_engine.triton.task import infer_task

FOR_CREATE_VOICE = ("ref_audio", "ref_text", "x_vector_only")
OWN = ("task", "stream")  # an answer here is always whole
VOICE = ("speaker_embedding", "ref_codes")
OUTPUTS = ("audio", "encoded_audio", "sample_rate", "num_frames", "finish_reason")


# An error loses its code on its way out of a call (Triton 24.10). A model's words name it; these are Triton's
# own. Everything else is no fault of the request's, such as what the Python backend says when it fails.
OF_WORDS: dict[str, type[SpeechError]] = {
    "Exceeds maximum queue size": Overloaded,
    "Request timeout expired": Overloaded,
    "unknown model": Overloaded,
    "is not ready": Overloaded,
    "is not at ready state": Overloaded,
    "has stopped accepting new": Overloaded,
    "is not healthy": Overloaded,
    "inference input": InvalidRequest,
    "unexpected shape": InvalidRequest,
    "batch size does not match": InvalidRequest,
    "batch-size must be": InvalidRequest,
    "expected number of inputs": InvalidRequest,
}


class WholeUtterance(AnsweringModel):
    """A model that asks the others: create_voice for a recording, then the task's own for the speech.

    A call to another model blocks until it has answered, so an instance serves one request at a time. Triton
    24.10 cannot cancel a call that is under way: an utterance nobody waits for is spoken to its end.
    """

    inputs = frozenset({"text", *OWN, *FOR_CREATE_VOICE, *chain(*INPUTS.values())})

    def answer(self, row: Row) -> Outputs:
        names = (tensor.name() for tensor in row.request.inputs() if tensor.name() not in OWN)
        given = {name: row.given(name) for name in names if row.has(name)}
        task, trace = infer_task(row.text("task"), given), row.request.trace()
        if "ref_audio" in given:
            given = _with_voice(given, trace)
        return _whole_utterance(f"qwen3_tts_{task}", given, trace)


def as_speech_error(message: str) -> SpeechError:
    """Another model's error, which becomes this one's."""
    if named := CODED.match(message):
        return OF_CODE[named[1]](message[named.end() :])
    kind = next((kind for words, kind in OF_WORDS.items() if words in message), EngineFailed)
    return kind(message)


def _with_voice(given: dict[str, Any], trace: Any) -> dict[str, Any]:
    """The voice in the recording in place of the recording."""
    inputs = [given[name] for name in FOR_CREATE_VOICE if name in given]
    voice = _named(_call("create_voice", VOICE, inputs, trace).exec(), VOICE)
    kept = {name: tensor for name, tensor in given.items() if name not in ("ref_audio", "x_vector_only")}
    return kept | voice


def _whole_utterance(model: str, given: dict[str, Any], trace: Any) -> Outputs:
    at_once = pb_utils.Tensor("stream", np.array([[False]]))
    outputs: dict[str, Any] = {}
    for response in _call(model, OUTPUTS, [*given.values(), at_once], trace).exec(decoupled=True):
        outputs |= _named(response, OUTPUTS)
    return {name: tensor.as_numpy()[0] for name, tensor in outputs.items()}


def _call(model: str, outputs: tuple[str, ...], inputs: list[Any], trace: Any) -> Any:
    return pb_utils.InferenceRequest(
        model_name=model, requested_output_names=list(outputs), inputs=inputs, trace=trace
    )


def _named(response: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """The outputs of a response; the final one of a decoupled model may have none."""
    if response.has_error():
        raise as_speech_error(response.error().message())
    tensors = {tensor.name(): tensor for tensor in response.output_tensors()}
    return {name: tensors[name] for name in names if name in tensors}
