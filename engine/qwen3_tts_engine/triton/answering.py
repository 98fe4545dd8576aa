"""Models that answer once: one row in, one response out."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from qwen3_tts_engine.errors import EngineFailed, InvalidRequest, SpeechError
from qwen3_tts_engine.request import CODES_PER_FRAME, VoicePrompt
from qwen3_tts_engine.triton.errors import triton_error
from qwen3_tts_engine.triton.reading import check_rows, refuse_unknown

logger = logging.getLogger(__name__)

Outputs = Mapping[str, NDArray[Any]]  # one row, without the batch axis


class Row:
    """The inputs of a request of one row, the batch axis taken off.

    Raises:
        InvalidRequest: for a request of several rows, naming the input.
    """

    def __init__(self, request: Any) -> None:
        self.request = request

    def tensor(self, name: str) -> NDArray[Any] | None:
        """The input's value; None when it is absent or empty, which means the same."""
        tensor = pb_utils.get_input_tensor_by_name(self.request, name)
        if tensor is None:
            return None
        value = tensor.as_numpy()
        check_rows(name, value)
        if value.shape[0] > 1:
            raise InvalidRequest(f"{name} has {value.shape[0]} rows; this model takes one row a request")
        return value[0] if value.size else None

    def given(self, name: str) -> Any:
        """The input as it came, to be handed on."""
        return pb_utils.get_input_tensor_by_name(self.request, name)

    def has(self, name: str) -> bool:
        """Whether the input is there and says something; an empty string says nothing."""
        value = self.tensor(name)
        return value is not None and not (value.dtype == object and not value[0])

    def bytes(self, name: str) -> bytes | None:
        value = self.tensor(name)
        return None if value is None else (bytes(value[0]) or None)

    def text(self, name: str) -> str | None:
        value = self.bytes(name)
        try:
            return None if value is None else value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"{name} is not valid UTF-8: {error.reason} at byte {error.start}") from None

    def flag(self, name: str) -> bool:
        value = self.tensor(name)
        return value is not None and bool(value[0])


class AnsweringModel:
    """A Triton model whose subclass says what one row's answer is.

    Attributes:
        inputs: the names it declares.
    """

    inputs: Collection[str]

    def answer(self, row: Row) -> Outputs:
        raise NotImplementedError

    def execute(self, requests: list[Any]) -> list[Any]:
        return [_response(self._try(request)) for request in requests]

    def _try(self, request: Any) -> Outputs | SpeechError:
        try:
            refuse_unknown(request, self.inputs)
            return self.answer(Row(request))
        except SpeechError as error:
            return error
        except Exception as error:
            logger.exception("a request could not be answered")
            return EngineFailed(f"the request could not be answered: {error}")


def prompt_outputs(prompt: VoicePrompt) -> dict[str, NDArray[Any]]:
    """`speaker_embedding` and `ref_codes`; no frames stand for a voice that is x-vector only."""
    codes = np.zeros((0, CODES_PER_FRAME)) if prompt.ref_codes is None else prompt.ref_codes
    return {"speaker_embedding": prompt.speaker_embedding, "ref_codes": codes.astype(np.int32)}


def text_output(text: str) -> NDArray[Any]:
    """A STRING [1] output."""
    return np.array([text.encode()], dtype=object)


def _response(answer: Outputs | SpeechError) -> Any:
    if isinstance(answer, SpeechError):
        return pb_utils.InferenceResponse(error=triton_error(answer))
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, value[None]) for name, value in answer.items()])
