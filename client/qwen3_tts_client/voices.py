"""Voices that the server keeps: save, list, describe, delete; and those a checkpoint was born with."""

from __future__ import annotations

import builtins
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tritonclient.grpc import InferResult

from qwen3_tts_client.archive import ArchivedVoice, SavedVoice, reading_archive, writing_archive
from qwen3_tts_client.audio import Audio
from qwen3_tts_client.conversation import Conversation, Question
from qwen3_tts_client.errors import EngineFailed, InvalidRequest, SpeechError, UnknownVoice
from qwen3_tts_client.request import voice_request
from qwen3_tts_client.tensors import read_output, read_scalar
from qwen3_tts_client.voice import ClonedVoice, DesignedVoice, VoicePrompt

if TYPE_CHECKING:
    from qwen3_tts_client.aio import AsyncSpeechClient
    from qwen3_tts_client.client import SpeechClient
    from qwen3_tts_client.finding import VoiceFinder

T = TypeVar("T")


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


def exporting(path: Path, names: Sequence[str] | None) -> Conversation[list[str]]:
    wanted = names or [voice.name for voice in (yield from listing())]
    with writing_archive(path) as archive:
        for name in wanted:
            try:
                archive.add((yield from _fetching(name)))
            except UnknownVoice:
                if names:
                    raise  # else it was deleted since it was listed
        return archive.names


def importing(path: Path, replace: bool) -> Conversation[list[str]]:
    with reading_archive(path) as archive:
        if not replace:
            _refuse_taken(archive.names, {voice.name for voice in (yield from listing())})
        for number, voice in enumerate(archive.voices()):
            try:
                yield from _restoring(voice)
            except SpeechError as error:
                told = f"voice {voice.about.name!r}: {error}; {number} before it have been imported"
                raise type(error)(told, request_id=error.request_id) from error
        return archive.names


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

    def export_to(self, path: str | Path, names: Sequence[str] | None = None) -> builtins.list[str]:
        """Write saved voices to one file, each with all there is of it, whatever store they are kept in.

        Args:
            path: a file that `import_from` reads, here or at another server; one that is there is replaced.
            names: which; by default all.

        Returns:
            The names of those it holds.

        Raises:
            InvalidRequest: there is none of one of the names.
            EngineFailed: the store holds one that is damaged; no file is written.
            OSError: the file cannot be written.
        """
        return self._client._talk(exporting(Path(path), names))

    def import_from(self, path: str | Path, *, replace: bool = False) -> builtins.list[str]:
        """Save the voices of a file that `export_to` wrote, with the times and checkpoints of their making.

        The whole file is checked before the first voice is saved.

        Args:
            path: the file.
            replace: let them take the place of saved voices that have their names; otherwise one such name
                refuses them all.

        Returns:
            Their names.

        Raises:
            InvalidRequest: the file is damaged, a name is taken, or a voice is none that this server speaks
                with; the message says how many have been saved before that one.
            OSError: the file cannot be read.
        """
        return self._client._talk(importing(Path(path), replace))

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

    async def export_to(self, path: str | Path, names: Sequence[str] | None = None) -> builtins.list[str]:
        """As `Voices.export_to`."""
        return await self._client._talk(exporting(Path(path), names), in_threads=True)

    async def import_from(self, path: str | Path, *, replace: bool = False) -> builtins.list[str]:
        """As `Voices.import_from`."""
        return await self._client._talk(importing(Path(path), replace), in_threads=True)

    async def speakers(self) -> builtins.list[Speaker]:
        """As `Voices.speakers`."""
        return await self._client._talk(listing_speakers())

    async def languages(self) -> builtins.list[str]:
        """As `Voices.languages`."""
        return await self._client._talk(listing_languages())


def _operating(operation: str, timeout_s: float | None = None, **inputs: Any) -> Conversation[Any]:
    """Have the model `voices` do something, and read the JSON that came of it."""
    return _json_of(operation, (yield from _asking(operation, timeout_s, **inputs)))


def _asking(operation: str, timeout_s: float | None = None, **inputs: Any) -> Conversation[InferResult]:
    request = voice_request("voices", operation=operation, **inputs)
    return InferResult((yield Question("ModelInfer", request, timeout_s)))


def _json_of(operation: str, result: InferResult) -> Any:
    try:
        return json.loads(read_scalar(result, "result"))
    except ValueError as error:
        raise EngineFailed(f"voices answered {operation} with no JSON: {error}") from error


def _fetching(name: str) -> Conversation[ArchivedVoice]:
    """A saved voice with its tensors."""
    result = yield from _asking("describe", name=name)
    about = _read(SavedVoice, _json_of("describe", result))
    embedding, codes = read_output(result, "speaker_embedding")[0], read_output(result, "ref_codes")[0]
    return ArchivedVoice(about, VoicePrompt(embedding, codes, about.ref_text))


def _restoring(voice: ArchivedVoice) -> Conversation[None]:
    about = voice.about
    yield from _operating(
        "restore",
        name=about.name,
        created_at=about.created_at,
        model=about.model,
        metadata=_json(about.metadata),
        **voice.prompt.inputs,
    )


def _refuse_taken(names: Sequence[str], saved: set[str]) -> None:
    if taken := [name for name in names if name in saved]:
        told = ", ".join(map(repr, taken[:5])) + (f" and {len(taken) - 5} more" if len(taken) > 5 else "")
        raise InvalidRequest(f"there are voices of these names already: {told}; replace them, or delete them")


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
