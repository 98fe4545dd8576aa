"""The client for code that waits."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2

from qwen3_tts_client.audio import Audio, Samples
from qwen3_tts_client.connection import FAREWELL_S, Connection, ServerInfo
from qwen3_tts_client.conversation import Conversation, End, Pause, Question, advance
from qwen3_tts_client.models import Models
from qwen3_tts_client.reception import Reception
from qwen3_tts_client.request import SpeechOptions, Utterance, check_concurrency, per_text
from qwen3_tts_client.voice import FoundVoice, Voice
from qwen3_tts_client.voices import Voices

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

T = TypeVar("T")


class SpeechStream(Reception):
    """One utterance being spoken, float32 [num_samples] chunks as they are made.

        with client.stream("Good morning.") as speech:
            for chunk in speech:
                play(chunk)

    Entering the block sends the request; leaving it cancels what is still to come.
    """

    def __init__(self, utterance: Utterance, client: SpeechClient) -> None:
        super().__init__(utterance, client._finder)
        self._client = client
        self._call: Any = None
        self._responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._reader = threading.Thread(
            target=self._receive, name=f"qwen3-tts {self.request_id}", daemon=True
        )

    def __enter__(self) -> Self:
        self._begin()
        request = self._client._talk(self._addressing())
        self._call = self._client._stub.ModelStreamInfer(iter([request]), metadata=self._client._metadata)
        self._client._open_streams.add(self)
        try:
            self._reader.start()
        except RuntimeError:  # no more threads: nobody would ever take what comes
            self._client._open_streams.discard(self)
            self._call.cancel()
            raise
        if self._is_cancelled:  # by another thread, while the call was being opened
            self._call.cancel()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Samples]:
        self._require_open()
        return self

    def __next__(self) -> Samples:
        while not self._is_complete:
            self._raise_failure()
            samples = self._take(self._next_response())
            if samples is not None:
                return samples
        raise StopIteration

    def read(self, on_progress: Callable[[float], None] | None = None) -> Audio:
        """Wait for all that was not iterated over yet; `on_progress` hears `received_s` at each chunk."""
        chunks = []
        for chunk in self:
            chunks.append(chunk)
            if on_progress is not None:
                on_progress(self.received_s)
        return self._audio(chunks)

    def cancel(self) -> None:
        """Stop the utterance, from any thread; whoever waits for its next chunk gets `Cancelled`."""
        self._is_cancelled = True
        if self._call is not None:
            self._call.cancel()

    def close(self) -> None:
        """What leaving the block does: cancel the rest and free the connection's share."""
        if self._call is None:
            return
        if self._is_over:
            self._reader.join(FAREWELL_S)
        self._call.cancel()
        self._reader.join()
        self._client._open_streams.discard(self)
        self._mark_closed()

    def _receive(self) -> None:
        try:
            for response in self._call:
                self._responses.put(response)
            self._responses.put(None)
        except grpc.RpcError as error:
            self._responses.put(error)

    def _next_response(self) -> service_pb2.ModelStreamInferResponse | None:
        waited_s = 0.0
        for wait_s in self._waits_s():
            if waited_s and not self._client._talk(self._asking_alive()):
                break
            with contextlib.suppress(queue.Empty):
                return self._received(self._responses.get(timeout=wait_s))
            waited_s += wait_s
        self._call.cancel()
        raise self._fail_with_silence(waited_s)

    def _received(
        self, response: service_pb2.ModelStreamInferResponse | grpc.RpcError | None
    ) -> service_pb2.ModelStreamInferResponse | None:
        if isinstance(response, grpc.RpcError):
            raise self._fail_with_status(response)
        return response


