"""Who calls a real server: the client library, tritonclient with any tensors at all, and HTTP."""

from __future__ import annotations

import base64
import http.client
import io
import json
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype, triton_to_np_dtype

from qwen3_tts_client import SpeechClient
from qwen3_tts_engine.launch.server import Server

MODEL = "qwen3_tts_custom_voice"
FRAME_SAMPLES = 1920
PATIENCE_S = 60

# At this heat the end is one code of two thousand, and a code once spoken is rewarded for coming again:
# the tiny voice goes on until it is stopped.
RESTLESS = {"temperature": 50.0, "top_k": 0, "repetition_penalty": 1e-6}
ENDLESS = {**RESTLESS, "max_frames": 8191}
TEN_SECONDS = {**RESTLESS, "max_frames": 125}

FLOAT32_NOISE = 1e-5  # of a sample; what upstream adds up in another order
ONE_PCM16_STEP = 1 / 32767


def grpc_address(server: Server) -> str:
    return f"127.0.0.1:{server.grpc_port}"


def client_of(server: Server) -> SpeechClient:
    return SpeechClient(grpc_address(server), timeout_s=PATIENCE_S)


def assert_same_audio(one: NDArray[Any], other: NDArray[Any], tolerance: float = 0) -> None:
    """As many samples, each the same."""
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


def sound_alike(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=FLOAT32_NOISE)


@dataclass(frozen=True)
class Response:
    """One response of the model, its tensors as plain values."""

    audio: NDArray[np.float32]
    encoded_audio: bytes
    sample_rate: int
    row: int
    chunk_index: int
    num_frames: int
    finish_reason: str
    is_final: bool


def infer(
    server: Server, *, model: str = MODEL, deadline_s: float | None = None, **inputs: Any
) -> Iterator[Response]:
    """Everything the model answers, as it arrives, up to and including FINAL.

    Args:
        server: whom to ask.
        model: which of its models that speak.
        deadline_s: gRPC's, for the whole stream.
        inputs: a list has a value for each row, a single value is for all of them; an array goes as it is.

    Raises:
        InferenceServerException: as tritonclient reports it.
    """
    with (
        triton.InferenceServerClient(grpc_address(server)) as client,
        stream_of(client, deadline_s) as arrivals,
    ):
        asked = tensors(client, inputs, model)
        client.async_stream_infer(model, asked, enable_empty_final_response=True)
        is_final = False
        while not is_final:
            response = read(arrivals.get(timeout=PATIENCE_S))
            is_final = response.is_final
            yield response
        client.stop_stream()
        assert arrivals.empty(), "a response after FINAL"


@contextmanager
def stream_of(
    client: triton.InferenceServerClient, deadline_s: float | None
) -> Iterator[queue.SimpleQueue[Any]]:
    """Where a stream's results and errors arrive; leaving the block cancels what is still to come."""
    arrivals: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: arrivals.put(error or result), stream_timeout=deadline_s)
    try:
        yield arrivals
    finally:
        client.stop_stream(cancel_requests=True)


def tensors(
    client: triton.InferenceServerClient, inputs: Mapping[str, Any], model: str = MODEL
) -> list[triton.InferInput]:
    """The inputs for a gRPC request."""
    return [
        triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype)).set_data_from_numpy(array)
        for name, array in arrays(client, inputs, model).items()
    ]


def arrays(
    client: triton.InferenceServerClient, inputs: Mapping[str, Any], model: str = MODEL
) -> dict[str, NDArray[Any]]:
    """[rows, 1] each, of the type that the model declares; arrays as they are."""
    declared = {tensor.name: tensor.datatype for tensor in client.get_model_metadata(model).inputs}
    rows = max((len(value) for value in inputs.values() if isinstance(value, list)), default=1)

    def array(name: str, value: Any) -> NDArray[Any]:
        if isinstance(value, np.ndarray):
            return value
        values = value if isinstance(value, list) else [value] * rows
        return np.array(values, triton_to_np_dtype(declared[name])).reshape(-1, 1)

    return {name: array(name, value) for name, value in inputs.items()}


def read(arrival: Any) -> Response:
    if isinstance(arrival, InferenceServerException):
        raise arrival

    def scalar(name: str) -> Any:
        return arrival.as_numpy(name).item()

    return Response(
        audio=arrival.as_numpy("audio").reshape(-1),
        encoded_audio=scalar("encoded_audio"),
        sample_rate=scalar("sample_rate"),
        row=scalar("row"),
        chunk_index=scalar("chunk_index"),
        num_frames=scalar("num_frames"),
        finish_reason=scalar("finish_reason").decode(),
        is_final=arrival.get_response().parameters["triton_final_response"].bool_param,
    )


def decode_pcm16(encoded: str | bytes) -> NDArray[np.float64]:
    return np.frombuffer(base64.b64decode(encoded, validate=True), "<i2") / 32767


def decode_wav(encoded: str | bytes) -> NDArray[np.float64]:
    """The samples of a complete WAV file, which must be 24 kHz, mono and 16 bit."""
    with soundfile.SoundFile(io.BytesIO(base64.b64decode(encoded, validate=True))) as file:
        assert (file.format, file.subtype, file.samplerate, file.channels) == ("WAV", "PCM_16", 24000, 1)
        return file.read(dtype="int16") / 32767


@contextmanager
def posted(server: Server, route: str, body: Any, model: str = MODEL) -> Iterator[http.client.HTTPResponse]:
    """The answer to `POST /v2/models/…/<route>`; leaving the block hangs up."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http_port, timeout=PATIENCE_S)
    try:
        connection.request("POST", f"/v2/models/{model}/{route}", json.dumps(body))
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[Any]:
    """The server-sent events of a response, as they arrive."""
    for line in response:
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))
