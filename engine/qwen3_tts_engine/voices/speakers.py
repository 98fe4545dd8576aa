"""The built-in speakers, in upstream's words.

Source: the table "CustomVoice" of the README of qwen-tts 0.1.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Speaker:
    """A built-in speaker; its fields are those of the JSON that `voices` answers with."""

    name: str
    description: str
    native_language: str


CATALOGUE = (
    Speaker("Vivian", "Bright, slightly edgy young female voice.", "Chinese"),
    Speaker("Serena", "Warm, gentle young female voice.", "Chinese"),
    Speaker("Uncle_Fu", "Seasoned male voice with a low, mellow timbre.", "Chinese"),
    Speaker(
        "Dylan", "Youthful Beijing male voice with a clear, natural timbre.", "Chinese (Beijing Dialect)"
    ),
    Speaker(
        "Eric", "Lively Chengdu male voice with a slightly husky brightness.", "Chinese (Sichuan Dialect)"
    ),
    Speaker("Ryan", "Dynamic male voice with strong rhythmic drive.", "English"),
    Speaker("Aiden", "Sunny American male voice with a clear midrange.", "English"),
    Speaker("Ono_Anna", "Playful Japanese female voice with a light, nimble timbre.", "Japanese"),
    Speaker("Sohee", "Warm Korean female voice with rich emotion.", "Korean"),
)


def describe(names: Iterable[str]) -> list[Speaker]:
    """A checkpoint's speakers, in its order; one that upstream does not know has only a name."""
    known = {speaker.name.lower(): speaker for speaker in CATALOGUE}
    return [known.get(name.lower(), Speaker(name, "", "")) for name in names]
