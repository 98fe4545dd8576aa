"""Names of voices, mixes of them, and the files they are kept in."""

import asyncio
import json
import struct
import unicodedata
from contextlib import suppress
from typing import Any

import numpy as np
from hypothesis import strategies as st

from fuzzing import anything, fuzz, mutated
from qwen3_tts_client import Saved
from qwen3_tts_engine.errors import EngineFailed, InvalidRequest
from qwen3_tts_engine.request import VoicePrompt
from qwen3_tts_engine.voices.format import digest_of, read_entry, read_object, write_entry, write_object
from qwen3_tts_engine.voices.mixing import parse
from qwen3_tts_engine.voices.names import check_name
from qwen3_tts_engine.voices.voice import Voice
from qwen3_tts_gateway.errors import InvalidInput, NotFound
from qwen3_tts_gateway.naming import PROMPT_PREFIX, VoiceNames, check_new_name, stored_name, visible_name

SPEAKERS = ["Ryan", "uncle_fu", "straße"]
NAMES = st.text(max_size=80) | st.sampled_from(
    ["..", ".", "a/b", "a\0b", "RYAN", "STRASSE", "é", "key-0123456789ab.x", "prompt-1", "a(2)+b", "a\n"]
)
MIXES = st.text("ab (+)1.9e-٣²", max_size=40) | NAMES
OWNERS = st.sampled_from(["", "0123456789ab", "ba9876543210"])

VOICE = Voice(
    "grandpa",
    VoicePrompt(np.linspace(-1, 1, 32).astype(np.float32), np.ones((5, 16), np.int64), "What he says."),
    "2026-01-02T03:04:05Z",
    "tiny",
    {"consent": "yes"},
)
OBJECT = write_object(VOICE)
ENTRY = write_entry(VOICE, digest_of(OBJECT))


@fuzz(300, name=NAMES)
def test_a_name_is_one_of_a_file_in_the_store_or_refused(name: str) -> None:
    with suppress(InvalidRequest):
        kept = check_name(name, SPEAKERS)
        assert kept == unicodedata.normalize("NFC", name) == check_name(kept, SPEAKERS)
        assert not {*"/\\\0\n"} & {*kept}
        assert kept not in ("", ".", "..")
        assert kept.casefold() not in ("ryan", "uncle_fu", "strasse")
        assert kept.encode()


@fuzz(300, expression=MIXES)
def test_a_mix_is_parts_with_weights_above_0_or_refused(expression: str) -> None:
    with suppress(InvalidRequest):
        for name, weight in parse(expression) or [("a plain name", 1.0)]:
            assert name
            assert 0 < weight < float("inf")


@fuzz(300, name=NAMES, owner=OWNERS, other=OWNERS)
def test_a_voice_is_its_owners_and_nobody_elses(name: str, owner: str, other: str) -> None:
    with suppress(InvalidInput, NotFound):
        check_new_name(name, ["alloy"])
        stored = stored_name(owner, name)
        assert visible_name(owner, stored) == name
        assert owner in ("", other) or visible_name(other, stored) is None
        assert not name.startswith(PROMPT_PREFIX)


class Describer:
    """A Triton whose store has the voices of one owner, each under the name it is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.voices = self

    async def find(self, voice: str) -> Saved:
        return Saved(voice)

    async def describe(self, name: str) -> None:
        self.asked.append(name)


@fuzz(200, name=MIXES, owner=st.sampled_from(["0123456789ab"]))
def test_whatever_is_asked_for_is_looked_for_among_the_callers_own(name: str, owner: str) -> None:
    triton = Describer()
    with suppress(InvalidInput, NotFound):
        asyncio.run(VoiceNames(triton, {}).resolve(name, owner))  # type: ignore[arg-type]
    assert all(asked.startswith(f"key-{owner}.") for asked in triton.asked)
    assert not any("+" in asked or "(" in asked for asked in triton.asked)


@fuzz(300, data=mutated(st.just(OBJECT)))
def test_a_damaged_voice_is_told_as_one(data: bytes) -> None:
    with suppress(EngineFailed):
        assert read_object(VOICE.name, digest_of(data), data).name == VOICE.name


def test_a_voice_that_is_not_damaged_is_read() -> None:
    assert read_object(VOICE.name, digest_of(OBJECT), OBJECT).summary == VOICE.summary
    assert read_entry(VOICE.name, ENTRY).summary == VOICE.summary


@st.composite
def objects(draw: st.DrawFn) -> bytes:
    """Well formed files of the kind, with anything in their fields."""
    about: Any = json.loads(
        json.loads(OBJECT[8 : 8 + struct.unpack_from("<Q", OBJECT)[0]])["__metadata__"]["voice"]
    )
    for field in draw(st.lists(st.sampled_from([*about]), unique=True, max_size=3)):
        about[field] = draw(anything)
    if not draw(st.integers(0, 9)):
        about = draw(anything)
    header = {"voice": json.dumps(about)} if draw(st.integers(0, 9)) else draw(anything)
    size = draw(st.integers(0, 64))
    tensors: Any = {
        "speaker_embedding": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size // 4 * 4]}
    }
    if not draw(st.integers(0, 5)):
        tensors[draw(st.sampled_from(["ref_codes", "speaker_embedding"]))] = draw(anything)
    text = json.dumps({"__metadata__": header, **tensors}).encode()
    return (
        struct.pack("<Q", len(text)) + text + draw(st.binary(min_size=size // 4 * 4, max_size=size // 4 * 4))
    )


@fuzz(300, data=objects())
def test_a_voice_with_strange_fields_is_told_as_damaged(data: bytes) -> None:
    with suppress(EngineFailed):
        voice = read_object(VOICE.name, digest_of(data), data)
        read_entry(voice.name, write_entry(voice, digest_of(data)))


@fuzz(300, data=mutated(st.just(ENTRY)) | anything.map(lambda value: json.dumps(value).encode()))
def test_a_damaged_entry_is_told_as_one(data: bytes) -> None:
    with suppress(EngineFailed):
        assert read_entry(VOICE.name, data).digest == digest_of(OBJECT)
