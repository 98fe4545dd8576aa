"""What is refused at the door, and in which words."""

from types import SimpleNamespace

import pytest

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.request import (
    FRAME_SAMPLES,
    FRAMES_PER_SECOND,
    GenerationDefaults,
    Sampling,
    SpeechRequest,
)
from qwen3_tts_engine.upstream import import_qwen_tts


def test_text_loses_the_white_space_around_it_and_none_within():
    assert SpeechRequest("\n  Hello,\n world. \t\u3000").text == "Hello,\n world."


@pytest.mark.parametrize("text", ["", " ", "\r\n\t", "\u3000"])
def test_text_without_a_word_is_refused(text):
    with pytest.raises(InvalidRequest, match="text is empty; say at least one word"):
        SpeechRequest(text)


@pytest.mark.parametrize("prefix", ["", "subtalker_"])
@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ({"temperature": 0}, "temperature is 0; it must be a number above 0"),
        ({"temperature": -0.5}, "temperature is -0.5; it must be a number above 0"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a number above 0"),
        ({"temperature": float("inf")}, "temperature is inf; it must be a number above 0"),
        ({"top_k": -1}, r"top_k is -1; it must be 0 \(off\) or more"),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5; it must be above 0 and at most 1"),
        ({"top_p": float("nan")}, "top_p is nan; it must be above 0 and at most 1"),
    ],
)
def test_a_setting_nothing_can_be_drawn_with_is_named_with_its_value_and_what_is_allowed(
    prefix, setting, complaint
):
    model = "subtalker" if prefix else "talker"
    with pytest.raises(InvalidRequest, match=f"^{prefix}{complaint}$"):
        SpeechRequest("Hello.", **{model: Sampling(**setting)})


@pytest.mark.parametrize("penalty", [0, -1, float("nan"), float("inf")])
def test_a_repetition_penalty_that_is_no_number_above_0_is_refused(penalty):
    with pytest.raises(
        InvalidRequest, match=f"repetition_penalty is {penalty:g}; it must be a number above 0"
    ):
        SpeechRequest("Hello.", repetition_penalty=penalty)


@pytest.mark.parametrize(
    "setting", [{"top_k": 0}, {"top_k": 10**6}, {"top_p": 1}, {"top_p": 0.01}, {"temperature": 100}]
)
def test_the_ends_of_every_range_are_allowed(setting):
    SpeechRequest("Hello.", talker=Sampling(**setting), subtalker=Sampling(**setting))


def test_what_neither_caller_nor_checkpoint_sets_is_upstreams():
    merge = import_qwen_tts().Qwen3TTSModel._merge_generate_kwargs
    theirs = merge(SimpleNamespace(generate_defaults={}))
    ours = GenerationDefaults()
    assert theirs["repetition_penalty"] == ours.repetition_penalty
    for name in ("temperature", "top_k", "top_p"):
        assert theirs[name] == getattr(ours.talker, name)
        assert theirs[f"subtalker_{name}"] == getattr(ours.subtalker, name)
    assert (theirs["do_sample"], theirs["subtalker_dosample"]) == (
        ours.talker.do_sample,
        ours.subtalker.do_sample,
    )


def test_a_request_alone_asks_for_the_same_sampling_as_a_checkpoint_without_any():
    request, defaults = SpeechRequest("Hello."), GenerationDefaults()
    assert (request.talker, request.subtalker) == (defaults.talker, defaults.subtalker)
    assert request.repetition_penalty == defaults.repetition_penalty


def test_a_frame_is_80_ms():
    assert FRAMES_PER_SECOND == 12.5
    assert FRAME_SAMPLES == 24_000 * 80 // 1000
