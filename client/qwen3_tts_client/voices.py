"""Voices that the server keeps: save, list, describe, delete; and those a checkpoint was born with."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar

from tritonclient.grpc import InferResult

from qwen3_tts_client.audio import Audio
from qwen3_tts_client.conversation import Conversation, Question
from qwen3_tts_client.errors import EngineFailed, InvalidRequest
from qwen3_tts_client.request import voice_request
from qwen3_tts_client.tensors import read_scalar
from qwen3_tts_client.voice import ClonedVoice, DesignedVoice, VoicePrompt

if TYPE_CHECKING:
    from qwen3_tts_client.aio import AsyncSpeechClient
    from qwen3_tts_client.client import SpeechClient
    from qwen3_tts_client.finding import VoiceFinder

T = TypeVar("T")


@dataclass(frozen=True)
class SavedVoice:
    """A voice that the server keeps under a name.

    Attributes:
        name: what to speak with: `voice="grandpa"`.
        created_at: when it was saved.
        model: the checkpoint that heard it, the only kind that can speak with it.
        x_vector_only: it is no more than a speaker embedding.
        ref_text: the transcript of its recording; empty if x-vector only.
        metadata: whatever was saved along with it.
    """

    name: str
    created_at: str
    model: str
    x_vector_only: bool
    ref_text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Speaker:
    """A built-in speaker of the CustomVoice checkpoint."""

    name: str
    description: str
    native_language: str


def saving(
    finder: VoiceFinder, name: str, voice: ClonedVoice | VoicePrompt, metadata: Mapping[str, Any] | None
) -> Conversation[None]:
    written = _json(metadata)
    prompt = voice if isinstance(voice, VoicePrompt) else (yield from finder.prompting(voice))
    yield from _operating("save", name=name, metadata=written, **prompt.inputs)


def listing() -> Conversation[list[SavedVoice]]:
    answer = yield from _operating("list")
    return [_read(SavedVoice, voice) for voice in _entry(answer, "voices")]


def describing(name: str) -> Conversation[SavedVoice]:
    return _read(SavedVoice, (yield from _operating("describe", name=name)))


def deleting(name: str) -> Conversation[None]:
    yield from _operating("delete", name=name)


def listing_speakers(timeout_s: float | None = None) -> Conversation[list[Speaker]]:
    answer = yield from _operating("speakers", timeout_s)
    return [_read(Speaker, speaker) for speaker in _entry(answer, "speakers")]


def listing_languages() -> Conversation[list[str]]:
    return list(_entry((yield from _operating("languages")), "languages"))


def in_designed_voice(sample: Audio, sample_text: str) -> ClonedVoice:
    """A designed voice sounds new in every utterance; its clone is one voice for good."""
    return ClonedVoice(sample.to_wav(), transcript=sample_text)


class Voices:
    """The server's voices, as `SpeechClient.voices`; needs its model `voices`.

        tts.voices.save("grandpa", ClonedVoice("grandpa.flac", transcript="…"))
        tts.synthesize("Once upon a time …", voice="grandpa")

    A voice's name is 1 to 64 letters, digits, spaces or any of `_.-`, and not that of a built-in speaker.
    """

    def __init__(self, client: SpeechClient) -> None:
        self._client = client

    def save(
        self, name: str, voice: ClonedVoice | VoicePrompt, *, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Keep a recorded voice under a name; only what was heard in the recording is kept, not itself.

        Raises:
            InvalidRequest: the name cannot be a voice's, the recording cannot be heard, or the metadata is
                no JSON.
            OSError: the recording cannot be read.
        """
        self._client._talk(saving(self._client._finder, name, voice, metadata))

    def design(
        self,
        name: str,
        *,
        instruct: str,
        sample_text: str,
        language: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Audio:
        """Speak a sample in a voice described in words, keep the voice that came of it, return the sample.

        Every utterance of a `DesignedVoice` invents the voice anew; from here on it is one voice, by name. A
        sample whose `finish_reason` is not `stop` was cut short: better design that one again.

        Args:
            name: what to call the voice.
            instruct: the voice in words, such as "a warm old storyteller".
            sample_text: what it says; must take between 1 and 30 s to say.
            language: of the sample; by default recognised from its text.
            metadata: kept along with the voice.
            seed: the same seed and words give the same voice.

        Raises:
            SpeechError: nothing was saved.
        """
        sample = self._client.synthesize(sample_text, DesignedVoice(instruct), language=language, seed=seed)
        self.save(name, in_designed_voice(sample, sample_text), metadata=metadata)
        return sample

    def list(self) -> builtins.list[SavedVoice]:
        """All saved voices."""
        return self._client._talk(listing())

    def describe(self, name: str) -> SavedVoice:
        """One saved voice.

        Raises:
            InvalidRequest: there is none of this name.
        """
        return self._client._talk(describing(name))

    def delete(self, name: str) -> None:
        """Forget a saved voice for good.

        Raises:
            InvalidRequest: there is none of this name.
        """
        self._client._talk(deleting(name))

    def speakers(self) -> builtins.list[Speaker]:
        """The built-in speakers of the checkpoint that the server speaks with."""
        return self._client._talk(listing_speakers())

    def languages(self) -> builtins.list[str]:
        """The languages that the checkpoint speaks, `Auto` among them."""
        return self._client._talk(listing_languages())


class AsyncVoices:
    """`Voices`, awaited, as `AsyncSpeechClient.voices`."""

    def __init__(self, client: AsyncSpeechClient) -> None:
        self._client = client

    async def save(
        self, name: str, voice: ClonedVoice | VoicePrompt, *, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """As `Voices.save`."""
        await self._client._talk(saving(self._client._finder, name, voice, metadata))

    async def design(
        self,
        name: str,
        *,
        instruct: str,
        sample_text: str,
        language: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Audio:
        """As `Voices.design`."""
        voice = DesignedVoice(instruct)
        sample = await self._client.synthesize(sample_text, voice, language=language, seed=seed)
        await self.save(name, in_designed_voice(sample, sample_text), metadata=metadata)
        return sample

    async def list(self) -> builtins.list[SavedVoice]:
        """As `Voices.list`."""
        return await self._client._talk(listing())

    async def describe(self, name: str) -> SavedVoice:
        """As `Voices.describe`."""
        return await self._client._talk(describing(name))

    async def delete(self, name: str) -> None:
        """As `Voices.delete`."""
        await self._client._talk(deleting(name))

    async def speakers(self) -> builtins.list[Speaker]:
        """As `Voices.speakers`."""
        return await self._client._talk(listing_speakers())

    async def languages(self) -> builtins.list[str]:
        """As `Voices.languages`."""
        return await self._client._talk(listing_languages())


def _operating(operation: str, timeout_s: float | None = None, **inputs: Any) -> Conversation[Any]:
    """Have the model `voices` do something, and read the JSON that came of it."""
    request = voice_request("voices", operation=operation, **inputs)
    answer = yield Question("ModelInfer", request, timeout_s)
    try:
        return json.loads(read_scalar(InferResult(answer), "result"))
    except ValueError as error:
        raise EngineFailed(f"voices answered {operation} with no JSON: {error}") from error


def _entry(answer: Any, key: str) -> Any:
    try:
        return answer[key]
    except (KeyError, TypeError):
        raise EngineFailed(f"voices answered without {key!r}: {answer!r}") from None


def _read(kind: type[T], entry: Any) -> T:
    """Fields that this client has never heard of are a newer server's, and left out."""
    return kind(**{field.name: _entry(entry, field.name) for field in fields(kind)})  # type: ignore[arg-type]


def _json(metadata: Mapping[str, Any] | None) -> str | None:
    try:
        return None if metadata is None else json.dumps(dict(metadata), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"metadata={metadata!r} cannot be written as JSON: {error}") from error
