"""From a Triton request's tensors to `SpeechRequest`s, one per row."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.request import GenerationDefaults, Sampling, SpeechRequest, VoicePrompt
from qwen3_tts_engine.triton import encoding

Values = NDArray[Any]
Reader = Callable[[str, Values], Any]  # one row of an input -> its value, None when it is empty
FindVoice = Callable[[str], VoicePrompt]


def _only(name: str, row: Values) -> Any:
    if row.shape != (1,):
        raise InvalidRequest(f"{name} has shape {list(row.shape)} in a row; it must be [1]")
    return row[0]


def _string(name: str, row: Values) -> str | None:
    """Empty text is the same as none."""
    value: bytes = _only(name, row)
    try:
        return value.decode("utf-8") or None
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name} is not valid UTF-8: {error.reason} at byte {error.start}") from None


def _number(name: str, row: Values) -> float:
    """The decimal the caller wrote: 0.8, not the float32 next to it."""
    return float(str(_only(name, row)))


def _whole(name: str, row: Values) -> int:
    return int(_only(name, row))


def _flag(name: str, row: Values) -> bool:
    return bool(_only(name, row))


def _vector(name: str, row: Values) -> NDArray[np.float32]:
    return row.astype(np.float32)


def _frames(name: str, row: Values) -> NDArray[np.int64]:
    return row.astype(np.int64)


# Every input but `text`, and how one row of it is read. docs/protocol.md describes them; tests hold each
# config.pbtxt against these tables.
SPEECH: Mapping[str, Reader] = {
    "language": _string,
    "stream": _flag,
    "audio_encoding": _string,
    "seed": _whole,
    "do_sample": _flag,
    "temperature": _number,
    "top_k": _whole,
    "top_p": _number,
    "repetition_penalty": _number,
    "subtalker_do_sample": _flag,
    "subtalker_temperature": _number,
    "subtalker_top_k": _whole,
    "subtalker_top_p": _number,
    "max_frames": _whole,
    "non_streaming_mode": _flag,
}
INPUTS: Mapping[str, Mapping[str, Reader]] = {
    "custom_voice": {**SPEECH, "speaker": _string, "instruct": _string},
    "voice_design": {**SPEECH, "instruct": _string},
    "base": {
        **SPEECH,
        "voice": _string,
        "speaker_embedding": _vector,
        "ref_codes": _frames,
        "ref_text": _string,
    },
}


@dataclass(frozen=True)
class RowRequest:
    """One row: what to speak, and how it is to be sent."""

    speech: SpeechRequest
    stream: bool
    audio_encoding: str


@contextmanager
def naming_row(i: int, num_rows: int) -> Iterator[None]:
    """Say which row is invalid, where there are several."""
    try:
        yield
    except InvalidRequest as error:
        raise InvalidRequest(f"row {i}: {error}" if num_rows > 1 else str(error)) from None


# Parameters that are Triton's own.
RESERVED = frozenset({"priority", "timeout", "binary_data_output", "headers"})
RESERVED_PREFIXES = ("triton_", "sequence_")


class RequestReader:
    """Reads the requests of one model.

    Args:
        task: whose inputs there are.
        defaults: what a sampling input means that is left out.
        find_voice: looks a saved voice up by name; base alone has them.
    """

    def __init__(self, task: str, defaults: GenerationDefaults, find_voice: FindVoice | None = None) -> None:
        self._inputs = INPUTS[task]
        self._defaults = defaults
        self._find_voice = find_voice

    def read(self, request: Any) -> list[RowRequest]:
        """The rows of a Triton request.

        Raises:
            InvalidRequest: naming the input, and the row where there are several.
            NotFound: for a voice that was not saved.
        """
        refuse_unknown(request, self._inputs)
        texts = _column(request, "text")
        if texts is None:
            raise InvalidRequest("text is missing; it is the one required input")
        columns = {name: column for name in self._inputs if (column := _column(request, name)) is not None}
        for name, column in columns.items():
            if len(column) != len(texts):
                raise InvalidRequest(f"{name} has {len(column)} rows; text has {len(texts)}")
        return [self._row(i, texts, columns) for i in range(len(texts))]

    def _row(self, i: int, texts: Values, columns: Mapping[str, Values]) -> RowRequest:
        with naming_row(i, len(texts)):
            given = {name: self._inputs[name](name, column[i]) for name, column in columns.items()}
            given = {name: value for name, value in given.items() if value is not None}
            return self._request(_string("text", texts[i]) or "", given)

    def _request(self, text: str, given: dict[str, Any]) -> RowRequest:
        audio_encoding = given.pop("audio_encoding", "float32")
        encoding.check(audio_encoding)
        stream = given.pop("stream", True)
        speech = SpeechRequest(
            text,
            voice=self._voice(given),
            talker=_sampling(given, "", self._defaults.talker),
            subtalker=_sampling(given, "subtalker_", self._defaults.subtalker),
            repetition_penalty=given.pop("repetition_penalty", self._defaults.repetition_penalty),
            **given,
        )
        return RowRequest(speech, stream, audio_encoding)

    def _voice(self, given: dict[str, Any]) -> VoicePrompt | None:
        """Take the voice out of what was given: a saved one, or one that came along."""
        name, embedding, codes, text = (
            given.pop(key, None) for key in ("voice", "speaker_embedding", "ref_codes", "ref_text")
        )
        if name is not None:
            for other, value in (("speaker_embedding", embedding), ("ref_codes", codes)):
                if value is not None:
                    raise InvalidRequest(f"voice and {other} are both given; they name two voices")
            assert self._find_voice is not None, "only a model with saved voices has the input"
            return self._find_voice(name)
        if embedding is None:
            if codes is not None:
                raise InvalidRequest("ref_codes is given without speaker_embedding; a voice has both")
            return None
        return VoicePrompt(embedding, codes, (text or "") if codes is not None else "")


def refuse_unknown(request: Any, inputs: Collection[str]) -> None:
    """Raise InvalidRequest for a JSON key that is no input.

    Over HTTP it comes as a parameter, and misspelt it must not go unnoticed. So does a forwarded header,
    which has a hyphen and is nobody's mistake.
    """
    for name in json.loads(request.parameters() or "{}"):
        if name in RESERVED or name.startswith(RESERVED_PREFIXES):
            continue
        closest = difflib.get_close_matches(name.replace("-", "_"), inputs, n=1)
        if "-" in name and name.replace("-", "_") not in inputs:
            continue
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        raise InvalidRequest(f"unknown input {name[:80]!r}{hint}")


def check_rows(name: str, values: Values) -> None:
    """Raise InvalidRequest for values of no row: Triton lets a shape of 0 rows pass, and drops that axis."""
    if values.ndim < 2:
        raise InvalidRequest(f"{name} has values, but a shape of 0 rows; its first axis counts them")


def _column(request: Any, name: str) -> Values | None:
    """[rows, …]; None for an input that is absent or empty, which means the same."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values: Values = tensor.as_numpy()
    check_rows(name, values)
    return values if values.size else None


def _sampling(given: dict[str, Any], prefix: str, default: Sampling) -> Sampling:
    """Take one language model's four settings out of what was given."""
    return Sampling(
        do_sample=given.pop(f"{prefix}do_sample", default.do_sample),
        temperature=given.pop(f"{prefix}temperature", default.temperature),
        top_k=given.pop(f"{prefix}top_k", default.top_k),
        top_p=given.pop(f"{prefix}top_p", default.top_p),
    )
