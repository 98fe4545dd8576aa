"""From chunks to Triton responses: one thread talks to Triton, so that the engine's never waits for it."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from qwen3_tts_engine.errors import EngineFailed, SpeechError
from qwen3_tts_engine.request import SAMPLE_RATE
from qwen3_tts_engine.sequence import Chunk
from qwen3_tts_engine.triton.encoding import encode
from qwen3_tts_engine.triton.errors import triton_error
from qwen3_tts_engine.triton.reading import RowRequest

logger = logging.getLogger(__name__)

# Seen with Triton 24.10: where there is no shared memory for a response that has FINAL with it, its sender is
# closed before it fails, and can say nothing more; the caller waits for ever, and a drain with them. One of
# more frames, nearly a megabyte, is sent first, and FINAL after it.
LARGE_FRAMES = 125

# -> an InferenceResponse, of which pb_utils does not have the class yet when this is imported
MakeResponse = Callable[[], Any]

LISTENING_POLL_S = 0.005  # how often Triton is asked whether a caller is still there


class Courier:
    """Sends responses in the order they were handed in, and asks in between who stopped listening."""

    def __init__(self) -> None:
        self._deliveries: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._open: set[ResponseStream] = set()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def deliver(self, send: Callable[[], None]) -> None:
        self._deliveries.put(send)

    def watch(self, stream: ResponseStream) -> None:
        self._deliveries.put(lambda: self._open.add(stream))

    def forget(self, stream: ResponseStream) -> None:
        self._deliveries.put(lambda: self._open.discard(stream))

    @property
    def is_working(self) -> bool:
        return self._thread.is_alive()

    def close(self) -> None:
        """Send what is left, then stop."""
        self._deliveries.put(None)
        self._thread.join()

    def _run(self) -> None:
        next_poll_s = 0.0
        while True:
            try:
                send = self._deliveries.get(timeout=LISTENING_POLL_S if self._open else None)
            except queue.Empty:
                pass
            else:
                if send is None:
                    return
                self._try(send)
            if time.monotonic() >= next_poll_s:
                for stream in self._open:
                    self._try(stream.ask_whether_cancelled)
                next_poll_s = time.monotonic() + LISTENING_POLL_S

    def _try(self, act: Callable[[], None]) -> None:
        """What fails for one caller must not end the thread that all of them need."""
        try:
            act()
        except Exception:
            logger.exception("a caller could not be answered")


class ResponseStream:
    """One Triton request on its way back: chunks of its rows in any order, then FINAL, exactly once.

    Responses are made and sent on the courier's thread. One that cannot be, for want of shared memory say,
    ends the request with an error: a caller must not take the rest for the whole.

    Args:
        sender: the request's response sender.
        courier: who talks to Triton.
        on_close: told once how the request ended.
    """

    def __init__(self, sender: Any, courier: Courier, on_close: Callable[[SpeechError | None], None]) -> None:
        self.cancelled = False
        self._sender = sender
        self._courier = courier
        self._on_close = on_close
        self._lock = threading.Lock()  # rows may end on the engine's thread while others fail at the door
        self._unfinished = 0
        self._closed = False
        self._gap: SpeechError | None = None  # a chunk that could not be sent; the courier's alone

    def open(self, rows: Sequence[RowRequest]) -> list[RowSink]:
        """One sink for each row; from now on Triton is asked whether anybody listens."""
        self._unfinished = len(rows)
        self._courier.watch(self)
        return [RowSink(self, i, row) for i, row in enumerate(rows)]

    def ask_whether_cancelled(self) -> None:
        """On the courier's thread."""
        if self._sender.is_cancelled():  # never back to False: the engine's thread may have set it meanwhile
            self.cancelled = True

    def send(self, make: MakeResponse) -> None:
        """Pass a chunk on, unless the request is over: another row may have failed meanwhile."""
        with self._lock:
            if not self._closed:
                self._courier.deliver(lambda: self._send(make))

    def send_last_of_row(self, make: MakeResponse, is_large: bool = False) -> None:
        """FINAL rides on the last chunk of the last row, unless that is a large one."""
        with self._lock:
            self._unfinished -= 1
            final = self._unfinished == 0
        if final and is_large:
            self.send(make)
            self._close(None, None)
        elif final:
            self._close(make, None)
        else:
            self.send(make)

    def fail(self, error: SpeechError) -> None:
        """End the request with an error; rows still speaking have nobody to speak to."""
        self.cancelled = True
        self._close(lambda: _refusal(error), error)

    def _close(self, make: MakeResponse | None, error: SpeechError | None) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._courier.forget(self)
            self._courier.deliver(lambda: self._send_final(make, error))

    def _send(self, make: MakeResponse) -> None:
        if self._gap is not None:
            return
        try:
            self._sender.send(make())
        except Exception as error:
            logger.exception("a chunk could not be sent")
            self._gap = EngineFailed(f"a chunk could not be sent: {error}")
            self.fail(self._gap)

    def _send_final(self, make: MakeResponse | None, error: SpeechError | None) -> None:
        """What the request ends with: the last chunk or an error, or nothing more."""
        try:
            response = _refusal(self._gap) if self._gap else make and make()
        except Exception as unmade:
            logger.exception("the last chunk could not be made")
            self._gap = EngineFailed(f"the last chunk could not be made: {unmade}")
            response = _refusal(self._gap)
        self._on_close(self._gap or error)
        self._sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _refusal(error: SpeechError) -> pb_utils.InferenceResponse:
    return pb_utils.InferenceResponse(error=triton_error(error))


class RowSink:
    """Where one row's chunks go: straight on when streaming, else collected into one."""

    def __init__(self, stream: ResponseStream, index: int, row: RowRequest) -> None:
        self._stream = stream
        self._index = index
        self._row = row
        self._collected: list[np.ndarray] = []

    @property
    def cancelled(self) -> bool:
        return self._stream.cancelled

    @property
    def is_live(self) -> bool:
        return self._row.stream

    def write(self, chunk: Chunk) -> None:
        if not self._row.stream:
            self._collected.append(chunk.samples)
        if chunk.finish_reason:
            is_large = not self._row.stream and chunk.num_frames > LARGE_FRAMES
            self._stream.send_last_of_row(lambda: self._response(self._whole(chunk)), is_large)
        elif self._row.stream:
            self._stream.send(lambda: self._response(chunk))

    def close(self, error: SpeechError | None = None) -> None:
        if error is not None:
            self._stream.fail(error)

    def _whole(self, last: Chunk) -> Chunk:
        if self._row.stream:
            return last
        return Chunk(np.concatenate(self._collected), 0, last.num_frames, last.finish_reason)

    def _response(self, chunk: Chunk) -> pb_utils.InferenceResponse:
        audio, encoded = encode(chunk.samples, self._row.audio_encoding)
        return pb_utils.InferenceResponse(
            [
                pb_utils.Tensor("audio", audio[None]),
                pb_utils.Tensor("encoded_audio", np.array([[encoded]], dtype=object)),
                pb_utils.Tensor("sample_rate", np.array([[SAMPLE_RATE]], np.int32)),
                pb_utils.Tensor("row", np.array([[self._index]], np.int32)),
                pb_utils.Tensor("chunk_index", np.array([[chunk.index]], np.int32)),
                pb_utils.Tensor("num_frames", np.array([[chunk.num_frames]], np.int32)),
                pb_utils.Tensor(
                    "finish_reason", np.array([[(chunk.finish_reason or "").encode()]], dtype=object)
                ),
            ]
        )
