"""What may be saved, and that bytes become the voice they were made of or nothing."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors import numpy as safetensors

from qwen3_tts_engine.errors import EngineFailed, InvalidRequest
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.format import digest_of, read_entry, read_object, write_entry, write_object
from qwen3_tts_engine.voices.voice import read_metadata

WORDS = "This is what I sound like."
EMBEDDING = np.ones(64, np.float32)
CODES = np.ones((3, 16), np.int64)

BAD_PROMPTS = {
    "an embedding of another type": (VoicePrompt(EMBEDDING.astype(np.float64)), "float64 of shape"),
    "an embedding of two dimensions": (VoicePrompt(EMBEDDING[None]), r"shape \[1, 64\]"),
    "no embedding": (VoicePrompt(EMBEDDING[:0]), "has 0 values"),
    "an endless embedding": (VoicePrompt(np.ones(8193, np.float32)), "has 8193 values"),
    "no number": (VoicePrompt(np.full(64, np.nan, np.float32)), "is no number from"),
    "a signalling one": (
        VoicePrompt(np.full(64, 0x7F810000, np.uint32).view(np.float32)),
        "is no number from",
    ),
    "infinity": (VoicePrompt(np.full(64, np.inf, np.float32)), "is no number from"),
    "more than bfloat16 holds": (
        VoicePrompt(np.full(64, 3.4e38, np.float32)),
        "speaker_embedding holds a value that is no number from -10000 to 10000",
    ),
    "frames of 15 codes": (VoicePrompt(EMBEDDING, CODES[:, :15], WORDS), r"shape \[3, 15\]"),
    "no frames": (VoicePrompt(EMBEDDING, CODES[:0], WORDS), r"shape \[0, 16\]"),
    "more than a minute": (VoicePrompt(EMBEDDING, np.ones((751, 16), np.int64), WORDS), r"shape \[751, 16\]"),
    "codes that are no integers": (VoicePrompt(EMBEDDING, CODES / 2, WORDS), "whole numbers"),
    "a negative code": (VoicePrompt(EMBEDDING, -CODES, WORDS), "holds -1 to -1; codes are 0 to 2047"),
    "a code too high": (VoicePrompt(EMBEDDING, CODES * 2048, WORDS), "holds 2048 to 2048"),
    "codes without words": (VoicePrompt(EMBEDDING, CODES, "  "), "ref_text is missing"),
    "endless words": (VoicePrompt(EMBEDDING, CODES, "a" * 4097), "has 4097 characters"),
}

BAD_METADATA = {
    "no JSON": ("{consent: yes}", "not valid JSON"),
    "a list": ("[1]", "must be a JSON object"),
    "a text": ('"yes"', "must be a JSON object"),
    "bottomless": ("[" * 100_000, "not valid JSON"),
}
UNWRITABLE_METADATA = {
    "no number": {"age": float("nan")},
    "infinity": read_metadata('{"age": 1e999}'),
    "half a character": read_metadata(r'{"consent": "\ud800"}'),
    "too much": {"consent": "a" * 20_000},
}


@pytest.mark.parametrize(("prompt", "message"), BAD_PROMPTS.values(), ids=BAD_PROMPTS.keys())
def test_a_prompt_no_model_could_speak_with_is_refused(make_voice, prompt, message):
    with pytest.raises(InvalidRequest, match=message):
        replace(make_voice(), prompt=prompt)


@pytest.mark.parametrize(("text", "message"), BAD_METADATA.values(), ids=BAD_METADATA.keys())
def test_metadata_is_a_json_object(text, message):
    with pytest.raises(InvalidRequest, match=f"^metadata .*{message}"):
        read_metadata(text)


@pytest.mark.parametrize("metadata", UNWRITABLE_METADATA.values(), ids=UNWRITABLE_METADATA.keys())
def test_metadata_that_could_not_be_read_again_is_refused(make_voice, metadata):
    with pytest.raises(InvalidRequest, match=r"^metadata "):
        make_voice(metadata=metadata)


@pytest.mark.parametrize("ref_text", ["", WORDS])
def test_a_voice_becomes_bytes_and_the_same_voice_again(make_voice, assert_same_voice, ref_text):
    voice = make_voice(
        "爷爷", seed=1, ref_text=ref_text, metadata={"consent": "yes, «always»", "n": [1, None]}
    )
    data = write_object(voice)
    assert_same_voice(read_object(voice.name, digest_of(data), data), voice)
    assert read_entry(voice.name, write_entry(voice, digest_of(data))).summary == voice.summary


def test_an_object_is_a_safetensors_file(make_voice):
    voice = make_voice(ref_text=WORDS)
    tensors = safetensors.load(write_object(voice))
    assert {name: (t.dtype.name, t.shape) for name, t in tensors.items()} == {
        "speaker_embedding": ("float32", (64,)),
        "ref_codes": ("int32", (25, 16)),
    }


def test_no_two_saves_are_one_object(make_voice):
    """Nor are two voices: whoever replaces one removes what it was, and nothing else."""
    voice = make_voice(seed=1, ref_text=WORDS)
    assert digest_of(write_object(voice)) != digest_of(write_object(voice))


def test_any_flipped_bit_is_found(make_voice):
    data = write_object(make_voice(ref_text=WORDS))
    digest = digest_of(data)
    for place in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[place] ^= 1
        with pytest.raises(EngineFailed, match="holds voice 'grandpa' damaged"):
            read_object("grandpa", digest, bytes(flipped))


FOREIGN = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "a header without an end": (1 << 60).to_bytes(8, "little") + b"{}",
    "no metadata": safetensors.save({"speaker_embedding": EMBEDDING}),
    "another kind of file": safetensors.save({"weight": EMBEDDING}, {"voice": "{}"}),
    "a pickle": b"\x80\x04K\x01.",
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_what_never_was_a_voice_is_not_read_as_one(data):
    with pytest.raises(EngineFailed, match="damaged"):
        read_object("grandpa", digest_of(data), data)


def test_an_unfit_prompt_is_not_read_though_its_hash_is_right(make_voice):
    about = {"version": 1, "name": "grandpa", "created_at": "", "model": "", "ref_text": "", "metadata": {}}
    unfit = EMBEDDING * np.float32("nan")
    data = safetensors.save({"speaker_embedding": unfit}, {"voice": json.dumps(about)})
    with pytest.raises(EngineFailed, match="damaged: speaker_embedding holds a value"):
        read_object("grandpa", digest_of(data), data)


def test_the_voice_of_another_name_or_of_a_later_format_is_not_read(make_voice):
    data = write_object(make_voice("grandma"))
    with pytest.raises(EngineFailed, match="'grandpa' damaged: it is 'grandma' in version 1"):
        read_object("grandpa", digest_of(data), data)


ENTRIES = {
    "cut short": lambda entry: json.dumps(entry)[:-9],
    "a list": lambda entry: "[]",
    "lists in lists": lambda entry: "[" * 100_000,
    "a path in place of a hash": lambda entry: json.dumps({**entry, "object": "../../etc/passwd"}),
    "a name that is a number": lambda entry: json.dumps({**entry, "voice": {**entry["voice"], "name": 7}}),
    "a field too few": lambda entry: json.dumps({**entry, "voice": {"name": "grandpa"}}),
}


@pytest.mark.parametrize("break_", ENTRIES.values(), ids=ENTRIES.keys())
def test_a_broken_entry_is_not_read(make_voice, break_):
    entry = json.loads(write_entry(make_voice(), "0" * 64))
    with pytest.raises(EngineFailed, match="holds voice 'grandpa' damaged"):
        read_entry("grandpa", break_(entry).encode())
