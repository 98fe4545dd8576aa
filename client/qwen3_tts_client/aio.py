"""The client for code that awaits: `client.py` over, with only the waiting done differently."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio
from tritonclient.grpc import service_pb2

from qwen3_tts_client.audio import Audio, Samples
from qwen3_tts_client.connection import FAREWELL_S, Connection, ServerInfo
from qwen3_tts_client.conversation import Conversation, End, Pause, Question, advance
from qwen3_tts_client.errors import Cancelled
from qwen3_tts_client.models import AsyncModels
from qwen3_tts_client.reception import Reception
from qwen3_tts_client.request import SpeechOptions, Utterance, check_concurrency, per_text
from qwen3_tts_client.voice import FoundVoice, Voice
from qwen3_tts_client.voices import AsyncVoices

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")


class AsyncSpeechStream(Reception):
    """`SpeechStream` for `async with` and `async for`."""

    def __init__(self, utterance: Utterance, client: AsyncSpeechClient) -> None:
        super().__init__(utterance, client._finder)
        self._client = client
        self._call: Any = None

    async def __aenter__(self) -> Self:
        self._begin()
        request = await self._client._talk(self._addressing())
        self._call = self._client._stub.ModelStreamInfer(iter([request]), metadata=self._client._metadata)
        self._client._open_streams.add(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __aiter__(self) -> AsyncIterator[Samples]:
        self._require_open()
        return self

    async def __anext__(self) -> Samples:
        while not self._is_complete:
            self._raise_failure()
            samples = self._take(await self._next_response())
            if samples is not None:
                return samples
        raise StopAsyncIteration

    async def read(self, on_progress: Callable[[float], None] | None = None) -> Audio:
        """Await all that was not iterated over yet; `on_progress` hears `received_s` at each chunk."""
        chunks = []
        async for chunk in self:
            chunks.append(chunk)
            if on_progress is not None:
                on_progress(self.received_s)
        return self._audio(chunks)

    def cancel(self) -> None:
        """Stop the utterance, from any task; whoever awaits its next chunk gets `Cancelled`."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()

    async def close(self) -> None:
        """What leaving the block does: cancel the rest and free the connection's share."""
        if self._call is None:
            return
        self._client._open_streams.discard(self)
        self._mark_closed()
        if self._is_over:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._call.code(), FAREWELL_S)
        self._call.cancel()

    async def _next_response(self) -> service_pb2.ModelStreamInferResponse | None:
        reading = asyncio.ensure_future(self._call.read())  # one for all waits: cancelling it ends the call
        waited_s = 0.0
        try:
            for wait_s in self._waits_s():
                if waited_s and not await self._client._talk(self._asking_alive()):
                    break
                if (await asyncio.wait((reading,), timeout=wait_s))[0]:
                    return self._received(reading)
                waited_s += wait_s
            raise self._fail_with_silence(waited_s)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    def _received(
        self, reading: asyncio.Future[service_pb2.ModelStreamInferResponse]
    ) -> service_pb2.ModelStreamInferResponse | None:
        try:
            response = reading.result()
        except asyncio.CancelledError:  # the call was, not the task that waits for it
            raise self._fail_with_closure() from None
        except grpc.RpcError as error:
            raise self._fail_with_status(error) from None
        return None if response is grpc.aio.EOF else response


