"""What a saved voice may be called."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection

from qwen3_tts_engine.errors import InvalidRequest

# A gateway with keys puts in front whose voice it is, and has seen to the rest.
NAME = re.compile(r"(?:key-[0-9a-f]{12}\.)?[\w .\-]{1,64}")
SHOWN_CHARACTERS = 80  # of a name that is refused


def check_name(name: str, speakers: Collection[str] = ()) -> str:
    """The name as it is kept: Unicode NFC, so that an accent typed either way is the same voice.

    Args:
        name: as the caller wrote it.
        speakers: built-in ones, whose names are taken in any case.

    Raises:
        InvalidRequest: for a name that no voice may have.
    """
    name = unicodedata.normalize("NFC", name)
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise InvalidRequest(
            f"name is {name[:SHOWN_CHARACTERS]!r}; a voice's is 1 to 64 letters, digits, spaces or any of"
            " _.-, and neither . nor .."
        )
    if name.casefold() in {speaker.casefold() for speaker in speakers}:
        raise InvalidRequest(f"name is {name!r}, which is a built-in speaker's; choose another")
    return name
