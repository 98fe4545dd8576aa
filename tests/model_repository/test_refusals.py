"""What a model that asks others makes of their errors, which reach it as words alone."""

import pytest

from fakes.triton_python_backend_utils import TritonError
from python_backend import code_and_words
from qwen3_tts_engine.triton.errors import triton_error
from qwen3_tts_engine.triton.whole import as_speech_error


@pytest.mark.parametrize(
    ("told", "code", "words"),
    [
        ("NOT_FOUND: there is no voice named 'x'", TritonError.NOT_FOUND, "there is no voice named 'x'"),
        (
            "INTERNAL: device lost: INVALID_ARGUMENT: 1",
            TritonError.INTERNAL,
            "device lost: INVALID_ARGUMENT: 1",
        ),
        ("in ensemble 'create_voice', INTERNAL: broken", TritonError.INTERNAL, "broken"),
        ("in ensemble 'create_voice', INVALID_ARGUMENT: no", TritonError.INVALID_ARG, "no"),
    ],
)
def test_another_models_error_keeps_its_code_and_its_words(told, code, words):
    assert code_and_words(triton_error(as_speech_error(told))) == (code, words)


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ("Exceeds maximum queue size", TritonError.UNAVAILABLE),
        (
            "Server is stopping, scheduler for model has stopped accepting new inference",
            TritonError.UNAVAILABLE,
        ),
        ("'qwen3_tts_base' version 1 is not at ready state", TritonError.UNAVAILABLE),
        ("unexpected inference input 'mood'", TritonError.INVALID_ARG),
        (
            "in ensemble 'create_voice', Failed to process the request(s) for model 'voice_encoder'",
            TritonError.INTERNAL,
        ),
    ],
)
def test_tritons_own_words_find_their_code(told, code):
    assert code_and_words(triton_error(as_speech_error(told))) == (code, told)
