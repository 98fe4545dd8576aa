"""From what a caller says to the message Triton reads: pure functions, no connection."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict

from tritonclient.grpc import service_pb2

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.tensors import add_input
from qwen3_tts_client.voice import FoundVoice, Voice, route


class SpeechOptions(TypedDict, total=False):
    """How to speak; whatever is left out, the server decides.

    Attributes:
        instruct: style in words ("whisper, in a hurry"), for a built-in speaker; a `DesignedVoice` already is
            its instruction, and a recorded voice takes none.
        seed: the same seed and request give the same audio.
        do_sample: False takes the likeliest code every time.
        temperature: of the talker, which writes the first of a frame's 16 codes.
        top_k: as `temperature`.
        top_p: as `temperature`.
        repetition_penalty: as `temperature`.
        subtalker_do_sample: the same for the code predictor, which writes the other 15.
        subtalker_temperature: as `subtalker_do_sample`.
        subtalker_top_k: as `subtalker_do_sample`.
        subtalker_top_p: as `subtalker_do_sample`.
        max_frames: the longest utterance allowed, in frames of 80 ms.
        non_streaming_mode: whether the prompt holds the whole text before the first frame.
        priority: place in Triton's queue, 1 first; needs `priority_levels` in the model's config.pbtxt.
        timeout_s: longest wait for the next chunk, in place of the client's own.
        request_id: what Triton's log is to call the request; by default a new UUID.
    """

    instruct: str | None
    seed: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    subtalker_do_sample: bool | None
    subtalker_temperature: float | None
    subtalker_top_k: int | None
    subtalker_top_p: float | None
    max_frames: int | None
    non_streaming_mode: bool | None
    priority: int | None
    timeout_s: float | None
    request_id: str | None


# Every tensor this client sends to the models that speak, [1, 1] but for the voice prompt's. `stream` and
# `audio_encoding` keep the server's defaults: chunks, as float32.
INPUTS = {
    "text": "BYTES",
    "language": "BYTES",
    "speaker": "BYTES",
    "instruct": "BYTES",
    "voice": "BYTES",
    "speaker_embedding": "FP32",  # [1, dim]
    "ref_codes": "INT32",  # [1, num_frames, 16]
    "ref_text": "BYTES",
    "seed": "INT64",
    "do_sample": "BOOL",
    "temperature": "FP32",
    "top_k": "INT32",
    "top_p": "FP32",
    "repetition_penalty": "FP32",
    "subtalker_do_sample": "BOOL",
    "subtalker_temperature": "FP32",
    "subtalker_top_k": "INT32",
    "subtalker_top_p": "FP32",
    "max_frames": "INT32",
    "non_streaming_mode": "BOOL",
}

# Those that not every model takes.
_TAKERS = {
    "speaker": ("qwen3_tts_custom_voice",),
    "instruct": ("qwen3_tts_custom_voice", "qwen3_tts_voice_design"),
    "voice": ("qwen3_tts_base",),
    "speaker_embedding": ("qwen3_tts_base",),
    "ref_codes": ("qwen3_tts_base",),
    "ref_text": ("qwen3_tts_base",),
}

# What goes to the models around them, besides the above.
_VOICE_MAKING_INPUTS = {
    "ref_audio": "BYTES",
    "x_vector_only": "BOOL",
    "operation": "BYTES",
    "name": "BYTES",
    "metadata": "BYTES",
    "created_at": "BYTES",
    "model": "BYTES",
}


def inputs_of(model: str) -> dict[str, str]:
    """The inputs this client may send to a model, name to Triton datatype."""
    return {name: datatype for name, datatype in INPUTS.items() if model in _TAKERS.get(name, (model,))}


@dataclass(frozen=True)
class Utterance:
    """A request, the voice it is still to be addressed to, where, and how long to wait.

    Attributes:
        timeout_s: for each chunk.
        queue_timeout_s: for the first one, beyond that, from a server that is alive.
    """

    request: service_pb2.ModelInferRequest
    voice: Voice | FoundVoice
    url: str
    timeout_s: float
    queue_timeout_s: float = 0.0


def speech_request(
    text: str,
    *,
    language: str | None = None,
    priority: int | None = None,
    timeout_s: float | None = None,  # the caller's patience is no business of the server's
    request_id: str | None = None,
    **inputs: Any,
) -> service_pb2.ModelInferRequest:
    """One utterance, by default under a new request id, not yet addressed: its voice will choose the model.

    Raises:
        InvalidRequest: a value does not fit its tensor.
        TypeError: an option nobody knows.
    """
    request = service_pb2.ModelInferRequest(id=request_id or str(uuid.uuid4()))
    for name, value in {"text": text, "language": language, **inputs}.items():
        _expect_option(name)
        if value is not None:
            add_input(request, name, INPUTS[name], value)
    if priority is not None:
        request.parameters["priority"].uint64_param = priority
    # Without it Triton swallows a final response that carries no audio, and the end goes unnoticed.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    return request


def address(request: service_pb2.ModelInferRequest, voice: FoundVoice) -> None:
    """Name the model that speaks with this voice, and the voice to the model.

    Raises:
        InvalidRequest: the voice leaves no room for one of the request's options.
        TypeError: no kind of voice that anyone knows.
    """
    model, voice_inputs = route(voice)
    for name in (tensor.name for tensor in request.inputs):
        if name in voice_inputs:
            raise InvalidRequest(f"{voice!r} already sets {name!r}; leave the option out")
        if name not in inputs_of(model):
            raise InvalidRequest(
                f"{model} speaks with this voice and takes no {name!r}; leave the option out"
            )
    request.model_name = model
    for name, value in voice_inputs.items():
        add_input(request, name, INPUTS[name], value)


def voice_request(model: str, /, **inputs: Any) -> service_pb2.ModelInferRequest:
    """A question for `create_voice` or `voices`, under a new request id.

    Raises:
        InvalidRequest: a value does not fit its tensor.
    """
    request = service_pb2.ModelInferRequest(model_name=model, id=str(uuid.uuid4()))
    for name, value in inputs.items():
        if value is not None:
            add_input(request, name, (INPUTS | _VOICE_MAKING_INPUTS)[name], value)
    return request


def check_concurrency(concurrency: int) -> None:
    """Raises ValueError: none at a time would wait for ever."""
    if concurrency < 1:
        raise ValueError(f"concurrency is {concurrency}; it must be 1 or more")


def per_text(
    texts: Sequence[str], voice: Voice | Sequence[Voice], language: str | Sequence[str] | None
) -> Iterator[tuple[str, Voice, str | None]]:
    """Pair each text with its voice and language, given once for all or one for each."""
    voices = _spread(voice, len(texts), "voices")
    languages = _spread(language, len(texts), "languages")
    return zip(texts, voices, languages, strict=True)


def _spread(given: Any, num_texts: int, noun: str) -> Sequence[Any]:
    if not isinstance(given, (list, tuple)):
        return [given] * num_texts
    if len(given) != num_texts:
        raise InvalidRequest(f"{len(given)} {noun} for {num_texts} texts")
    return given


def _expect_option(name: str) -> None:
    if name not in INPUTS:
        close = get_close_matches(name, INPUTS, n=1)
        raise TypeError(f"unknown option {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
