"""Whose voice a name means: built-in speakers, OpenAI's names for them, and what each key has saved.

One voice store serves many keys. A key's voices are kept as `key-<owner>.<name>`; its callers see
`<name>`. Voices without an owner, saved past the gateway or by an open one, are everybody's to speak with.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Mapping

from qwen3_tts_client import AsyncSpeechClient, FoundVoice, Saved, UnknownVoice
from qwen3_tts_gateway.errors import InvalidInput, NotFound
from qwen3_tts_gateway.keys import OWNER_LENGTH

_NAME = re.compile(r"[\w .\-]{1,64}")
_SHOWN_CHARACTERS = 80  # of a name that is refused
_OWNED = re.compile(rf"key-[0-9a-f]{{{OWNER_LENGTH}}}\.")
_MIXED = re.compile(r"\s*([^+()]+?)\s*(\(\s*[0-9.]+\s*\))?\s*")
PROMPT_PREFIX = "prompt-"
"""Of the names that voice prompts of the original API are saved under; they are not listed."""


def stored_name(owner: str, name: str) -> str:
    """What a key's voice is called in the store.

    Raises:
        NotFound: the name is what the store calls somebody's voice; nobody speaks of voices that way.
    """
    if _OWNED.match(name):
        raise NotFound(f"there is no voice named {name!r}", param="voice")
    return f"key-{owner}.{name}" if owner else name


def visible_name(owner: str, stored: str) -> str | None:
    """What a key's caller knows a stored voice as; None if it is another key's, or a prompt."""
    mine = f"key-{owner}."
    name = stored.removeprefix(mine) if owner else stored
    return None if _OWNED.match(name) or name.startswith(PROMPT_PREFIX) else name


def as_callers_say(text: str) -> str:
    """What Triton says of a key's voices, without what their names begin with in the store."""
    return _OWNED.sub("", text)


def is_name(text: str) -> bool:
    """Whether a voice may be called so, taken or not."""
    return bool(_NAME.fullmatch(text)) and text not in (".", "..")


def check_new_name(name: str, aliases: Collection[str], speakers: Collection[str] = ()) -> str:
    """A voice's name as it is kept, Unicode NFC, judged without what a key's begins with in the store.

    Raises:
        InvalidInput: no voice may have the name, or it means something else already.
    """
    name = unicodedata.normalize("NFC", name)
    told = f"name is {name[:_SHOWN_CHARACTERS]!r}"
    if not is_name(name):
        raise InvalidInput(
            f"{told}; a voice's is 1 to 64 letters, digits, spaces or any of _.-, and neither . nor ..",
            param="name",
        )
    if _is_among(aliases, name):
        raise InvalidInput(f"{told}, which is an alias; choose another", param="name")
    if _is_among(speakers, name):
        raise InvalidInput(f"{told}, which is a built-in speaker's; choose another", param="name")
    if _OWNED.match(name) or name.startswith(PROMPT_PREFIX):
        raise InvalidInput(f"{told}; names that begin this way are the gateway's own", param="name")
    return name


def _is_among(names: Collection[str], name: str) -> bool:
    return name.casefold() in {taken.casefold() for taken in names}


def names_in(expression: str) -> list[str]:
    """Of a mix, or of what is no more than a name."""
    matches = (_MIXED.fullmatch(part) for part in expression.split("+"))
    return [match[1] for match in matches if match is not None]


class VoiceNames:
    """Translates the names of callers into those that Triton knows."""

    def __init__(self, tts: AsyncSpeechClient, aliases: Mapping[str, str]) -> None:
        self._tts = tts
        self.aliases = aliases

    async def resolve(self, name: str, owner: str) -> FoundVoice:
        """What to speak with: a speaker, a stored voice, or a mix of stored voices.

        Raises:
            NotFound: it can only be another key's.
            SpeechError: Triton could not be asked.
        """
        name = self.aliases.get(name.lower(), name)
        found = await self._tts.find(name)
        if not isinstance(found, Saved):
            return found
        return Saved("+".join([await self._resolve_part(part, owner) for part in name.split("+")]))

    async def _resolve_part(self, part: str, owner: str) -> str:
        match = _MIXED.fullmatch(part)
        if match is None:
            # Never handed on as it is: Triton may read more kinds of mixes than this does.
            raise InvalidInput(
                f"voice is {part!r}; a voice is a name, or a mix such as a(2)+b(1)", param="voice"
            )
        name, weight = match.groups()
        return await self.stored(name, owner) + (weight or "")

    async def stored(self, name: str, owner: str) -> str:
        """The stored voice that a key's caller means: the key's own, or else one that is nobody's."""
        own = stored_name(owner, name)
        if own == name:
            return name
        try:
            await self._tts.voices.describe(own)
        except UnknownVoice:
            return name
        return own
