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

from qwen3_tts_engine.errors import SpeechError
from qwen3_tts_engine.request import SAMPLE_RATE
from qwen3_tts_engine.sequence import Chunk
from qwen3_tts_engine.triton.encoding import encode
from qwen3_tts_engine.triton.errors import triton_error
from qwen3_tts_engine.triton.reading import RowRequest

logger = logging.getLogger(__name__)

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
                self._send(send)
            if time.monotonic() >= next_poll_s:
                for stream in self._open:
                    stream.ask_whether_cancelled()
                next_poll_s = time.monotonic() + LISTENING_POLL_S

    def _send(self, send: Callable[[], None]) -> None:
        """What cannot be sent costs its own caller the answer, and nobody else theirs."""
        try:
            send()
        except Exception:
            logger.exception("a response could not be sent")


class ResponseStream:
    """One Triton request on its way back: chunks of its rows in any order, then FINAL, exactly once.

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

    def open(self, rows: Sequence[RowRequest]) -> list[RowSink]:
        """One sink for each row; from now on Triton is asked whether anybody listens."""
        self._unfinished = len(rows)
        self._courier.watch(self)
        return [RowSink(self, i, row) for i, row in enumerate(rows)]

    def ask_whether_cancelled(self) -> None:
        """On the courier's thread."""
        self.cancelled = self.cancelled or self._sender.is_cancelled()

    def send(self, response: pb_utils.InferenceResponse) -> None:
        """Pass a chunk on, unless the request is over: another row may have failed meanwhile."""
        with self._lock:
            if not self._closed:
                self._courier.deliver(lambda: self._sender.send(response))

    def send_last_of_row(self, response: pb_utils.InferenceResponse) -> None:
        """FINAL rides on the last chunk of the last row."""
        with self._lock:
            self._unfinished -= 1
            final = self._unfinished == 0
        if final:
            self._close(response, None)
        else:
            self.send(response)

    def fail(self, error: SpeechError) -> None:
        """End the request with an error; rows still speaking have nobody to speak to."""
        self.cancelled = True
        self._close(pb_utils.InferenceResponse(error=triton_error(error)), error)

    def _close(self, response: pb_utils.InferenceResponse, error: SpeechError | None) -> None:
        final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._courier.forget(self)
            self._courier.deliver(lambda: self._sender.send(response, flags=final))
        self._on_close(error)


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
            self._stream.send_last_of_row(self._response(self._whole(chunk)))
        elif self._row.stream:
            self._stream.send(self._response(chunk))

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
