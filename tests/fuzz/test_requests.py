"""Tensors as Triton may hand them over: read, or refused by name."""

import json
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fakes import triton_python_backend_utils as pb_utils
from fakes.triton_server import MODEL_INPUTS
from fuzzing import fuzz
from python_backend import MODEL_REPOSITORY  # puts the backend's module where `import` finds it
from qwen3_tts_engine.errors import InvalidRequest, NotFound
from qwen3_tts_engine.model.config import read_speech_config
from qwen3_tts_engine.model.prompt import PromptWriter
from qwen3_tts_engine.model.text import TextTokenizer
from qwen3_tts_engine.request import GenerationDefaults, VoicePrompt
from qwen3_tts_engine.triton.reading import INPUTS, RequestReader
from real_server import ROOT

assert MODEL_REPOSITORY.is_dir()

NUMBERS = {
    "FP32": st.floats(width=32),
    "INT32": st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 100),
    "INT64": st.integers(-(2**63), 2**63 - 1),
    "BOOL": st.booleans(),
}
WORDS = st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass"))
SPECIAL = [
    b"",
    b"\xff",
    b"\xed\xa0\x80",
    b"\0",
    b"<|im_end|>",
    b"<tts_pad>",
    b"Ryan",
    b"auto",
    b"wav_base64",
    b"a+b",
]
BYTES = WORDS | st.sampled_from(SPECIAL) | st.binary(max_size=40)


@st.composite
def tensor(draw: st.DrawFn, name: str, data_type: str, num_rows: int) -> pb_utils.Tensor:
    """Of the declared type; Triton lets no other through, nor other dims than these."""
    rows = draw(st.sampled_from([num_rows] * 8 + [0, 1, 2]))
    size = {"speaker_embedding": draw(st.integers(0, 40)), "ref_codes": 16}.get(name, 1)
    shape = (rows, draw(st.integers(0, 5)), size) if name == "ref_codes" else (rows, size)
    values = draw(st.lists(BYTES if data_type == "BYTES" else NUMBERS[data_type], min_size=1, max_size=4))
    dtype = pb_utils.NUMPY_TYPES["TYPE_STRING" if data_type == "BYTES" else f"TYPE_{data_type}"]
    array = np.resize(np.array(values, dtype), shape)
    # Of no rows with a value in them, Triton makes this.
    is_rowless = name != "ref_codes" and not draw(st.integers(0, 30))
    return pb_utils.Tensor(name, array.reshape(-1)[:1] if is_rowless else array)


@st.composite
def requests(draw: st.DrawFn, task: str) -> pb_utils.InferenceRequest:
    declared = MODEL_INPUTS[f"qwen3_tts_{task}"]
    names = draw(st.lists(st.sampled_from([*declared]), unique=True, max_size=6))
    names = (
        names
        if draw(st.sampled_from([True] * 9 + [False])) is False
        else ["text", *(n for n in names if n != "text")]
    )
    num_rows = draw(st.integers(1, 3))
    parameters = draw(
        st.dictionaries(
            st.text(max_size=12) | st.sampled_from([*declared, "headers", "priority"]),
            st.integers(),
            max_size=2,
        )
    )
    tensors = [draw(tensor(name, declared[name], num_rows)) for name in names]
    return pb_utils.InferenceRequest(tensors, pb_utils.ResponseSender({}), parameters)


def find_voice(name: str) -> VoicePrompt:
    if len(name) % 2:
        raise NotFound(f"no voice is saved as {name!r}")
    return VoicePrompt(np.zeros(8, np.float32))


@cache
def writer(task: str) -> PromptWriter:
    directory = ROOT / "checkpoints/tiny" / task
    config = read_speech_config(json.loads((directory / "config.json").read_text()))
    return PromptWriter(config, TextTokenizer(directory), 4096)


def read(task: str, request: Any) -> None:
    rows = RequestReader(task, GenerationDefaults(), find_voice if task == "base" else None).read(request)
    assert rows
    for row in rows:
        writer(task).write(row.speech)


@fuzz(250, request=requests("custom_voice"))
def test_a_request_for_a_speaker_is_read_or_refused(tiny_checkpoints: Any, request: Any) -> None:
    with suppress(InvalidRequest):
        read("custom_voice", request)


@fuzz(100, request=requests("voice_design"))
def test_a_request_for_a_designed_voice_is_read_or_refused(tiny_checkpoints: Any, request: Any) -> None:
    with suppress(InvalidRequest):
        read("voice_design", request)


@fuzz(250, request=requests("base"))
def test_a_request_for_a_recorded_voice_is_read_or_refused(tiny_checkpoints: Any, request: Any) -> None:
    with suppress(InvalidRequest, NotFound):
        read("base", request)


def test_every_input_there_is_is_tried() -> None:
    for task, inputs in INPUTS.items():
        assert {"text", *inputs} == set(MODEL_INPUTS[f"qwen3_tts_{task}"])
