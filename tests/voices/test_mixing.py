"""Voices by name, and voices out of voices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_tts_engine.errors import InvalidRequest, NotFound
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.mixing import mix, parse, resolve_voice
from qwen3_tts_engine.voices.store import open_store

WORDS = "This is what I sound like."

MIXES = {
    "a(2)+b(1)": [("a", 2), ("b", 1)],
    "a+b": [("a", 1), ("b", 1)],
    "a(0.5) + my voice(1.5)": [("a", 0.5), ("my voice", 1.5)],
    " a ( 2 ) + b": [("a", 2), ("b", 1)],
    "a-b(.25)+c_d.e(3)": [("a-b", 0.25), ("c_d.e", 3)],
    "a(1)": [("a", 1)],
    "爷爷(2)+奶奶": [("爷爷", 2), ("奶奶", 1)],
}

UNREADABLE = [
    *("+", "a+", "+a", "a++b", "(2)", "a()+b", "a(2", "a2)", "a(2)b", "a(2)(3)+b", "a((2))+b"),
    *("a(0)+b", "a(-1)+b", "a(x)+b", "a(1e9)+b", "a(inf)+b", "a(nan)+b", "a(0.000)+b", "a(٣)+b", "a(1,5)+b"),
    "a(1000000000000)+b",
    "+".join("abcdefghijklmnopq"),
    "a(" * 100_000,
    "a" + " " * 1_000_000 + "(",
]


@pytest.fixture
def store(tmp_path, make_voice):
    """a and b are recordings, and small's model is of another size."""
    store = open_store(str(tmp_path))
    store.save(make_voice("a", seed=1, ref_text=WORDS))
    store.save(make_voice("b", seed=2, ref_text=WORDS))
    store.save(make_voice("small", seed=3, size=32))
    return store


@pytest.mark.parametrize(("expression", "parts"), MIXES.items())
def test_a_mix_is_names_and_weights(expression, parts):
    assert parse(expression) == parts


@pytest.mark.parametrize("expression", ["a", "my voice", "a-b_c.d", "", "爷爷"])
def test_a_name_is_no_mix(expression):
    assert parse(expression) is None


@pytest.mark.parametrize("expression", UNREADABLE)
def test_a_mix_nobody_can_read_is_refused_in_a_few_words(expression):
    with pytest.raises(InvalidRequest, match=r"^voice (mixes|gives) ") as refusal:
        parse(expression)
    assert len(str(refusal.value)) < 300


@given(st.text(alphabet="ab ()+.0123456789é\n", max_size=30))
def test_whatever_is_written_it_is_a_name_a_mix_or_invalid(expression):
    try:
        parts = parse(expression)
    except InvalidRequest:
        return
    if parts is None:
        assert not set("()+") & set(expression)
    else:
        assert all(name and name == name.strip() and 0 < weight < 1e9 for name, weight in parts)


def test_a_name_is_the_voice_that_was_saved(store):
    prompt = resolve_voice(store, "a")
    assert prompt.ref_codes is not None
    assert prompt.ref_text == WORDS


def test_a_mix_is_the_weighted_mean_of_the_embeddings_and_nothing_else(store):
    a, b = (store.get(name).prompt.speaker_embedding for name in "ab")
    prompt = resolve_voice(store, "a(2)+b(1)")
    np.testing.assert_allclose(prompt.speaker_embedding, (2 * a + b) / 3, rtol=1e-6)
    assert prompt.speaker_embedding.dtype == np.float32
    assert (prompt.ref_codes, prompt.ref_text) == (None, "")


def test_only_the_proportions_of_the_weights_count(store):
    one, other = (resolve_voice(store, e).speaker_embedding for e in ("a(2)+b(1)", "a(0.5)+b(0.25)"))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_mix_of_one_is_that_embedding(store):
    np.testing.assert_array_equal(
        resolve_voice(store, "a(3)").speaker_embedding, store.get("a").prompt.speaker_embedding
    )


def test_large_embeddings_do_not_overflow_on_the_way():
    largest = VoicePrompt(np.full(4, np.finfo(np.float32).max, np.float32))
    assert np.isfinite(mix([(largest, 3.0), (largest, 2.0)]).speaker_embedding).all()


@pytest.mark.parametrize("expression", ["c", "a+c(2)"])
def test_a_voice_nobody_saved_is_named(store, expression):
    with pytest.raises(NotFound, match=r"^there is no voice named 'c'$"):
        resolve_voice(store, expression)


@pytest.mark.parametrize("expression", ["../a", "a+../b", ""])
def test_a_name_no_voice_can_have_is_refused(store, expression):
    with pytest.raises(InvalidRequest, match=r"^name is "):
        resolve_voice(store, expression)


def test_voices_of_two_sizes_do_not_mix(store):
    with pytest.raises(
        InvalidRequest, match="embeddings of 32 and 64 values; they were made by models of diff"
    ):
        resolve_voice(store, "a+small")


@pytest.mark.parametrize("expression", ["small", "a+small"])
def test_a_voice_made_by_a_model_of_another_size_is_refused_with_both_sizes(store, expression):
    with pytest.raises(
        InvalidRequest,
        match=r"'small' has a speaker embedding of 32 values, made by qwen3_tts .*; this model speaks wi",
    ):
        resolve_voice(store, expression, num_values=64)
