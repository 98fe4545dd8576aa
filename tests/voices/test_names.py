"""What a voice may be called: nothing that is a path, cannot be typed, or is somebody else's name."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_tts_engine.errors import InvalidRequest
from qwen3_tts_engine.voices.names import NAME, check_name

SPEAKERS = ("vivian", "uncle_fu", "straße")

GOOD = [
    "grandpa",
    "Grandpa 2",
    "my-voice_v1.2",
    "爷爷",
    "дедушка",
    "José",
    "...",
    "a",
    "a" * 64,
    "viviane",
]

BAD = {
    "nothing": "",
    "the directory": ".",
    "the directory above": "..",
    "a path": "../../etc/passwd",
    "an absolute path": "/etc/passwd",
    "a Windows path": "..\\voice",
    "a null": "grandpa\0",
    "a line feed at the end": "grandpa\n",
    "a tab": "grand\tpa",
    "an escape": "\x1b[31mred",
    "a direction override": "grand\u202eapdnarg",
    "an invisible joiner": "grand\u200bpa",
    "half a character": "grand\ud800pa",
    "a mix": "a(2)+b(1)",
    "an encoded path": "%2e%2e%2f",
    "a quote": "grand'pa",
    "too long": "a" * 65,
    "enormous": "a" * 10_000_000,
}


@pytest.mark.parametrize("name", GOOD)
def test_a_name_of_letters_digits_and_a_little_more_is_kept_as_it_is(name):
    assert check_name(name, SPEAKERS) == name


OWNER = "key-0123456789ab."


def test_the_owner_that_a_gateway_puts_in_front_is_not_counted():
    assert check_name(f"{OWNER}{'a' * 64}") == f"{OWNER}{'a' * 64}"
    for name in (f"{OWNER}{'a' * 65}", f"key-{'x' * 12}.{'a' * 64}"):
        with pytest.raises(InvalidRequest, match="1 to 64 letters"):
            check_name(name)


@pytest.mark.parametrize("name", BAD.values(), ids=BAD.keys())
def test_any_other_name_is_refused_in_a_few_words(name):
    with pytest.raises(InvalidRequest, match=r"^name is .*; a voice's is 1 to 64 letters") as refusal:
        check_name(name, SPEAKERS)
    assert len(str(refusal.value)) < 600


def test_an_accent_typed_either_way_is_the_same_name():
    composed, decomposed = "Jos\u00e9", "Jose\u0301"
    assert composed != decomposed
    assert check_name(composed) == check_name(decomposed) == composed


def test_a_name_is_measured_after_it_is_composed():
    assert check_name("e\u0301" * 64) == "\u00e9" * 64


@pytest.mark.parametrize("name", ["vivian", "Vivian", "VIVIAN", "Uncle_Fu", "STRASSE", "strasse"])
def test_a_built_in_speakers_name_is_taken_in_any_case(name):
    with pytest.raises(InvalidRequest, match=f"^name is '{name}', which is a built-in speaker's"):
        check_name(name, SPEAKERS)


def test_voices_that_differ_in_case_are_two():
    assert check_name("Anna") != check_name("anna")


@given(st.text(max_size=70))
def test_no_text_gets_through_but_a_composed_name_that_is_no_path(text):
    try:
        name = check_name(text)
    except InvalidRequest:
        return
    assert name == unicodedata.normalize("NFC", text)
    assert NAME.fullmatch(name)
    assert not set(name) & set("/\\\0\n\r")
    assert check_name(name) == name


@given(st.from_regex(r"[\w .\-]{1,64}", fullmatch=True))
def test_however_a_name_is_normalised_the_answer_is_the_same(name):
    def answer(form):
        try:
            return check_name(unicodedata.normalize(form, name))
        except InvalidRequest:
            return None

    assert answer("NFC") == answer("NFD")