class AsyncSpeechClient(Connection):
    """`SpeechClient` for asyncio: the same methods and options, awaited.

    async with AsyncSpeechClient("localhost:8001") as tts:
        async with tts.stream("Read this.") as speech:
            async for chunk in speech:
                await play(chunk)
    """

    _grpc = grpc.aio

    @property
    def voices(self) -> AsyncVoices:
        """As `SpeechClient.voices`."""
        return AsyncVoices(self)

    @property
    def models(self) -> AsyncModels:
        """As `SpeechClient.models`."""
        return AsyncModels(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def stream(
        self,
        text: str,
        voice: Voice | FoundVoice = None,
        *,
        language: str | None = None,
        **options: Unpack[SpeechOptions],
    ) -> AsyncSpeechStream:
        """As `SpeechClient.stream`."""
        return AsyncSpeechStream(self._prepare(text, voice, language, options), self)

    async def synthesize(
        self,
        text: str,
        voice: Voice | FoundVoice = None,
        *,
        language: str | None = None,
        on_progress: Callable[[float], None] | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Audio:
        """As `SpeechClient.synthesize`."""
        async with self.stream(text, voice, language=language, **options) as speech:
            return await speech.read(on_progress)

    async def synthesize_batch(
        self,
        texts: Sequence[str],
        voice: Voice | Sequence[Voice] = None,
        *,
        language: str | Sequence[str] | None = None,
        concurrency: int = 16,
        **options: Unpack[SpeechOptions],
    ) -> list[Audio]:
        """As `SpeechClient.synthesize_batch`."""
        check_concurrency(concurrency)
        rows = list(per_text(texts, voice, language))
        found = await self._talk(self._finder.finding_all(one_voice for _, one_voice, _ in rows))
        room = asyncio.Semaphore(concurrency)

        async def speak(stream: AsyncSpeechStream) -> Audio:
            async with room, stream:
                return await stream.read()

        streams = [
            AsyncSpeechStream(self._prepare(text, found[one_voice], one_language, options), self)
            for text, one_voice, one_language in rows
        ]
        tasks = [asyncio.create_task(speak(stream)) for stream in streams]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def find(self, voice: Voice) -> FoundVoice:
        """As `SpeechClient.find`."""
        return await self._talk(self._finder.finding(voice))

    async def is_ready(self, model: str) -> bool:
        """As `SpeechClient.is_ready`."""
        answer = await self._ask("ModelReady", service_pb2.ModelReadyRequest(name=model))
        return bool(answer.ready)

    async def server_info(self) -> ServerInfo:
        answer = await self._ask("ServerMetadata", service_pb2.ServerMetadataRequest())
        return ServerInfo(answer.name, answer.version)

    async def model_inputs(self, model: str) -> dict[str, str]:
        """As `SpeechClient.model_inputs`."""
        answer = await self._ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=model))
        return {tensor.name: tensor.datatype for tensor in answer.inputs}

    async def close(self) -> None:
        """As `SpeechClient.close`."""
        self._is_closed = True
        for stream in tuple(self._open_streams):
            stream.cancel()
        if self._channel is not None:
            await self._channel.close()

    async def _talk(self, conversation: Conversation[T], *, in_threads: bool = False) -> T:
        """As `SpeechClient._talk`.

        Args:
            in_threads: what it does between its questions is done beside the loop: it reads or writes files.
        """
        go_on = _in_thread if in_threads else _at_once
        step = await go_on(conversation)
        while not isinstance(step, End):
            try:
                answer = await self._take_step(step)
            except BaseException as error:
                step = await go_on(conversation, error=error)
            else:
                step = await go_on(conversation, answer)
        return step.value

    async def _take_step(self, step: Question | Pause) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        return await self._ask(step.rpc, step.request, step.timeout_s)

    async def _ask(self, question: str, request: Any, timeout_s: float | None = None) -> Any:
        rpc = getattr(self._stub, question)
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            return await rpc(request, metadata=self._metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._error(error, request) from None
        except asyncio.CancelledError:
            if self._is_closed:  # the call was cancelled, not the task that waits for it
                raise Cancelled("the client was closed") from None
            raise


async def _at_once(
    conversation: Conversation[T], answer: Any = None, error: BaseException | None = None
) -> Question | Pause | End[T]:
    return advance(conversation, answer, error)


async def _in_thread(
    conversation: Conversation[T], answer: Any = None, error: BaseException | None = None
) -> Question | Pause | End[T]:
    return await asyncio.to_thread(advance, conversation, answer, error)
