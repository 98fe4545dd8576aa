"""One utterance on its way from Triton to a caller: admitted, spoken, encoded, counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import Field

from qwen3_tts_client import (
    AsyncSpeechClient,
    AsyncSpeechStream,
    ClonedVoice,
    FoundVoice,
    SpeechOptions,
    Voice,
    VoicePrompt,
    model_of,
)
from qwen3_tts_gateway.errors import InvalidInput
from qwen3_tts_gateway.keys import Key
from qwen3_tts_gateway.limits import Limits
from qwen3_tts_gateway.loading import ModelKeeper
from qwen3_tts_gateway.naming import VoiceNames, stored_name
from qwen3_tts_gateway.observing import KEY_AUDIO, KEY_FIRST_AUDIO, KEY_WAITED, request_id
from qwen3_tts_gateway.recordings import Reference
from qwen3_tts_gateway.settings import Settings
from qwen3_tts_gateway.sound import Sound, encode_whole, open_encoder
from qwen3_tts_gateway.threads import in_thread

T = TypeVar("T")

Language = Annotated[str, Field(max_length=64)]
"""A language's name. The engine repeats one that it does not know, in gRPC's trailers: those hold 8 KiB, and
what does not fit into them would come back as an overload.
"""


CallersVoice: TypeAlias = Voice | FoundVoice | Reference
"""A name as the caller knows it, a described, recorded or found voice, or a recording still to be opened."""


@dataclass(frozen=True)
class Speech:
    """What a caller wants said.

    Attributes:
        text: what to say.
        voice: who is to say it.
        sound: how it is to be heard.
        language: None: recognised from the text.
        options: for the engine; what is left out, the checkpoint decides.
    """

    text: str
    voice: CallersVoice
    sound: Sound
    language: str | None = None
    options: SpeechOptions = field(default_factory=SpeechOptions)


class Utterance:
    """A speech under way.

    Attributes:
        num_frames: spoken so far, of 80 ms each.
        duration_s: seconds of audio so far, as it is heard.
        generation_s: seconds since it began.
    """

    def __init__(self, narrator: Narrator, speech: Speech, key: Key, *, is_paid: bool) -> None:
        self.num_frames = 0
        self.duration_s = 0.0
        self._narrator = narrator
        self._speech = speech
        self._key = key
        self._is_paid = is_paid
        self._began_s = time.perf_counter()
        self._waiting_since_s = 0.0
        self._waited_s = 0.0  # for audio

    @property
    def generation_s(self) -> float:
        return time.perf_counter() - self._began_s

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts it; without a tokenizer here, input is characters. Output is frames."""
        num_in, num_out = len(self._speech.text), self.num_frames
        return {"input_tokens": num_in, "output_tokens": num_out, "total_tokens": num_in + num_out}

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The encoded utterance, each piece as soon as it can be heard; never an empty one.

        Raises:
            GatewayError, SpeechError: before the first piece, or between two.
        """
        with open_encoder(self._speech.sound) as encoder:
            async with self._speaking() as stream:
                async for samples in stream:
                    if not self.num_frames:
                        KEY_FIRST_AUDIO.labels(self._key.name).observe(self.generation_s)
                    self._count(stream)
                    if piece := encoder.encode(samples):
                        yield piece
                    self._waiting_since_s = time.perf_counter()
            if piece := encoder.finish():
                yield piece

    async def whole(self) -> bytes:
        """The encoded utterance, with true lengths in its header.

        Raises:
            GatewayError, SpeechError: nothing was made.
        """
        async with self._speaking() as stream:
            audio = await stream.read()
            self._count(stream)
        return await in_thread(encode_whole, self._speech.sound, audio.samples)

    @asynccontextmanager
    async def _speaking(self) -> AsyncIterator[AsyncSpeechStream]:
        self._waiting_since_s = time.perf_counter()
        try:
            async with self._narrator.speaking(self._speech, self._key, is_paid=self._is_paid) as stream:
                yield stream
        finally:
            KEY_AUDIO.labels(self._key.name).inc(self.duration_s)
            KEY_WAITED.labels(self._key.name).inc(self._waited_s)

    def _count(self, stream: AsyncSpeechStream) -> None:
        self._waited_s += time.perf_counter() - self._waiting_since_s
        self.num_frames = stream.num_frames
        self.duration_s = stream.received_s / self._speech.sound.speed


class Narrator:
    """Speaks for callers, within what their key allows."""

    def __init__(
        self,
        tts: AsyncSpeechClient,
        names: VoiceNames,
        keeper: ModelKeeper,
        limits: Limits,
        reference_hosts: Collection[str],
    ) -> None:
        self._tts = tts
        self._names = names
        self._keeper = keeper
        self._limits = limits
        self._reference_hosts = reference_hosts

    def utterance(self, speech: Speech, key: Key, *, is_paid: bool = False) -> Utterance:
        """One that is not begun yet; `is_paid`: its request and its characters are spent already."""
        return Utterance(self, speech, key, is_paid=is_paid)

    async def recite_all(self, speeches: Sequence[Speech], key: Key) -> list[bytes]:
        """Whole utterances, side by side as far as the key's streams go, in order; admitted together.

        Raises:
            GatewayError, SpeechError: of whichever failed first; the others are cancelled.
        """
        num_characters = sum(len(speech.text) for speech in speeches)
        async with self._limits.admitted(key, num_characters, num_requests=len(speeches)):
            pass  # each takes a stream of its own
        utterances = [self.utterance(speech, key, is_paid=True) for speech in speeches]
        return await self.together([utterance.whole() for utterance in utterances], key)

    async def together(self, work: Sequence[Coroutine[Any, Any, T]], key: Key) -> list[T]:
        """The outcomes of several utterances in order, as many at a time as the key may have."""
        return await together(work, min(MOST_AT_ONCE, self._limits.max_streams(key) or MOST_AT_ONCE))

    async def save(
        self,
        name: str,
        voice: Reference | ClonedVoice | VoicePrompt,
        key: Key,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep a voice for this key, of which it is a request.

        Raises:
            GatewayError, SpeechError: nothing was saved.
        """
        async with self._limits.admitted(key), AsyncExitStack() as models:
            if isinstance(voice, Reference):
                voice = await voice.open(self._reference_hosts)
            if isinstance(voice, ClonedVoice):
                await models.enter_async_context(self._keeper.using("create_voice"))
            await models.enter_async_context(self._keeper.using("voices"))
            await self._tts.voices.save(stored_name(key.owner, name), voice, metadata=metadata)

    async def open(self, reference: Reference, key: Key) -> ClonedVoice:
        """The voice in a recording that more than one utterance will be spoken with; a request of the key's.

        Raises:
            GatewayError: it cannot be had.
        """
        async with self._limits.admitted(key):
            return await reference.open(self._reference_hosts)

    @asynccontextmanager
    async def speaking(self, speech: Speech, key: Key, *, is_paid: bool) -> AsyncIterator[AsyncSpeechStream]:
        """The utterance as the engine makes it; leaving the block cancels what is still to come."""
        async with AsyncExitStack() as stack:
            admitted = self._limits.stream(key) if is_paid else self._limits.admitted(key, len(speech.text))
            await stack.enter_async_context(admitted)
            voice = await self._find(speech.voice, key)
            await stack.enter_async_context(self._keeper.using(model_of(voice)))
            options = SpeechOptions(request_id=request_id.get() or None, **speech.options)
            stream = self._tts.stream(speech.text, voice, language=speech.language, **options)
            yield await stack.enter_async_context(stream)

    async def _find(self, voice: CallersVoice, key: Key) -> FoundVoice:
        """Whose voice it is, in this key's eyes; a recording is listened to."""
        if isinstance(voice, Reference):
            voice = await voice.open(self._reference_hosts)
        if isinstance(voice, str):
            async with self._keeper.using("voices"):
                return await self._names.resolve(voice, key.owner)
        if isinstance(voice, ClonedVoice):
            async with self._keeper.using("create_voice"):
                return await self._tts.find(voice)
        return voice