class SpeechClient(Connection):
    """Speech from a Triton server that runs the Qwen3-TTS models.

        with SpeechClient("localhost:8001") as tts:
            tts.synthesize("Good morning.", voice="ryan").save("morning.wav")

    One client serves any number of threads and utterances at once, over one connection.
    """

    _grpc = grpc

    @property
    def voices(self) -> Voices:
        """Voices to speak with by name: save, design, list, describe, delete."""
        return Voices(self)

    @property
    def models(self) -> Models:
        """What the server has loaded: list, load, unload, swap a checkpoint."""
        return Models(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def stream(
        self,
        text: str,
        voice: Voice | FoundVoice = None,
        *,
        language: str | None = None,
        **options: Unpack[SpeechOptions],
    ) -> SpeechStream:
        """Speak, and hand over the audio while it is being made; see `SpeechStream`.

        Raises:
            SpeechError: on entering the stream or while iterating, never after the last chunk.
            OSError: on entering it; the recording of a `ClonedVoice` cannot be read.
        """
        return SpeechStream(self._prepare(text, voice, language, options), self)

    def synthesize(
        self,
        text: str,
        voice: Voice | FoundVoice = None,
        *,
        language: str | None = None,
        on_progress: Callable[[float], None] | None = None,
        **options: Unpack[SpeechOptions],
    ) -> Audio:
        """Speak, and return the whole utterance; `on_progress` hears the seconds received so far.

        Raises:
            SpeechError: nothing was returned; a part of an utterance never passes for the whole.
        """
        with self.stream(text, voice, language=language, **options) as speech:
            return speech.read(on_progress)

    def synthesize_batch(
        self,
        texts: Sequence[str],
        voice: Voice | Sequence[Voice] = None,
        *,
        language: str | Sequence[str] | None = None,
        concurrency: int = 16,
        **options: Unpack[SpeechOptions],
    ) -> list[Audio]:
        """Speak several texts, `concurrency` of them at a time, and return them in order.

        `voice` and `language` are for all texts or, as a list, one for each.

        Raises:
            SpeechError: of whichever text failed first; the others are cancelled.
            ValueError: `concurrency` is less than 1.
        """
        check_concurrency(concurrency)
        rows = list(per_text(texts, voice, language))
        found = self._talk(self._finder.finding_all(one_voice for _, one_voice, _ in rows))
        streams = [
            SpeechStream(self._prepare(text, found[one_voice], one_language, options), self)
            for text, one_voice, one_language in rows
        ]
        with ThreadPoolExecutor(concurrency, thread_name_prefix="qwen3-tts batch") as pool:
            futures = [pool.submit(_speak, stream) for stream in streams]
            try:
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                for stream in streams:
                    stream.cancel()
                raise
        return [future.result() for future in futures]

    def find(self, voice: Voice) -> FoundVoice:
        """Find out now what `stream` would: whose name it is, what is to be heard in a recording.

        `stream` takes the outcome in place of the voice; `model_of` names the model that speaks with it.

        Raises:
            SpeechError: the server could not be asked, or cannot hear the recording.
            OSError: the recording of a `ClonedVoice` cannot be read.
        """
        return self._talk(self._finder.finding(voice))

    def is_ready(self, model: str) -> bool:
        """Whether the server answers for this model.

        Raises:
            ServerUnavailable: nobody answers at all.
        """
        return bool(self._ask("ModelReady", service_pb2.ModelReadyRequest(name=model)).ready)

    def server_info(self) -> ServerInfo:
        answer = self._ask("ServerMetadata", service_pb2.ServerMetadataRequest())
        return ServerInfo(answer.name, answer.version)

    def model_inputs(self, model: str) -> dict[str, str]:
        """The inputs the server's model declares, name to Triton datatype."""
        answer = self._ask("ModelMetadata", service_pb2.ModelMetadataRequest(name=model))
        return {tensor.name: tensor.datatype for tensor in answer.inputs}

    def close(self) -> None:
        """Cancel what is still being spoken, and disconnect.

        Whoever asks for anything afterwards gets `ServerUnavailable`.
        """
        self._is_closed = True
        for stream in tuple(self._open_streams):
            stream.cancel()
        if self._channel is not None:
            self._channel.close()

    def _talk(self, conversation: Conversation[T]) -> T:
        """Hold a conversation to its end, and return what came of it."""
        step = advance(conversation)
        while not isinstance(step, End):
            try:
                answer = self._take_step(step)
            except BaseException as error:
                step = advance(conversation, error=error)
            else:
                step = advance(conversation, answer)
        return step.value

    def _take_step(self, step: Question | Pause) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        return self._ask(step.rpc, step.request, step.timeout_s)

    def _ask(self, question: str, request: Any, timeout_s: float | None = None) -> Any:
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            return getattr(self._stub, question)(request, metadata=self._metadata, timeout=timeout_s)
        except grpc.RpcError as error:
            raise self._error(error, request) from None


def _speak(stream: SpeechStream) -> Audio:
    with stream:
        return stream.read()
