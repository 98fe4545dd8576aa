"""What has arrived of one utterance: reads responses, guards their order, remembers how it ended.

Nothing here waits or knows a connection; `SpeechStream` and `AsyncSpeechStream` add exactly that.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import grpc
import numpy as np
from tritonclient.grpc import InferResult, service_pb2

from qwen3_tts_client.audio import Audio, Samples
from qwen3_tts_client.conversation import Conversation, Question
from qwen3_tts_client.errors import Cancelled, EngineFailed, ServerUnavailable, SpeechError, error_from_triton
from qwen3_tts_client.finding import VoiceFinder
from qwen3_tts_client.request import Utterance, address
from qwen3_tts_client.tensors import read_output, read_scalar

LIVENESS_TIMEOUT_S = 10.0
"""For a server that only has to say that it is alive."""


@dataclass(frozen=True)
class Chunk:
    """What one response carries."""

    samples: Samples
    sample_rate: int
    index: int
    num_frames: int
    finish_reason: str


def read_chunk(result: InferResult) -> Chunk:
    return Chunk(
        # A copy, because the message's own buffer is read-only and callers do change volumes in place.
        samples=read_output(result, "audio").reshape(-1).astype(np.float32),
        sample_rate=int(read_scalar(result, "sample_rate")),
        index=int(read_scalar(result, "chunk_index")),
        num_frames=int(read_scalar(result, "num_frames")),
        finish_reason=read_scalar(result, "finish_reason").decode(),
    )


class Reception:
    """State and facts of one utterance on its way in.

    Attributes:
        request_id: as Triton's log knows the request.
        sample_rate: samples per second; 0 until the first chunk.
        num_frames: frames generated so far; one frame is 80 ms.
        finish_reason: empty until the last chunk: `stop`, `length` or `runaway`.
        received_s: seconds of audio received so far.
        time_to_first_audio_s: seconds from entering the block to the first samples, the making of a new voice
            prompt included; None until then.
    """

    def __init__(self, utterance: Utterance, finder: VoiceFinder) -> None:
        self.request_id: str = utterance.request.id
        self.sample_rate = 0
        self.num_frames = 0
        self.finish_reason = ""
        self.received_s = 0.0
        self.time_to_first_audio_s: float | None = None
        self._utterance = utterance
        self._finder = finder
        self._began_at_s = 0.0
        self._num_chunks = 0
        self._is_complete = False
        self._is_over = False
        self._is_cancelled = False
        self._failure: SpeechError | None = None

    def _require_open(self) -> None:
        if not self._began_at_s:
            raise RuntimeError("a stream speaks inside its block: `with client.stream(...) as speech:`")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _begin(self) -> None:
        if self._is_cancelled:
            raise self._fail_with_closure()
        if self._began_at_s:
            raise RuntimeError("a stream speaks once; ask the client for another")
        self._began_at_s = time.perf_counter()

    def _addressing(self) -> Conversation[service_pb2.ModelInferRequest]:
        """Find the voice and, with it, the model to send the request to."""
        utterance = self._utterance
        try:
            voice = yield from self._finder.finding(utterance.voice, utterance.timeout_s)
            address(utterance.request, voice)
        except SpeechError as error:
            self._fail(error)
            raise
        if self._is_cancelled:  # meanwhile
            raise self._fail_with_closure()
        return utterance.request

    def _waits_s(self) -> Iterator[float]:
        """How long to wait for the next chunk; for the first one again and again, while the server lives."""
        each_s = self._utterance.timeout_s
        yield each_s
        left_s = 0.0 if self._num_chunks else self._utterance.queue_timeout_s
        while left_s > 0:
            yield min(each_s, left_s)
            left_s -= each_s

    def _asking_alive(self) -> Conversation[bool]:
        timeout_s = min(self._utterance.timeout_s, LIVENESS_TIMEOUT_S)
        try:
            answer = yield Question("ServerLive", service_pb2.ServerLiveRequest(), timeout_s)
        except SpeechError:
            return False
        return bool(answer.live)

    def _take(self, response: service_pb2.ModelStreamInferResponse | None) -> Samples | None:
        """The samples of one response; None where it holds none. A response of None is the stream's end."""
        if response is None:
            self._complete()
            return None
        if response.error_message:
            self._is_over = True
            raise self._fail(self._triton_error(None, response.error_message))
        infer_response = response.infer_response
        samples = self._take_chunk(InferResult(infer_response)) if infer_response.outputs else None
        if infer_response.parameters["triton_final_response"].bool_param:
            self._complete()
        return samples

    def _take_chunk(self, result: InferResult) -> Samples | None:
        try:
            chunk = read_chunk(result)
        except EngineFailed as error:
            raise self._fail(error) from None
        if chunk.index != self._num_chunks:
            raise self._fail(
                EngineFailed(f"chunk {chunk.index} arrived where chunk {self._num_chunks} was due")
            )
        self._num_chunks += 1
        self.sample_rate = chunk.sample_rate
        self.num_frames = chunk.num_frames
        self.finish_reason = chunk.finish_reason
        if not chunk.samples.size:
            return None
        if self.time_to_first_audio_s is None:
            self.time_to_first_audio_s = time.perf_counter() - self._began_at_s
        self.received_s += chunk.samples.size / chunk.sample_rate
        return chunk.samples

    def _complete(self) -> None:
        if not self.finish_reason:
            raise self._fail(
                EngineFailed(f"the stream ended after {self._num_chunks} chunks without a finish reason")
            )
        self._is_complete = self._is_over = True

    def _audio(self, chunks: Sequence[Samples]) -> Audio:
        samples = np.concatenate(chunks) if chunks else np.zeros(0, np.float32)
        return Audio(samples, self.sample_rate, self.finish_reason, self.num_frames)

    def _fail(self, error: SpeechError) -> SpeechError:
        error.request_id = error.request_id or self.request_id
        self._failure = error
        if isinstance(error, ServerUnavailable):
            self._finder.forget()
        return error

    def _fail_with_status(self, error: grpc.RpcError) -> SpeechError:
        return self._fail(self._triton_error(error.code(), error.details()))

    def _fail_with_silence(self, waited_s: float) -> SpeechError:
        utterance = self._utterance
        limit = "the limit between chunks"
        if waited_s > utterance.timeout_s:
            limit = "the limit for the first chunk"
        elif utterance.queue_timeout_s and not self._num_chunks:
            limit = "and the server does not say that it is alive"
        return self._fail(ServerUnavailable(f"{utterance.url}: no audio for {waited_s:g} s, {limit}"))

    def _fail_with_closure(self) -> SpeechError:
        return self._fail(Cancelled(f"the stream was closed after {self._num_chunks} chunks"))

    def _mark_closed(self) -> None:
        if not self._is_complete and self._failure is None:
            self._fail_with_closure()

    def _triton_error(self, code: grpc.StatusCode | None, message: str) -> SpeechError:
        return error_from_triton(code, message, url=self._utterance.url)