MOST_AT_ONCE = 16
"""Of a batch's utterances: as many as a talker has slots, by default."""


async def together(work: Sequence[Coroutine[Any, Any, T]], most_at_once: int) -> list[T]:
    """The outcomes in order; the first failure cancels what is still under way."""
    room = asyncio.Semaphore(most_at_once)

    async def take_turn(one: Coroutine[Any, Any, T]) -> T:
        async with room:
            return await one

    tasks = [asyncio.create_task(take_turn(one)) for one in work]
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in work:  # those whose turn never came
            one.close()
        raise


def check_batch(texts: Sequence[Any], settings: Settings, *, param: str) -> None:
    """Whether so much may be asked for at once; what is not a text is somebody else's to refuse.

    Raises:
        InvalidInput: there are too many texts, or they are too long together.
    """
    most = settings.max_batch_items
    if len(texts) > most:
        raise InvalidInput(f"{param} has {len(texts)} items; at most {most} are taken", param=param)
    num_characters = sum(len(text) for text in texts if isinstance(text, str))
    if num_characters > settings.max_batch_characters:
        raise InvalidInput(
            f"{param} has {num_characters} characters of text; at most {settings.max_batch_characters} are "
            "spoken in one batch, so send it in parts",
            param=param,
        )


def checked_text(text: str, most_characters: int, *, param: str) -> str:
    """The text, if it can be said.

    Raises:
        InvalidInput: it is blank, or too long.
    """
    if not text.strip():
        raise InvalidInput(f"{param} is empty; there is nothing to say", param=param)
    if len(text) > most_characters:
        raise InvalidInput(
            f"{param} has {len(text)} characters; at most {most_characters} are spoken at once", param=param
        )
    return text
