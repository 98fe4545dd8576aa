"""Names as callers say them, and as Triton knows them."""

from collections.abc import AsyncIterator

import pytest

from fakes.triton_server import FakeTriton
from qwen3_tts_client import AsyncSpeechClient, BuiltIn, ClonedVoice, Saved
from qwen3_tts_gateway.errors import InvalidInput, NotFound
from qwen3_tts_gateway.naming import VoiceNames, stored_name, visible_name

ALICE, BOB = "a" * 12, "b" * 12
GRANDPA = ClonedVoice(b"RIFF grandpa", "Once upon a time.")


@pytest.fixture
async def names(fake_triton: FakeTriton) -> AsyncIterator[VoiceNames]:
    """Everybody's voice is grandpa; Alice has an uncle, and a grandpa of her own."""
    async with AsyncSpeechClient(fake_triton.url) as tts:
        for stored in ("grandpa", stored_name(ALICE, "grandpa"), stored_name(ALICE, "uncle")):
            await tts.voices.save(stored, GRANDPA)
        yield VoiceNames(tts, {"alloy": "ryan", "onyx": "uncle", "nova": "uncle(2)+grandpa(1)"})


@pytest.mark.parametrize(
    ("name", "owner", "found"),
    [
        ("Ryan", ALICE, BuiltIn("Ryan")),
        ("ALLOY", ALICE, BuiltIn("ryan")),
        ("grandpa", ALICE, Saved(f"key-{ALICE}.grandpa")),
        ("grandpa", BOB, Saved("grandpa")),
        ("grandpa", "", Saved("grandpa")),
        ("uncle", BOB, Saved("uncle")),  # which Triton does not know
        ("uncle(2) + grandpa", ALICE, Saved(f"key-{ALICE}.uncle(2)+key-{ALICE}.grandpa")),
        ("onyx", ALICE, Saved(f"key-{ALICE}.uncle")),
        ("nova", ALICE, Saved(f"key-{ALICE}.uncle(2)+key-{ALICE}.grandpa(1)")),
    ],
)
async def test_a_name_means_a_speaker_the_keys_own_voice_or_everybodys(
    names: VoiceNames, name: str, owner: str, found: BuiltIn | Saved
) -> None:
    assert await names.resolve(name, owner) == found


@pytest.mark.parametrize(
    "name",
    [
        f"key-{ALICE}.uncle",
        f" key-{ALICE}.uncle",
        f"key-{ALICE}.uncle(2)",
        f"grandpa+key-{ALICE}.uncle",
        f"grandpa(1)+ key-{ALICE}.uncle (1)",
        f"key-{ALICE}.uncle(1e0)",
        f"grandpa+key-{ALICE}.uncle(-1)",
        f"(key-{ALICE}.uncle)",
    ],
)
@pytest.mark.parametrize("owner", [BOB, ""])
async def test_nobody_reaches_anothers_voice_by_its_stored_name(
    names: VoiceNames, name: str, owner: str
) -> None:
    with pytest.raises((NotFound, InvalidInput)):
        await names.resolve(name, owner)


@pytest.mark.parametrize("owner", [ALICE, ""])
def test_a_name_is_told_back_as_it_was_given(owner: str) -> None:
    assert visible_name(owner, stored_name(owner, "grandpa")) == "grandpa"


@pytest.mark.parametrize("stored", [f"key-{ALICE}.uncle", "prompt-" + "0" * 32, f"key-{BOB}.prompt-1"])
def test_anothers_voices_and_prompts_are_not_listed(stored: str) -> None:
    assert visible_name(BOB, stored) is None
